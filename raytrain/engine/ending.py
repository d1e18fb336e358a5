"""A signal ends a study in good order, or else at once, but always soon.

Batch systems send SIGTERM and wait for half a minute at most. Some send it to every process of the study, Ray's too:
then the main thread may wait for a Ray that is gone, where no handler of Python's runs. So a thread of its own learns
of signals (by `signal.set_wakeup_fd`, which the system writes to), and ends the process where the main one does not.

    first signal   `on_first` is called; the main thread is interrupted
    patience over  `on_force` is called, everything below this process is killed, and the process exits
    second Ctrl-C  the same, at once
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from raytrain.interrupts import exit_code

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_START_SECONDS = 3.0  # that a start of Ray may take after a signal, as there is nothing to save yet
_ORDER_SECONDS = 10.0  # that a study may take to end in good order: its lanes save checkpoints meanwhile
_FORCE_SECONDS = 7.0  # that what is done then may take
_DEAD_SECONDS = 1.0  # the same, where this machine's part of Ray is dead
_POLL_SECONDS = 0.1
_MOST_ROUNDS = 20  # of killing, as a dying Ray starts processes
_PR_SET_CHILD_SUBREAPER = 36


class Ending:
    """What a study's process does once a signal has come; see `listening`."""

    def __init__(self) -> None:
        self.signal: int | None = None  # the first that came
        self.patience = _START_SECONDS
        self.on_first: Callable[[], object] = lambda: None
        self.on_force: Callable[[], object] = lambda: None
        self.is_ray_dead: Callable[[], bool] = lambda: False
        self.private: Path | None = None  # of the Ray that this process started
        self.is_interrupted = False  # whether the main thread was

    @property
    def has_come(self) -> bool:
        return self.signal is not None

    @property
    def code(self) -> int:
        """The exit code of an interrupted study: 130 after Ctrl-C, 143 after SIGTERM, 129 after a lost terminal."""
        return exit_code(self.signal or signal.SIGINT)

    def ray_is_up(self, is_dead: Callable[[], bool]) -> None:
        """From now on lanes get the time to save their checkpoints, unless `is_dead` says that Ray has died."""
        self.patience, self.is_ray_dead = _ORDER_SECONDS, is_dead

    def handle_signals(self) -> None:
        """Have signals interrupt the main thread, once. Again after Ray's start, which sets handlers of its own."""
        if threading.current_thread() is threading.main_thread():
            for number in _heard():
                signal.signal(number, self._interrupt)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if not self.is_interrupted:
            self.is_interrupted = True
            raise KeyboardInterrupt

    def force(self) -> NoReturn:
        """End this process and all below it, whatever its main thread does."""
        hard = threading.Timer(_FORCE_SECONDS, os._exit, [self.code])  # `on_force` may wait for the main thread
        hard.daemon = True
        hard.start()
        try:
            self.on_force()
        finally:
            self.leave(self.code)

    def leave(self, code: int) -> NoReturn:
        """Exit at once; the Ray that this process started goes with it."""
        if self.private is not None:
            kill_all_below(os.getpid())
            shutil.rmtree(self.private, ignore_errors=True)
        os._exit(code)


def _heard() -> list[signal.Signals]:
    """The signals that are not ignored, as `nohup` has the loss of the terminal."""
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def listening() -> Iterator[Ending]:
    """Listen for the signals that end a study. In the main thread: a KeyboardInterrupt is raised there.

    In another thread, which no signal reaches, nothing is done.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.getsignal(number) for number in _heard()}
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, ending, set(before)), name="signals", daemon=True)
    watcher.start()
    ending.handle_signals()
    try:
        yield ending
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)  # ends the thread
        watcher.join()
        os.close(reader)


def _watch(reader: int, ending: Ending, numbers: set[signal.Signals]) -> None:
    """Wait for the first signal, then for the process to end; end it where it does not."""
    came = 0.0
    while True:
        ready, _, _ = select.select([reader], [], [], _POLL_SECONDS if ending.has_come else None)
        read = os.read(reader, 64) if ready else b""
        if ready and not read:
            return
        for number in filter(numbers.__contains__, read):  # each that came: two may be read at once
            if ending.has_come and number == signal.SIGINT:
                ending.force()
            if not ending.has_come:
                ending.signal, came = int(number), time.monotonic()
                with contextlib.suppress(Exception):
                    ending.on_first()
        if ending.has_come:
            waited = time.monotonic() - came
            if waited > ending.patience or (waited > _DEAD_SECONDS and ending.is_ray_dead()):
                ending.force()


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
