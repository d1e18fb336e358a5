"""Ctrl-C, held back where it would leave broken what has begun."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended, as shells have it


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold a Ctrl-C back until the block has ended: an import, or a start of Ray, that is left midway breaks the rest.

    A second one ends the process at once. Outside the main thread, where no signal comes, the block just runs.
    """
    came = False

    def hold(_signal: int, _frame: FrameType | None) -> None:
        nonlocal came
        if came:
            os._exit(INTERRUPTED)
        came = True

    try:
        before = signal.signal(signal.SIGINT, hold)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
