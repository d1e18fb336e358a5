"""How a signal ends a run: in order after a step that ends soon, else at once; and what of it is then saved.

A step of a large model on a CPU takes minutes inside of C++, where no handler of Python's runs: see `interrupts`.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from raytrain.interrupts import Ending
from raytrain.training.storage import CHECKPOINTS, MANIFEST

_START_SECONDS = 3.0  # that a run may take to end before its first step is done: it has nothing to save
_STEP_SECONDS = 10.0  # that the end of a step may take after a signal; torchrun, and batch systems, kill after 30


class RunEnding(Ending):
    """What a run's process does once a signal has come: SIGTERM (a preempted node), or Ctrl-C.

    Before the end of its first step it is interrupted. Then `interrupted` turns true, which has the training loop save
    and end. Where `owns_process`, a loop that does not hear of it in time is ended with the process, as by a second
    Ctrl-C; in a process of the user's own a second Ctrl-C raises KeyboardInterrupt, and nothing else is done.
    """

    def __init__(self, folder: Path | None, *, owns_process: bool) -> None:
        """`folder` is the run's on rank 0, which alone says something; None on others."""
        super().__init__(_START_SECONDS)
        self._folder, self._owns_process = folder, owns_process
        self._is_training = self._is_saving = self._is_heard = False
        self.close_display: Callable[[], object] = lambda: None
        self.on_first, self.on_force = self._announce, self._say

    def interrupted(self) -> bool:
        """Whether a signal has come. Asked within each step, so that patience runs anew with each."""
        self._is_training, self.patience = True, _STEP_SECONDS
        self.since = time.monotonic()
        return self.has_come

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """The run writes checkpoints in this block, for as long as that takes."""
        self._is_saving = True
        try:
            yield
        finally:
            self._is_saving, self.since = False, time.monotonic()

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        is_again, self._is_heard = self._is_heard and number == signal.SIGINT, True
        if is_again and not self._owns_process:
            raise KeyboardInterrupt
        if not self._is_training:
            super().interrupt(number, frame)

    def is_overdue(self, waited: float) -> bool:
        return self._owns_process and not self._is_saving and super().is_overdue(waited)

    def heed_again(self) -> None:
        if self._owns_process:
            super().heed_again()

    def saved(self) -> str:
        """What is left of a run that ended within a step, and how it goes on."""
        names = sorted(path.parent.name for path in (self._folder or Path()).glob(f"{CHECKPOINTS}/step-*/{MANIFEST}"))
        if not names:
            return "no checkpoint is saved, so the run starts anew (--checkpoint_interval N saves one every N steps)"
        return f"saved is {names[-1]}; resume with: python -m raytrain.train --resume {self._folder}"

    def _announce(self) -> None:
        if self._folder is not None and self._is_training:
            within = f", or in {self.patience:g} s" if self._owns_process else ""
            print(f"stopping after the step under way{within}; Ctrl-C again to stop at once", file=sys.stderr)

    def _say(self) -> None:
        if self._folder is not None:
            self.close_display()
            print(f"ended at once: {self.saved()}", flush=True)
