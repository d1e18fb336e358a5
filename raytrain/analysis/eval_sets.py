"""Several validation sets: which effects hold on one and not on another."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from raytrain.analysis.effects import Effects, effects
from raytrain.analysis.noise import SIGNIFICANCE
from raytrain.errors import UserError
from raytrain.sweep.factorial import Point

_PREFIX = "val_loss_"


def further_losses(table: pd.DataFrame) -> list[str]:
    """The columns of `table` that hold the loss on a further validation set."""
    return [str(column) for column in table if str(column).startswith(_PREFIX)]


def by_eval_set(
    table: pd.DataFrame,
    axes: Sequence[str],
    baseline: Point,
    primary: Effects,
    candidates: Sequence[Point] | None = None,
) -> list[str]:
    """How the further validation sets in `table` bear on the effects that `primary` has of val_loss, a sentence or two
    a set.

    An effect is compared by fitting the same model to the loss on the set, and to the difference of the two losses of
    each run: that both are of one run takes out the noise that they share. Each claim is at 5% after Holm's adjustment
    for all effects of its set.
    """
    out = []
    for column in further_losses(table):
        used = table[table[column].notna() | table["val_loss"].isna()]
        used = used.drop(columns="unigram_loss", errors="ignore")  # that of the data's own set, by which all are judged
        try:
            other, change = (
                effects(used.assign(val_loss=losses), axes, baseline, candidates=candidates)
                for losses in (used[column], used[column] - used["val_loss"])
            )
        except UserError:
            continue
        if other.noise is not None and primary.noise is not None:
            out += _compared(column.removeprefix(_PREFIX), primary.table, other.table, change.table)
    return out


def _compared(name: str, own: pd.DataFrame, other: pd.DataFrame, change: pd.DataFrame) -> list[str]:
    rows = own.merge(other, on="effect", suffixes=("", "_there")).merge(
        change[["effect", "estimate", "low", "high", "p_holm"]], on="effect", suffixes=("", "_change")
    )
    here, there = rows["p_holm"] < SIGNIFICANCE, rows["p_holm_there"] < SIGNIFICANCE
    claimed = rows[here | there].to_dict("records")
    differing = [(kind, row) for row in claimed if (kind := _kind(row)) != "holds"]
    out = [f"On {name}: {_difference(name, kind, row)}." for kind, row in differing]
    if held := len(claimed) - len(differing):
        out.append(f"On {name}: {held} of {len(claimed)} effects hold as they do on the data's own validation set.")
    return out


def _kind(row: dict[Any, Any]) -> str:
    is_here, is_there = row["p_holm"] < SIGNIFICANCE, row["p_holm_there"] < SIGNIFICANCE
    if is_here and is_there:
        return "holds" if (row["estimate"] > 0) == (row["estimate_there"] > 0) else "reverses"
    if row["p_holm_change"] < SIGNIFICANCE:
        return "gone" if is_here else "new"
    return "unresolved"


def _difference(name: str, kind: str, row: dict[Any, Any]) -> str:
    here = f"{row['estimate']:+.4f} nats (95% {row['low']:+.4f} to {row['high']:+.4f}) on the data's own validation set"
    there = f"{row['estimate_there']:+.4f} ({row['low_there']:+.4f} to {row['high_there']:+.4f}) on {name}"
    apart = f"{row['estimate_change']:+.4f} ({row['low_change']:+.4f} to {row['high_change']:+.4f})"
    words = {
        "reverses": "changes its sign",
        "gone": "does not hold",
        "new": "has an effect that the data's own validation set does not show",
        "unresolved": "is distinguishable from zero on one set alone, and the difference is within the noise",
    }
    return f"{row['effect']} {words[kind]}: {here}, {there}; the difference is {apart}"
