import dataclasses
import itertools

import numpy as np
import pytest

from raytrain.analysis.simulate import LEVELS, variants
from raytrain.architecture import Architecture
from raytrain.sweep.factorial import LeastSquares, Model, fit_model, live

POINTS = variants()
BASE = POINTS[0]


@pytest.fixture(scope="module")
def model():
    return Model(POINTS, BASE)


@pytest.fixture(scope="module")
def losses():
    """A loss of each of the 720 variants that is any function of pairs of levels."""
    draws = np.random.default_rng(0)
    parts = {}
    out = []
    for point in POINTS:
        pairs = itertools.combinations(sorted(point.items(), key=str), 2)
        out.append(sum(parts.setdefault(pair, draws.normal()) for pair in pairs))
    return np.array(out)


def without(point, *axes):
    return frozenset((axis, level) for axis, level in point.items() if axis not in axes)


def test_live_levels_tell_functions_apart_as_the_architecture_does():
    """Bug: a dead axis counted as live (variants trained twice) or a live one as dead (variants confused)."""
    for spelling in (dict(zip(LEVELS, levels, strict=True)) for levels in itertools.product(*LEVELS.values())):
        shown = Architecture(attention_backend="sdpa", **spelling)
        for axis, levels in LEVELS.items():
            for level in levels:
                other = dataclasses.replace(shown, **{axis: level})
                same_variant = other.canonical() == shown.canonical()
                assert (live(spelling | {axis: level}) == live(spelling)) == same_variant
    assert len(POINTS) == 720


def test_absent_none_and_nan_are_dead():
    """Bug: a conditional axis of a user's space, empty in a table, taken for a level of its own."""
    assert live({"a": 1, "b": None, "c": float("nan")}) == {"a": 1}


def test_columns_span_every_function_of_pairs(model, losses):
    """Bug: a missing or a redundant column, so that pairwise truths are not in the model or its df are wrong."""
    indicators = sorted(
        {pair for p in POINTS for pair in itertools.combinations(sorted(p.items(), key=str), 2)}, key=str
    )
    dummies = np.array([[pair[0] in p.items() and pair[1] in p.items() for pair in indicators] for p in POINTS], float)
    matrix = model.matrix(POINTS)
    assert matrix.shape[1] == np.linalg.matrix_rank(dummies) == np.linalg.matrix_rank(matrix) == 71
    coefficients = np.linalg.lstsq(matrix, losses)[0]
    np.testing.assert_allclose(matrix @ coefficients, losses, atol=1e-9)


def test_an_effect_is_the_mean_difference_over_the_other_axes(model, losses):
    """Bug: effects at the baseline, or weighted by coding, shown as averages over the space."""
    found = LeastSquares(model.matrix(POINTS)).weights(model.contrasts) @ losses
    by_key = {frozenset(point.items()): loss for point, loss in zip(POINTS, losses, strict=True)}
    for effect, value in zip(model.effects, found, strict=True):
        if len(effect.axes) == 1 and effect.axes != ("ffn_type",):
            (axis,), (level,), (reference,) = effect.axes, effect.levels, effect.references
            differences = [
                loss - by_key[without(dict(key), axis) | {(axis, reference)}]
                for key, loss in by_key.items()
                if (axis, level) in key
            ]
            assert value == pytest.approx(np.mean(differences))
    swiglu = np.array([point["ffn_type"] == "swiglu" for point in POINTS])  # activation dies: no pairs, plain means
    index = [effect.axes for effect in model.effects].index(("ffn_type",))
    assert found[index] == pytest.approx(losses[swiglu].mean() - losses[~swiglu].mean())


def test_an_interaction_is_the_mean_difference_of_differences(model, losses):
    """Bug: half an interaction (a +-1 coding) or one of the wrong sign."""
    effect = next(e for e in model.effects if e.name == "activation=relu x norm_position=pre")
    value = (LeastSquares(model.matrix(POINTS)).weights(model.contrast(effect)[None]) @ losses)[0]

    def mean(activation, norm_position):
        wanted = {"activation": activation, "norm_position": norm_position}.items()
        return np.mean([loss for point, loss in zip(POINTS, losses, strict=True) if wanted <= point.items()])

    assert value == pytest.approx(
        mean("relu", "pre") - mean("gelu", "pre") - mean("relu", "post") + mean("gelu", "post")
    )
    fit = LeastSquares(model.matrix(POINTS))
    within = [fit.weights(model.contrast_within(effect, 0, level)[None]) @ losses for level in ("pre", "post")]
    assert within[0] == pytest.approx(mean("relu", "pre") - mean("gelu", "pre"))
    assert within[1] == pytest.approx(mean("relu", "post") - mean("gelu", "post"))
    other = fit.weights(model.contrast_within(effect, 1, "relu")[None]) @ losses
    assert other == pytest.approx(mean("relu", "pre") - mean("relu", "post"))


def test_an_axis_that_lives_under_two_of_three_levels():
    """Bug: an interaction with a level under which the axis is dead, which makes the axis's own effect unestimable."""
    points = [{"a": a} | ({"b": b} if a != "off" else {}) for a in ("off", "on", "more") for b in (1, 2)]
    points = list({frozenset(p.items()): p for p in points}.values())
    table = {("off", None): 5.0, ("on", 1): 1.0, ("on", 2): 2.0, ("more", 1): 3.0, ("more", 2): 7.0}
    model = Model(points, points[0])
    losses = np.array([table[point["a"], point.get("b")] for point in points])
    found = LeastSquares(model.matrix(points)).weights(model.contrasts) @ losses
    assert dict(zip((e.name for e in model.effects), found, strict=True)) == pytest.approx(
        {"a=on": 1.5 - 5, "a=more": 5 - 5, "b=2": (1 + 4) / 2, "a=more x b=2": 4 - 1}
    )


def test_standard_errors_and_residuals_are_those_of_least_squares():
    """Bug: variances from the wrong matrix, or residual degrees of freedom that count nuisance columns as free."""
    draws = np.random.default_rng(1)
    x, nuisance, y = draws.normal(size=(30, 4)), draws.normal(size=(30, 2)), draws.normal(size=30)
    both = np.hstack([x, nuisance])
    fit = LeastSquares(x, nuisance)
    inverse = np.linalg.inv(both.T @ both)
    coefficients = inverse @ both.T @ y
    np.testing.assert_allclose(fit.weights(np.eye(4)) @ y, coefficients[:4])
    np.testing.assert_allclose(np.linalg.norm(fit.weights(np.eye(4)), axis=1), np.sqrt(np.diag(inverse)[:4]))
    assert fit.df == 24
    assert fit.residual_sd(y) == pytest.approx(np.sqrt(np.sum((y - both @ coefficients) ** 2) / 24))


def test_pairs_that_hide_main_effects_are_left_out():
    """Bug: one empty cell costing all interactions, or interactions kept that leave no main effect estimable."""
    points = [dict(zip("abc", levels, strict=True)) for levels in itertools.product((0, 1), repeat=3)]
    model = Model(points, points[0])
    empty = [p for p in points if not (p["a"] == 1 and p["b"] == 1)]
    assert set(fit_model(model, empty * 2)[0].pairs) == {("a", "c"), ("b", "c")}
    one_at_a_time = [p for p in points if sum(p.values()) < 2]
    assert fit_model(model, one_at_a_time)[0].pairs == []
