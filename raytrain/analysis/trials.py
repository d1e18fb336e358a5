"""The table that every analysis reads: one row a trial, with a column for each axis and

- `seed`
- `status`: complete, stopped (at a rung), diverged, oom, failed, or another without a loss
- `val_loss`: nats per token at the end of the trial; NaN where there is none
- `train_flops`: model FLOPs spent until then

A table by rung has a row for each rung that a trial reached, with `rung` (0 for the first) and `seconds` (spent until
then) besides. Its val_loss is that at the rung (NaN at the one a trial diverged in), its status that of the trial.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from raytrain.analysis.ranking import BUDGET_TOLERANCE
from raytrain.factorial import Array, live


def points(table: pd.DataFrame, axes: list[str]) -> list[dict[str, object]]:
    """The level of each live axis of every row."""
    return [live(dict(zip(axes, row, strict=True))) for row in table[axes].itertuples(index=False, name=None)]


def budgets(flops: Array) -> npt.NDArray[np.intp]:
    """The number of each row's budget, 0 for the smallest. FLOPs within 0.5% of the next larger are of one budget."""
    order = np.argsort(flops)
    steps = np.diff(np.log(flops[order])) > np.log1p(BUDGET_TOLERANCE)
    out = np.empty(len(flops), dtype=np.intp)
    out[order] = np.concatenate([[0], np.cumsum(steps)])
    return out


def common_rung(table: pd.DataFrame, axes: list[str]) -> pd.DataFrame:
    """Of a table by rung one row a trial, at the last rung that none was stopped before: all at one budget.

    Effects from it are those at that budget, free of the bias that stopping the worse trials brings to later rungs. A
    trial that reached the rung is complete in it; one that had diverged or failed by then stays what it was.
    """
    trial = [*axes, "seed"]
    last = table[table["status"] == "stopped"].groupby(trial, dropna=False)["rung"].max()
    common = last.min() if len(last) else table["rung"].max()
    out = table[table["rung"] <= common].sort_values("rung", kind="stable").groupby(trial, dropna=False).tail(1)
    reached = (out["rung"] == common) & out["val_loss"].notna()
    return out.assign(status=out["status"].where(~reached, "complete"))
