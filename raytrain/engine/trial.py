"""A trial, as Tune sees it: a class Trainable that owns a warm lane and has it train one trial after another."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from ray import tune

from raytrain.engine.lane import OWNER_CPUS, Job, Lane, LaneShape, Report

_RESULT_SECONDS = 3.0  # a result at least this often, so that Tune can stop the trial and its table moves

# What Tune gets of a trial under which name, from the newest report that has it.
_METRICS = {
    "step": "step",
    "tokens": "tokens",
    "train_flops": "train_flops",
    "loss": "train_loss",
    "train_loss": "train_loss",
    "val_loss": "val_loss",
    "mfu": "mfu",
    "tokens_per_second": "tokens_per_second",
    "memory_peak_gb": "memory_gb",
    "memory_resident_gb": "memory_gb",
    "status": "outcome",
}


class Trial(tune.Trainable):
    """Trains the trials that Tune gives it, one after another, on one lane. Made by `trainable`.

    A result for Tune has the newest metrics and `reports`: all that the trial reported since the last result. A trial
    that failed has ended as any other; only when its lane broke does the step after its last result raise, so that
    Tune starts the next trial in a new process.
    """

    shape: LaneShape
    train_job: Callable[..., Report] | None = None

    def setup(self, config: dict[str, Any]) -> None:
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._lane = Lane(self.shape, self.logdir, type(self).train_job)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._metrics: dict[str, Any] = {}
        self._end: Report | None = None
        self._lane.submit(Job(config["trial"]["config"], config["trial"].get("folder")))

    def step(self) -> dict[str, Any]:
        if self._end is not None:
            raise RuntimeError(self._end["reason"])
        reports: list[Report] = []
        deadline = time.monotonic() + _RESULT_SECONDS
        while (left := deadline - time.monotonic()) > 0 and not any(r["event"] in ("eval", "end") for r in reports):
            reports += self._lane.take(left)
        for report in reports:
            self._metrics |= {_METRICS[name]: value for name, value in report.items() if name in _METRICS}
            if report["event"] == "end":
                self._end = report
        is_over = self._end is not None and not self._lane.is_broken
        return {**self._metrics, "lane": self._name, "reports": reports, "done": is_over}

    def cleanup(self) -> None:
        self._lane.close()


def trainable(shape: LaneShape, train: Callable[..., Report] | None = None) -> Any:
    """The Trial class for lanes of `shape`, with the resources that Tune must find for each.

    A lane of one rank trains in the Trial's own process, which holds its resources; workers hold theirs themselves, and
    a Trial that held a CPU beside them could keep the last one from its own workers for ever.
    """
    attributes = {"shape": shape, "train_job": staticmethod(train) if train else None}
    bundle = {"CPU": float(shape.cpus), "GPU": float(shape.gpus)} if shape.workers == 1 else {"CPU": OWNER_CPUS}
    return tune.with_resources(type("Trial", (Trial,), attributes), tune.PlacementGroupFactory([bundle]))
