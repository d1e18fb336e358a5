"""Does a long queue cost more as it shortens? Time per trial and the driver's memory, over trials that train nothing.

    python benchmarks/many.py [--trials 2000] [--lanes 2]

One function with so many seeds, each a trial whose training only reports. All else is a study as any: its folder, its
events, MLflow. Windows of 100 trials: the time of each, and the driver's resident memory when the last of them ended.
"""

import argparse
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from raytrain.config.resolve import resolve
from raytrain.engine.study import run_study
from raytrain.rundir.log import read_log
from raytrain.sweep.estimate import ResourceRequest
from raytrain.sweep.plan import make_plan
from raytrain.sweep.space import Space, expand

WINDOW = 100


def train(config: Any, on_report: Callable[..., bool], folder: str | None, interrupted: Callable[[], bool]) -> None:
    """Nothing, in the reports of a run."""
    facts = {"train_flops": config.train_flops, "tokens_per_second": 1e6, "vocab_size": 256}
    on_report({"event": "start", "startup_seconds": 0.0})
    on_report({"event": "step", "step": 1, "loss": 2.5, **facts})
    result = {"train_loss": 2.5, "val_loss": 2.0 + config.seed % 97 / 1e4, **facts}
    on_report({"event": "eval", "step": 1, **result})
    on_report({"event": "end", "status": "complete", "train_seconds": 0.01, "eval_seconds": 0.0, **result})


def resident() -> float:
    """Memory of this process, the driver, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--lanes", type=int, default=2)
    flags = parser.parse_args()
    space = Space("many", "llama", {"norm_position": ("pre",)})
    expansion = expand(space, lambda values: resolve([("bench", {"max_iters": 1, **values})], data_vocab_size=256)[0])
    budget = expansion.candidates[0].config.train_flops
    request = ResourceRequest(gpus_per_trial=0, concurrent=flags.lanes)
    plan = make_plan(space, expansion, budget_flops=budget, scale="tiny", seeds=flags.trials, request=request)
    memory: list[tuple[float, float]] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.5):
            memory.append((time.time(), resident()))

    with tempfile.TemporaryDirectory(prefix="many-") as runs:
        threading.Thread(target=watch, daemon=True).start()
        began = time.time()
        run_study(plan, runs=Path(runs), name="many", train=train)
        took = time.time() - began
        is_over.set()
        events = read_log(Path(runs) / "many" / "events.jsonl")
        ends = [event["time"] for event in events if event["event"] == "end"]
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, ray {ray.__version__}")
    print(
        f"{len(ends)} trials on {flags.lanes} lanes in {took:.0f} s, {ends[-1] - began:.0f} s of it to the last end\n"
    )
    print("trials          ms a trial   driver's MB")
    for last in range(WINDOW, len(ends) + 1, WINDOW):
        milliseconds = 1000 * (ends[last - 1] - ends[last - WINDOW]) / (WINDOW - 1)
        held = [mb for when, mb in memory if when <= ends[last - 1]][-1]
        print(f"{last - WINDOW + 1:5} to {last:5} {milliseconds:10.1f} {held:13.0f}")


if __name__ == "__main__":
    main()
