"""Jobs of several processes on this machine, for tests."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from raytrain.config.run import TrainConfig
from raytrain.training.loop import train

# A server that has imported torch and done nothing else forks each process: quick, and without a parent's threads.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.ranks"])


class Ranks:
    """The processes of one torch.distributed job, each calling `work(*args)`."""

    def __init__(self, size: int, work: Callable[..., object], *args: object) -> None:
        port = _free_port()
        self.processes = [_CONTEXT.Process(target=_rank, args=(rank, size, port, work, args)) for rank in range(size)]
        for process in self.processes:
            process.start()

    def join(self) -> list[int | None]:
        """Wait for all; the exit codes."""
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """kill -9 to all that still live."""
        for process in self.processes:
            process.kill()
        self.join()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _rank(rank: int, size: int, port: int, work: Callable[..., object], args: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work(*args)


def write_losses(config: TrainConfig, out: Path, folder: Path | None = None) -> None:
    """Train; rank 0 writes each report as a line of `out` at once."""
    with out.open("a", buffering=1) as file:
        train(config, lambda report: print(json.dumps(report), file=file), folder)


def write_all_losses(configs: list[TrainConfig], folder: Path) -> None:
    """Train one after another, into `folder`/0.jsonl, 1.jsonl and so on, in one process group that is ours."""
    dist.init_process_group("gloo")
    for index, config in enumerate(configs):
        write_losses(config, folder / f"{index}.jsonl")
        assert dist.is_initialized(), "the loop tore down a process group that it had not made"
    dist.destroy_process_group()


def read_losses(out: Path) -> dict[int, float]:
    """The training loss of every step in `out`. Raises if two reports of one step differ."""
    losses: dict[int, float] = {}
    for line in out.read_text().splitlines():
        report = json.loads(line)
        if report["event"] == "step":
            assert losses.setdefault(report["step"], report["loss"]) == report["loss"]
    return losses
