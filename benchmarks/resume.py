"""Kills a single run of each optional axis by SIGKILL, resumes it, and compares it with one that nobody disturbed.

    python benchmarks/resume.py [--levels moe muon] [--kills 2] [FLAGS of raytrain.train]

Each is `llama` with dropout and a level of one axis. It is killed at a random moment after a checkpoint, and again once
there is a later one. The loss that it then ends with, all weights and the optimizer's whole state must be those of the
undisturbed run to the last bit.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import signal
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess as Process
from pathlib import Path
from typing import Any

import torch
from axes import optional
from safetensors.torch import load_file

from raytrain import train

BLOCK_SIZE = 32
SMALL = (
    "--preset llama --n_layer 4 --n_head 2 --n_embd 32 --global_batch 512 --eval_tokens 2048 --dropout 0.1 "
    "--max_iters 150 --checkpoint_interval 10 --device cpu --compile False"
)
MOST_DELAY = 0.2  # seconds from a checkpoint to the kill
# A server that has imported all this forks each process, which so begins to train at once.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["raytrain.train"])


def start(runs: Path, *flags: str) -> Process:
    """`python -m raytrain.train` with these flags, in a process of its own that has imported it already."""
    process = _CONTEXT.Process(target=_train, args=(["--runs", str(runs), *flags], runs / "log.txt"))
    process.start()
    return process


def _train(flags: list[str], log: Path) -> None:
    torch.set_num_threads(1)
    with log.open("a", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        sys.exit(train.main(flags))


def finish(runs: Path, *flags: str) -> None:
    """Run it to its end. Raises RuntimeError if that is none."""
    process = start(runs, *flags)
    process.join()
    if process.exitcode:
        raise RuntimeError((runs / "log.txt").read_text()[-500:])


def last_checkpoint(folder: Path) -> int:
    """The step of the newest one that is whole; 0 without any."""
    found = [int(path.parent.name.partition("-")[2]) for path in folder.glob("checkpoints/step-*/manifest.json")]
    return max(found, default=0)


def kill_after(process: Process, folder: Path, step: int, delay: float) -> int:
    """Kill `process` so many seconds after its first checkpoint beyond `step`; the step of its newest one then.

    Raises RuntimeError if it ends before.
    """
    while last_checkpoint(folder) <= step and process.is_alive():
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL or (folder / "result.json").exists():
        raise RuntimeError(f"it ended before it was killed: {(folder.parent / 'log.txt').read_text()[-500:]}")
    return last_checkpoint(folder)


def outcome(folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss that a run ended with, and all tensors of its last checkpoint."""
    loss = json.loads((folder / "result.json").read_text())["val_loss"]
    newest = folder / "checkpoints" / f"step-{last_checkpoint(folder):08}"
    return loss, {name: x for file in sorted(newest.glob("*.safetensors")) for name, x in load_file(file).items()}


def compare(runs: Path, level: dict[str, Any], kills: int, draw: random.Random, extra: list[str]) -> tuple[str, bool]:
    """What was seen, and whether the killed run equals the whole one."""
    flags = [*SMALL.split(), "--block_size", str(BLOCK_SIZE), *extra]
    flags += [text for name, value in level.items() for text in (f"--{name}", str(value))]
    finish(runs, "--name", "whole", *flags)
    folder, step, steps = runs / "killed", 0, []
    for kill in range(kills):
        process = start(runs, "--name", "killed", *flags) if kill == 0 else start(runs, "--resume", str(folder))
        step = kill_after(process, folder, step, draw.uniform(0, MOST_DELAY))
        steps.append(step)
    finish(runs, "--resume", str(folder))
    (loss, tensors), (expected, theirs) = outcome(folder), outcome(runs / "whole")
    differ = [name for name in theirs if name not in tensors or not torch.equal(tensors[name], theirs[name])]
    differ += tensors.keys() - theirs.keys()
    seen = f"resumed from {', '.join(map(str, steps)):9} {loss:.15f} {expected:.15f} {len(differ)} of {len(theirs)}"
    return seen, loss == expected and not differ


def main() -> int:
    levels = optional(BLOCK_SIZE)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", nargs="+", default=list(levels), choices=levels)
    parser.add_argument("--kills", type=int, default=2, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    flags, extra = parser.parse_known_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}, torch {torch.__version__}"
    )
    print("level             of steps            val_loss killed      val_loss whole       tensors that differ")
    draw, wrong = random.Random(flags.seed), []
    for name in flags.levels:
        with tempfile.TemporaryDirectory(prefix="resume-") as temporary:
            seen, is_equal = compare(Path(temporary), levels[name], flags.kills, draw, extra)
        print(f"{name:17} {seen}{'' if is_equal else '   FAILED'}", flush=True)
        wrong += [] if is_equal else [name]
    print(f"{len(flags.levels) - len(wrong)} of {len(flags.levels)} to the last bit")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
