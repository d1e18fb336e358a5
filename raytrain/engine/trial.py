"""A trial, as Tune sees it: a class Trainable that owns a warm lane and has it train one segment after another."""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from ray import tune

from raytrain.engine.job import HANG_TIMEOUT, OWNER_CPUS, Job, LaneShape, Report, newest
from raytrain.engine.secrets import opened
from raytrain.training.launch import forget

_RESULT_SECONDS = 3.0  # a result at least this often, so that Tune can stop the trial and its table moves
_IDLE_SECONDS = 0.1  # how soon a lane without work sees that there is some


class Trial(tune.Trainable):
    """Trains the segments that Tune gives it, one after another, on one lane. Made by `trainable`.

    A result for Tune has the newest metrics and `reports`: all that the trial reported since the last result.
    `is_over` says that the segment has ended, however it did: the lane then idles, warm, until Tune stops the trial,
    and takes its next one. If the lane broke, the step after raises, so that Tune makes another.
    """

    train_job: Callable[..., Report] | None = None
    hang_timeout: float = HANG_TIMEOUT

    def setup(self, config: dict[str, Any]) -> None:
        from raytrain.engine.lane import Lane  # here: a driver that makes this class has no use for torch

        forget()  # a launcher's variables in the driver's environment; Train sets those of ranks
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        shape = LaneShape(**json.loads(config["trial"]["shape"]))
        self._lane = Lane(shape, self.logdir, type(self).train_job, self.hang_timeout)
        self._take_on(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._take_on(new_config)
        return True

    def _take_on(self, config: dict[str, Any]) -> None:
        # Not begun before the first step: Tune may give the trial of a lane that starts to one that comes free first.
        self._job: Job | None = _job(config["job"])
        self._metrics: dict[str, Any] = {}
        self._end: Report | None = None

    def step(self) -> dict[str, Any]:
        if self._job is not None:
            self._lane.submit(self._job)
            self._job = None
        reports: list[Report] = []
        if self._end is not None:
            if self._is_lost():
                raise RuntimeError(self._end["reason"])
            time.sleep(_IDLE_SECONDS)
        deadline = time.monotonic() + _RESULT_SECONDS
        while self._end is None and (left := deadline - time.monotonic()) > 0:
            reports += self._lane.take(left)
            if any(report["event"] in ("eval", "rung", "end") for report in reports):
                break
        self._metrics |= newest(reports)
        self._end = next((report for report in reports if report["event"] == "end"), self._end)
        is_over = self._end is not None
        lane = {"lane": self._name, "is_over": is_over, "is_lost": is_over and self._is_lost()}
        return {**self._metrics, **lane, "reports": reports}

    def _is_lost(self) -> bool:
        """Whether the lane can take no more. A rank that hung says so before it goes."""
        return self._lane.is_broken or (self._end is not None and self._end["status"] == "lost")

    def cleanup(self) -> None:
        self._lane.close()


def _job(text: str) -> Job:
    job = Job(**json.loads(text))
    return dataclasses.replace(job, folder=opened(job.folder), weights=opened(job.weights))


def trainable(train: Callable[..., Report] | None = None, hang_timeout: float = HANG_TIMEOUT) -> Any:
    """The Trial class, with the resources that Tune must find for each.

    A lane of one rank trains in the Trial's own process, which holds its resources; workers hold theirs themselves, and
    a Trial that held a CPU beside them could keep the last one from its own workers for ever. As Tune gives a trial
    the lane of another that asked for the same, lanes of different sizes must not ask for the same.
    """

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        shape = LaneShape(**json.loads(config["trial"]["shape"]))
        alone = {"CPU": float(shape.cpus), "GPU": float(shape.gpus)}
        return tune.PlacementGroupFactory([alone if shape.workers == 1 else {"CPU": OWNER_CPUS * shape.workers}])

    attributes = {"train_job": staticmethod(train) if train else None, "hang_timeout": hang_timeout}
    return tune.with_resources(type("Trial", (Trial,), attributes), resources)
