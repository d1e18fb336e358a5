"""Compile runs before they start, so that the lanes of a GPU train while idle CPU cores fill the compiler's caches.

`python -m raytrain.training.precompile` reads one run a line from stdin (`TrainConfig.to_dict` as JSON) and ends with
its input. What it leaves are files in the compiler's caches, which a process that trains the same program with the same
micro-batch takes instead of compiling. A run that cannot be compiled reports that itself.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import torch

from raytrain.config.run import AUTO, TrainConfig
from raytrain.data import Loader, open_dataset
from raytrain.model import build
from raytrain.training import optimizer, parallel
from raytrain.training.batches import Batches
from raytrain.training.micro_batch import micro_batch
from raytrain.training.objective import NextTokenLoss
from raytrain.training.step import Stepper

_NICENESS = 10  # lanes go first
_COMPILE_THREADS = "1"  # of the compiler in such a process: there are several processes


def precompile(config: TrainConfig) -> None:
    """Do once, on random weights, what a run does first: a step, and an evaluation's forward pass."""
    with parallel.join_world(config) as world:
        arch = config.architecture
        torch.manual_seed(0)
        loss_model = NextTokenLoss(build(arch), config.z_loss).to(world.device)
        model = parallel.parallelize(loss_model, config, world)
        adamw = optimizer.make_optimizer(model, config, world)
        size = micro_batch(model, adamw, config, world, before=0)
        tokens = torch.zeros(size, arch.block_size, dtype=torch.int64, device=world.device)
        loader = Loader(open_dataset(config.data).train, arch.block_size, config.seed, arch.vocab_size)
        batches = Batches(loader, size, world)
        stepper = Stepper(model, adamw, batches, config, world)
        stepper.gradients(iter([(tokens, tokens)]), size, 0)
        stepper.clip()
        model.eval()
        with torch.no_grad(), torch.autocast(world.device.type, world.dtype, enabled=world.dtype != torch.float32):
            model(tokens, tokens)
        world.synchronize()


def serve(lines: Iterable[str]) -> None:
    """Precompile the run in each of `lines`."""
    os.nice(_NICENESS)
    for line in lines:
        with contextlib.suppress(Exception):  # whatever it is, the run meets it too, and reports it
            precompile(TrainConfig.from_dict(json.loads(line)))
        torch._dynamo.reset()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


class Precompilers:
    """`count` processes that compile the runs given to `submit`, one after another. They end with this process."""

    def __init__(self, count: int) -> None:
        environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": _COMPILE_THREADS}
        command = [sys.executable, "-m", "raytrain.training.precompile"]
        silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._processes = [
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True, **silent) for _ in range(count)
        ]
        self._next = 0

    def submit(self, config: TrainConfig) -> None:
        """Compile the run of `config` soon; not one whose micro-batch is yet to be tried."""
        if not self._processes or config.micro_batch == AUTO:
            return
        process = self._processes[self._next % len(self._processes)]
        self._next += 1
        with contextlib.suppress(OSError):  # one that died compiles no more, and nothing is lost
            assert process.stdin is not None
            process.stdin.write(json.dumps(config.to_dict()) + "\n")
            process.stdin.flush()

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    serve(sys.stdin)
