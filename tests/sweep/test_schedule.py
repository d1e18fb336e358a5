import math
import random
from typing import Any

import pytest

from raytrain.config.resolve import resolve
from raytrain.sweep.halving import halve
from raytrain.sweep.schedule import LOST_RETRIES, Schedule
from raytrain.sweep.trial import AssignedTrial

KEEP = [3, 1]


CONFIG = resolve([], data_vocab_size=256)[0]


def trials(count: int) -> list[AssignedTrial]:
    return [trial(f"t{number}") for number in range(count)]


def trial(name: str, role: str = "") -> AssignedTrial:
    return AssignedTrial(name, ("",), CONFIG, role=role)


def run(schedule: Schedule, scores: dict[str, list[float]], lanes: int, seed: int) -> tuple[dict[str, int], list[Any]]:
    """Run to the end on `lanes` lanes that finish in a random order; the rung at which each trial ended, the events."""
    order, events = random.Random(seed), []
    ended: dict[str, int] = {}
    running: list[Any] = []

    def apply(**event: Any) -> None:
        events.append(event)
        for stopped in schedule.apply(event):
            ended[stopped] = -1
            apply(event="end", trial=stopped, status="stopped")

    while not schedule.is_over:
        while len(running) < lanes and (segment := schedule.next()) is not None:
            apply(event="begin", trial=segment.trial)
            running.append(segment)
        assert running, "nothing runs, and nothing can"
        segment = running.pop(order.randrange(len(running)))
        if segment.rung is None:
            ended[segment.trial] = len(KEEP)
            apply(event="end", trial=segment.trial, status="complete")
        else:
            score = scores[segment.trial][segment.rung]
            if math.isnan(score):
                apply(event="end", trial=segment.trial, status="diverged")
            else:
                apply(event="rung", trial=segment.trial, rung=segment.rung, score=score)
    return ended, events


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_survivors_are_those_of_the_rule_whatever_the_order(lanes: int) -> None:
    """Would catch a first arrival that goes on for free, a decision taken on a part of the rung, and lanes that wait
    for ever."""
    draw = random.Random(0)
    scores = {f"t{n}": [draw.random(), draw.random()] for n in range(9)}
    first = halve({name: score[0] for name, score in scores.items()}, KEEP[0])
    last = halve({name: scores[name][1] for name in first}, KEEP[1])
    for seed in range(50):
        ended, events = run(Schedule(trials(9), {"keep": KEEP}), scores, lanes, seed)
        assert {event["trial"] for event in events if event.get("rung") == 1} == first
        assert {event["trial"] for event in events if event.get("status") == "complete"} == last
        assert set(ended) == set(scores)


def test_diverged_trials_never_go_on() -> None:
    """Would catch NaN that survives a rung, and a next rung that waits for trials which never come."""
    scores = {f"t{n}": [math.nan if n < 8 else 1.0, 1.0] for n in range(9)}
    for seed in range(10):
        _, events = run(Schedule(trials(9), {"keep": KEEP}), scores, 2, seed)
        statuses = [event["status"] for event in events if event["event"] == "end"]
        assert sorted(statuses) == ["complete"] + ["diverged"] * 8


def test_a_driver_that_starts_again_has_the_whole_state() -> None:
    """Would catch a rung record that a restart loses: cut the events anywhere, and the survivors are the same."""
    draw = random.Random(1)
    scores = {f"t{n}": [draw.random(), draw.random()] for n in range(7)}
    _, events = run(Schedule(trials(7), {"keep": KEEP}), scores, 2, 0)
    complete = {event["trial"] for event in events if event.get("status") == "complete"}
    for cut in range(len(events)):
        again = Schedule(trials(7), {"keep": KEEP})
        for event in events[:cut]:
            again.apply(event)
        stopped = again.apply({"event": "driver"})
        for trial in stopped:  # the driver died between a decision and its record
            again.apply({"event": "end", "trial": trial, "status": "stopped"})
        _, rest = run(again, scores, 2, cut)
        ends = [event["trial"] for event in [*events[:cut], *rest] if event["event"] == "end"]
        assert len(ends) == len(set(ends))
        assert {event["trial"] for event in [*events, *rest] if event.get("status") == "complete"} == complete


def test_retries() -> None:
    """Would catch a trial that kills its lanes for ever, one out of memory that is tried as it was or a third time,
    and lanes that died under one driver counted against the next."""
    schedule = Schedule(trials(1))
    for _ in range(LOST_RETRIES):
        assert schedule.retries_after_loss("t0")
        schedule.apply({"event": "lost", "trial": "t0"})
    assert not schedule.retries_after_loss("t0")
    schedule.apply({"event": "end", "trial": "t0", "status": "lost"})
    assert schedule.is_over
    schedule.apply({"event": "driver"})
    segment = schedule.next()
    assert segment is not None
    assert (segment.micro_batch, schedule.retries_after_loss("t0")) == (None, True)
    assert schedule.retries_after_oom("t0")
    schedule.apply({"event": "oom", "trial": "t0", "micro_batch": 4})
    segment = schedule.next()
    assert segment is not None
    assert (segment.micro_batch, schedule.retries_after_oom("t0")) == (4, False)


def test_a_lost_trial_that_others_went_on_without() -> None:
    """Would catch a rung from which more go on than are to, as a new driver tries a trial again that was lost there;
    and one that is given up though nobody went on yet, or nothing is decided any more."""
    schedule = Schedule(trials(2), {"keep": [1]})

    def lose(trial: str) -> list[str]:
        schedule.apply({"event": "end", "trial": trial, "status": "lost"})
        schedule.apply({"event": "driver"})
        return [name for name in ("t0", "t1") if not schedule.has_ended(name)]

    assert lose("t0") == ["t0", "t1"]
    schedule.apply({"event": "end", "trial": "t0", "status": "lost"})
    schedule.apply({"event": "rung", "trial": "t1", "rung": 0, "score": 1.0})
    assert schedule.target("t1").rung is None
    assert lose("t1") == ["t1"]


def test_frontier_runs_have_no_rungs() -> None:
    """Would catch a baseline's run at another budget that is halved, or that a rung waits for."""
    schedule = Schedule([*trials(1), trial("f", "frontier")], {"keep": [1]})
    segments = {}
    for _ in range(2):
        segment = schedule.next()
        assert segment is not None
        schedule.apply({"event": "begin", "trial": segment.trial})
        segments[segment.trial] = segment.rung
    assert segments == {"t0": 0, "f": None}
    assert schedule.apply({"event": "rung", "trial": "t0", "rung": 0, "score": 1.0}) == []
    assert schedule.next() is not None


def test_lanes_have_work_before_a_rung_is_complete() -> None:
    """Would catch lanes that idle until the last score of a rung, though a trial is certain to go on."""
    schedule = Schedule(trials(4), {"keep": [2]})
    for name, score in (("t0", 1.0), ("t1", 2.0), ("t2", 3.0)):
        schedule.apply({"event": "begin", "trial": name})
        stops = schedule.apply({"event": "rung", "trial": name, "rung": 0, "score": score})
    assert stops == ["t2"]
    schedule.apply({"event": "begin", "trial": "t3"})
    segment = schedule.next()
    assert segment is not None
    assert (segment.trial, segment.rung) == ("t0", None)
    assert schedule.running == ["t3"]


@pytest.mark.parametrize("lanes", [1, 3])
def test_all_seeds_of_a_variant_go_on_or_stop_together(lanes: int) -> None:
    """Would catch a lucky seed that goes on alone, a variant judged before all its seeds are scored, and a count of
    trials where variants are meant: by the means over seeds, of those that have a loss."""
    draw = random.Random(2)
    names = [f"v{variant}-s{seed}" for variant in range(6) for seed in range(3)]
    draws = {name: [draw.random(), draw.random()] for name in names}
    draws["v3-s1"] = [math.nan, math.nan]
    planned = [trial(name) for name in names]

    def best(variants: set[str], rung: int, keep: int) -> set[str]:
        seeds = {v: [draws[f"{v}-s{s}"][rung] for s in range(3)] for v in variants}
        means = {v: sum(x for x in own if x == x) / sum(x == x for x in own) for v, own in seeds.items()}
        return set(sorted(means, key=means.__getitem__)[:keep])

    first = best({name.partition("-")[0] for name in names}, 0, 3)
    last = best(first, 1, 1)
    for seed in range(20):
        _, events = run(Schedule(planned, {"keep": [3, 1], "unit": "variant"}), draws, lanes, seed)
        went_on = {event["trial"] for event in events if event.get("rung") == 1}
        complete = {event["trial"] for event in events if event.get("status") == "complete"}
        assert went_on == {n for n in names if n.partition("-")[0] in first and n != "v3-s1"}
        assert complete == {n for n in names if n.partition("-")[0] in last and n != "v3-s1"}
