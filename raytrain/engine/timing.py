"""Where the lane-seconds of a sweep went, from its own events. Pure.

A lane is a place where one trial at a time trains. Each segment that ended on one has an event of its own, "segment",
and each driver one with the time at which it began and its lanes, so what is said at the end of a study can be read
from its folder at any time.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from raytrain.engine.job import Report

_MEASURED = ("startup_seconds", "train_seconds", "eval_seconds", "first_steps_seconds", "checkpoint_seconds")


@dataclasses.dataclass
class Timing:
    """A segment of a trial on one lane. `ended`, and `first_step`, when its first step began if it did, are Unix
    seconds."""

    lane: str
    trial: str = ""
    ended: float = 0.0
    first_step: float | None = None
    startup_seconds: float = 0.0  # of `train` before the first step: data, model
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    restored_seconds: float = 0.0  # of these two, what earlier segments and starts of the trial spent
    restored_eval_seconds: float = 0.0  # the part of that for evaluation
    first_steps_seconds: float = 0.0  # of training, what holds compilation and warm-up
    checkpoint_seconds: float = 0.0  # that the run waited for

    @property
    def spent(self) -> float:
        """Seconds of training and evaluation in this segment."""
        return self.train_seconds + self.eval_seconds - self.restored_seconds

    @property
    def evaluation(self) -> float:
        """Seconds of evaluation in this segment."""
        return self.eval_seconds - self.restored_eval_seconds if self.eval_seconds else 0.0

    def note(self, report: Report, lane: str) -> None:
        """Take from a report what it says of time. A trial that was lost counts from where it was started again."""
        if report["event"] == "start":
            self.lane, self.first_step = lane, report["time"]
            self.restored_seconds = report.get("restored_seconds", 0.0)
            self.restored_eval_seconds = report.get("restored_eval_seconds", 0.0)
        if report["event"] == "end":
            self.ended = report["time"]
            for name in _MEASURED:
                setattr(self, name, report.get(name, 0.0))
            if "train_seconds" not in report:  # it failed, and does not say what it spent
                self.restored_seconds = 0.0


@dataclasses.dataclass(frozen=True)
class LaneSeconds:
    """Seconds over all lanes, unless it says otherwise."""

    lanes: int
    segments: int  # of trials, that ended
    wall: float  # from the start of the sweep to the end of its last trial, counted once
    start: float  # before the first step of the first trial on each lane
    first_steps: float  # of each segment: compilation and warm-up
    steady: float  # all other training
    evaluation: float
    checkpoints: float
    set_up: float  # of trials on lanes that were warm: data, model, and what they restored
    trial_median: float | None  # of one trial on a lane that was warm, all but training and evaluation
    turnaround_median: float | None  # from the end of a trial to the first step of the next on its lane
    engine_median: float | None  # the part of that before `train` was called

    @property
    def total(self) -> float:
        return self.wall * self.lanes

    @property
    def other(self) -> float:
        """All but `start`, training and evaluation: checkpoints, set-up, the engine, lanes with nothing to do."""
        return self.total - self.start - self.first_steps - self.steady - self.evaluation

    def parts(self) -> dict[str, float]:
        """What the lane-seconds were spent on, by its name; the sum is `total`."""
        kinds = {"start": self.start, "first steps": self.first_steps, "steady training": self.steady}
        return kinds | {"evaluation": self.evaluation, "other": self.other}

    def __str__(self) -> str:
        lanes = f"{self.lanes} lane{'s' * (self.lanes > 1)}"
        shares = ", ".join(f"{name} {seconds / self.total:.1%}" for name, seconds in self.parts().items())
        lines = [f"time        {self.wall:.1f} s on {lanes}, {self.total:,.1f} lane-seconds: {shares}"]
        if self.trial_median is not None and self.turnaround_median is not None:
            lines.append(
                f"per trial   {self.trial_median:.2f} s of overhead on a warm lane (median); from its end to the first "
                f"step of the next {self.turnaround_median:.2f} s, {self.engine_median:.2f} s of it the engine's"
            )
        return "\n".join(lines)


def lane_seconds(timings: Iterable[Timing], started: float, lanes: int) -> LaneSeconds | None:
    """Of a sweep on `lanes` lanes that began at `started` (Unix seconds); None if no trial has ended on a lane.

    Lanes that were asked for and never came, as those of a cluster that does not grow so far, are left out.
    """
    by_lane: dict[str, list[Timing]] = {}
    for timing in sorted((timing for timing in timings if timing.ended), key=lambda timing: timing.ended):
        if timing.lane:
            by_lane.setdefault(timing.lane, []).append(timing)
    if not by_lane:
        return None
    lanes = min(lanes, len(by_lane))
    segments = [timing for lane in by_lane.values() for timing in lane]
    pairs = [pair for lane in by_lane.values() for pair in itertools.pairwise(lane)]
    warm = [after.ended - before.ended - after.spent for before, after in pairs]
    turnarounds = [(b.first_step - a.ended, b.startup_seconds) for a, b in pairs if b.first_step is not None]
    first_steps = sorted(lane[0].first_step or lane[0].ended for lane in by_lane.values())
    return LaneSeconds(
        lanes=lanes,
        segments=len(segments),
        wall=max(timing.ended for timing in segments) - started,
        start=sum(first_step - started for first_step in first_steps[:lanes]),
        first_steps=sum(t.first_steps_seconds for t in segments),
        steady=sum(t.spent - t.evaluation - t.first_steps_seconds for t in segments),
        evaluation=sum(t.evaluation for t in segments),
        checkpoints=sum(t.checkpoint_seconds for t in segments),
        set_up=sum(after.startup_seconds for _, after in pairs),
        trial_median=statistics.median(warm) if warm else None,
        turnaround_median=statistics.median(gap for gap, _ in turnarounds) if turnarounds else None,
        engine_median=statistics.median(gap - own for gap, own in turnarounds) if turnarounds else None,
    )


def by_driver(events: Iterable[Mapping[str, Any]]) -> list[LaneSeconds | None]:
    """Where the time of each driver of a study went, from the study's `events`; None of one on whose lanes no trial has
    ended. A driver of a version that did not write this down is left out."""
    drivers: list[tuple[Mapping[str, Any], list[Timing]]] = []
    for event in events:
        if event["event"] == "driver" and event.keys() >= {"started", "lanes"}:
            drivers.append((event, []))
        elif event["event"] == "segment" and drivers:
            known = {name: event[name] for name in Timing.__dataclass_fields__ if name in event}
            drivers[-1][1].append(Timing(**known))
    return [lane_seconds(timings, driver["started"], driver["lanes"]) for driver, timings in drivers]
