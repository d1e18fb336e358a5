"""Ctrl-C and SIGTERM: held back where they would leave broken what has begun, and heeded by a thread.

Python runs a handler in the main thread, between two of its instructions. A main thread that is inside of C++, as in a
long step or in a Ray that is gone, hears nothing for minutes. So `listening` starts a thread that learns of signals
by `signal.set_wakeup_fd`, which the system itself writes to, and that ends the process where its main thread does not:

    first signal   `on_first` is called; the main thread is interrupted
    patience over  `on_force` is called, and the process exits
    second Ctrl-C  the same, at once
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

_FORCE_SECONDS = 7.0  # that what is done before a forced end may take
_POLL_SECONDS = 0.1


def exit_code(number: int) -> int:
    """The exit code of a command that signal `number` ended, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


INTERRUPTED = exit_code(signal.SIGINT)
TIMED_OUT = 124  # of a study that its time limit ended: what `timeout` of coreutils exits with
_HELD = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold signals back until the block has ended: an import, or a start of Ray, that is left midway breaks the rest.

    They then do what they would have done before. A second Ctrl-C ends the process at once. Outside the main thread,
    where no signal comes, the block just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        if signal.SIGINT in came and number == signal.SIGINT:
            os._exit(INTERRUPTED)
        came.append(number)

    before = {number: signal.signal(number, hold) for number in _HELD if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


class Ending:
    """What a process does once a signal has come; see `listening`. `numbers` are the signals that it heeds."""

    numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, patience: float) -> None:
        """`patience` is the seconds that the main thread may take to end the process."""
        self.signal: int | None = None  # the first that came
        self.since = 0.0  # when it came, by the monotonic clock; patience runs from here
        self.patience = patience
        self.on_first: Callable[[], object] = lambda: None
        self.on_force: Callable[[], object] = lambda: None
        self.is_interrupted = False  # whether the main thread was

    @property
    def has_come(self) -> bool:
        return self.signal is not None

    @property
    def code(self) -> int:
        """The exit code of what was interrupted: 130 after Ctrl-C, 143 after SIGTERM, 129 after a lost terminal."""
        return exit_code(self.signal or signal.SIGINT)

    def handle_signals(self) -> None:
        """Have signals interrupt the main thread. Again after code that sets handlers of its own, as Ray's start."""
        if threading.current_thread() is threading.main_thread():
            for number in self.heeded():
                signal.signal(number, self.interrupt)

    def interrupt(self, number: int, _frame: FrameType | None) -> None:
        """What a signal does in the main thread, when that hears of it: it is interrupted, once."""
        if not self.is_interrupted:
            self.is_interrupted = True
            raise KeyboardInterrupt

    def is_overdue(self, waited: float) -> bool:
        """Whether the main thread, `waited` seconds after `since`, is not to be waited for any longer."""
        return waited > self.patience

    def heed_again(self) -> None:
        """What a second Ctrl-C does, in the thread."""
        self.force()

    def force(self) -> NoReturn:
        """End this process, whatever its main thread does."""
        hard = threading.Timer(_FORCE_SECONDS, os._exit, [self.code])  # `on_force` may wait for the main thread
        hard.daemon = True
        hard.start()
        try:
            self.on_force()
        finally:
            self.leave(self.code)

    def leave(self, code: int) -> NoReturn:
        """Exit at once."""
        os._exit(code)

    def heeded(self) -> list[signal.Signals]:
        """The signals that are not ignored, as `nohup` has the loss of the terminal."""
        return [number for number in self.numbers if signal.getsignal(number) is not signal.SIG_IGN]


E = TypeVar("E", bound=Ending)


@contextlib.contextmanager
def listening(ending: E) -> Iterator[E]:
    """Listen for the signals that `ending` heeds. Outside the main thread, where no signal comes, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.getsignal(number) for number in ending.heeded()}
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
    while True:
        ready, _, _ = select.select([reader], [], [], _POLL_SECONDS if ending.has_come else None)
        read = os.read(reader, 64) if ready else b""
        if ready and not read:
            return
        for number in filter(numbers.__contains__, read):  # each that came: two may be read at once
            if ending.has_come and number == signal.SIGINT:
                ending.heed_again()
            if not ending.has_come:
                ending.since, ending.signal = time.monotonic(), int(number)
                with contextlib.suppress(Exception):
                    ending.on_first()
        if ending.has_come and ending.is_overdue(time.monotonic() - ending.since):
            ending.force()
