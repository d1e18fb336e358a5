"""Compile runs before they start, so that the lanes of a GPU train while idle CPU cores fill the compiler's caches.

`python -m raytrain.training.precompile PARENT MEMORY` reads a run a line from stdin, compiles it, and answers with a
line: empty, or why it could not. What it leaves are files in the compiler's caches, which a process that trains the
same program with the same micro-batch takes instead of compiling. A run that cannot be compiled reports that itself.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raytrain.config.run import TrainConfig
from raytrain.plugins.loader import load_source
from raytrain.training.launch import forget

_NICENESS = 10  # lanes go first
_COMPILE_THREADS = "1"  # of the compiler in such a process: there are several processes
_WATCH_SECONDS = 0.5  # how soon a process notices that the one which started it is gone


def program(run: TrainConfig) -> str:
    """What two runs share if what is compiled for one serves the other."""
    names = ("global_batch", "micro_batch", "z_loss", "device", "precision", "compile", "parallel")
    same = {name: getattr(run, name) for name in (*names, "activation_checkpointing", "optimizer")}
    return json.dumps(same | {"program": run.architecture.program().to_dict()}, sort_keys=True)


def precompile(config: TrainConfig) -> None:
    """Do once, on random weights, what a run does first: a step, and an evaluation's forward pass."""
    import torch  # here, and not above: it takes seconds, and whoever starts such a process has no use for it

    from raytrain.data import Loader, open_dataset
    from raytrain.model import build
    from raytrain.training import optimizer, parallel
    from raytrain.training.batches import Batches
    from raytrain.training.micro_batch import micro_batch
    from raytrain.training.objective import NextTokenLoss
    from raytrain.training.step import Stepper

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


def serve(lines: Iterable[str]) -> Iterator[str]:
    """Compile the run in each of `lines`, which has its config and the sources of its plugins by name. Yields an empty
    text for each, or what went wrong: whatever it is, the run meets it too, and reports it."""
    for line in lines:
        try:
            job = json.loads(line)
            for name, source in job["plugins"].items():
                load_source(name, source)
            precompile(TrainConfig.from_dict(job["config"]))
            yield ""
        except Exception as error:
            yield " ".join(f"{type(error).__name__}: {error}".split())
        _tidy()


def _tidy() -> None:
    """Leave neither what was compiled nor what a run held on the GPU."""
    if (torch := sys.modules.get("torch")) is not None:
        torch._dynamo.reset()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def main(parent: int, memory: float) -> None:
    """Serve the process `parent`, until it is gone, with `memory` bytes of the GPU at most (0: no limit)."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.nice(_NICENESS)
    forget()  # what a launcher left in the environment: this is no rank of a run
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    if memory:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory / torch.cuda.mem_get_info()[1]))
    for answer in serve(sys.stdin):
        print(answer, file=answers, flush=True)


def _end_with(parent: int) -> None:
    """End this process soon after `parent`, which may have been killed: stdin's end is seen only between two runs."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(0)


class Precompiler:
    """A process that compiles runs one after another; another is started if it dies. It ends with this process.

    It sees GPU number `gpu` alone, if one is given, and takes at most `memory` bytes there.
    """

    def __init__(self, gpu: int | None = None, memory: float = 0.0) -> None:
        self._command = [sys.executable, "-m", "raytrain.training.precompile", str(os.getpid()), str(memory)]
        # Ray may have found this package in a folder of its own, of which only this process knows.
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._environment["TORCHINDUCTOR_COMPILE_THREADS"] = _COMPILE_THREADS
        if gpu is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = _visible(gpu)
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(self._command, env=self._environment, text=True, **streams)

    def compile(self, config: Mapping[str, Any], plugins: Mapping[str, str]) -> str:
        """Compile the run of `config` (`TrainConfig.to_dict`); returns nothing, or why it could not be. Blocks."""
        if self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps({"config": config, "plugins": plugins}) + "\n")
            self._process.stdin.flush()
            if answer := self._process.stdout.readline():
                return answer.strip()
        self.close()
        return "the process died"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def _visible(gpu: int) -> str:
    """The name of GPU number `gpu` among those that this process may see."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[gpu] if given else str(gpu)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
