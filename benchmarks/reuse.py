"""Does a lane stay clean? So many trials on one lane: its memory after each, and the last one's losses beside those of
the same trial alone.

    python benchmarks/reuse.py [--reuses 100] [--ranks 1] [--device cpu|cuda] [--compile False]

Trials take turns among the presets, with and without dropout. Memory is rank 0's as a trial begins, when the one before
has left: resident, and on a GPU what torch has reserved and what the driver says is in use. After the third trial it
may grow by 5%.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Callable
from typing import Any

import ray
import torch

from raytrain.architecture import PRESETS
from raytrain.config.resolve import resolve
from raytrain.config.run import TrainConfig
from raytrain.engine.job import Job, LaneShape
from raytrain.engine.lane import Lane

ALLOWED = 0.05
NAMES = ("gpt2", "llama", "hybrid", "openai_gpt2")


def train(config: TrainConfig, on_report: Callable[..., bool], folder: Any, interrupted: Callable[[], bool]) -> Any:
    """A run whose start report has in it what this process held before."""
    import os
    from pathlib import Path

    import torch

    from raytrain.training.loop import train

    held = {"resident": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6}
    if torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        held |= {"reserved": torch.cuda.memory_reserved() / 1e6, "in use": (total - free) / 1e6}
    return train(
        config,
        lambda report: on_report(report | ({"held": held} if report["event"] == "start" else {})),
        folder,
        interrupted,
    )


def job(number: int, flags: argparse.Namespace) -> Job:
    values = {"preset": NAMES[number % 4], "dropout": 0.1 * (number // 4 % 2), "seed": number}
    values |= {"max_iters": flags.steps, "log_interval": 1, "eval_tokens": 1024, "stats_interval": 10}
    values |= {"device": flags.device, "compile": flags.compile, "checkpoint_interval": None}
    return Job(resolve([("bench", values)], data_vocab_size=256)[0].to_dict())


def run(lane: Lane, job: Job) -> list[dict[str, Any]]:
    """All reports of the job."""
    lane.submit(job)
    reports: list[dict[str, Any]] = []
    while not any(report["event"] == "end" for report in reports):
        reports += lane.take(60.0)
    assert reports[-1]["status"] == "complete", reports[-1]
    return reports


def losses(reports: list[dict[str, Any]]) -> list[float]:
    return [report[name] for report in reports for name in ("loss", "val_loss") if name in report]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reuses", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", default="False", help="True, False, or none for what a run would do [False]")
    flags = parser.parse_args()
    assert set(NAMES) <= PRESETS.keys()
    gpu = flags.device == "cuda"
    device = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {os.cpu_count()} cores"
    ray.init(num_cpus=max(2, flags.ranks), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    shape = LaneShape(workers=flags.ranks, gpus=int(gpu), cpus=1)
    with tempfile.TemporaryDirectory(prefix="reuse-") as storage:
        lane = Lane(shape, storage, train)
        found = [run(lane, job(number, flags)) for number in range(flags.reuses + 1)]
        lane.close()
        alone = Lane(shape, storage, train)
        again = run(alone, job(flags.reuses, flags))
        alone.close()
    ray.shutdown()
    held = [next(report["held"] for report in reports if "held" in report) for reports in found]
    print(f"{device}; Python {platform.python_version()}, torch {torch.__version__}, ray {ray.__version__}")
    print(f"{flags.reuses} trials on one lane of {flags.ranks} ranks, compile {flags.compile}; MB that rank 0 held")
    shown = [place for place in (3, 10, 25, 50, 75, 100, 200) if place < flags.reuses] + [flags.reuses]
    print(f"{'after trial':12}" + "".join(f"{place:9}" for place in shown) + "   growth")
    kept = True
    for kind in held[3]:
        growth = held[-1][kind] / max(held[3][kind], 1e-9) - 1 if held[-1][kind] > held[3][kind] else 0.0
        kept &= growth <= ALLOWED
        print(f"{kind:12}" + "".join(f"{held[place][kind]:9.1f}" for place in shown) + f"{growth:9.1%}")
    same = losses(found[-1]) == losses(again)
    print(f"{len(losses(again))} losses of the last trial and of the same alone: {'equal' if same else 'NOT equal'}")
    return int(not (kept and same))


if __name__ == "__main__":
    raise SystemExit(main())
