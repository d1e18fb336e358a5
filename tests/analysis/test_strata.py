import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from raytrain.analysis.effects import effects
from raytrain.analysis.strata import Blocks, Contrasts, find_blocks
from raytrain.analysis.worlds import seeds_by_axis
from raytrain.sweep.factorial import LeastSquares

REAL = Path(__file__).parent / "reference" / "real_seeds_cpu.csv"
AXES = ["normalization", "ffn_type", "weight_tying"]


def test_a_block_s_error_is_the_spread_of_its_contrasts():
    """Bug: a variance or degrees of freedom other than those of k per-seed contrasts, where every variant has them."""
    draws = np.random.default_rng(0)
    for seeds in (2, 3, 5):
        values = draws.normal(0, 1, (seeds, 4)) * [1, 2, 3, 4]
        columns = np.tile(np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1]], float), (seeds, 1))
        codes = np.repeat(range(seeds), 4)
        fit = LeastSquares(columns, np.eye(seeds)[codes][:, 1:])
        weights = fit.weights(np.array([[0.0, 1, 0], [0, 0, 1]]))
        error, df = Blocks(fit, codes)(weights, values.ravel())
        own = (values[:, 1] - values[:, 0] + values[:, 3] - values[:, 2]) / 2
        assert error[0] == pytest.approx(own.std(ddof=1) / np.sqrt(seeds))
        assert df == pytest.approx([seeds - 1] * 2)
        assert weights[0] @ values.ravel() == pytest.approx(own.mean())


def test_lost_runs_leave_the_error_unbiased():
    """Bug: a cluster-robust variance without its correction, half of what it should be with three seeds, or the
    degrees of freedom of a whole design."""
    draws = np.random.default_rng(0)
    columns = np.tile(np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1]], float), (3, 1))
    kept = np.array([0, 1, 2, 3, 4, 6, 7, 8, 9, 10])  # two of twelve are lost
    codes = np.repeat(range(3), 4)[kept]
    fit = LeastSquares(columns[kept], np.eye(3)[codes][:, 1:])
    weights = fit.weights(np.array([[0.0, 1, 0]]))
    losses = draws.normal(0, 1, (10, 20_000)) + draws.normal(0, 5, (3, 20_000))[codes]
    error, df = Blocks(fit, codes)(weights, losses)
    assert np.mean(error**2) == pytest.approx(np.sum(weights**2), rel=0.03)
    assert 1 < df[0] < 2
    found = Contrasts(weights @ losses, error, df[:, None])
    assert np.mean(np.abs(found.estimate) <= found.half_width) == pytest.approx(0.95, abs=0.01)


def test_which_seeds_are_blocks():
    """Bug: a seed of its own for each run, or a few replicates of one variant, taken for blocks; or a lost run that
    undoes them."""
    points = [{"a": level} for level in range(4)]
    assert find_blocks(points * 2, pd.Series([1] * 4 + [2] * 4)).count == 2
    assert find_blocks((points * 2)[:-1], pd.Series([1] * 4 + [2] * 3)).count == 2
    assert find_blocks([*points, points[0], points[0]], pd.Series([1] * 4 + [2, 3])) is None
    assert find_blocks(points * 2, pd.Series(range(8))) is None
    assert find_blocks(points[:1] * 3, pd.Series(range(3))) is None


@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_hold_where_seeds_act_on_axes(seeds):
    """Bug: the residuals of all contrasts pooled, whose 95% intervals hold two thirds of main effects and make a claim
    in half of all studies without an effect. 1,000 studies; the bounds are 93 to 97%, and 3 binomial sd for claims."""
    found = seeds_by_axis(seeds, replays=1000)
    assert 0.93 < found["main effects"] < 0.97
    assert 0.93 < found["interactions"] < 0.97
    assert found["claims"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
    assert found["pooled main effects"] < 0.75
    assert found["pooled claims"] > 0.3
    assert 0.93 < found["own seeds"] < 0.97
    assert found["half-width, own seeds"] < found["half-width"]


@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_hold_on_real_training(seeds):
    """Bug: intervals from two or three seeds that hold the mean over 14 seeds of real runs in 0.67 of cases.

    All subsets of the seeds. A subset shares its seeds with the 14, so the expected coverage is 0.954 for two and
    0.960 for three; the subsets overlap, so it scatters: the bounds hold for each effect.
    """
    table = pd.read_csv(REAL).assign(status="complete", train_flops=7e10)
    base = {"normalization": "rmsnorm", "ffn_type": "swiglu", "weight_tying": False}
    target = effects(table, AXES, base).table.set_index("effect")["estimate"]
    contrasts = _per_seed(table, base)
    assert contrasts.mean(axis=0).to_numpy() == pytest.approx(target[contrasts.columns].to_numpy())
    subsets = list(itertools.combinations(contrasts.index, seeds))
    held = []
    for subset in subsets:
        own = contrasts.loc[list(subset)]
        half_width = scipy.stats.t.ppf(0.975, seeds - 1) * own.std() / np.sqrt(seeds)
        held.append((own.mean() - contrasts.mean()).abs() <= half_width)
    coverage = pd.DataFrame(held).mean()
    assert (coverage >= 0.92).all()
    for subset in subsets[:: len(subsets) // 5]:  # and the engine's own intervals are these
        found = effects(table[table["seed"].isin(subset)], AXES, base).table.set_index("effect")
        own = contrasts.loc[list(subset)]
        assert found["standard_error"][own.columns].to_numpy() == pytest.approx((own.std() / np.sqrt(seeds)).to_numpy())
        assert found["df"].to_numpy() == pytest.approx(seeds - 1)


def _per_seed(table, base):
    """seeds x effects: each effect in each seed, by the means of cells."""
    rows = {}
    for seed, own in table.groupby("seed"):
        signs = {axis: np.where(own[axis] == base[axis], -1.0, 1.0) for axis in AXES}
        other = {axis: next(level for level in own[axis].unique() if level != base[axis]) for axis in AXES}
        row = {f"{axis}={other[axis]}": (signs[axis] * own["val_loss"]).mean() * 2 for axis in AXES}
        for one, two in itertools.combinations(AXES, 2):
            both = (signs[one] * signs[two] * own["val_loss"]).mean() * 4
            row[f"{one}={other[one]} x {two}={other[two]}"] = both
        rows[seed] = row
    return pd.DataFrame(rows).T
