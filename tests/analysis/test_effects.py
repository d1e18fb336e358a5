import itertools

import numpy as np
import pandas as pd
import pytest

from raytrain.analysis.effects import effects, failure_rates
from raytrain.analysis.estimates import holm
from raytrain.analysis.noise import Noise
from raytrain.analysis.simulate import LEVELS, claims_made, stopping_pull, truths, variants
from raytrain.analysis.trials import common_rung
from raytrain.errors import UserError
from raytrain.sweep.design import choose
from raytrain.sweep.factorial import Model

CUBE = [dict(zip("abc", levels, strict=True)) for levels in itertools.product((0, 1), repeat=3)]


def trials(points, loss, seeds=1, sd=0.0, **columns):
    draws = np.random.default_rng(0)
    rows = [
        {**point, "seed": seed, "val_loss": loss(point) + draws.normal(0, sd)}
        for point in points
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows).assign(**{"status": "complete", "train_flops": 1e15} | columns)


def estimates(found):
    return found.table.set_index("effect")["estimate"].dropna().to_dict()


@pytest.mark.parametrize("design", ["full", "d_optimal"])
def test_a_known_truth_is_recovered(design):
    """Bug: effects of the wrong size, sign or name, for a full grid or a fraction."""
    points = variants()
    model = Model(points, points[0])
    truth, true = truths(model, points, 1, np.random.default_rng(0))
    by_point = {frozenset(point.items()): loss for point, loss in zip(points, truth[:, 0], strict=True)}
    plan = choose(points, design, trials=128 if design == "d_optimal" else None)
    table = trials([points[i] for i, _ in plan.trials], lambda point: by_point[frozenset(point.items())])
    found = effects(table, list(LEVELS), points[0], candidates=points)
    assert estimates(found) == pytest.approx(
        dict(zip((e.name for e in model.effects), true[:, 0], strict=True)), abs=1e-9
    )


def test_effects_by_hand():
    """Bug: an effect or an interaction of half or twice its size, or intervals with the wrong df."""
    table = trials(CUBE, lambda p: 3 + 0.5 * p["a"] - 0.25 * p["b"] + 0.1 * p["a"] * p["b"], seeds=3, sd=0.01)
    found = effects(table, ["a", "b", "c"], {"a": 0, "b": 0, "c": 0})
    row = found.table.set_index("effect").loc["a=1"]
    losses = table.groupby("a")["val_loss"].mean()
    assert row["estimate"] == pytest.approx(losses[1] - losses[0])
    by_seed = table.groupby(["seed", "a"])["val_loss"].mean().unstack()
    own = (by_seed[1] - by_seed[0]).std() / np.sqrt(3)
    assert row["high"] - row["estimate"] == pytest.approx(4.3027 * own, rel=1e-4)  # t with 2 degrees of freedom
    cells = table.groupby(["a", "b"])["val_loss"].mean()
    expected = cells[1, 1] - cells[0, 1] - cells[1, 0] + cells[0, 0]
    assert estimates(found)["a=1 x b=1"] == pytest.approx(expected)
    assert (found.noise.df, found.seed_noise.df) == (15, 14)
    known = effects(table, ["a", "b", "c"], {"a": 0, "b": 0, "c": 0}, noise=Noise(0.02, 100, "seeds"))
    assert known.table.set_index("effect").loc["a=1", "standard_error"] == pytest.approx(0.02 * np.sqrt(2 / 12))


def test_what_a_seed_does_to_all_widens_no_interval():
    """Bug: the spread of the seeds, which all variants share, in the intervals; or offsets of seeds that no two share,
    which would leave nothing to estimate."""
    table = trials(CUBE, lambda p: 3 + 0.5 * p["a"], seeds=3, sd=0.01)
    base = {"a": 0, "b": 0, "c": 0}
    moved = table.assign(val_loss=table["val_loss"] + table["seed"])
    columns = ["estimate", "low", "high"]
    plain, shifted = (effects(rows, ["a", "b", "c"], base).table[columns] for rows in (table, moved))
    pd.testing.assert_frame_equal(plain, shifted)
    apart = effects(table.assign(seed=range(24)), ["a", "b", "c"], base)
    assert (apart.noise.source, apart.noise.df) == ("residuals", 17)
    row = apart.table.set_index("effect").loc["a=1"]
    assert row["high"] - row["estimate"] == pytest.approx(2.1098 * apart.noise.sd * np.sqrt(2 / 12), rel=1e-4)


def test_one_at_a_time_gives_simple_effects_and_says_so():
    """Bug: effects seen at the baseline alone shown as averages, or interactions invented from them."""
    points = [p for p in CUBE if sum(p.values()) < 2]
    found = effects(trials(points, lambda p: 3 + p["a"] - p["b"], seeds=3, sd=1e-4), ["a", "b", "c"], CUBE[0])
    assert estimates(found) == pytest.approx({"a=1": 1, "b=1": -1, "c=1": 0}, abs=1e-3)
    assert "no run has these levels together" in set(found.table["aliased_with"])
    assert any("cannot separate main effects from interactions" in sentence for sentence in found.sentences)
    assert not any("averaged over" in sentence for sentence in found.sentences)


def test_aliased_effects_are_named():
    """Bug: two axes that always change together, with the difference shared out between them by a pseudoinverse."""
    points = [p for p in CUBE if p["a"] == p["b"]]
    found = effects(trials(points, lambda p: 3 + p["a"], seeds=2, sd=1e-3), ["a", "b", "c"], CUBE[0])
    table = found.table.set_index("effect")
    assert np.isnan(table.loc["a=1", "estimate"])
    assert "b=1" in table.loc["a=1", "aliased_with"]
    assert not np.isnan(table.loc["c=1", "estimate"])
    assert any(sentence.startswith("Not estimable") and "a=1" in sentence for sentence in found.sentences)


def test_an_empty_cell_costs_its_own_interaction_only():
    """Bug: all trials of one pair of levels diverge, and main effects or other interactions go with them."""
    table = trials(CUBE, lambda p: 3 + p["a"] + p["c"] * p["b"], seeds=2, sd=1e-3)
    table.loc[(table["a"] == 1) & (table["b"] == 1), ["status", "val_loss"]] = ["diverged", np.nan]
    found = effects(table, ["a", "b", "c"], CUBE[0], candidates=CUBE)
    assert set(estimates(found)) == {"a=1", "b=1", "c=1", "a=1 x c=1", "b=1 x c=1"}
    assert estimates(found)["a=1"] == pytest.approx(1, abs=0.01)
    assert found.statuses == {"complete": 12, "diverged": 4}
    assert any("4 diverged" in sentence for sentence in found.sentences)


def test_holm():
    """Bug: Bonferroni, or steps that are not monotone, or NaN counted as a test. Figures: R's p.adjust."""
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.02])), [0.02, np.nan, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])


def test_claims_about_nothing_are_few():
    """Bug (A/A): effects called significant one by one. Any claim is allowed in 5%, plus 3 binomial sd of 1,000."""
    assert claims_made(1000) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_no_replicates_no_claims():
    """Bug: better or worse said on the strength of residuals alone."""
    once = effects(trials(CUBE * 2, lambda p: 3 + p["a"]).drop_duplicates(["a", "b", "c"]), ["a", "b", "c"], CUBE[0])
    assert once.seed_noise is None
    assert "nothing here is called better or worse" in once.sentences[0]
    assert not any(verb in " ".join(once.sentences) for verb in ("costs", "saves"))


def test_an_interaction_is_told_by_where_its_axis_matters():
    """Bug: a claim for one axis on average, which holds under one level of another axis alone."""

    def loss(point):
        return 3 + 0.2 * point["b"] + (0.1 if point["a"] and point["b"] else 0)

    found = effects(trials(CUBE, loss, seeds=4, sd=0.002), ["a", "b", "c"], CUBE[0])
    told = [sentence for sentence in found.sentences if " with b=" in sentence]
    assert len(told) == 1
    assert told[0].startswith("a=1 (against 0) costs 0.1")
    assert "with b=1, but shows no clear difference" in told[0]
    assert told[0].endswith("with b=0.")


def test_no_difference_is_said():
    """Bug: the largest of many chance differences reported as a finding."""
    found = effects(trials(CUBE, lambda p: 3.0, seeds=3, sd=0.002), ["a", "b", "c"], CUBE[0])
    assert any(sentence.startswith("No difference stands out") for sentence in found.sentences)


def test_lack_of_fit_is_found():
    """Bug: three axes acting together, with intervals from seeds alone that are too narrow."""
    fits = effects(trials(CUBE, lambda p: 3 + p["a"] * p["b"], seeds=3, sd=0.01), ["a", "b", "c"], CUBE[0])
    lacks = effects(trials(CUBE, lambda p: 3 + p["a"] * p["b"] * p["c"], seeds=3, sd=0.01), ["a", "b", "c"], CUBE[0])
    assert fits.lack_of_fit > 0.05
    assert lacks.lack_of_fit < 1e-6
    assert lacks.noise.sd > 3 * lacks.seed_noise.sd
    assert any("axes act together" in sentence for sentence in lacks.sentences)


def test_stopped_trials_count_at_their_budget():
    """Bug: a stopped trial's higher loss taken for an effect; or the worse trials dropped, which hides theirs."""
    table = trials(CUBE, lambda p: 3 + 0.1 * p["a"], seeds=2)
    stopped = (table["b"] + table["c"] + table["seed"]) % 2 == 0
    table.loc[stopped, "val_loss"] += 0.5
    table = table.assign(status=np.where(stopped, "stopped", "complete"), train_flops=np.where(stopped, 2e14, 1e15))
    found = effects(table, ["a", "b", "c"], CUBE[0], noise=Noise(0.001, 50, "seeds"))
    assert estimates(found)["a=1"] == pytest.approx(0.1)
    assert estimates(found)["b=1"] == pytest.approx(0)
    assert any("8 trials were stopped" in sentence and "towards zero" in sentence for sentence in found.sentences)


def test_the_pull_of_stopped_trials_is_what_the_docstring_says():
    """Bug: survivorship: effects from finished trials alone, or a bias stated that is not so."""
    pull = stopping_pull(10)
    assert 0.97 < pull["stopped trials at their rung, with its offset"] < 1.005
    assert pull["stopped trials left out"] < 0.85
    assert pull["all trials at the first rung"] == pytest.approx(1, abs=0.01)


def test_effects_at_a_common_rung_are_unbiased():
    """Bug: the loss at another rung, or a stopped trial's offset, mixed in."""
    first = trials(CUBE, lambda p: 4 + 0.3 * p["a"], seeds=2, rung=0, train_flops=1e14)
    last = trials(CUBE, lambda p: 3 + 0.1 * p["a"], seeds=2, rung=1)
    kept = first["a"] == 0
    table = pd.concat([first, last[kept]]).assign(status="complete")
    table.loc[table["a"] == 1, "status"] = "stopped"
    found = effects(common_rung(table, ["a", "b", "c"]), ["a", "b", "c"], CUBE[0], noise=Noise(0.001, 50, "seeds"))
    assert estimates(found)["a=1"] == pytest.approx(0.3)
    assert found.statuses == {"complete": 16}


def test_failure_rates():
    """Bug: an oom or a divergence in no count, levels of two axes mixed up, or a rate of 0 without an upper end."""
    table = trials([{"a": False, "b": 0.0}] * 10 + [{"a": True, "b": 0.0}] * 10, lambda p: 3.0)
    table.loc[10, "status"], table.loc[11, "status"], table.loc[0, "status"] = "diverged", "oom", "waiting"
    rates = failure_rates(table, ["a", "b"]).set_index(["axis", "level"])
    assert rates.loc[("a", False), ["trials", "diverged", "failed", "plateau"]].tolist() == [9, 0, 0, 0]
    assert rates.loc[("a", True), ["trials", "diverged", "failed"]].tolist() == [10, 1, 1]
    assert rates.loc[("b", 0.0), "trials"] == 19
    assert rates.loc[("a", True), ["rate", "low", "high"]].tolist() == pytest.approx([0.2, 0.0252, 0.5561], abs=1e-4)
    assert rates.loc[("a", False), ["low", "high"]].tolist() == pytest.approx([0, 0.3363], abs=1e-4)  # 1 - 0.025^(1/9)


def test_too_few_trials():
    """Bug: a traceback from an empty table."""
    with pytest.raises(UserError, match="two trials or more with a loss; this study has 0"):
        effects(trials(CUBE, lambda p: np.nan, status="diverged"), ["a", "b", "c"], CUBE[0])


def test_one_function_left():
    """Bug: a traceback where all trials with a loss are of one variant, as there is no effect to take a p-value of."""
    one = trials(CUBE[:1], lambda p: 3.0, seeds=3, sd=0.01)
    with pytest.raises(UserError, match="all trials with a loss are of one variant"):
        effects(one, ["a", "b", "c"], CUBE[0], candidates=CUBE)
