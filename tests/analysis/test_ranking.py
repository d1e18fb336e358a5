import json
import math

import pandas as pd
import pytest

from raytrain.analysis.ranking import loss_per_flop, rank, read_study
from raytrain.errors import UserError


def table(*rows):
    common = {"status": "complete", "vocab_size": 256, "budget_flops": 1e18, "train_flops": 10**18}
    return pd.DataFrame([common | row for row in rows])


def test_loss_per_flop():
    """Would catch: a wrong unit, sign or starting loss. ln 256 = 5.545177: 2.545177 nats over 2 EFLOP."""
    assert loss_per_flop(3.0, 256, 2e18) == pytest.approx(2.545177444479562 / 2, rel=1e-12)
    assert loss_per_flop(math.log(50304), 50304, 1e15) == 0


def test_best_first():
    """Would catch: a ranking upside down, or ratios that do not belong to their rows."""
    ranked = rank(
        table({"trial": "a", "val_loss": 3.0}, {"trial": "b", "val_loss": 2.0}, {"trial": "c", "val_loss": 2.5})
    )
    assert list(ranked["trial"]) == ["b", "c", "a"]
    assert list(ranked["rank"]) == [1, 2, 3]
    assert list(ranked["loss_per_flop"]) == pytest.approx([3.545177, 3.045177, 2.545177], abs=1e-6)


def test_ties_share_the_better_rank():
    """Would catch: equal results that are told apart by their order in the table."""
    ranked = rank(table(*({"val_loss": loss} for loss in (2.0, 3.0, 2.0, 2.5))))
    assert list(ranked["rank"]) == [1, 1, 3, 4]


@pytest.mark.parametrize(("share", "is_ok"), [(0.996, 1), (1.004, 1), (0.994, 0), (1.006, 0), (0.1, 0)])
def test_a_trial_off_the_budget_has_no_rank(share, is_ok):
    """Would catch: a trial that stopped early, and so has the best ratio by far, ranked first."""
    ranked = rank(
        table({"trial": "full", "val_loss": 2.0}, {"trial": "off", "val_loss": 2.9, "train_flops": share * 1e18})
    )
    off = ranked[ranked["trial"] == "off"].iloc[0]
    assert off["budget_ok"] == is_ok
    assert pd.isna(off["rank"]) != bool(is_ok)
    assert list(ranked["trial"]) == ["full", "off"]


def test_failures_are_last_and_unranked():
    """Would catch: a failed, diverged or unfinished trial among the ranked, or the best of the unranked behind them."""
    ranked = rank(
        table(
            {"trial": "failed", "status": "failed", "train_flops": None},
            {"trial": "running", "status": "running", "val_loss": 1.0},
            {"trial": "short", "val_loss": 1.5, "train_flops": 10**17},
            {"trial": "diverged", "status": "diverged"},
            {"trial": "good", "val_loss": 2.0},
        )
    )
    assert list(ranked["trial"])[:2] == ["good", "short"]
    assert list(ranked["rank"].isna()) == [False, True, True, True, True]


def test_hardware_flops_count_where_known():
    """Would catch: a hardware ratio from model FLOPs, or an error where the peak of the device is unknown."""
    half = table({"val_loss": 2.0, "hardware_flops": 4e18}, {"val_loss": 3.0})
    assert list(rank(half)["loss_per_hardware_flop"].round(6)) == pytest.approx(
        [3.545177 / 4, math.nan], nan_ok=True, abs=1e-6
    )
    assert rank(table({"val_loss": 2.0}))["loss_per_hardware_flop"].isna().all()


def test_flops_beyond_64_bits():
    """Would catch: an overflow at the 2e20 FLOPs of the 1.3b scale; a 64-bit integer ends at 9.2e18."""
    big = table({"val_loss": 2.0, "train_flops": 2 * 10**20, "budget_flops": 2 * 10**20})
    assert list(rank(big)["rank"]) == [1]


def test_read_study(tmp_path):
    """Would catch: a budget flag read as what was spent, an axis left out, or a trial that has not begun left out."""
    config = {"architecture": {"bias": True, "vocab_size": 256}, "learning_rate": 1e-3, "tokens": 7, "seed": 1}
    trials = [
        {"id": name, "label": name, "labels": [name], "hash": name, "seed": 1, "config": config} for name in "abc"
    ]
    (tmp_path / "study.json").write_text(json.dumps({"name": "s", "budget_flops": 10**18, "trials": trials}))
    for name in "ab":
        (tmp_path / "trials" / name).mkdir(parents=True)
        (tmp_path / "trials" / name / "log.jsonl").touch()
    (tmp_path / "trials" / "a" / "result.json").write_text(
        json.dumps({"status": "complete", "val_loss": 2.0, "tokens": 9})
    )

    read = read_study(tmp_path).set_index("trial")
    assert list(read.index) == ["a", "b", "c"]
    assert list(read["status"]) == ["complete", "running", "waiting"]
    assert read.loc["a", "tokens"] == 9
    assert pd.isna(read.loc["b", "tokens"])
    assert bool(read.loc["c", "bias"])
    assert list(read["learning_rate"]) == [1e-3] * 3


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot be read"), ("{", "is not JSON"), ("[]", "is not a JSON object")]
)
def test_not_a_study(tmp_path, text, message):
    """Would catch: a traceback for a folder that holds no study."""
    if text is not None:
        (tmp_path / "study.json").write_text(text)
    with pytest.raises(UserError, match=f"study.json {message}"):
        read_study(tmp_path)
