"""What the engine adds to a study: its wall time over the time that its trials trained, a lane's share of it.

    python benchmarks/overhead.py [--trials 40] [--steps 80] [--lanes 2]

A study of the four presets with as many seeds as it takes, by `raytrain.tune` on this machine's CPUs. The wall time is
that of the command, from before Python starts until after it has ended: imports, Ray, lanes, MLflow and the report are
in it. Beside it, the same from the first step of the first trial to the end of the last: what each further trial costs.
Training is that of all trials, with their evaluations.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
import torch

from raytrain.rundir.log import read_log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--steps", type=int, default=80, help="of 1,024 tokens each; 80 take about 5 s on one core")
    parser.add_argument("--lanes", type=int, default=2)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="overhead-") as runs:
        study = f"--space presets --seeds {-(-flags.trials // 4)} --max_trials {flags.trials} --max_iters {flags.steps}"
        place = f"--device cpu --concurrent {flags.lanes} --runs {runs} --name study --json"
        began = time.time()
        command = [sys.executable, "-m", "raytrain.tune", *f"{study} --eval_tokens 4096 {place}".split()]
        done = subprocess.run(command, capture_output=True, text=True)
        wall = time.time() - began
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        results = json.loads(done.stdout)["trials"]
        logs = [read_log(path) for path in Path(runs).glob("study/trials/*/log.jsonl")]
    first = min(log[0]["time"] for log in logs)
    last = max(log[-1]["time"] for log in logs)
    trained = sum(result["train_seconds"] + result["eval_seconds"] for result in results)
    share = trained / flags.lanes
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"ray {ray.__version__}; {len(results)} trials of {trained / len(results):.1f} s on {flags.lanes} lanes")
    for words, seconds in {
        "the whole command": wall,
        "the whole command but its end (MLflow, the report)": last - began,
        "from the first step of the first trial to the end of the last": last - first,
    }.items():
        print(f"{words:64}{seconds:8.1f} s {seconds / share:8.3f}")
    print(f"{'training over lanes':64}{share:8.1f} s {1:8.3f}")


if __name__ == "__main__":
    main()
