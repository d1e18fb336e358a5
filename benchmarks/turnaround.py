"""From a trial's last step to the first step of the next on the same devices: warm lanes beside the textbook's nesting.

    python benchmarks/turnaround.py [--ranks 1 2] [--trials 20] [--textbook 4] [--device cpu|cuda]

Both train the same trials, one after another, by the same loop: ours is `raytrain.tune` on one lane; the textbook's is
a Tune function that makes a `TorchTrainer` and calls its `fit()`. Nothing is compiled, and the last step's evaluation,
which is in the gap, is of one sequence. Two figures of each: to when the first step begins (model and data are ready
then), and to when it has ended, less the median of the steps after it. The second has in it what a fresh process does
on its first step, on a GPU such as loading its kernels.

Needs neither MLflow nor Ray's dashboard.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch

from raytrain.rundir.log import read_log

SMALL = (
    "--space presets --scale tiny --max_iters 10 --global_batch 256 --log_interval 1 --stats_interval 0 "
    "--eval_interval 1000 --eval_tokens 128 --compile False"
)


def nested(settings: dict[str, Any]) -> None:
    """A trial as the textbook has it."""
    import ray.train
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        train_run,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(num_workers=settings["ranks"], use_gpu=settings["gpu"]),
        run_config=ray.train.RunConfig(storage_path=settings["folder"], name=Path(settings["log"]).parent.name),
    ).fit()


def train_run(settings: dict[str, Any]) -> None:
    """One rank of it: the loop, whose reports rank 0 writes to a log as a study has it."""
    import time

    import torch

    from raytrain.config.run import TrainConfig
    from raytrain.rundir.log import JsonLog
    from raytrain.training.loop import train

    torch.set_num_threads(settings["threads"])
    log = JsonLog(settings["log"])
    train(TrainConfig.from_dict(settings["config"]), lambda report: log.write({**report, "time": time.time()}))


def textbook(trials: list[dict[str, Any]], folder: Path, ranks: int, *, gpu: bool, threads: int) -> list[Path]:
    """Train `trials` by the nesting; their logs."""
    from ray import tune

    logs = [folder / "textbook" / trial["id"] / "log.jsonl" for trial in trials]
    common = {"ranks": ranks, "gpu": gpu, "threads": threads, "folder": str(folder / "ray")}
    settings = [common | {"config": t["config"], "log": str(log)} for t, log in zip(trials, logs, strict=True)]
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_AIR_NEW_OUTPUT": "0"}
    # Room for the ranks beside the function that starts them.
    ray.init(num_cpus=ranks + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tune.Tuner(
        tune.with_resources(lambda config: nested(config["run"]), {"CPU": 1}),
        param_space={"run": tune.grid_search(settings)},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    ).fit()
    ray.shutdown()
    return logs


def ours(folder: Path, ranks: int, trials: int, *, gpu: bool) -> list[Path]:
    """Train `trials` trials by raytrain.tune; their logs, in the order in which they ran."""
    seeds = -(-trials // 4)  # the space has four variants
    many = f"--seeds {seeds} --max_trials {trials} --concurrent 1 --runs {folder} --name ours --json"
    place = f"--gpus_per_trial {ranks}" if gpu else f"--device cpu --workers_per_trial {ranks}"
    command = [sys.executable, "-m", "raytrain.tune", *f"{SMALL} {many} {place}".split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    logs = [folder / "ours" / "trials" / trial / "log.jsonl" for trial in _planned(folder)]
    return sorted(logs, key=lambda log: read_log(log)[0]["time"])


def _planned(folder: Path) -> dict[str, dict[str, Any]]:
    study = json.loads((folder / "ours" / "study.json").read_text())
    return {trial["id"]: trial for trial in study["trials"]}


def gaps(logs: list[Path]) -> tuple[list[float], list[float]]:
    """Seconds between each two trials in turn: to the beginning of the first step, and to its end less a usual step."""
    begin, end = [], []
    last = None
    for log in logs:
        reports = read_log(log)
        start = next(report["time"] for report in reports if report["event"] == "start")
        steps = [report["time"] for report in reports if report["event"] == "step"]
        if last is not None:
            usual = statistics.median(after - before for before, after in itertools.pairwise(steps))
            begin.append(start - last)
            end.append(steps[0] - last - usual)
        last = steps[-1]
    return begin, end


def show(ranks: int, name: str, logs: list[Path], medians: list[float]) -> None:
    begin, end = gaps(logs)
    medians.append(statistics.median(begin))
    print(
        f"{ranks} x {name:12} {len(logs):6} {medians[-1]:27.2f} {max(begin):6.2f} "
        f"{statistics.median(end):21.2f} {max(end):6.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--textbook", type=int, default=4, help="trials of the nesting, at about 25 s each [4]")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    flags = parser.parse_args()
    gpu = flags.device == "cuda"
    device = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{device}; Python {platform.python_version()}, torch {torch.__version__}, ray {ray.__version__}")
    print("seconds          trials   to the first step: median   most    to its end: median   most")
    for ranks in flags.ranks:
        medians: list[float] = []
        with tempfile.TemporaryDirectory(prefix="turnaround-") as temporary:
            folder = Path(temporary)
            show(ranks, "warm lane", ours(folder, ranks, flags.trials, gpu=gpu), medians)
            if flags.textbook:
                some = list(_planned(folder).values())[: flags.textbook]
                threads = 1 if gpu else max(1, (os.cpu_count() or 1) // ranks)
                show(ranks, "textbook", textbook(some, folder, ranks, gpu=gpu, threads=threads), medians)
        if flags.textbook:
            print(f"{ranks} x the textbook takes {medians[1] / medians[0]:.0f} times as long", flush=True)


if __name__ == "__main__":
    main()
