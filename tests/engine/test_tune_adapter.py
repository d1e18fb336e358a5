import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.search import Searcher

from raytrain.engine.ahead import Programs
from raytrain.engine.job import LaneShape
from raytrain.engine.journal import StudyJournal
from raytrain.engine.tune_adapter import SegmentScheduler, SegmentSearcher
from raytrain.sweep.schedule import Segment
from tests.engine.test_journal import finish, trials


def test_trials_that_fit_in_no_lane_wait_for_another_driver(tmp_path: Path) -> None:
    """Would catch a study that hangs, or breaks, on a trial too large for the cluster, and one that ends while a trial
    is on a lane; also where the rest pause at a rung that waits for it."""
    record = StudyJournal(tmp_path, trials(2), {"keep": [1]})
    suggestions = SegmentSearcher(record, {"t1": LaneShape()}, {LaneShape(): 2}, Programs())
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


def test_why_a_lane_died_is_read_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a pickle that is run from a folder that others write to, a lane killed for its memory that is called
    lost (Tune keeps no pickle of that), and a reason that is no reason."""

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "error.pkl").write_bytes(pickle.dumps(Bomb()))
    killed = "A worker was killed.\n... set the environment variable `RAY_memory_usage_threshold` when starting Ray.\n"
    died = "The actor died unexpectedly before finishing this task.\n\tclass_name: Trial\n"
    failed = "The actor died because of an error raised in its creation task, ray::Trial()\n  x\nValueError: bad luck\n"
    cases = [
        (f"Failure # 1 (occurred at noon)\n{killed}", "oom", "the lane died: A worker was killed."),
        (f"Failure # 1 (occurred at noon)\n{died}", "lost", died.split("\n")[0]),
        (f"Failure # 1 (occurred at noon)\n{failed}", "lost", "ValueError: bad luck"),
        ("", "lost", "Tune does not say why"),
    ]
    for text, status, reason in cases:
        record = StudyJournal(tmp_path / reason[:20], trials(1))
        record.begin(Segment("t0", None, None))
        (tmp_path / "error.txt").write_text(text)
        told: list[tuple[str, str, str]] = []
        monkeypatch.setattr(record, "lane_died", lambda *said, told=told: told.append(said))
        trial = SimpleNamespace(
            config={"trial": {"id": "t0"}},
            last_result={},
            error_file=str(tmp_path / "error.txt"),
            pickled_error_file=str(tmp_path / "error.pkl"),
        )
        SegmentScheduler(record).on_trial_error(None, trial)
        ((_, found, why),) = told
        assert (found, reason in why) == (status, True), (text, why)
    assert not (tmp_path / "ran").exists()
