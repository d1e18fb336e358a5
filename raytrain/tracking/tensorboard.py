"""A study for TensorBoard: an event file a trial, written from the logs in the study's folder.

The only module that imports tensorboardX, which is an extra (`raytrain[tensorboard]`).
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from raytrain.analysis.ranking import rank, read_study
from raytrain.errors import UserError
from raytrain.rundir.folders import check_path
from raytrain.rundir.log import first_reports, read_lines
from raytrain.rundir.run import RunFolder
from raytrain.tracking.numbers import numbers

_FINAL = ("rank", "loss_per_flop")  # of the ranking, beside what runs report


def write_events(study: Path, out: Path) -> int:
    """Write the trials of the study in `study` below `out`, a folder for each by its label and seed: how many they are.

    A step's metrics are scalars at that step, and those of a trial's end at its last. Raises UserError without
    tensorboardX, and for an `out` that holds events already: TensorBoard would show both.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError("tensorboard needs tensorboardX: pip install 'raytrain[tensorboard]'") from None
    check_path(out, "out")
    if next(out.rglob("events.out.tfevents.*"), None) is not None:
        raise UserError(f"out ({out}) holds event files already; give another folder")
    table = rank(read_study(study))
    begun = [row for row in table.to_dict("records") if row["status"] != "waiting"]
    for row in begun:
        run = RunFolder(study / "trials" / str(row["trial"]))
        with SummaryWriter(str(out / _name(row, table))) as writer:
            for key, value, step, time in _points(run, row):
                writer.add_scalar(key, value, step, walltime=time)
    return len(begun)


def _name(row: dict[Any, Any], table: pd.DataFrame) -> str:
    """What TensorBoard calls a trial: its name in tables and its seed; the id, where that is of several."""
    is_one = ((table["short_name"] == row["short_name"]) & (table["seed"] == row["seed"])).sum() == 1
    return re.sub(r"[^\w=.()-]+", "_", f"{row['short_name']}-s{row['seed']}") if is_one else str(row["trial"])


def _points(run: RunFolder, row: dict[Any, Any]) -> list[tuple[str, float, int, float]]:
    reports = [report for _, report in first_reports(read_lines(run.log)) if "step" in report]
    points = [
        (key, value, report["step"], report["time"]) for report in reports for key, value in numbers(report).items()
    ]
    if run.has_ended:
        last = max((report["time"] for report in run.reports), default=0.0)
        final = run.result | {key: row[key] for key in _FINAL if row[key] == row[key]}
        points += [(f"final/{key}", value, run.last_step, last) for key, value in numbers(final).items()]
    return points
