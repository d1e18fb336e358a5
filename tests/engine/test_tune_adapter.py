from pathlib import Path
from types import SimpleNamespace

from ray.tune.search import Searcher

from raytrain.engine.job import LaneShape
from raytrain.engine.journal import StudyJournal
from raytrain.engine.tune_adapter import SegmentScheduler, SegmentSearcher
from tests.engine.test_journal import finish, trials


def test_trials_that_fit_in_no_lane_wait_for_another_driver(tmp_path: Path) -> None:
    """Would catch a study that hangs, or breaks, on a trial too large for the cluster, and one that ends while a trial
    is on a lane; also where the rest pause at a rung that waits for it."""
    record = StudyJournal(tmp_path, [trial | {"labels": ["gpt2"]} for trial in trials(2)], {"keep": [1]})
    suggestions = SegmentSearcher(record, {"t1": LaneShape()}, {LaneShape(): 2})
    assert suggestions.suggest("first")["trial"]["id"] == "t1"
    assert suggestions.suggest("second") is None
    finish(record, "t1", status="paused", val_loss=1.0)
    suggestions.on_trial_complete("first")
    assert suggestions.suggest("second") == Searcher.FINISHED
    assert not record.schedule.is_over
    assert not record.schedule.has_ended("t0")


def test_a_free_lane_goes_to_the_trial_that_has_none(tmp_path: Path) -> None:
    """Would catch a lane that is taken down while it starts, again and again, since another gets its trial."""
    desk = SegmentScheduler(StudyJournal(tmp_path, trials(1)))
    ended, starting, running, new = (
        SimpleNamespace(status=status) for status in ("TERMINATED", "PENDING", "RUNNING", "PENDING")
    )
    controller = SimpleNamespace(get_trials=lambda: [ended, starting, running, new])
    assert desk.choose_trial_to_run(controller) is new
    new.status = "RUNNING"
    assert desk.choose_trial_to_run(controller) is starting
    starting.status = "TERMINATED"
    assert desk.choose_trial_to_run(controller) is None
