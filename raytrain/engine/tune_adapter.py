"""How Tune hands segments to lanes: `SegmentSearcher` gives it the next, `SegmentScheduler` decides on each result.

Tune makes a trial of its own of every segment, so that a trial paused at a rung holds no lane, and one whose lane died
begins again wherever there is one. The decisions are the schedule's; these two only translate.
"""

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from raytrain.engine.ahead import Programs
from raytrain.engine.job import Job, LaneShape
from raytrain.engine.journal import StudyJournal
from raytrain.engine.limit import TimeLimit
from raytrain.engine.view import shown_name

_FAILURE = "Failure # "  # how Tune heads each error in a trial's file of them
_OUT_OF_MEMORY = "RAY_memory_usage_threshold"  # the setting that Ray names where it killed a process for its memory


class SegmentSearcher(Searcher):
    """The next segment for Tune. `lanes` says of each shape how many lanes there may be, `shapes` which a trial takes,
    and `programs` what is compiled.

    Lanes of different shapes take the same GPUs, so those of one shape are at work at a time.
    """

    def __init__(
        self, record: StudyJournal, shapes: dict[str, LaneShape], lanes: dict[LaneShape, int], programs: Programs
    ) -> None:
        super().__init__()
        self._record, self._shapes, self._lanes, self._programs = record, shapes, lanes, programs
        self._is_ladder = len({trial.config.scale for trial in record.trials.values()}) > 1
        self._live: dict[str, LaneShape] = {}  # Tune's trials that have not ended
        self._segments: dict[str, str] = {}  # their trials of the study

    def suggest(self, trial_id: str) -> Any:
        """A config for Tune's trial `trial_id`; None if there is none now.

        A trial too large for the cluster is left; when none but such wait, and none is on a lane, it is over.
        """
        schedule = self._record.schedule
        if schedule.is_over:
            return Searcher.FINISHED
        taken = Counter(self._live.values())
        open_shapes = [
            shape for shape, most in self._lanes.items() if taken[shape] < most and (not taken or shape in taken)
        ]
        segment = schedule.next(lambda trial: self._shapes.get(trial) in open_shapes, self._programs.order)
        if segment is None:
            return None if self._live else Searcher.FINISHED
        planned, shape = self._record.trials[segment.trial], self._shapes[segment.trial]
        self._live[trial_id], self._segments[trial_id] = shape, segment.trial
        self._record.begin(segment)
        self._programs.begun(segment.trial)
        name = shown_name(planned, segment.rung)
        is_ranked = not planned.role and not self._is_ladder  # nothing is best over several scales
        trial = {"id": planned.id, "seed": planned.config.seed, "name": name, "is_ranked": is_ranked}
        trial["shape"] = json.dumps(dataclasses.asdict(shape))
        # As text, since Tune flattens and copies what a config holds, and keeps it for as long as the study runs.
        job = Job.of(planned, segment, self._record.weights_of(planned.id))
        return {"trial": trial, "job": json.dumps(dataclasses.asdict(job))}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        del self._live[trial_id]
        self._programs.ended(self._segments.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's own events are what a restart reads."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class LimitStopper(Stopper):
    """Ends all trials once the study's time is over: Tune starts none after it, and closes the lanes as at a Ctrl-C."""

    def __init__(self, limit: TimeLimit) -> None:
        self._limit, self._has_told = limit, False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to end this trial alone."""
        return False

    def stop_all(self) -> bool:
        if self._limit.is_over and not self._has_told:
            self._has_told = True
            print("time limit: ending the trials", file=sys.stderr, flush=True)
        return self._limit.is_over


class SegmentScheduler(FIFOScheduler):
    """Writes down what lanes report, and stops a trial of Tune's once its segment is over.

    A lane whose segment is over, with nothing to run until other lanes bring a rung to its end, is left to idle: Tune
    would take it down. But not while a trial waits for a lane, which may never come: a node may have died.
    """

    def __init__(self, record: StudyJournal) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The newest that has no lane. Tune gives it one that has come free.

        To the oldest it would give that one too, and take down the lane that starts for it: where lanes come free
        faster than one starts, no further one would ever be up.
        """
        trials = reversed(tune_controller.get_trials())
        return next((trial for trial in trials if trial.status == "PENDING"), None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP once the segment is over and there is other work, begun or not, or none ever."""
        schedule = self._record.schedule
        for report in result["reports"]:
            self._record.take(trial.config["trial"]["id"], report, result["lane"])
        if not result["is_over"] or result["is_lost"]:
            return TrialScheduler.CONTINUE
        is_wanted = schedule.next() is not None or any(
            live.status == "PENDING" for live in tune_controller.get_live_trials()
        )
        return TrialScheduler.STOP if schedule.is_over or is_wanted else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tune keeps its trials as long as the study runs, with statistics of every metric, which nothing reads."""
        trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps = {}, {}
        trial.last_result.pop("reports")

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """The lane broke. If it did not say so itself, its process died under the trial."""
        name = trial.config["trial"]["id"]
        if name in self._record.schedule.running and not trial.last_result.get("is_over"):
            # Its text, not its pickle, which would run as code whatever another user of the machine put there.
            error = Path(trial.error_file).read_text(errors="replace")
            status = "oom" if _OUT_OF_MEMORY in error else "lost"
            self._record.lane_died(name, status, f"the lane died: {_cause(error)}")


def _cause(error: str) -> str:
    """Why a lane's process died, from the text that Tune keeps: of one that could not start, its own last words."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    found = [number for number, line in enumerate(lines) if line.startswith(_FAILURE)]
    lines = lines[found[-1] + 1 :] if found else lines
    if not lines:
        return "Tune does not say why"
    return lines[-1] if any("creation task" in line for line in lines) else lines[0]
