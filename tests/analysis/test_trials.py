import numpy as np
import pandas as pd
import pytest

from raytrain.analysis.trials import budgets, common_rung, rows


def test_budgets_within_half_a_percent_are_one():
    """Bug: trials of one budget, each met to within a sequence, compared as if of many."""
    assert budgets(np.array([4e15, 1.004e15, 1e15, 2e15, 4.001e15])).tolist() == [2, 0, 0, 1, 2]


def test_the_common_rung_has_every_trial_once():
    """Bug: stopped or diverged trials dropped on the way to a table at one budget, or counted as stopped in it."""
    trials = [
        ("a", 0, 3.0, "complete"),
        ("a", 1, 2.0, "complete"),
        ("b", 0, 4.0, "stopped"),
        ("c", 0, 3.5, "diverged"),
        ("c", 1, np.nan, "diverged"),
        ("d", 0, np.nan, "diverged"),
    ]
    table = pd.DataFrame(trials, columns=["norm", "rung", "val_loss", "status"]).assign(seed=0)
    common = common_rung(table, ["norm"]).set_index("norm")
    assert common["val_loss"].to_dict() == pytest.approx({"a": 3.0, "b": 4.0, "c": 3.5, "d": np.nan}, nan_ok=True)
    assert common["status"].to_dict() == {"a": "complete", "b": "complete", "c": "complete", "d": "diverged"}
    early = pd.DataFrame([("e", 0, 3.1, "diverged", 0)], columns=table.columns)  # died between two rungs
    unstopped = common_rung(pd.concat([table[table["norm"] != "b"], early]), ["norm"]).set_index("norm")
    assert unstopped["status"].to_dict() == {"a": "complete", "c": "diverged", "d": "diverged", "e": "diverged"}
    assert unstopped["val_loss"]["a"] == 2.0


def test_rows_of_no_columns():
    """Bug: a study that tunes the learning rate alone has no other field, and pandas 2 then gives no rows."""
    table = pd.DataFrame({"seed": [1, 2], "norm": ["a", "b"]})
    assert rows(table, []) == [(), ()]
    assert rows(table, ["norm", "seed"]) == [("a", 1), ("b", 2)]
