from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raytrain.analysis.answer import answer
from raytrain.analysis.effects import effects
from raytrain.analysis.plateau import Rate, mark_plateaus, variants_of, where_plateaus
from raytrain.analysis.simulate import LEVELS
from raytrain.analysis.worlds import plateaus

REFERENCE = Path(__file__).parent / "reference"
FULL = list(LEVELS)


def real(name, axes):
    table = pd.read_csv(REFERENCE / name)
    return mark_plateaus(table, variants_of(table, axes), 3.33)


def test_plateaus_of_a_real_study():
    """Bug: runs at the unigram's loss counted as measurements, or trained ones set aside. Twelve of 128 end within
    0.005 nats of it, the next at 2.59; all twelve are post-norm with tied weights."""
    table = real("real_full_h100.csv", FULL)
    assert (table["status"] == "plateau").equals(table["val_loss"] > 3)
    (name, rate), *others = where_plateaus(table, FULL)
    assert not others
    assert set(name.split(" with ")) == {"norm_position=post", "weight_tying=True"}
    assert (rate.count, rate.trials) == (12, 31)


def test_plateaus_that_a_learning_rate_explains():
    """Bug: numbers taken for names, so that `post from 3e-3 up` is no rule."""
    axes = ["normalization", "position_encoding", "norm_position", "learning_rate"]
    table = real("real_lr_h100.csv", axes)
    assert (table["status"] == "plateau").sum() == 7
    assert where_plateaus(table, axes)[0][0] == "norm_position=post with learning_rate>=0.003"
    assert str(where_plateaus(table, axes)[0][1]) == "7 of 8 (95% 47% to 100%)"


def test_a_rule_names_what_explains_and_no_more():
    """Bug: a rule of three levels where one explains all, a rule where chance does, or none where two levels do."""
    draws = np.random.default_rng(0)
    table = pd.DataFrame({axis: draws.integers(0, 2, 80) for axis in "abcd"})
    for stuck, name in (
        ((table["a"] == 1), "a=1"),
        ((table["a"] == 1) & (table["b"] == 0), "a=1 with b=0"),
    ):
        marked = table.assign(status=np.where(stuck, "plateau", "complete"))
        assert [rule for rule, _ in where_plateaus(marked, list("abcd"))] == [name]
    chance = 0
    for _ in range(100):
        marked = table.assign(status=np.where(draws.random(80) < 0.1, "plateau", "complete"))
        chance += bool(where_plateaus(marked, list("abcd")))
    assert chance <= 10


def losses(*values, **columns):
    rows = [{"a": 0, "seed": seed, "status": "complete", "train_flops": 1e15} for seed in range(len(values))]
    return pd.DataFrame(rows).assign(val_loss=values, **columns)


def test_what_is_within_the_noise():
    """Bug: no tolerance, one of many noise sd, or one that the stuck runs themselves widen until all are stuck."""
    marked = mark_plateaus(losses(3.29, 3.31, 3.35), pd.Series([0, 1, 2]), 3.3)
    assert list(marked["status"]) == ["plateau"] * 3
    assert list(mark_plateaus(losses(3.27, 2.0), pd.Series([0, 1]), 3.3)["status"]) == ["complete"] * 2
    # sd 0.028 with one degree of freedom: the most that is allowed for noise is 0.1
    assert list(mark_plateaus(losses(3.21, 3.25, 3.15), pd.Series([0, 0, 1]), 3.3)["status"]) == [
        "plateau",
        "plateau",
        "complete",
    ]
    stuck = mark_plateaus(losses(3.3, 2.30, 2.31, 2.32), pd.Series([0, 0, 0, 0]), 3.3)
    assert list(stuck["status"]) == ["plateau"] + ["complete"] * 3


def test_only_completed_runs_with_a_known_unigram():
    """Bug: a run at a rung, where all still are on the plateau, set aside; or a study of old without a unigram."""
    table = losses(3.3, 3.3, 3.3, status=["stopped", "diverged", "complete"], unigram_loss=[3.3, 3.3, np.nan])
    assert list(mark_plateaus(table, pd.Series([0, 1, 2]))["status"]) == ["stopped", "diverged", "complete"]
    assert mark_plateaus(table.drop(columns="unigram_loss"), pd.Series([0, 1, 2])).status.tolist()[2] == "complete"


def test_rates():
    """Bug: intervals other than Clopper and Pearson's. Figures: R's binom.test."""
    assert str(Rate(4, 4)) == "4 of 4 (95% 40% to 100%)"
    assert str(Rate(2, 10)) == "2 of 10 (95% 3% to 56%)"


def test_an_effect_is_found_among_plateaus():
    """Bug: a tenth of the runs stuck 1 nat up, which hides an effect of 3 noise sd in nine studies of ten."""
    found = plateaus(replays=15)
    assert found["found"] >= 0.95
    assert found["found without"] < 0.5
    assert found["false claims"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 15)


def test_effects_count_plateaus():
    """Bug: a plateau in an effect, or in no count."""
    table = losses(2.0, 2.01, 3.3, 3.3, 2.5, 2.51).assign(a=[0, 0, 0, 1, 1, 1])
    found = effects(table, ["a"], {"a": 0}, unigram_loss=3.3)
    assert found.table["estimate"].tolist() == pytest.approx([0.5])
    assert found.statuses == {"complete": 4, "plateau": 2}
    assert found.rates["plateau"].tolist() == [1, 1]
    assert found.told.warnings[0].startswith("2 of 6 (95% 4% to 78%) runs were not trained")


def test_a_study_s_plateaus_are_unranked(make_study):
    """Bug: a run that was not trained ranked, in the noise or in the answer's effects."""
    study = make_study(axes={"norm_position": ["post", "pre"], "normalization": ["layernorm_nobias", "rmsnorm"]})
    for position in ("post", "pre"):
        for norm in ("layernorm_nobias", "rmsnorm"):
            for seed in range(3):
                stuck = position == "post" and norm == "rmsnorm"
                loss = 3.3 if stuck else 2 + 0.01 * seed + 0.1 * (position == "pre")
                study.add({"norm_position": position, "normalization": norm}, loss, seed=seed, unigram_loss=3.3)
    found = answer(study.write())
    stuck = found.table["status"] == "plateau"
    assert stuck.sum() == 3
    assert found.table.loc[stuck, "rank"].isna().all()
    assert found.table.loc[~stuck, "rank"].notna().all()
    assert any("norm_position=post with normalization=rmsnorm" in sentence for sentence in found.sentences)
