import dataclasses

import pytest

from raytrain.engine.timing import Timing, by_driver, lane_seconds


def trial(lane: str, first_step: float | None, ended: float, **measured: float) -> Timing:
    timing = Timing(lane)
    if first_step is not None:
        timing.note({"event": "start", "time": first_step}, lane)
        spent = {"startup_seconds": 0.5, "train_seconds": 6.0, "eval_seconds": 2.0}
        timing.note({"event": "end", "time": ended, **spent, **measured}, lane)
    else:
        timing.note({"event": "end", "time": ended, "status": "failed"}, lane)
    return timing


def test_lane_seconds_by_hand() -> None:
    """Would catch trials of two lanes paired with each other, and evaluation or training counted as other."""
    compiled = {"first_steps_seconds": 4.0, "checkpoint_seconds": 0.25}
    timings = [trial("b", 112.0, 120.0), trial("a", 110.0, 118.0, **compiled)]
    timings += [trial("b", 123.0, 131.0), trial("a", 119.0, 127.0)]
    spent = lane_seconds(timings, started=100.0, lanes=2)
    assert spent is not None
    assert (spent.wall, spent.total, spent.segments) == (31.0, 62.0, 4)
    assert (spent.start, spent.first_steps, spent.steady, spent.evaluation) == (10.0 + 12.0, 4.0, 20.0, 8.0)
    assert spent.other == 1.0 + 3.0 + 4.0  # between trials, and the lane that ends first
    assert (spent.set_up, spent.checkpoints) == (1.0, 0.25)
    assert spent.trial_median == pytest.approx((1.0 + 3.0) / 2)
    assert spent.turnaround_median == pytest.approx((1.0 + 3.0) / 2)
    assert spent.engine_median == pytest.approx((0.5 + 2.5) / 2)
    assert "start 35.5%, first steps 6.5%, steady training 32.3%, evaluation 12.9%, other 12.9%" in str(spent)


def test_failures() -> None:
    """Would catch a report that fails, after hours of training, because trials failed before their first step."""
    assert lane_seconds([], 0.0, 1) is None
    spent = lane_seconds([trial("a", None, 5.0), trial("a", None, 6.0)], started=0.0, lanes=1)
    assert spent is not None
    assert (spent.start, spent.other, spent.trial_median, spent.turnaround_median) == (5.0, 1.0, 1.0, None)
    assert "6.0 s on 1 lane" in str(spent)


def test_lanes_that_never_came() -> None:
    """Would catch lanes that a cluster never had counted as idle for the whole study."""
    spent = lane_seconds([trial("a", 110.0, 118.0)], started=100.0, lanes=16)
    assert spent is not None
    assert (spent.lanes, spent.other) == (1, 0.0)


def test_a_retried_trial_counts_from_its_last_start() -> None:
    """Would catch other below zero: what a trial trained before its lane died is not in the new lane's time."""
    timing = Timing("dead")
    timing.note({"event": "start", "time": 10.0}, "dead")
    timing.note({"event": "start", "time": 50.0, "restored_seconds": 30.0, "restored_eval_seconds": 1.5}, "new")
    timing.note({"event": "end", "time": 60.0, "train_seconds": 36.0, "eval_seconds": 2.0}, "new")
    assert (timing.lane, timing.spent, timing.evaluation) == ("new", 8.0, 0.5)
    timing.note({"event": "end", "time": 60.0, "status": "lost"}, "new")
    assert (timing.spent, timing.evaluation) == (0.0, 0.0)


def test_each_driver_has_the_time_of_its_own_lanes() -> None:
    """Would catch what a trial did before a rung, or under an earlier driver, counted again after it, and a study of an
    earlier version that cannot be read."""
    before = trial("a", 101.0, 111.0, train_seconds=10.0, eval_seconds=0.0)
    restored = {"restored_seconds": 10.0, "train_seconds": 20.0, "eval_seconds": 0.0}
    after = dataclasses.replace(trial("a", 214.0, 225.0), **restored)
    old = {"event": "driver", "pid": 1}
    first, second, third = (old | {"started": at, "lanes": 1} for at in (100.0, 200.0, 300.0))
    segments = [{"event": "segment", "time": 0.0, **dataclasses.asdict(timing)} for timing in (before, after)]
    found = by_driver([old, first, segments[0], second, {"event": "begin"}, segments[1], third])
    assert [spent and (spent.steady, spent.start, spent.other) for spent in found] == [
        (10.0, 1.0, 0.0),
        (10.0, 14.0, 1.0),
        None,
    ]
