"""What the ranks of a lane ask of their nodes: first whether they reach one another, later whether one is to go.

Ranks tell the lane's mailbox where they are and how they are, so that whoever waits in vain can name the node.
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from ray._private.state import state

from raytrain.engine.job import Report, one_line
from raytrain.errors import short

Ranks = Mapping[int, Mapping[str, str]]  # what each rank told of itself: host, node (Ray's id) and state

_MEETING_SECONDS = 120.0  # NCCL takes some tens of seconds to connect hundreds of ranks
_NOTICE_SECONDS = 2.0  # between two questions; clouds give notice of 30 s and more
_READY = "ready"
_REASON_CHARACTERS = 500


class Board(Protocol):
    """Where ranks tell of themselves: the lane's mailbox."""

    def tell(self, rank: int, facts: dict[str, str]) -> None: ...
    def told(self) -> dict[int, dict[str, str]]: ...


def add_up(device: torch.device, ready: Callable[[], object]) -> float:
    """The sum of ones over all ranks. Calls `ready` once this rank's own device has answered."""
    one = torch.ones(1, device=device)
    one.item()
    ready()
    dist.all_reduce(one)
    return one.item()


def meet(
    rank: int,
    size: int,
    board: Board,
    here: Mapping[str, str],
    device: torch.device,
    add_up: Callable[[torch.device, Callable[[], object]], float] = add_up,
    seconds: float = _MEETING_SECONDS,
) -> Report | None:
    """Have the ranks add up ones before any of them trains. None if they all did, else the outcome: lost, and where.

    `here` is the host and the node of this rank. In a thread, as what never returns (a network that drops packets, a
    GPU that hangs) cannot be interrupted.
    """
    errors: list[str] = []
    ready = threading.Event()

    def tell(state: str) -> None:
        board.tell(rank, {**here, "state": state})

    def is_ready() -> None:
        tell(_READY)
        ready.set()

    def run() -> None:
        try:
            if (total := add_up(device, is_ready)) != size:
                raise RuntimeError(f"the ones of {size} ranks add up to {total:g}")
        except Exception as error:
            errors.append(one_line(error))
            if not ready.is_set():  # else it may be the echo of another's
                tell(errors[0])

    tell("its device does not answer")
    thread = threading.Thread(target=run, name="meet", daemon=True)
    thread.start()
    thread.join(seconds)
    if not thread.is_alive() and not errors:
        return None
    return {"status": "lost", "reason": blame(board.told(), errors[0] if errors else f"none for {seconds:g} s")}


def blame(ranks: Ranks, answer: str) -> str:
    """Why ranks did not meet, by what they told: the nodes of those that were not ready, else of all."""
    guilty = [rank for rank, told in sorted(ranks.items()) if told["state"] != _READY]
    if guilty:
        each = (f"rank {rank} on node {ranks[rank]['host']}: {ranks[rank]['state']}" for rank in guilty)
        return short(f"the ranks of the lane do not meet: {'; '.join(each)}", _REASON_CHARACTERS)
    hosts: dict[str, list[str]] = {}
    for rank, told in sorted(ranks.items()):
        hosts.setdefault(told["host"], []).append(str(rank))
    places = " and ".join(f"node {host} (rank {', '.join(there)})" for host, there in hosts.items())
    return short(f"no all-reduce between the ranks on {places}: {answer}", _REASON_CHARACTERS)


def draining() -> Collection[str]:
    """The ids of the nodes that Ray was told will go (a drain notice, such as that of a spot instance).

    Ray has no public call that one rank alone may make: `ray.train.get_preemption_info`, which asks here too, waits for
    all ranks, and knows of none in a lane of one rank.
    """
    return state.get_draining_nodes()


def going(ranks: Ranks, ask: Callable[[], Collection[str]] = draining) -> str:
    """The hosts of the `ranks` whose nodes are to go, for a message."""
    nodes: Collection[str] = ()
    with contextlib.suppress(Exception):  # the reason is worth less than what it explains
        nodes = ask()
    hosts = dict.fromkeys(told["host"] for told in ranks.values() if told["node"] in nodes)
    return f"node {', '.join(hosts)}" if hosts else "the node of the lane's owner"


class Notice:
    """Whether one of `nodes` (Ray's ids) is to go. A thread asks Ray, within the block, so to look costs nothing."""

    def __init__(
        self, nodes: Collection[str], ask: Callable[[], Collection[str]] = draining, seconds: float = _NOTICE_SECONDS
    ) -> None:
        self._nodes, self._ask, self._seconds = {*nodes}, ask, seconds
        self._come, self._over = threading.Event(), threading.Event()

    @property
    def has_come(self) -> bool:
        return self._come.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for it to come; whether it has."""
        return self._come.wait(seconds)

    def __enter__(self) -> "Notice":
        threading.Thread(target=self._run, name="notice", daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.is_set() and not self.has_come:
            with contextlib.suppress(Exception):  # Ray itself goes, or does not answer now
                if not self._nodes.isdisjoint(self._ask()):
                    self._come.set()
            self._over.wait(self._seconds)
