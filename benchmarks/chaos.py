"""Kills the processes of a study at random moments, resumes it whenever its driver is gone, and checks what is left.

    python benchmarks/chaos.py --kills 40
    python benchmarks/chaos.py --terms 20

A study of 24 trials, half of them on lanes of two ranks, runs once undisturbed and once under `kill -9` of its driver,
its lanes, their ranks and the raylet in turn, or under SIGTERM to its process group, as batch systems send it. Whatever
the moments were, no trial may be lost or end twice, every loss must be that of the undisturbed study to the last bit,
and MLflow must hold each trial once, none of them running, with every point of the undisturbed one, once. After a
SIGTERM the study must end within 20 s with exit code 143, be marked as interrupted, and say how to resume it.
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
from collections.abc import Sequence
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
LIMIT = 20.0  # seconds from a SIGTERM to the end
TARGETS = ("driver", "lane", "rank", "raylet")
# What Ray calls the processes: the beginning of their command lines.
COMMANDS = {"lane": "ray::ResourceTrainable", "rank": "ray::RayTrainWorker", "raylet": "raylet"}


def descendants(root: int) -> dict[int, str]:
    """The command line of every process below `root`, by id."""
    parents, commands = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(path.name)] = (path / "cmdline").read_text(errors="replace").replace("\0", " ")
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
        tune += ["--name", name, "--experiment", name, "--space", str(folder / "space.yaml"), *SMALL.split(), *extra]
    with (folder / f"{name}.log").open("ab") as log:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(tune, stdout=log, stderr=log, env=env, start_new_session=True)


def kill_tree(processes: dict[int, str]) -> None:
    """What a dead driver left behind, so that the next one starts on a free machine."""
    for pid in processes:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def disturb(
    folder: Path, name: str, targets: Sequence[str], count: int, seed: int, pause: float, extra: list[str]
) -> tuple[Counter[str], list[str]]:
    """Run the study `name` to its end while `targets` are hit in turn, `count` times in all.

    Returns how often each was hit, and what was wrong with the ends after a SIGTERM.
    """
    draw, done, wrong = random.Random(seed), Counter[str](), list[str]()
    process = driver(folder, name, extra)
    below: dict[int, str] = {}
    while True:
        wait = time.monotonic() + draw.uniform(0.2, pause)
        while process.poll() is None and time.monotonic() < wait:
            below = descendants(process.pid)
            time.sleep(0.1)
        if process.poll() is not None:
            kill_tree(below)
            if process.returncode in (0, 1, 2):
                return done, wrong
            process = driver(folder, name, extra)
            continue
        if done.total() >= count:
            continue
        target = targets[done.total() % len(targets)]
        found = (
            [process.pid]
            if target in ("driver", "group")
            else [p for p, c in descendants(process.pid).items() if is_target(c, target)]
        )
        if not found:
            continue
        done[target] += 1
        print(f"{done.total()}: {target}", flush=True)
        if target == "group":
            wrong += terminate(process, folder, name)
            continue
        os.kill(draw.choice(found), signal.SIGKILL)
        if target == "driver":
            process.wait()


def terminate(process: subprocess.Popen[bytes], folder: Path, name: str) -> list[str]:
    """Send SIGTERM to the process group of a study; what is not as it should be then."""
    log, study = folder / f"{name}.log", folder / name / "study.json"
    said, began = log.stat().st_size, time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    code = process.wait()
    took = time.monotonic() - began
    if process.returncode in (0, 1, 2):  # it had just ended
        return []
    is_there = study.exists()  # else the signal came before there was a study
    wrong = [] if code == 143 or (code == -signal.SIGTERM and not is_there) else [f"exit code {code}"]
    wrong += [] if took <= LIMIT else [f"{took:.0f} s to end"]
    if is_there:
        wrong += [] if json.loads(study.read_text()).get("interrupted") else ["not marked"]
        wrong += [] if f"--resume {name}" in log.read_bytes()[said:].decode() else ["no resume line"]
    print(f"   ended with {code} after {took:.1f} s{': ' if wrong else ''}{', '.join(wrong)}", flush=True)
    return wrong


def points(client: MlflowClient, study: str) -> dict[tuple[str, str], list[int]]:
    """The steps of the points that MLflow has, by trial and metric of a study."""
    found = client.get_experiment_by_name(study)
    runs = client.search_runs([found.experiment_id]) if found else []
    return {
        (trial, metric): [point.step for point in client.get_metric_history(run.info.run_id, metric)]
        for run in runs
        for metric in ("train_loss", "val_loss")
        if (trial := run.data.tags["raytrain.trial"])
    }


def losses(folder: Path) -> dict[str, float]:
    """The final loss of every trial that is complete or was stopped."""
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("trials/*/result.json")}
    return {name: result["val_loss"] for name, result in results.items() if result["status"] in ("complete", "stopped")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--terms", type=int, default=0, help="SIGTERMs to the process group, in place of kills")
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
    name, targets = ("signalled", ("group",)) if flags.terms else ("killed", TARGETS)
    count = flags.terms or flags.kills
    done, wrong = disturb(folder, name, targets, count, flags.seed, flags.pause, extra)
    disturbed = time.monotonic() - began

    planned = [trial["id"] for trial in json.loads((folder / name / "study.json").read_text())["trials"]]
    truth, found = losses(folder / "whole"), losses(folder / name)
    events = [json.loads(line) for line in (folder / name / "events.jsonl").read_text().splitlines()]
    ends = Counter(event["trial"] for event in events if event["event"] == "end" and event["status"] != "lost")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    whole, logged = points(client, "whole"), points(client, name).items()
    in_mlflow = Counter(run.data.tags["raytrain.trial"] for run in runs)
    faults = {
        "trials lost": len(set(planned) - set(found)),
        "trials ended twice": sum(count > 1 for count in ends.values()),
        "wrong losses": sum(found[name] != truth.get(name) for name in found),
        "missing from MLflow": len(set(planned) - set(in_mlflow)),
        "twice in MLflow": sum(count > 1 for count in in_mlflow.values()),
        "points twice in MLflow": sum(len(steps) - len({*steps}) for _, steps in logged),
        "points not in MLflow": sum(len({*whole[key]} - {*steps}) for key, steps in logged),
        "unfinished in MLflow": sum(run.info.status != "FINISHED" for run in runs),
        "wrong ends": len(wrong),
    }
    print(f"{done.total()} hits ({', '.join(f'{count} {name}' for name, count in done.items())}) in {disturbed:.0f} s")
    print(
        f"undisturbed {undisturbed:.0f} s; {len(planned)} trials, {len(runs) - 1} in MLflow beside the study's own run"
    )
    for fault, number in faults.items():
        print(f"{fault:24}{number}")
    return int(any(faults.values()) or len(planned) != 24)


if __name__ == "__main__":
    raise SystemExit(main())
