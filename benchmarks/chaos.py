"""Kills the processes of a study at random moments, resumes it whenever its driver is gone, and checks what is left.

    python benchmarks/chaos.py --kills 40

A study of 24 trials, half of them on lanes of two ranks, runs once undisturbed and once under `kill -9` of its driver,
its lanes, their ranks and the raylet in turn. Whatever the moments were, no trial may be lost or end twice, every loss
must be that of the undisturbed study to the last bit, and MLflow must hold each trial once, none of them running.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import ray
import torch
from mlflow import MlflowClient

SPACE = """
base: llama
axes:
  normalization: [layernorm, layernorm_nobias, rmsnorm]
  position_encoding: [rope, none]
  weight_tying: [true, false]
placement:
  - {when: {weight_tying: true}, workers: 2}
"""
SMALL = (
    "--device cpu --seeds 2 --n_layer 2 --n_head 2 --n_embd 64 --block_size 64 --global_batch 1024 --eval_tokens 2048 "
    "--max_iters 150 --checkpoint_interval 25"
)
TARGETS = ("driver", "lane", "rank", "raylet")
# What Ray calls the processes: the beginning of their command lines.
COMMANDS = {"lane": "ray::ResourceTrainable", "rank": "ray::RayTrainWorker", "raylet": "raylet"}


def descendants(root: int) -> dict[int, str]:
    """The command line of every process below `root`, by id."""
    parents, commands = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended meanwhile
            continue
    found, new = set(), {root}
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new} - found
    return {pid: commands.get(pid, "") for pid in found - {root}}


def is_target(command: str, target: str) -> bool:
    name = command.split(" ")[0]
    return name.endswith("/raylet") if target == "raylet" else name.startswith(COMMANDS[target])


def driver(folder: Path, name: str, extra: list[str]) -> subprocess.Popen[bytes]:
    """Start the study `name`, or go on with it."""
    tune = [sys.executable, "-m", "raytrain.tune", "--runs", str(folder)]
    if (folder / name / "study.json").exists():
        tune += ["--resume", name]
    else:
        tune += ["--name", name, "--space", str(folder / "space.yaml"), *SMALL.split(), *extra]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(tune, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def kill_tree(processes: dict[int, str]) -> None:
    """What a dead driver left behind, so that the next one starts on a free machine."""
    for pid in processes:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def disturb(folder: Path, kills: int, seed: int, pause: float, extra: list[str]) -> Counter[str]:
    """Run the study "killed" to its end under `kills` kills. Returns how many of each target there were."""
    draw, done = random.Random(seed), Counter[str]()
    process = driver(folder, "killed", extra)
    below: dict[int, str] = {}
    while True:
        wait = time.monotonic() + draw.uniform(0.2, pause)
        while process.poll() is None and time.monotonic() < wait:
            below = descendants(process.pid)
            time.sleep(0.1)
        if process.poll() is not None:
            kill_tree(below)
            if process.returncode in (0, 1, 2):
                return done
            process = driver(folder, "killed", extra)
            continue
        if done.total() >= kills:
            continue
        target = TARGETS[done.total() % len(TARGETS)]
        found = (
            [process.pid]
            if target == "driver"
            else [p for p, c in descendants(process.pid).items() if is_target(c, target)]
        )
        if found:
            os.kill(draw.choice(found), signal.SIGKILL)
            done[target] += 1
            print(f"kill {done.total()}: {target}", flush=True)
        if target == "driver":
            process.wait()


def losses(folder: Path) -> dict[str, float]:
    """The final loss of every trial that is complete or was stopped."""
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("trials/*/result.json")}
    return {name: result["val_loss"] for name, result in results.items() if result["status"] in ("complete", "stopped")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument("--pause", type=float, default=12.0, help="most seconds between two kills")
    parser.add_argument("--folder", help="where the studies go [a temporary one]")
    flags, extra = parser.parse_known_args()
    folder = Path(flags.folder or tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "space.yaml").write_text(SPACE)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, ray {ray.__version__}; in {folder}"
    )
    began = time.monotonic()
    if not (folder / "whole").exists():
        driver(folder, "whole", extra).wait()
    undisturbed, began = time.monotonic() - began, time.monotonic()
    done = disturb(folder, flags.kills, flags.seed, flags.pause, extra)
    disturbed = time.monotonic() - began

    planned = [trial["id"] for trial in json.loads((folder / "killed" / "study.json").read_text())["trials"]]
    truth, found = losses(folder / "whole"), losses(folder / "killed")
    events = [json.loads(line) for line in (folder / "killed" / "events.jsonl").read_text().splitlines()]
    ends = Counter(event["trial"] for event in events if event["event"] == "end" and event["status"] != "lost")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("killed")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    in_mlflow = Counter(run.data.tags["raytrain.trial"] for run in runs)
    faults = {
        "trials lost": len(set(planned) - set(found)),
        "trials ended twice": sum(count > 1 for count in ends.values()),
        "wrong losses": sum(found[name] != truth.get(name) for name in found),
        "missing from MLflow": len(set(planned) - set(in_mlflow)),
        "twice in MLflow": sum(count > 1 for count in in_mlflow.values()),
        "unfinished in MLflow": sum(run.info.status != "FINISHED" for run in runs),
    }
    print(f"{done.total()} kills ({', '.join(f'{count} {name}' for name, count in done.items())}) in {disturbed:.0f} s")
    print(
        f"undisturbed {undisturbed:.0f} s; {len(planned)} trials, {len(runs) - 1} in MLflow beside the study's own run"
    )
    for name, count in faults.items():
        print(f"{name:24}{count}")
    return int(any(faults.values()) or len(planned) != 24)


if __name__ == "__main__":
    raise SystemExit(main())
