import itertools

import numpy as np
import pandas as pd

from raytrain.analysis.effects import effects
from raytrain.analysis.triples import suspect
from raytrain.analysis.worlds import one_triple
from raytrain.sweep.factorial import LeastSquares, Model

GRID = [dict(zip("abcde", levels, strict=True)) for levels in itertools.product((0, 1), repeat=5)]


def study(size, seed=0):
    draws = np.random.default_rng(seed)
    table = pd.DataFrame(GRID * 2)
    extra = size * table["b"] * table["c"] * table["e"]
    losses = 3 - 0.5 * table["a"] - 0.1 * table["b"] + extra + draws.normal(0, 0.01, len(table))
    return table.assign(val_loss=losses, seed=range(len(table)), status="complete", train_flops=1e15)


def test_the_triple_is_named_and_the_model_is_not_asked():
    """Bug: a lack of fit without a name, another triple's, or an expectation that rests on a model that is wrong."""
    with_it = effects(study(0.1), list("abcde"), GRID[0])
    assert with_it.triple.axes == ("b", "c", "e")
    assert with_it.triple.tested == 10
    assert any("b, c and e act together" in sentence for sentence in with_it.sentences)
    assert not with_it.expected
    without = effects(study(0.0), list("abcde"), GRID[0])
    assert without.triple is None
    assert without.expected in without.sentences


def test_few_triples_are_named_without_one():
    """Bug: ten tests at 5% each. 5% of 200 studies are allowed, plus 3 binomial sd."""
    fit = LeastSquares(Model(GRID, GRID[0]).matrix(GRID * 2))
    named = sum(suspect(GRID * 2, fit, study(0.0, seed)["val_loss"].to_numpy()) is not None for seed in range(200))
    assert named / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_a_triple_among_720_variants():
    """Bug: a test without power: of 128 runs, one of 56 triples, of five times the noise. The bounds are 80% and 5%,
    and 3 binomial sd of 40."""
    found = one_triple(replays=40)
    assert found["named"] >= 0.8 - 3 * np.sqrt(0.8 * 0.2 / 40)
    assert found["named without one"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)
