"""What a study leaves behind: its folder, written in the driver, and MLflow, fed from that folder.

    study.json        the plan, and the trials of later stages
    events.jsonl      what happened to each trial, in order; `scheduler.Schedule` is what they make
    trials/<id>/      config.json, log.jsonl (every report), and once it has ended result.json
    lock.json       while a driver runs

In the driver: the folder may be on the driver's own disk while trials train on other machines. A driver may die between
any two writes; `StudyJournal` makes good what that leaves.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import shlex
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import rich.console

from raytrain.engine.hosts import failed_by_host
from raytrain.engine.job import Report, one_line
from raytrain.engine.models import Models
from raytrain.engine.timing import Timing
from raytrain.errors import UserError
from raytrain.rundir.folders import read_json, read_study_json, write_json
from raytrain.rundir.log import JsonLog, read_events, read_log
from raytrain.rundir.schema import RESULT
from raytrain.sweep.schedule import Schedule, Segment
from raytrain.sweep.stages import Stage, with_stage
from raytrain.sweep.trial import AssignedTrial
from raytrain.training.storage import open_storage
from raytrain.uris import reopened, shown

P = ParamSpec("P")
T = TypeVar("T")
_SYNC_SECONDS = 5.0
_LAST_SYNC_SECONDS = 60.0  # what MLflow may take at the end before it is left behind


def _written(method: Callable[P, T]) -> Callable[P, T]:
    """A method of the journal's that writes: a disk that takes no more ends the study, for good order's sake here, as
    Tune would take the error for one of the trial's."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            journal = args[0]
            assert isinstance(journal, StudyJournal)
            if journal.on_full_disk is not None:
                journal.on_full_disk(error)
            raise

    return run


class StudyJournal:
    """The study in `folder`, with its `trials`; takes it up where an earlier driver left it.

    `grow` is asked for the next stage whenever all trials have ended; its trials then join. `driver` is what is to be
    known of this process: when it `started`, and how many `lanes` it has. `models` says which weights are kept.
    """

    def __init__(
        self,
        folder: Path,
        trials: Sequence[AssignedTrial],
        scheduler: dict[str, Any] | None = None,
        grow: Callable[[], Stage | None] = lambda: None,
        storage: str | None = None,
        driver: Mapping[str, Any] | None = None,
        models: Models | None = None,
    ) -> None:
        self._study, self._folder, self._storage = folder, folder / "trials", storage
        self._grow: Callable[[], Stage | None] = lambda: None
        self._models = models
        self.trials = {trial.id: trial for trial in trials}
        self.schedule = Schedule(trials, scheduler)
        self.on_full_disk: Callable[[OSError], object] | None = None
        self.is_ending = False  # whether a signal has come that ends the study
        self._rung: dict[str, int | None] = {}  # that each trial on a lane trains for
        self._micro_batch: dict[str, int] = {}  # that each trial on a lane trains with
        self._timings: dict[str, Timing] = {}  # of the trials on lanes
        self._logs: dict[str, JsonLog] = {}  # of the trials on lanes
        path = folder / "events.jsonl"
        self._events = JsonLog(path)
        earlier = read_events(path)
        self.is_new = not earlier  # no driver took the study up before
        for event in earlier:
            self.schedule.check(event, self.trials, path)
            self.schedule.apply(event)
        for trial in self.schedule.running:
            self._make_good(trial)
        self._join()
        for trial in self.trials:  # what an earlier version called a failure of theirs
            if self.schedule.has_ended(trial) and self._failed_by_host(trial):
                self._apply(event="end", trial=trial, status="lost")
        for trial in self.schedule.retried:  # before the event: what would say that it has ended must not outlive it
            (self._folder / trial / "result.json").unlink(missing_ok=True)
        self._grow = grow  # not before: what a new driver tries again comes first
        self._apply(event="driver", host=socket.gethostname(), pid=os.getpid(), **(driver or {}))

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given into the study's folder: no secret may be there, nor what decides stages."""
        return self.__dict__ | {"_grow": None, "_storage": None, "_models": None, "on_full_disk": None}

    def _failed_by_host(self, trial: str) -> bool:
        result = self._folder / trial / "result.json"
        return result.exists() and failed_by_host(read_json(result))

    def _make_good(self, trial: str) -> None:
        """What the log or the result of a trial says and the events do not: its driver died between the two."""
        rung, result = self.schedule.target(trial).rung, self._folder / trial / "result.json"
        for report in read_log(self._folder / trial / "log.jsonl"):
            if report["event"] == "pause" and report["rung"] == rung:
                self._apply(event="rung", trial=trial, rung=rung, score=_finite(report.get("val_loss")))
                break
        if result.exists() and not self.schedule.has_ended(trial):
            self._apply(event="end", trial=trial, status=read_json(result, RESULT)["status"])

    def _join(self) -> None:
        """Have the trials of a stage join that study.json has and the events do not."""
        stages = dict.fromkeys(trial.stage for name, trial in self.trials.items() if name not in self.schedule)
        for stage in stages:
            names = [name for name, trial in self.trials.items() if trial.stage == stage]
            self._apply(event="stage", stage=stage, trials=[name for name in names if name not in self.schedule])

    def weights_of(self, trial: str) -> str | None:
        """Where the trial writes its final weights, a path or an address without secrets; None if it writes none."""
        return self._models.place(self.trials[trial]) if self._models else None

    @_written
    def begin(self, segment: Segment, **facts: Any) -> None:
        """A lane is to have this segment of a trial."""
        self._rung[segment.trial] = segment.rung
        folder = self._folder / segment.trial
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", self.trials[segment.trial].config.to_dict())
        self._logs[segment.trial] = JsonLog(folder / "log.jsonl")
        self._apply(event="begin", trial=segment.trial, rung=segment.rung, **facts)

    @_written
    def take(self, trial: str, report: Report, lane: str) -> None:
        """Write down what a trial reported. Its "end" may turn out to be a pause, or to be tried again."""
        report = dict(report)
        self._timings.setdefault(trial, Timing(lane, trial)).note(report, lane)
        self._micro_batch[trial] = report.get("micro_batch", self._micro_batch.get(trial, 0))
        trace = report.pop("traceback", None)
        if trace is not None:
            (self._folder / trial / "traceback.txt").write_text(trace)
        if report["event"] != "end":
            self._log(trial, report)
            return
        self._events.write({"event": "segment", **dataclasses.asdict(self._timings.pop(trial))})
        if self.is_ending and report["status"] in ("failed", "oom", "lost"):
            # A signal that ends the study may have reached the lane's processes too.
            self._log(trial, report | {"event": "lost"})
            self._apply(event="lost", trial=trial, reason=report.get("reason"))
            return
        status, schedule = report["status"], self.schedule
        if status == "paused":
            rung = self._rung[trial]
            score = report.get("val_loss")
            self._log(trial, report | {"event": "pause", "rung": rung})
            self._apply(event="rung", trial=trial, rung=rung, score=_finite(score))
        elif status == "lost" and (report.get("preempted") or schedule.retries_after_loss(trial)):
            self._log(trial, report | {"event": "lost"})
            facts = {"preempted": True} if report.get("preempted") else {}
            self._apply(event="lost", trial=trial, reason=report.get("reason"), **facts)
        elif status == "oom" and schedule.retries_after_oom(trial) and self._micro_batch[trial] > 1:
            sequences = self._micro_batch[trial]
            # Twice the accumulation; of an odd number, as little more as its divisors allow.
            smaller = max(part for part in range(1, sequences // 2 + 1) if sequences % part == 0)
            self._log(trial, report | {"event": "oom", "next_micro_batch": smaller})
            self._apply(event="oom", trial=trial, micro_batch=smaller)
        else:
            self._end(trial, report)

    def lane_died(self, trial: str, status: str, reason: str) -> None:
        """The process of the trial's lane is gone, without a word."""
        self.take(trial, {"event": "end", "status": status, "reason": reason, "time": time.time()}, "")

    def fail(self, trial: str, reason: str) -> None:
        """The trial cannot be run at all."""
        self._end(trial, {"event": "end", "status": "failed", "reason": reason, "time": time.time()})

    def _end(self, trial: str, report: Report) -> None:
        planned = self.trials[trial]
        config = planned.config
        # A trial that failed does not say itself which it was.
        report = {"name": config.architecture.name, "hash": planned.hash, "seed": config.seed} | report
        self._log(trial, report)
        write_json(
            self._folder / trial / "result.json", {k: v for k, v in report.items() if k not in ("event", "time")}
        )
        self._apply(event="end", trial=trial, status=report["status"])
        if self._models is not None:
            self._models.ended(planned, report)
        # What was kept for a pause or a retry alone.
        if planned.folder is not None and config.checkpoint_interval is None:
            with contextlib.suppress(OSError, UserError):
                open_storage(reopened(planned.folder, self._storage)).clear()

    def _log(self, trial: str, report: Report) -> None:
        if trial not in self._logs:
            self._logs[trial] = JsonLog(self._folder / trial / "log.jsonl")
        self._logs[trial].write(report)

    def _apply(self, **event: Any) -> None:
        """Write an event down, then act on it."""
        self._events.write(event)
        if event["event"] != "begin":
            self._logs.pop(event.get("trial", ""), None)
        for trial in self.schedule.apply(event):
            pauses = [r for r in read_log(self._folder / trial / "log.jsonl") if r["event"] == "pause"]
            self._end(trial, pauses[-1] | {"event": "end", "status": "stopped"})
        if event["event"] in ("driver", "end") and self.schedule.is_over and (stage := self._grow()) is not None:
            # First study.json, whole: what runs is in it. A driver that dies before the event finds it there.
            write_json(self._study / "study.json", with_stage(read_study_json(self._study), stage))
            self.trials |= {trial.id: trial for trial in stage.trials}
            self._join()


class Sync:
    """Brings the study to MLflow from a thread, every few seconds and at the end. An error of MLflow's is one line.

    Once it is made the thread imports MLflow and makes the database, if it is one that is not there yet: both take
    seconds, which Ray's start takes too. It reads the study, which may not be there before, inside the `with` block.
    """

    def __init__(self, folder: Path, tracking_uri: str | None, console: rich.console.Console) -> None:
        self._folder, self._tracking_uri, self._console = folder, tracking_uri, console
        self.uri: str | None = None
        self.ui: str | None = None
        self.link: str | None = None  # to the ranking, once MLflow has it
        self.patience = _LAST_SYNC_SECONDS
        self._error: str | None = None
        self._is_on, self._is_over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Sync":
        self._is_on.set()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Send what MLflow does not have, for at most `patience` seconds; print what to do about what it then lacks."""
        self._is_on.set()
        self._is_over.set()
        error = None
        try:
            self._thread.join(self.patience)
            if self._thread.is_alive():
                error = f"it has not answered for {self.patience:g} s"
        except KeyboardInterrupt:  # the study itself is over, or was interrupted before
            error = "the last sync was interrupted"
        error = error or self._error
        if error is not None:
            again = ["python", "-m", "raytrain.track", "sync", self._folder.name, "--runs", str(self._folder.parent)]
            again += ["--tracking_uri", shown(self._tracking_uri)] if self._tracking_uri else []
            self._console.print(f"MLflow sync incomplete: {error}", markup=False)
            self._console.print(f"send the rest later with: {shlex.join(again)}", markup=False)

    def _run(self) -> None:
        try:
            from raytrain.tracking.uploader import Uploader, ui_command  # here: importing MLflow takes seconds

            for name in ("mlflow", "alembic"):  # each tells of every table that it makes
                logging.getLogger(name).setLevel(logging.WARNING)
            uploader = Uploader(self._folder, self._tracking_uri)
            self.uri, self.ui = uploader.uri, ui_command(shown(uploader.uri))
        except Exception as error:
            self._error = one_line(error)
            return
        with contextlib.suppress(Exception):  # the first sync says what is wrong
            uploader.connect()
        self._is_on.wait()
        is_last = False
        while not is_last:
            is_last = self._is_over.wait(_SYNC_SECONDS)
            try:
                uploader.sync()
                self._error, self.link = None, uploader.link
            except Exception as error:  # whatever a tracking server does, the sweep goes on
                self._error = one_line(error)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
