"""Curves of loss against learning rate: exact cases, closed forms, simulations with known truth."""

import math

import numpy as np
import pytest
import scipy.stats

from raytrain.analysis.curve import BySeed, Curve, best_rate
from raytrain.analysis.response import fit_curves

OCTAVE = math.log(2)
RATES = np.log([5e-4, 1e-3, 2e-3, 4e-3, 8e-3])


def study(losses, seeds=1, rates=RATES, **given):
    """Curves of `losses` (variants x rates x seeds), each rate with seeds of its own."""
    losses = np.asarray(losses, float)
    variant, level, seed = np.indices(losses.shape).reshape(3, -1)
    failed = given.pop("failed", np.zeros(losses.shape, bool))
    return fit_curves(variant, rates[level], losses.ravel(), failed.ravel(), level * losses.shape[2] + seed)


def parabola(best, curvature, least=3.0):
    return least + curvature * ((RATES - math.log(best)) / OCTAVE) ** 2


def test_a_parabola_is_given_back():
    """Would catch: an optimum in the wrong units, a minimum that is a fitted level, a wrong loss at twice the rate."""
    found = study([parabola(1.7e-3, 0.02)[:, None], parabola(3e-3, 0.1, 2.9)[:, None]])
    first, second = found.curves[0], found.curves[1]
    assert (math.exp(first.x), math.exp(second.x)) == pytest.approx((1.7e-3, 3e-3))
    assert (first.least.value, (second.least - first.least).value) == pytest.approx((3.0, -0.1))
    assert [first.lost(factor).value for factor in (0.5, 2)] == pytest.approx([0.02, 0.02])
    assert (first.edge, second.edge) == ("inside", "inside")
    assert found.degree == 2


def test_an_optimum_beyond_the_rates_is_at_an_edge():
    """Would catch: an extrapolated minimum, and an edge that is taken for an optimum."""
    for best, edge, end in ((9e-3, "highest", 8e-3), (3e-4, "lowest", 5e-4)):
        curve = study([parabola(best, 0.02)[:, None]]).curves[0]
        assert (curve.edge, math.exp(curve.x)) == (edge, pytest.approx(end))
        assert curve.lost(2 if edge == "highest" else 0.5) is None


def test_no_curvature_falls_back_to_the_best_rate():
    """Would catch: the maximum of an upside-down parabola, or an optimum at infinity, given as the best rate."""
    curve = study([[[3.0], [3.1], [3.11], [3.1], [3.02]]]).curves[0]
    assert math.exp(curve.x) == pytest.approx(5e-4)
    assert curve.edge == "lowest"


def test_failed_runs_bound_the_range_and_do_not_bend_the_fit():
    """Would catch: the loss of a plateau in the parabola; a rate that one seed of three survived counted as usable."""
    losses = np.repeat(parabola(1.7e-3, 0.02)[:, None], 3, axis=1)
    broken = losses.copy()
    broken[4] = [3.3, 3.2, 2.5]
    failed = np.zeros(losses.shape, bool)
    failed[4, :2] = True
    failed[0, 0] = True
    curve = study([broken], failed=failed[None]).curves[0]
    assert math.exp(curve.high) == pytest.approx(4e-3)
    assert (curve.below, curve.above) == ("", "unstable")
    assert math.exp(curve.x) == pytest.approx(1.7e-3)
    assert np.count_nonzero(curve.at(curve.x).weights) == 4 * 3 - 1


def test_the_best_rate_beside_failed_ones_is_no_edge_of_the_range():
    """Would catch: "the range is too low" where the next rate was tried, and diverged."""
    losses = parabola(1e-2, 0.02)[:, None]
    failed = np.zeros((1, 5, 1), bool)
    failed[0, 3:] = True
    curve = study([np.where(failed[0], np.nan, losses)], failed=failed).curves[0]
    assert (curve.edge, math.exp(curve.x)) == ("unstable above", pytest.approx(2e-3))
    assert study([losses], failed=np.ones((1, 5, 1), bool)).curves == {}


def test_rates_far_from_the_best_do_not_bend_the_fit():
    """Would catch: a quadratic through a loss at ten times the best rate, where losses level off."""
    rates = np.log([3e-4, 1e-3, 3e-3, 1e-2])
    curve = study([[[1.30], [1.20], [1.30], [1.5]]], rates=rates).curves[0]
    assert curve.above == "tried"
    assert curve.least.value == pytest.approx(1.20, abs=1e-3)
    assert math.exp(curve.x) == pytest.approx(1e-3, rel=0.06)


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_the_degree_follows_the_losses(degree):
    """Would catch: a quadratic forced on losses that it does not fit, whose minimum is then off by any amount."""
    draws = np.random.default_rng(degree)
    z = (RATES - RATES.mean()) / OCTAVE
    shape = 0.02 * z**2 + (degree > 2) * 0.003 * z**3 + (degree > 3) * -0.002 * z**4
    losses = 3 + shape[:, None] + draws.normal(0, 1e-4, (6, 5, 3))
    found = study(losses)
    assert found.degree == degree
    grid = np.linspace(-2, 2, 4001)
    true = np.polynomial.Polynomial([0, 0, 0.02, 0.003 * (degree > 2), -0.002 * (degree > 3)])(grid).min()
    assert found.curves[0].least.value == pytest.approx(3 + true, abs=3e-4)


def test_the_error_of_a_difference_is_that_of_the_differences_by_seed():
    """Would catch: degrees of freedom that count variants as seeds. Where all rates have one weight, the error of a
    difference is the residual variance of the differences about their own parabola."""
    draws = np.random.default_rng(0)
    losses = draws.normal(0, 1, (2, 5, 2)) + draws.normal(0, 5, (1, 5, 2))
    variant, level, seed = np.indices(losses.shape).reshape(3, -1)
    x = RATES[level] - RATES.mean()
    terms = np.vander(x[variant == 0], 3, increasing=True)
    y = losses.reshape(2, -1)
    maker = np.eye(10) - terms @ np.linalg.pinv(terms)
    errors = BySeed(variant, 2 * level + seed, (y @ maker).ravel(), np.array([7.0, 7.0]), np.arange(20))
    row = np.linalg.pinv(terms)[0]
    (error,), (df,) = errors(np.concatenate([-row, row])[None])
    difference = y[1] - y[0]
    assert error == pytest.approx(math.sqrt(difference @ maker @ difference / 7) * np.linalg.norm(row))
    assert df == pytest.approx(7)


def test_the_interval_of_the_best_rate_is_fiellers():
    """Would catch: an interval that is symmetric, or closed where the data leave it open. Fieller's roots solve
    (b + 2 c t)^2 = q^2 (V_bb + 4 t V_bc + 4 t^2 V_cc)."""
    draws = np.random.default_rng(1)
    losses = parabola(1.7e-3, 0.02)[None, :, None] + draws.normal(0, 0.004, (1, 5, 3))
    found = study(losses)
    curve = found.curves[0]
    assert found.degree == 2
    low, high = (math.log(end) for end in vars(best_rate(curve, found.errors)).values())
    terms = np.vander(np.repeat(RATES, 3) - curve.centre, 3, increasing=True)
    residuals = losses.ravel() - terms @ np.linalg.pinv(terms) @ losses.ravel()
    v = np.linalg.inv(terms.T @ terms) * (residuals @ residuals) / 12
    q2 = scipy.stats.t.ppf(0.975, 12) ** 2
    _, b, c = curve.coefficients
    roots = np.roots([4 * c**2 - 4 * q2 * v[2, 2], 4 * b * c - 4 * q2 * v[1, 2], b**2 - q2 * v[1, 1]])
    step = (RATES[-1] - RATES[0]) / 400
    assert [low - curve.centre, high - curve.centre] == pytest.approx(sorted(roots), abs=step)


def test_an_interval_is_open_where_the_rates_leave_it_open():
    """Would catch: a best rate "up to 8e-3" of a study that tried none higher."""
    draws = np.random.default_rng(2)
    found = study(parabola(7.5e-3, 0.01)[None, :, None] + draws.normal(0, 0.004, (1, 5, 3)))
    ends = best_rate(found.curves[0], found.errors)
    assert ends.high is None
    assert ends.low is not None


def test_a_single_run_a_rate_leaves_no_noise():
    """Would catch: an interval of width zero where three runs give three coefficients."""
    found = study([parabola(1.7e-3, 0.02)[:3, None]], rates=RATES[:3])
    error, _ = found.errors(found.curves[0].least.weights[None])
    assert np.isnan(error).all()
    assert vars(best_rate(found.curves[0], found.errors)) == {"low": None, "high": None}


def test_sensitivity_carries_the_error_of_the_best_rate():
    """Would catch: a standard error that takes the best rate for known. Against the spread over simulated studies."""
    draws = np.random.default_rng(3)
    values, errors = [], []
    for _ in range(400):
        found = study(parabola(1.7e-3, 0.02)[None, :, None] + draws.normal(0, 0.002, (1, 5, 3)))
        if found.degree == 2:
            lost = found.curves[0].lost(2)
            values.append(lost.value)
            errors.append(found.errors(lost.weights[None])[0][0])
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)
    assert np.mean(values) == pytest.approx(0.02, abs=0.001)


def test_a_curve_of_one_rate_is_a_mean():
    """Would catch: a variant that trains at a single rate and takes the study down."""
    curve = Curve(0.0, 1.0, 1.0, np.array([3.0]), np.full((1, 4), 0.25))
    assert (curve.x, curve.least.value) == (1.0, 3.0)


def test_a_rate_that_has_not_been_run_is_no_edge_of_the_range():
    """Would catch: "the range is too low" of a study that has not come to its higher rates yet."""
    losses = parabola(1e-2, 0.02)
    losses[3:] = np.nan
    assert study(losses[None, :, None]).curves[0].edge == "waiting above"


def test_a_single_usable_rate_at_the_end_leaves_the_range_open():
    """Would catch: rates that are all too low but the last, where nothing leaves the plateau, and a study that is not
    told to try higher ones."""
    failed = np.zeros((1, 5, 1), bool)
    failed[0, :4] = True
    curve = study([parabola(1e-2, 0.02)[:, None]], failed=failed).curves[0]
    assert (curve.edge, curve.below) == ("highest", "unstable")
