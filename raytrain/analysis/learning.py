"""The learning curves of the variants that a reader asks for first: the best, the baseline and the worst."""

from pathlib import Path

import pandas as pd

from raytrain.analysis.ranking import at_budget, programs
from raytrain.rundir.log import read_log
from raytrain.rundir.run import RunFolder

_COLUMNS = ["variant", "trial", "train_flops", "loss", "val_loss"]


def learning_curves(folder: Path, table: pd.DataFrame, is_base: pd.Series) -> pd.DataFrame:
    """A row for each report of a step (`loss`, nats per token, of its batches) or an evaluation (`val_loss`) of their
    runs at the study's budget, with the `train_flops` spent by then. `variant` is such as "best: weight_tying=True".

    `table` is one of `ranking.rank`, which is ordered best first, of which the rows `is_base` are the baseline's.
    """
    own = table[at_budget(table) & table["rank"].notna()]
    program = programs(own)
    parts: dict[int, list[str]] = {}
    base = program[is_base[own.index]]
    for part, which in (("best", program.head(1)), ("baseline", base.head(1)), ("worst", program.tail(1))):
        for number in which:
            parts.setdefault(number, []).append(part)
    rows = [
        {"variant": f"{', '.join(names)}: {run['short_name']}", "trial": run["trial"]} | _point(report)
        for number, names in parts.items()
        for run in own[program == number].to_dict("records")
        for event in ("step", "eval")
        for report in read_log(RunFolder(folder / "trials" / run["trial"]).log, event=event)
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _point(report: dict[str, object]) -> dict[str, object]:
    return {name: report.get(name) for name in _COLUMNS[2:]}
