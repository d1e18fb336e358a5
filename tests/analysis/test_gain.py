import numpy as np
import pytest

from raytrain.analysis.gain import compute_gain, compute_gains, fit_frontier, gain_trend
from raytrain.analysis.noise import Noise
from raytrain.analysis.simulate import frontier_coverage
from raytrain.analysis.worlds import equal_gains, spline_coverage
from raytrain.errors import UserError

BUDGETS = np.array([2.5e14, 5e14, 1e15, 2e15])
SMALL = Noise(1e-6, 20, "seeds")


def loss(flops, floor=2.0, scale=30.0, alpha=0.09):
    return floor + scale * np.asarray(flops, float) ** -alpha


@pytest.fixture(scope="module")
def exact():
    return fit_frontier(BUDGETS, loss(BUDGETS), SMALL)


def test_an_exact_frontier_is_recovered(exact):
    """Bug: a search that stops short of the best alpha, or A in the wrong unit."""
    assert exact.floor == pytest.approx(2.0, abs=1e-3)
    assert exact.alpha == pytest.approx(0.09, rel=1e-3)
    assert exact.scale * exact.unit**exact.alpha == pytest.approx(30, rel=1e-2)
    for budget in BUDGETS:
        assert exact.loss(budget) == pytest.approx(loss(budget), abs=1e-6)


def test_intervals_hold_the_truth():
    """Bug: a bootstrap without the noise of the seeds, of the fit, or of the trial itself; a baseline whose gain is not
    1.0. 95% of 100 each, less 3 binomial sd."""
    for name, part in frontier_coverage(BUDGETS, replays=100).items():
        assert part >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 100), name


def test_a_gain_by_hand(exact):
    """Bug: the reciprocal, or the frontier at the trial's FLOPs in place of the FLOPs at the trial's loss."""
    found = compute_gain(float(loss(1.5e15)), 1e15, exact)
    assert found.value == pytest.approx(1.5, rel=1e-3)
    assert found.low < 1.5 < found.high
    assert compute_gain(float(loss(5e14)), 1e15, exact).value == pytest.approx(0.5, rel=1e-3)


def test_the_baseline_gains_nothing(exact):
    """Bug: a gain other than 1.0 for the baseline, at the ends of its range too."""
    for budget in BUDGETS:
        found = compute_gain(float(loss(budget)), budget, exact)
        assert found.value == pytest.approx(1, rel=1e-3)
        assert found.low <= 1 <= found.high


def test_nothing_is_extrapolated(exact):
    """Bug: a gain read off a curve where no run was made, or a missing one without a reason."""
    for flops, word in ((4e15, "below"), (1e14, "above")):
        found = compute_gain(float(loss(flops)), 1e15, exact)
        assert (found.value, found.low, found.high) == (None, None, None)
        assert f"is {word} the baseline's" in found.reason
    assert compute_gain(float("nan"), 1e15, exact).reason == "the trial has no loss"


def test_a_loss_within_the_noise_of_the_range_has_a_gain():
    """Bug: half of the baseline's own runs at its largest budget without a gain."""
    frontier = fit_frontier(BUDGETS, loss(BUDGETS), Noise(0.002, 20, "seeds"))
    assert compute_gain(float(loss(2e15)) - 0.003, 2e15, frontier).value > 1
    assert compute_gain(float(loss(2e15)) - 0.006, 2e15, frontier).value is None


def test_a_flat_baseline_has_no_gain():
    """Bug: a division by zero, or a gain of infinity, where the baseline learns nothing from more compute."""
    frontier = fit_frontier(BUDGETS, np.array([3.0, 3.001, 3.0, 3.002]), Noise(0.001, 20, "seeds"))
    found = compute_gain(3.0, 1e15, frontier)
    assert found.value is None
    assert "does not fall" in found.reason


def test_a_gain_with_no_upper_end_says_so():
    """Bug: inf or NaN in a metric, where part of the bootstrap's floors lie above the loss."""
    flops = np.array([1e15, 2e15, 3e15])
    without = 0
    for sd in (0.001, 0.004, 0.008, 0.012):
        frontier = fit_frontier(flops, np.array([3.0, 2.9, 2.85]), Noise(sd, 6, "seeds"))
        found = compute_gain(2.845, 3e15, frontier)
        for end in (found.value, found.low, found.high):
            assert end is None or 0 < end < np.inf
        without += found.value is not None and found.high is None
    assert without


def test_the_noise_is_that_within_budgets():
    """Bug: the spread of the budgets themselves in the noise, or a frontier without any."""
    frontier = fit_frontier(np.repeat(BUDGETS, 2), np.repeat(loss(BUDGETS), 2) + np.tile([0.001, -0.001], 4))
    assert frontier.noise.df == 4
    assert frontier.noise.sd == pytest.approx(0.001 * np.sqrt(2))
    with pytest.raises(UserError, match="two seeds or more"):
        fit_frontier(BUDGETS, loss(BUDGETS))
    with pytest.raises(UserError, match="three budgets or more; it has 2"):
        fit_frontier(np.repeat(BUDGETS[:2], 3), np.repeat(loss(BUDGETS[:2]), 3))


def test_a_floor_is_not_below_zero():
    """Bug: a loss that the frontier lets fall below zero, which the noise of a straight line invites."""
    frontier = fit_frontier(BUDGETS, 3 - 0.5 * np.log(BUDGETS / BUDGETS[0]), Noise(0.01, 6, "seeds"))
    assert frontier.floor == 0
    assert frontier.draws[0].min() >= 0
    assert frontier.loss(1e20) > 0


def test_a_baseline_of_another_shape_is_found_out():
    """Bug: gains that are off, from a frontier that misses the baseline's losses by far more than the noise; or a
    good frontier called bad in more than 5% of cases (of 150, plus 3 binomial sd)."""
    for count in (4, 5, 8):
        flops = np.repeat(np.geomspace(BUDGETS[0], BUDGETS[-1], count), 3)
        straight = 3 - 0.5 * np.log(flops / flops[0])
        frontier = fit_frontier(flops, straight, Noise(0.003, 2 * count, "seeds"))
        assert frontier.misfit < 0.01
        for run in zip(straight[::3], flops[::3], strict=True):
            gain = compute_gain(*run, frontier, 3)
            assert gain.value == pytest.approx(1, rel=1e-6)
            assert gain.low < 1 < gain.high
    draws, called = np.random.default_rng(0), 0
    for _ in range(150):
        found = fit_frontier(np.repeat(BUDGETS, 3), loss(np.repeat(BUDGETS, 3)) + draws.normal(0, 0.0019, 12))
        called += found.misfit < 0.05
    assert called / 150 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)
    assert fit_frontier(BUDGETS[:3], loss(BUDGETS[:3]), SMALL).misfit is None


def test_hardware_budgets_are_those_of_model_flops():
    """Bug: runs of one budget, whose hardware FLOPs differ by a tenth, taken for budgets of their own: the chords
    between them have any slope."""
    draws = np.random.default_rng(0)
    budget = np.repeat(range(4), 3)
    flops = BUDGETS[budget] * np.exp(draws.normal(0, 0.1, 12))
    frontier = fit_frontier(
        flops, loss(BUDGETS)[budget], Noise(1e-4, 8, "seeds"), clock=Noise(0.1, 8, "seeds"), budget=budget
    )
    assert frontier.nodes.shape[2] == 4
    gain = compute_gain(float(loss(1.15e15)), 1e15, frontier, 3)
    assert gain.low < 1.15 < gain.high < 1.6


def test_the_budgets_bound_a_gain_whatever_the_curve():
    """Bug: an interval that trusts a curve of three coefficients through three budgets. By hand: chords of slope 0.2
    and 0.1 meet at the second budget, and a loss 0.01 below it needs 0.05 to 0.1 more in ln FLOPs."""
    x = np.array([0.0, 1.0, 2.0])
    frontier = fit_frontier(1e15 * np.exp(x), np.array([3.3, 3.1, 3.0]), SMALL)
    found = compute_gain(3.09, float(1e15 * np.e), frontier)
    assert np.log(found.low) == pytest.approx(0.05, abs=0.002)
    assert np.log(found.high) == pytest.approx(0.1, abs=0.002)
    steep = fit_frontier(1e15 * np.exp(x), np.array([3.5, 3.1, 3.0]), SMALL)
    far = compute_gain(3.05, float(1e15 * np.e), steep)
    assert far.value is None
    assert "bends so much" in far.reason


def test_a_spline_frontier_is_covered_or_refused():
    """Bug: a gain of 1.15 covered in a quarter of studies whose baseline falls along a spline."""
    found = spline_coverage(BUDGETS[:3], replays=60)
    assert found["covered or refused"] >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / 60)
    assert found["refused"] < 0.5


def test_simultaneous_gains():
    """Bug: each of many judged alone, so that 22% of studies of equal variants have one that saves compute, and the
    leader's interval leaves out its gain; or intervals of one variant that are wider for it."""
    frontier = fit_frontier(np.repeat(BUDGETS, 3), np.repeat(loss(BUDGETS), 3), Noise(0.0019, 30, "seeds"))
    many = compute_gains(np.full(24, loss(1e15)), np.full(24, 1e15), frontier, np.full(24, 2.0))
    (one,) = compute_gains(np.array([loss(1e15)]), np.array([1e15]), frontier, np.array([2.0]))
    ratio = np.log(many[0].high) / np.log(one.high)
    assert ratio == pytest.approx(1.55, abs=0.2)  # 3.1 sd for 24 normal ones, 2.0 for one
    equals = equal_gains(replays=30)
    assert equals["saves compute"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 30)
    assert equals["leader"] >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / 60)


def test_diverged_runs_are_no_part_of_a_frontier():
    """Bug: one NaN that makes the whole fit NaN."""
    flops, losses = np.append(BUDGETS, 1e15), np.append(loss(BUDGETS), np.nan)
    assert fit_frontier(flops, losses, SMALL).alpha == pytest.approx(0.09, rel=1e-3)


def test_a_gain_that_vanishes_has_a_falling_trend(exact):
    """Bug: the slope against FLOPs in place of ln FLOPs, or of the wrong sign."""
    gains = 1.4 * (BUDGETS / BUDGETS[0]) ** -0.15
    found = gain_trend(loss(gains * BUDGETS), BUDGETS, exact)
    assert found.value == pytest.approx(-0.15, abs=1e-3)
    assert found.low < -0.15 < found.high
    steady = gain_trend(loss(1.2 * BUDGETS[:3]), BUDGETS[:3], exact)
    assert steady.value == pytest.approx(0, abs=1e-3)
    assert gain_trend(loss(1.2 * BUDGETS[:1]), BUDGETS[:1], exact).reason
