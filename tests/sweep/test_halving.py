import itertools
import math

from raytrain.sweep.halving import halve, survivors


def test_the_lowest_scores_survive_and_nan_is_worst():
    """Bug: a diverged trial that goes on, as NaN compares false with everything."""
    assert halve({"a": 3.0, "b": math.nan, "c": 1.0, "d": math.inf}, 2) == {"a", "c"}
    assert halve({"a": math.nan, "b": math.inf}, 1) == {"b"}


def test_survivors_do_not_depend_on_the_order_of_arrival():
    """Bug: ties, or NaN among NaN, that fall to whoever came first."""
    scores = {"a": 2.0, "b": math.nan, "c": float("nan"), "d": 2.0, "e": 1.0}
    for keep in range(6):
        kept = {frozenset(halve(dict(order), keep)) for order in itertools.permutations(scores.items())}
        assert kept == {frozenset(["e", "a", "d", "b", "c"][:keep])}


def test_a_rung_keeps_at_least_one():
    """Bug: a small study that stops every trial."""
    assert survivors(3, 3, 4) == [1, 1, 1]
    assert survivors(64, 3, 4) == [16, 4, 1]
