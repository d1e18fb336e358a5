import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats

from raytrain.analysis.arms import Arms, unequal
from raytrain.analysis.effects import effects
from raytrain.analysis.worlds import noisy_arm
from raytrain.sweep.factorial import LeastSquares, Model

CUBE = [dict(zip("abc", levels, strict=True)) for levels in itertools.product((0, 1), repeat=3)]


def study(sds, seeds=6, seed=0):
    """Runs of the cube, each with a seed of its own and the sd of its level of `a`."""
    draws = np.random.default_rng(seed)
    table = pd.DataFrame(CUBE * seeds)
    losses = 3 + draws.normal(0, 1, len(table)) * np.array(sds)[table["a"]]
    return table.assign(seed=range(len(table)), status="complete", train_flops=1e15, val_loss=losses)


def test_the_arms_variances_are_of_the_greatest_likelihood():
    """Bug: variances of the unweighted residuals, which a noisy arm leaks into. Compared with a numeric maximum of the
    residual likelihood, from its definition by contrasts that hold no effect."""
    table = study((0.1, 0.01), seeds=3)
    points = table[list("abc")].to_dict("records")
    model = Model(CUBE, CUBE[0])
    fit = LeastSquares(model.matrix(points))
    losses = table["val_loss"].to_numpy()
    found = unequal(points, fit, losses)
    assert found.axis == "a"
    free = np.linalg.svd(np.eye(24) - fit.basis @ fit.basis.T)[0][:, : fit.df]

    def cost(logs):
        covariance = free.T @ (np.exp(2 * logs)[table["a"]][:, None] * free)
        rest = free.T @ losses
        return np.linalg.slogdet(covariance)[1] / 2 + rest @ np.linalg.solve(covariance, rest) / 2

    best = scipy.optimize.minimize(cost, np.log([0.05, 0.05]), method="Nelder-Mead", options={"xatol": 1e-8})
    assert found.sds == pytest.approx(np.exp(best.x), rel=1e-3)
    equal = scipy.optimize.minimize(lambda log: cost(np.repeat(log, 2)), np.log([0.05]), method="Nelder-Mead")
    dfs = np.array([noise.df for noise in found.arms.values()])  # whole numbers, which the test rounds them to
    bartlett = 1 + (np.sum(1 / dfs) - 1 / dfs.sum()) / 3
    assert found.p == pytest.approx(3 * scipy.stats.chi2.sf(2 * (equal.fun - best.fun) / bartlett, 1), rel=0.1)


def test_with_a_mean_for_each_arm_the_test_is_bartlett_s():
    """Bug: the ratio of likelihoods without its correction for few runs, which calls equal noise unequal."""
    draws = np.random.default_rng(1)
    sides = draws.normal(0, 1.0, 6), draws.normal(0, 0.2, 4), draws.normal(0, 0.3, 5)
    points = [{"a": arm} for arm, side in enumerate(sides) for _ in side]
    found = unequal(points, LeastSquares(Model(points, {"a": 0}).matrix(points)), np.concatenate(sides))
    assert found.p == pytest.approx(scipy.stats.bartlett(*sides).pvalue, rel=1e-3)


def test_noise_that_differs_is_reported_where_the_model_has_no_pairs():
    """Bug: a report that ends in an error, as there are no effects within an arm to show."""
    draws = np.random.default_rng(0)
    table = pd.DataFrame({"a": [0, 1] * 6, "seed": range(12), "status": "complete", "train_flops": 1e15})
    found = effects(table.assign(val_loss=3 + draws.normal(0, np.where(table["a"], 0.2, 0.005))), ["a"], {"a": 0})
    assert found.unequal.axis == "a"
    assert found.within.empty
    assert any("The noise differs by a" in sentence for sentence in found.sentences)


def test_two_means_are_welch_s():
    """Bug: an interval of one pooled variance, or degrees of freedom of all runs, where two means are compared."""
    draws = np.random.default_rng(0)
    sides = draws.normal(0, 1.0, 12), draws.normal(0, 0.05, 8)
    points = [{"a": 0}] * 12 + [{"a": 1}] * 8
    losses = np.concatenate(sides)
    model = Model(points, {"a": 0})
    found = unequal(points, LeastSquares(model.matrix(points)), losses)
    scale = found.sds[found.codes]
    fit = LeastSquares(model.matrix(points) / scale[:, None])
    error, df = Arms(fit, found)(fit.weights(model.contrasts), losses / scale)
    variances = [side.var(ddof=1) / len(side) for side in sides]
    assert error[0] == pytest.approx(np.sqrt(sum(variances)))
    welch = sum(variances) ** 2 / (variances[0] ** 2 / 11 + variances[1] ** 2 / 7)
    assert df[0] == pytest.approx(welch)


def test_equal_noise_is_rarely_called_unequal():
    """Bug: a test of each axis at 5%, or one that its own weights push on. 5% allowed, plus 3 binomial sd of 150."""
    false = sum(
        effects(study((0.01, 0.01), seed=seed), list("abc"), CUBE[0]).unequal is not None for seed in range(150)
    )
    assert false / 150 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_a_noisy_arm_is_said_and_its_effects_are_judged_apart():
    """Bug: intervals in the quiet arm as wide as those in the noisy one, or no word of the difference."""
    table = study((0.1, 0.001))
    table.loc[(table["a"] == 1) & (table["b"] == 1), "val_loss"] += 0.005
    found = effects(table, list("abc"), CUBE[0])
    assert found.unequal.arms[0].sd > 30 * found.unequal.arms[1].sd
    within = found.within.set_index(["effect", "arm"])
    width = within["high"] - within["low"]
    assert width["b=1", 0] > 30 * width["b=1", 1]
    assert within.loc[("b=1", 1), "p_holm"] < 0.05
    text = " ".join(found.sentences)
    assert "The noise differs by a" in text
    assert "With a=1, b=1 costs 0.00" in text


def test_intervals_within_a_noisy_arm_and_a_quiet_one():
    """Bug: weights taken for known, which leaves intervals that hold 0.92. 20 studies of 11 effects in each arm: the
    effects of one share its noise, so bounds are 3 sd of 20 x 4 independent ones."""
    found = noisy_arm(10, replays=20)
    bound = 3 * np.sqrt(0.05 * 0.95 / 80)
    assert found["detected"] >= 0.95
    assert found["coverage, post"] == pytest.approx(0.95, abs=bound)
    assert found["coverage, pre"] == pytest.approx(0.95, abs=bound)
