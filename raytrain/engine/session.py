"""One process at work on a study: what it does when a signal comes, and how it is resumed."""

import contextlib
import dataclasses
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import rich.console
from ray import tune

from raytrain.engine.ending import Ending
from raytrain.engine.journal import StudyJournal, Sync
from raytrain.engine.limit import TimeLimit
from raytrain.errors import UserError, unwritable
from raytrain.interrupts import INTERRUPTED, TIMED_OUT
from raytrain.rundir.folders import read_study_json, write_json
from raytrain.uris import HIDDEN, has_secret, shown

_SECRETS = f"  (with the secrets, which are not stored, in place of {HIDDEN})"
_HURRIED_SYNC_SECONDS = 5.0  # what MLflow may take at the end once a signal has come


@dataclasses.dataclass
class Session:
    """One process at work on the study in `folder`; `storage` and `tracking_uri` as the user gave them."""

    folder: Path
    console: rich.console.Console
    storage: str | None = None
    tracking_uri: str | None = None
    limit: TimeLimit = dataclasses.field(default_factory=TimeLimit)
    ending: Ending = dataclasses.field(default_factory=Ending)
    has_told: bool = False  # that it was interrupted

    def how_to_resume(self) -> str:
        """The command that resumes the study. What is secret in an address has to be given again."""
        again = ["python", "-m", "raytrain.tune", "--resume", self.folder.name, "--runs", str(self.folder.parent)]
        hidden = self.storage if self.storage and has_secret(self.storage) else None
        for flag, uri in (("--tracking_uri", self.tracking_uri), ("--storage", hidden)):
            again += [flag, shown(uri)] if uri else []
        is_hidden = hidden or (self.tracking_uri and has_secret(self.tracking_uri))
        return f"resume with: {shlex.join(again)}{_SECRETS if is_hidden else ''}"

    def interrupted(self, why: str = "") -> int:
        """Print, once, that the study was interrupted and how it goes on; returns the exit code."""
        if not self.has_told:
            self.has_told = True
            has_begun = (self.folder / "study.json").exists()
            then = self.how_to_resume() if has_begun else "the study had not begun: nothing is left of it"
            self.console.print(f"interrupted{why and ': '}{why}\n{then}", markup=False)
        return self.ending.code

    def timed_out(self, how: str) -> int:
        """Print, in the words of `how`, that the time limit ended the study, and how it goes on; returns the code."""
        self.has_told = True
        self.console.print(f"time limit: {how}\n{self.how_to_resume()}", markup=False)
        return TIMED_OUT

    def give_up(self, reason: str) -> None:
        """End this process, whose main thread may wait for Ray for ever. The record is whole at any moment."""
        if not self.ending.has_come:  # else a thread ends it already
            self.interrupted(reason)
            self.console.file.flush()
            self.ending.leave(INTERRUPTED)

    def disk_is_full(self, error: OSError) -> None:
        """End this process if the study's folder takes no more. The record is whole, but for a torn last line."""
        if reason := unwritable(error, self.folder):
            self.interrupted(reason)
            self.console.file.flush()
            self.ending.leave(1)

    @contextlib.contextmanager
    def heeding_signals(self, sync: Sync, record: StudyJournal) -> Iterator[None]:
        """Where this process has the study's lock: once a signal has come, mark the study and bring it to MLflow."""

        def mark() -> None:
            record.is_ending, sync.patience = True, _HURRIED_SYNC_SECONDS
            mark_interrupted(self.folder)  # first of all: `ray job stop` kills this process three seconds later

        def force() -> None:
            with contextlib.suppress(OSError, UserError):  # this process is to end even if its disk is full
                mark_interrupted(self.folder)
            sync.end()
            self.interrupted()
            self.console.file.flush()

        record.on_full_disk = self.disk_is_full
        self.ending.on_first, self.ending.on_force = mark, force
        try:
            yield
        finally:
            self.ending.on_first, self.ending.on_force = lambda: None, self.interrupted


def mark_interrupted(folder: Path, time_limit: float | None = None) -> None:
    """What has not ended no longer runs, as a signal has come or `time_limit` seconds are over.

    For the study's holder alone; whoever goes on with it takes this back.
    """
    why = {"time_limit": time_limit} if time_limit is not None else {}
    write_json(folder / "study.json", read_study_json(folder) | {"interrupted": True} | why)


@contextlib.contextmanager
def tune_heeds_sigterm() -> Iterator[None]:
    """Have Tune end in good order on a SIGTERM, or the loss of the terminal, as it does on the first Ctrl-C alone."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    has_come = False

    def as_ctrl_c(_number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        handler = signal.getsignal(signal.SIGINT)  # Tune's, which works once
        if callable(handler) and not has_come:
            has_come = True
            handler(signal.SIGINT, frame)

    if threading.current_thread() is not threading.main_thread():  # signals go to others
        yield
        return
    try:
        for number in numbers[1:]:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, as_ctrl_c)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class InterruptNotice(tune.Callback):
    """Acknowledges a Ctrl-C: ending trials in good order takes seconds, and Tune is silent meanwhile."""

    def setup(self, *args: Any, **info: Any) -> None:
        """Tune calls this once its own handler is in place."""
        end = signal.getsignal(signal.SIGINT)
        if not callable(end) or threading.current_thread() is not threading.main_thread():
            return

        def notify(number: int, frame: FrameType | None) -> None:
            # Not by print, which may be what was interrupted.
            os.write(2, b"interrupted: ending the trials; once more ends them at once\n")
            end(number, frame)

        signal.signal(signal.SIGINT, notify)
