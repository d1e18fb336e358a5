"""What a study runs next: its trials, each in segments that end at rungs, and which continue. Knows no Ray.

The state is what a list of events makes of it, so a driver that starts again reads the events and has it whole:

    driver   a driver took the study up: what ran under the one before waits again, and so do `retried`
    begin    a lane has the trial
    rung     the trial is paused at `rung`, with `score` (val_loss; None where there is none)
    lost     its lane died; it waits again. If it was `preempted` by notice of that, it is not held against it
    oom      it ran out of memory; it waits again, with `micro_batch` sequences a pass
    end      it has ended, with `status`
    stage    `trials` of a later stage join, which earlier results decided (see raytrain.sweep.stages)

    waiting -> running -> paused at a rung -> waiting, for the next rung, or ended: `stopped`
                       -> ended: `complete`, `diverged`, `oom`, `failed`, `lost`

Rungs are model FLOPs, equal for all trials. `raytrain.sweep.halving` decides which variants continue: their seeds
continue or stop together (each trial by itself where `scheduler` has no "unit", as before 0.2). A trial that ends
before a rung has no part in its variant's mean; one without rungs (the baseline's runs for the frontier) runs to its
end.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from raytrain.errors import UserError
from raytrain.sweep.halving import merit, settled
from raytrain.sweep.trial import AssignedTrial, without_seed

LOST_RETRIES = 3  # times that a trial whose lane died is started again, from its newest checkpoint if it has one

Event = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of a trial for a lane: to rung number `rung`, or to the end of its budget (None).

    `micro_batch` takes the place of the config's after the trial ran out of memory.
    """

    trial: str
    rung: int | None
    micro_batch: int | None


@dataclasses.dataclass
class _Trial:
    rungs: int  # how many it has
    rung: int = 0  # the one it trains for; `rungs` means its end
    state: str = "waiting"  # running, paused, ended
    status: str = ""
    losses: int = 0
    micro_batch: int | None = None


class Schedule:
    """The state of a study's `trials` under its `scheduler` (as study.json has it)."""

    def __init__(self, trials: Sequence[AssignedTrial], scheduler: Mapping[str, Any] | None = None) -> None:
        self._keep: list[int] = list((scheduler or {}).get("keep", ()))
        planned = (trial for trial in trials if not trial.stage)
        self._trials = {trial.id: _Trial(0 if trial.role else len(self._keep)) for trial in planned}
        self._scores: list[dict[str, float]] = [{} for _ in self._keep]
        by_variant = (scheduler or {}).get("unit") == "variant"
        self._units: dict[str, list[str]] = {}  # trials that continue or stop together
        for name, trial in self._trials.items():
            if trial.rungs:
                self._units.setdefault(without_seed(name) if by_variant else name, []).append(name)

    @property
    def rungs(self) -> int:
        """How many rungs trials may be scored at."""
        return len(self._keep)

    @property
    def is_over(self) -> bool:
        """Whether every trial has ended."""
        return all(trial.state == "ended" for trial in self._trials.values())

    @property
    def progress(self) -> str:
        """Such as `9 of 64 trials ended, 12 running, 40 waiting, 3 paused`."""
        counts = Counter(trial.state for trial in self._trials.values())
        states = (f", {counts[state]} {state}" for state in ("running", "waiting", "paused") if counts[state])
        return f"{counts['ended']} of {len(self._trials)} trials ended{''.join(states)}"

    @property
    def part_ended(self) -> float:
        """Of the trials that are known now, the part that has ended."""
        return sum(trial.state == "ended" for trial in self._trials.values()) / len(self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def __contains__(self, trial: str) -> bool:
        """Whether the trial is of the first stage, or has joined."""
        return trial in self._trials

    def has_ended(self, trial: str) -> bool:
        return self._trials[trial].state == "ended"

    @property
    def running(self) -> list[str]:
        return [name for name, trial in self._trials.items() if trial.state == "running"]

    @property
    def retried(self) -> list[str]:
        """The trials that a new driver tries again: lost, as the death of a lane is no result of the trial.

        But not where others continued from the same rung without it: were it better, too many would continue.
        """
        furthest = max(trial.rung for trial in self._trials.values())
        return [
            name
            for name, trial in self._trials.items()
            if trial.status == "lost" and (trial.rung == trial.rungs or trial.rung == furthest)
        ]

    def next(
        self, fits: Callable[[str], bool] = lambda trial: True, order: Callable[[str], int] = lambda trial: 0
    ) -> Segment | None:
        """The segment to run next among trials that `fits`; None if there is none now.

        Those of the lowest rung first, since decisions wait for them; then by `order`; then in the order of the plan.
        """
        waiting = [name for name, trial in self._trials.items() if trial.state == "waiting" and fits(name)]
        if not waiting:
            return None
        first = min(waiting, key=lambda name: (self._trials[name].rung, order(name)))  # min keeps the first of equals
        return self.target(first)

    def target(self, name: str) -> Segment:
        """The segment that trial `name` is at."""
        trial = self._trials[name]
        return Segment(name, trial.rung if trial.rung < trial.rungs else None, trial.micro_batch)

    def retries_after_loss(self, trial: str) -> bool:
        return self._trials[trial].losses < LOST_RETRIES

    def retries_after_oom(self, trial: str) -> bool:
        """Once, with smaller micro-batches."""
        return self._trials[trial].micro_batch is None

    def check(self, event: Event, known: Container[str], source: object) -> None:
        """Raises UserError, about the file `source`, for an event about what a study of the trials `known` lacks."""
        for name in (*([event["trial"]] if "trial" in event else []), *event.get("trials", ())):
            if name not in known or ("trial" in event and name not in self):
                raise UserError(f"{source} is damaged: {event['event']}: trial ({name}) is not in study.json")
        if event["event"] == "rung" and event["rung"] >= self.rungs:
            raise UserError(f"{source} is damaged: rung ({event['rung']}) must be below {self.rungs}")

    def apply(self, event: Event) -> list[str]:
        """Take in an event. Returns the trials that it stops at their rung: each wants an `end` of its own."""
        kind = event["event"]
        if kind == "driver":
            again = {*self.running, *self.retried}
            for name, trial in self._trials.items():
                if name in again:
                    trial.state, trial.status = "waiting", ""
                trial.losses = 0
            return self._decide()
        if kind == "stage":
            self._trials |= {name: _Trial(0) for name in event["trials"] if name not in self._trials}
            return self._decide()
        name, trial = event["trial"], self._trials[event["trial"]]
        if kind == "begin":
            trial.state = "running"
        elif kind == "rung":
            trial.state = "paused"
            score = event["score"]
            self._scores[event["rung"]][name] = math.nan if score is None else score
        elif kind == "lost":
            trial.state, trial.losses = "waiting", trial.losses + (not event.get("preempted"))
        elif kind == "oom":
            trial.state, trial.micro_batch = "waiting", event["micro_batch"]
        elif kind == "end":
            trial.state, trial.status = "ended", event["status"]
        return self._decide()

    def _decide(self) -> list[str]:
        """Continue those that are certain to continue; return those that are certain to stop."""
        stops: list[str] = []
        at_most = sum(any(self._trials[name].rungs for name in unit) for unit in self._units.values())
        for rung, keep in enumerate(self._keep):  # at_most: units that may yet come to the rung
            scores = dict(self._scores[rung])
            for name, trial in self._trials.items():
                if trial.rung == rung < trial.rungs and trial.state == "ended" and trial.status != "stopped":
                    scores[name] = math.nan
            merits = {}
            for unit, members in self._units.items():
                there = [name for name in members if self._trials[name].rung >= rung < self._trials[name].rungs]
                if there and all(name in scores for name in there):
                    merits[unit] = merit(scores[name] for name in there)
            go_on, stop = settled(merits, at_most - len(merits), keep)
            for unit in go_on:
                for name in self._units[unit]:
                    trial = self._trials[name]
                    if trial.rung == rung and trial.state == "paused" and not math.isnan(scores[name]):
                        trial.rung, trial.state = rung + 1, "waiting"
            ends = {
                name
                for unit in stop | {unit for unit in merits if math.isnan(merits[unit])}
                for name in self._units[unit]
            }
            for name in ends | {name for name in scores if math.isnan(scores[name])}:
                trial = self._trials[name]
                if trial.rung == rung and trial.state == "paused":
                    stops.append(name)
            finite = sum(not math.isnan(merits[unit]) for unit in go_on)
            at_most = finite if len(merits) == at_most else min(keep, at_most)
        return stops
