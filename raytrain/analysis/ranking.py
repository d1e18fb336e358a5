"""A study as a table, and its ranking by loss per FLOP.

A table has a row a trial: trial (id), label, name, hash, seed; status (waiting, running, interrupted, complete,
stopped, diverged, failed, oom, lost), reason; the nine axes, the sizes and the recipe by their names in TrainConfig;
budget_flops, the study's; and what the trial's result.json holds, such as val_loss (nats per token), train_flops and
hardware_flops.

`rank` adds:

    loss_per_flop            nats per EFLOP (1e18 model FLOPs): (ln vocab_size - val_loss) / train_flops
    loss_per_hardware_flop   the same over hardware_flops, where those are known
    budget_ok                1 if train_flops is within 0.5% of budget_flops, else 0
    rank                     1 is the best loss_per_flop among trials whose budget is ok; equal ones share a rank
"""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from raytrain.files import read_json
from raytrain.training.config import STOPS

BUDGET_TOLERANCE = 0.005
UNFINISHED = ("waiting", "running", "interrupted")
_EFLOP = 1e18

Numbers = TypeVar("Numbers", float, pd.Series)


def loss_per_flop(loss: Numbers, vocab_size: Numbers, flops: Numbers) -> Numbers:
    """Loss bought per FLOP, from the loss of a uniform guess, ln `vocab_size`: nats per EFLOP."""
    return (np.log(vocab_size) - loss) / (flops / _EFLOP)


def read_study(study_dir: str | Path) -> pd.DataFrame:
    """A row a trial, in the order of study.json. Raises UserError for a folder that holds no study."""
    folder = Path(study_dir)
    study = read_json(folder / "study.json")
    return pd.DataFrame([_row(trial, folder / "trials" / trial["id"], study) for trial in study["trials"]])


def _row(trial: dict[str, Any], folder: Path, study: dict[str, Any]) -> dict[str, Any]:
    config = {field: value for field, value in trial["config"].items() if field not in STOPS}
    axes = config.pop("architecture")
    row = {"trial": trial["id"], "label": ", ".join(trial["labels"]), "hash": trial["hash"]}
    row |= {"budget_flops": study["budget_flops"]}
    started = "interrupted" if study.get("interrupted") else "running"
    row |= {"status": started if (folder / "log.jsonl").exists() else "waiting"} | axes | config
    if (folder / "result.json").exists():
        row |= read_json(folder / "result.json")
    return row


def rank(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the four columns above, best first; trials without a rank follow, those without a loss come last.

    A bare ratio of loss to FLOPs over runs of different budgets ranks them by budget: the loss falls ever more slowly,
    so the run that stopped first wins. So a trial whose budget is not ok has no rank.
    """
    ended = table["status"].isin(("complete", "stopped"))
    loss, flops = _numbers(table, "val_loss").where(ended), _numbers(table, "train_flops")
    vocab_size, hardware = _numbers(table, "vocab_size"), _numbers(table, "hardware_flops")
    budget_ok = (flops / _numbers(table, "budget_flops") - 1).abs() <= BUDGET_TOLERANCE
    merit = loss_per_flop(loss, vocab_size, flops)
    ranked = table.assign(
        loss_per_flop=merit,
        loss_per_hardware_flop=loss_per_flop(loss, vocab_size, hardware),
        budget_ok=budget_ok.astype(int),
        rank=merit.where(budget_ok).rank(method="min", ascending=False).astype("Int64"),
    )
    order = pd.DataFrame({"rank": ranked["rank"], "loss": loss}).sort_values(["rank", "loss"], kind="stable").index
    return ranked.loc[order].reset_index(drop=True)


def _numbers(table: pd.DataFrame, column: str) -> pd.Series:
    """A column as floats, NaN where it has no value. FLOPs may be integers beyond 64 bits."""
    return table.get(column, pd.Series(np.nan, index=table.index)).astype(float)
