"""A signal ends a study in good order, or else at once, but always soon.

Batch systems send SIGTERM and wait for half a minute at most. Some send it to every process of the study, Ray's too:
then the main thread may wait for a Ray that is gone, where no handler of Python's runs. So a thread heeds them: see
`raytrain.interrupts`. A study that is forced to end kills everything below its process.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NoReturn

from raytrain import interrupts

_START_SECONDS = 3.0  # that a start of Ray may take after a signal, as there is nothing to save yet
_ORDER_SECONDS = 10.0  # that a study may take to end in good order: its lanes save checkpoints meanwhile
_DEAD_SECONDS = 1.0  # the same, where this machine's part of Ray is dead
_POLL_SECONDS = 0.1
_MOST_ROUNDS = 20  # of killing, as a dying Ray starts processes
_PR_SET_CHILD_SUBREAPER = 36


class Ending(interrupts.Ending):
    """What a study's process does once a signal has come."""

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        super().__init__(_START_SECONDS)
        self.is_ray_dead: Callable[[], bool] = lambda: False
        self.private: Path | None = None  # of the Ray that this process started

    def ray_is_up(self, is_dead: Callable[[], bool]) -> None:
        """From now on lanes get the time to save their checkpoints, unless `is_dead` says that Ray has died."""
        self.patience, self.is_ray_dead = _ORDER_SECONDS, is_dead

    def is_overdue(self, waited: float) -> bool:
        return super().is_overdue(waited) or (waited > _DEAD_SECONDS and self.is_ray_dead())

    def leave(self, code: int) -> NoReturn:
        """Exit at once; the Ray that this process started goes with it."""
        if self.private is not None:
            kill_all_below(os.getpid())
            shutil.rmtree(self.private, ignore_errors=True)
        os._exit(code)


@contextlib.contextmanager
def listening() -> Iterator[Ending]:
    """Listen for the signals that end a study. In the main thread: a KeyboardInterrupt is raised there.

    In another thread, which no signal reaches, nothing is done.
    """
    with interrupts.listening(Ending()) as ending:
        yield ending


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Have processes below this one whose parents die become its own children, so that `descendants` has them."""
    try:
        set_option = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):  # not Linux
        yield
        return
    set_option(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        set_option(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """The processes below `root` that live, by Linux's table of them."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.name)] = int(parent)
    found: set[int] = set()
    new = {root}
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new} - found
    return sorted(found - {root})


def kill_all_below(root: int, spared: Collection[int] = ()) -> None:
    """Kill the processes below `root` but those `spared`, and what they start meanwhile."""
    for _ in range(_MOST_ROUNDS):
        found = set(descendants(root)).difference(spared)
        if not found:
            return
        for process in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
