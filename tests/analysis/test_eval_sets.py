import itertools
import re

import numpy as np
import pandas as pd
import pytest

from raytrain.analysis.answer import answer
from raytrain.analysis.effects import effects
from raytrain.analysis.eval_sets import by_eval_set
from raytrain.report.sections import write_report
from tests.studies import AXES, write_study

AXIS = {"a": (0, 1), "b": (0, 1), "c": (0, 1)}


def study(there, *, draws, seeds=4, own=None, sd=0.002, apart=0.001):
    """Runs of all points with the effects `own` on val_loss and `there` on val_loss_wiki (level 1 of each axis), and
    noise: `sd` that both losses share, and `apart` of their own."""
    rows = []
    for levels in itertools.product(*AXIS.values()):
        point = dict(zip(AXIS, levels, strict=True))
        for seed in range(seeds):
            shared, *noise = draws.normal(0, (sd, apart, apart))
            losses = [
                start + sum(size * point[axis] for axis, size in sizes.items()) + shared + extra
                for start, sizes, extra in zip((3.0, 4.0), (own or {}, there), noise, strict=True)
            ]
            row = {"seed": seed, "status": "complete", "train_flops": 1e15, "val_loss": losses[0]}
            rows.append(point | row | {"val_loss_wiki": losses[1]})
    return pd.DataFrame(rows)


def told(table):
    baseline = dict.fromkeys(AXIS, 0)
    return by_eval_set(table, list(AXIS), baseline, effects(table, list(AXIS), baseline))


def test_what_holds_on_one_set_alone_is_said():
    """Catches an effect of the one corpus that is taken for one of language, and a set that turns a sign unseen."""
    draws = np.random.default_rng(0)
    own, there = {"a": 0.02, "b": -0.02, "c": 0.03}, {"a": 0.02, "b": 0.02, "c": 0.0}
    sentences = told(study(there, own=own, draws=draws))
    assert len(sentences) == 3
    assert re.match(r"On wiki: b=1 changes its sign: -0\.0\d+ nats .* on the data's own .*, \+0\.0\d+ ", sentences[0])
    assert re.match(r"On wiki: c=1 does not hold: \+0\.0\d+ nats .*; the difference is -0\.0\d+ \(", sentences[1])
    assert sentences[2] == "On wiki: 1 of 3 effects hold as they do on the data's own validation set."


def test_an_effect_that_the_other_set_is_too_noisy_for_is_not_called_gone():
    """Catches "not significant there" taken for "not there"."""
    table = study({"a": 0.01}, own={"a": 0.01}, draws=np.random.default_rng(1))
    table["val_loss_wiki"] += np.random.default_rng(2).normal(0, 0.02, len(table))
    (sentence,) = told(table)
    assert "a=1 is distinguishable from zero on one set alone, and the difference is within the noise" in sentence


@pytest.mark.parametrize("own", [{}, {"a": 0.01, "b": -0.01}])
def test_sets_that_agree_make_few_false_differences(own):
    """Catches claims that are not adjusted for the number of effects: 5% of studies at most may have one (8.5% here
    would be 3 standard errors above that)."""
    draws = np.random.default_rng(3)
    wrong = 0
    for _ in range(250):
        sentences = told(study(own, own=own, draws=draws))
        wrong += any("changes its sign" in s or "does not hold" in s or "does not show" in s for s in sentences)
    assert wrong / 250 <= 0.092


def test_a_plateau_is_one_of_the_data_s_own_set():
    """Catches runs set aside on a further set, whose losses lie above the unigram's loss on the data's own."""
    own, there = {"a": 0.02}, {"a": 0.02}
    table = study(there, own=own, draws=np.random.default_rng(0))
    assert told(table.assign(unigram_loss=3.9)) == told(table) != []


def test_a_study_and_its_report_have_the_further_sets(tmp_path):
    """Catches sets that are trained on and then shown nowhere."""
    grid = list(itertools.product(*AXES.values()))

    def results(index):
        point = dict(zip(AXES, grid[index // 2], strict=True))
        return {
            "val_loss_wiki": 3.5 + 0.05 * (point["norm_position"] == "pre") + 1e-4 * (index % 2),
            "val_bpb_wiki": 1.2,
        }

    def effect(point):
        return -0.05 * (point["norm_position"] == "pre")

    folder = write_study(tmp_path / "study", effect=effect, results=results)
    assert any(s.startswith("On wiki: norm_position=pre changes its sign") for s in answer(folder).sentences)
    index, *_ = write_report(folder)
    page = index.read_text()
    assert "val_loss, wiki" in page
    assert "bits/byte, wiki" in page
    assert "norm_position=pre changes its sign" in page
