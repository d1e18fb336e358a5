"""Where the time of a sweep went: training, evaluation, and all the rest, which is overhead."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable

from raytrain.engine.job import Report


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
    restored_seconds: float = 0.0  # of these two, what earlier starts of the trial spent

    @property
    def spent(self) -> float:
        """Seconds of training and evaluation since the trial was last started."""
        return self.train_seconds + self.eval_seconds - self.restored_seconds

    def note(self, report: Report, lane: str) -> None:
        """Take from a report what it says of time. A trial that was lost counts from where it was started again."""
        if report["event"] == "start":
            self.lane, self.first_step = lane, report["time"]
            self.restored_seconds = report.get("restored_seconds", 0.0)
        if report["event"] == "end":
            self.ended = report["time"]
            for name in ("startup_seconds", "train_seconds", "eval_seconds"):
                setattr(self, name, report.get(name, 0.0))


@dataclasses.dataclass(frozen=True)
class Overhead:
    """Seconds over all lanes, unless it says otherwise."""

    lanes: int
    wall: float  # from the start of the sweep to the end of its last trial, counted once
    training: float
    evaluation: float
    restored: float  # of these two, what trials spent before they were started again
    overhead: float  # all the rest: wall x lanes, less the training and evaluation of each trial's last start
    startup: float  # the part of it before the first step of the first trial on each lane
    trial_median: float | None  # overhead of one trial on a lane that was warm
    turnaround_median: float | None  # from the end of a trial to the first step of the next on its lane
    engine_median: float | None  # the part of that before `train` was called

    def __str__(self) -> str:
        lanes = f"{self.lanes} lane{'s' * (self.lanes > 1)}"
        restored = f" ({self.restored:.1f} s of both before they were resumed)" if self.restored else ""
        lines = [
            f"time        {self.wall:.1f} s on {lanes}: training {self.training:.1f} s, "
            f"evaluation {self.evaluation:.1f} s{restored}, overhead {self.overhead:.1f} s "
            f"({self.startup:.1f} s of it to start)"
        ]
        if self.trial_median is not None and self.turnaround_median is not None:
            lines.append(
                f"per trial   {self.trial_median:.2f} s of overhead on a warm lane (median); from its end to the first "
                f"step of the next {self.turnaround_median:.2f} s, {self.engine_median:.2f} s of it the engine's"
            )
        return "\n".join(lines)


def overhead(timings: Iterable[Timing], started: float, lanes: int) -> Overhead | None:
    """The overhead of a sweep on `lanes` lanes that began at `started` (Unix seconds); None if no trial has ended.

    Lanes that were asked for and never came, as those of a cluster that does not grow so far, are left out.
    """
    by_lane: dict[str, list[Timing]] = {}
    for timing in sorted((timing for timing in timings if timing.ended), key=lambda timing: timing.ended):
        by_lane.setdefault(timing.lane, []).append(timing)
    if not by_lane:
        return None
    lanes = min(lanes, len(by_lane))
    trials = [timing for lane in by_lane.values() for timing in lane]
    pairs = [pair for lane in by_lane.values() for pair in itertools.pairwise(lane)]
    warm = [after.ended - before.ended - after.spent for before, after in pairs]
    turnarounds = [(b.first_step - a.ended, b.startup_seconds) for a, b in pairs if b.first_step is not None]
    first_steps = sorted(lane[0].first_step or lane[0].ended for lane in by_lane.values())
    wall = max(timing.ended for timing in trials) - started
    spent = sum(t.spent for t in trials)
    segments: dict[str | int, list[Timing]] = {}  # of each trial: a later one's seconds have an earlier one's in them
    for timing in sorted(trials, key=lambda timing: timing.ended):
        segments.setdefault(timing.trial or id(timing), []).append(timing)
    last = [own[-1] for own in segments.values()]
    return Overhead(
        lanes=lanes,
        wall=wall,
        training=sum(t.train_seconds for t in last),
        evaluation=sum(t.eval_seconds for t in last),
        restored=sum(own[0].restored_seconds for own in segments.values()),
        overhead=wall * lanes - spent,
        startup=sum(first_step - started for first_step in first_steps[:lanes]),
        trial_median=statistics.median(warm) if warm else None,
        turnaround_median=statistics.median(gap for gap, _ in turnarounds) if turnarounds else None,
        engine_median=statistics.median(gap - own for gap, own in turnarounds) if turnarounds else None,
    )
