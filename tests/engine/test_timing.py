import pytest

from raytrain.engine.timing import Timing, overhead


def trial(lane: str, first_step: float | None, ended: float) -> Timing:
    timing = Timing(lane)
    if first_step is not None:
        timing.note({"event": "start", "time": first_step}, lane)
        timing.note(
            {"event": "end", "time": ended, "startup_seconds": 0.5, "train_seconds": 6.0, "eval_seconds": 2.0}, lane
        )
    else:
        timing.note({"event": "end", "time": ended, "status": "failed"}, lane)
    return timing


def test_overhead_by_hand() -> None:
    """Would catch trials of two lanes paired with each other, and evaluation or training counted as overhead."""
    timings = [trial("b", 112.0, 120.0), trial("a", 110.0, 118.0), trial("b", 123.0, 131.0), trial("a", 119.0, 127.0)]
    spent = overhead(timings, started=100.0, lanes=2)
    assert spent is not None
    assert (spent.wall, spent.training, spent.evaluation) == (31.0, 24.0, 8.0)
    assert spent.overhead == 2 * 31.0 - 24.0 - 8.0
    assert spent.startup == 10.0 + 12.0
    assert spent.trial_median == pytest.approx((1.0 + 3.0) / 2)
    assert spent.turnaround_median == pytest.approx((1.0 + 3.0) / 2)
    assert spent.engine_median == pytest.approx((0.5 + 2.5) / 2)


def test_overhead_with_failures() -> None:
    """Would catch a report that fails, after hours of training, because trials failed before their first step."""
    assert overhead([], 0.0, 1) is None
    spent = overhead([trial("a", None, 5.0), trial("a", None, 6.0)], started=0.0, lanes=1)
    assert spent is not None
    assert (spent.overhead, spent.trial_median, spent.turnaround_median) == (6.0, 1.0, None)
    assert "6.0 s on 1 lane" in str(spent)


def test_lanes_that_never_came() -> None:
    """Would catch lanes that a cluster never had counted as idle for the whole study."""
    spent = overhead([trial("a", 110.0, 118.0)], started=100.0, lanes=16)
    assert spent is not None
    assert (spent.lanes, spent.overhead) == (1, 18.0 - 8.0)


def test_a_retried_trial_counts_from_its_last_start() -> None:
    """Would catch overhead below zero: what a trial trained before its lane died is not in the new lane's time."""
    timing = Timing("dead")
    timing.note({"event": "start", "time": 10.0}, "dead")
    timing.note({"event": "start", "time": 50.0, "restored_seconds": 30.0}, "new")
    timing.note({"event": "end", "time": 60.0, "train_seconds": 36.0, "eval_seconds": 2.0}, "new")
    assert (timing.lane, timing.spent) == ("new", 8.0)


def test_the_parts_of_a_resumed_sweep_add_up() -> None:
    """Would catch a line of times that sum to more than the lanes had, without a word of what came before."""
    resumed = Timing("a", ended=120.0, first_step=108.0, train_seconds=36.0, eval_seconds=2.0, restored_seconds=30.0)
    spent = overhead([resumed, trial("b", 105.0, 118.0)], started=100.0, lanes=2)
    assert spent is not None
    assert spent.training + spent.evaluation - spent.restored + spent.overhead == 2 * 20.0
    assert "(30.0 s of both before they were resumed)" in str(spent)


def test_a_trial_in_segments_counts_once() -> None:
    """Would catch what a trial did before a rung counted again after it, or called work of another sweep."""
    before = Timing("a", "t", ended=111.0, first_step=101.0, train_seconds=10.0)
    after = Timing("a", "t", ended=125.0, first_step=114.0, train_seconds=20.0, restored_seconds=10.0)
    spent = overhead([before, after], started=100.0, lanes=1)
    assert spent is not None
    assert (spent.training, spent.restored, spent.overhead) == (20.0, 0.0, 5.0)
