"""Ctrl-C and SIGTERM, held back where they would leave broken what has begun."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


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
