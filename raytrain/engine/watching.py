"""A study that another process runs, here or on another machine, as its folder tells of it. Reads only; no ray."""

import enum
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytrain.engine.job import newest
from raytrain.engine.lock import Holder, holder_of
from raytrain.engine.view import VIEW_SECONDS, Running, View, shown_name
from raytrain.rundir.folders import read_study_json
from raytrain.rundir.log import Report, Tail
from raytrain.rundir.run import RunFolder
from raytrain.sweep.schedule import Schedule
from raytrain.sweep.trial import AssignedTrial, trials_of

_UNHELD_LOOKS = 5  # in a row without a driver, after which there is none: one that begins makes the folder first


class State(enum.Enum):
    """Of a study: a driver is at work; all trials have ended and so has it; or trials are left that nobody works on."""

    AT_WORK, OVER, LEFT = range(3)


class Watched:
    """The study in `folder`; `look` takes in what its driver has written since. Raises UserError for a folder whose
    files are no study's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        study = read_study_json(folder)
        self._trials: dict[str, AssignedTrial] = {}
        self._take_trials(study)
        self._is_ladder = len({trial.config.scale for trial in self._trials.values()}) > 1
        self.schedule = Schedule(list(self._trials.values()), study.get("scheduler"))
        self.view = View(study["budget_flops"])
        self._events = Tail(folder / "events.jsonl", is_study=True)
        self._logs: dict[str, Tail] = {}
        self._metrics: dict[str, dict[str, Any]] = {}
        self._began = self._last = time.time()  # of the newest driver, and its last word
        self._holder: Holder | None = None

    def _take_trials(self, study: dict[str, Any]) -> None:
        self._trials |= {trial.id: trial for trial in trials_of(study) if trial.id not in self._trials}

    def look(self) -> State:
        """Read what is new, and say how it is with the study."""
        self._holder = holder_of(self._folder)  # first: what a driver wrote before it ended is read then
        for event in self._events.read():
            self._take(event)
        for name in self.schedule.running:
            log = self._logs.setdefault(name, Tail(self._folder / "trials" / name / "log.jsonl"))
            self._metrics[name] = self._metrics.get(name, {}) | newest(log.read())
        if self._holder is not None and self._holder.is_alive:
            self._last = time.time()
            return State.AT_WORK
        return State.OVER if self.schedule.is_over and self._holder is None else State.LEFT

    def _take(self, event: Report) -> None:
        if event["event"] == "stage":  # whose trials are in study.json before
            self._take_trials(read_study_json(self._folder))
        self.schedule.check(event, self._trials, self._folder / "events.jsonl")
        self.schedule.apply(event)
        self._last = event.get("time", self._last)
        if event["event"] == "driver":
            self._began = self._last
        if event["event"] != "end":
            return
        trial = self._trials[event["trial"]]
        loss = RunFolder(self._folder / "trials" / trial.id).result.get("val_loss")
        if event["status"] == "complete" and not trial.role and not self._is_ladder and loss is not None:
            self.view.note_complete(shown_name(trial, None), loss)

    @property
    def spent(self) -> float:
        """Seconds since the newest driver began; of one that has gone, to its last word."""
        return max(0.0, self._last - self._began)

    def lines(self) -> list[str]:
        """What the view shows."""
        trials = [self._trials[name] for name in self.schedule.running]
        running = [
            Running(shown_name(trial, self.schedule.target(trial.id).rung), trial.config.seed, self._metrics[trial.id])
            for trial in trials
        ]
        return self.view.lines(self.schedule, running, self.spent)

    def give_up(self) -> None:
        """Nobody works on what has not ended: no trial runs any more."""
        self.schedule.apply({"event": "driver"})

    def verdict(self, state: State) -> list[str]:
        """How the study ended, and what to do next."""
        if state is State.OVER:
            index = self._folder / "report" / "index.html"
            return ["over        all trials have ended", *([f"report      {index}"] if index.exists() else [])]
        how = "no process works on it"
        if self._holder is not None:
            how = f"its driver has died: {self._holder}"
        elif (study := read_study_json(self._folder)).get("interrupted"):
            how = "its time limit ended it" if "time_limit" in study else "it was interrupted"
        again = ["python", "-m", "raytrain.tune", "--resume", self._folder.name, "--runs", str(self._folder.parent)]
        return [f"stopped     {how}", f"resume with: {shlex.join(again)}"]


def follow(folder: Path, *, once: bool = False, wait: Callable[[float], object] = time.sleep) -> int:
    """Show how far the study in `folder` is until it ends, or `once`. Returns 0; 1 if trials are left that nobody works
    on. `wait` takes the seconds between two looks. Raises UserError as `Watched`."""
    watched, looks, unheld = Watched(folder), 0, 0
    while True:
        state = watched.look()
        looks, unheld = looks + 1, unheld + 1 if state is State.LEFT else 0
        if once or state is State.OVER or unheld == _UNHELD_LOOKS:
            break
        if watched.view.is_due(watched.spent) or looks == 1:
            watched.view.draw(watched.lines(), done=False)
        wait(VIEW_SECONDS)
    if state is State.LEFT:
        watched.give_up()
    if once:
        print("\n".join(watched.lines()))
    else:
        watched.view.draw(watched.lines(), done=True)
    if state is not State.AT_WORK:
        print("\n".join(watched.verdict(state)))
    return int(state is State.LEFT)
