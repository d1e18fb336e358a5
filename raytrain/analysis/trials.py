"""The tables that every analysis reads. One has a row a trial, with a column for each axis and

- `seed`
- `status`: complete, stopped (at a rung), diverged, oom, failed, or another without a loss
- `val_loss`: nats per token at the end of the trial; NaN where there is none
- `train_flops`: model FLOPs spent until then

A table by rung has a row for each rung that a trial reached, with `rung` (0 for the first; the end of a run counts as
one more), `seconds` (of training and evaluation until then) and `decay_flops` (of the branches that rungs were scored
after) besides. Its val_loss is that at the rung (NaN at the one a trial diverged in), its status that of the trial.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from raytrain.architecture import AXES, PRESETS
from raytrain.config.run import flat
from raytrain.errors import UserError
from raytrain.rundir.folders import read_study_json
from raytrain.rundir.run import RunFolder
from raytrain.sweep.factorial import Array, live
from raytrain.sweep.ladder import by_scale
from raytrain.sweep.space import axis_fields

BUDGET_TOLERANCE = 0.005
RATE = "learning_rate"
FAILED = ("diverged", "plateau")  # statuses of runs whose variant did not train at their learning rate
# Roles of trials that effects and ranks rest on: those planned at first, and what a later stage added to them. Not
# "frontier" (the baseline at other budgets), nor those with fresh seeds, which judge alone: "confirm" (of those that
# came first) and "follow_up" (of three axes that are suspected to act together).
OWN_ROLES = ("", "extend")
FRESH_ROLES = ("confirm", "follow_up")
_DERIVED = ("n_kv_head", "d_ff")  # a planned trial has both filled in, and they follow other axes


def rows(table: pd.DataFrame, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """The values of `columns` in every row; of no columns, an empty tuple a row (pandas 2 has none)."""
    return list(zip(*(table[column] for column in columns), strict=True)) if columns else [()] * len(table)


def points(table: pd.DataFrame, axes: list[str]) -> list[dict[str, object]]:
    """The level of each live axis of every row."""
    return [live(dict(zip(axes, row, strict=True))) for row in rows(table, axes)]


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
    trial = ["trial"] if "trial" in table else [*axes, "seed"]
    last = table[table["status"] == "stopped"].groupby(trial, dropna=False)["rung"].max()
    common = last.min() if len(last) else table["rung"].max()
    out = table[table["rung"] <= common].sort_values("rung", kind="stable").groupby(trial, dropna=False).tail(1)
    reached = (out["rung"] == common) & out["val_loss"].notna()
    complete: pd.DataFrame = out.assign(status=out["status"].where(~reached, "complete"))
    return complete


def axes_of(study: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The axes that the trials of `study` (study.json) differ in, and the baseline's level of each: `Plan.factors`.

    A study of 0.1.0 does not have them; they are then those that vary among its trials, without the runs for the
    frontier. Presets are no axis here, but the axes that they differ in.
    """
    if (factors := study.get("factors")) is not None:
        return list(factors), dict(factors)
    rows = [_fields(trial) for trial in study["trials"] if trial.get("role", "") in OWN_ROLES]
    varied = [axis for axis in axis_fields() if len({json.dumps(row.get(axis)) for row in rows}) > 1]
    named = study.get("axes")
    if named is None:
        axes = [axis for axis in varied if axis not in _DERIVED]
    else:
        axes = [axis for axis in varied if axis in named or ("preset" in named and axis in AXES)]
        axes.sort(key=lambda axis: list(named).index(axis) if axis in named else -1)
    first = rows[0] if rows else {}  # the baseline, where it is a point of the space
    given = PRESETS.get(study.get("base", ""), {}) | dict(study.get("baseline") or {})
    return axes, {axis: given.get(axis, first.get(axis)) for axis in axes}


def rung_table(folder: str | Path, study: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The study in `folder` as a table by rung, for `common_rung` and to replay: `trial`, a column for each axis that
    varied, then those above. The runs for the frontier, of other budgets, are not in it.

    A study without rungs has the ends alone. Its evaluations on the way are a number of steps apart, at other FLOPs for
    each architecture, where ranks would reflect who had spent more (see benchmarks/rungs.py). `study` is that of one
    scale of a ladder (`ladder.by_scale`). Raises UserError for a folder that holds no study, and for a whole ladder.
    """
    folder = Path(folder)
    if study is None:
        study, *others = by_scale(read_study_json(folder))
        if others:
            raise UserError(f"study ({folder.name}) is a ladder: its scales are no one table of comparable trials")
    axes, _ = axes_of(study)
    trials = [trial for trial in study["trials"] if trial.get("role", "") in OWN_ROLES]
    if unknown := [axis for axis in axes if any(axis not in _fields(trial) for trial in trials)]:
        raise UserError(f"{folder / 'study.json'} is damaged: axes: {unknown[0]} is no field of all its trials")
    rows = [
        {"trial": trial["id"], **{axis: _fields(trial)[axis] for axis in axes}, "seed": trial["seed"], **reached}
        for trial in trials
        for reached in _reached(trial, RunFolder(folder / "trials" / trial["id"]))
    ]
    numbers = ["train_flops", "decay_flops", "seconds", "val_loss"]
    numbers += sorted({name for row in rows for name in row if str(name).startswith("val_loss_")})
    table = pd.DataFrame(rows, columns=["trial", *axes, "seed", "rung", *numbers, "status"])
    return table.astype(dict.fromkeys(numbers, float))


def curves(folder: str | Path, names: Iterable[str]) -> pd.DataFrame:
    """The evaluations of the trials `names` of the study in `folder`: `trial`, `step` and `val_loss`."""
    rows = [
        {"trial": name, "step": report.get("step"), "val_loss": report.get("val_loss")}
        for name in names
        for report in RunFolder(Path(folder) / "trials" / name).evaluations
    ]
    return pd.DataFrame(rows, columns=["trial", "step", "val_loss"]).dropna()


def export(folder: str | Path, path: str | Path) -> None:
    """Write the `rung_table` of the study in `folder` to `path`, a Parquet file, which `raytrain.replay` reads.

    Raises UserError if it cannot be written, or an axis has values of different types, as in a damaged study.
    """
    table = rung_table(folder)
    try:
        content = table.to_parquet(index=False)
    except (TypeError, ValueError) as error:  # Arrow's
        raise UserError(f"{Path(folder) / 'study.json'} makes no table: {' '.join(map(str, error.args))}") from None
    try:
        with open(path, "wb") as file:  # Arrow opens no name that is not UTF-8
            file.write(content)
    except OSError as error:
        raise UserError(f"table ({path}) cannot be written: {error.strerror or error}") from None


def _fields(trial: Mapping[str, Any]) -> dict[str, Any]:
    """What a planned trial is, its architecture's fields among the others."""
    usual = {name: axis.default for name, axis in AXES.items() if not axis.is_required}
    return usual | flat(trial["config"])


def _reached(trial: Mapping[str, Any], run: RunFolder) -> Iterator[dict[str, Any]]:
    """The rows of one trial, without its point."""
    result, reports = run.result, run.rungs
    status = result.get("status", "running")
    if status == "stopped":
        reports.setdefault(result.get("rung", 0), result)
    elif result:
        is_whole = status == "complete"
        last = len(trial["config"].get("rungs") or ()) if is_whole else max(reports, default=-1) + 1
        reports[last] = result if is_whole else result | {"val_loss": None}
    for rung, report in sorted(reports.items()):
        seconds = [report[name] for name in ("train_seconds", "eval_seconds") if name in report]
        yield {
            "rung": rung,
            "train_flops": report.get("train_flops"),
            "decay_flops": report.get("decay_flops", 0),
            "seconds": sum(seconds) if seconds else None,
            "val_loss": report.get("val_loss"),
            "status": status,
            **{name: loss for name, loss in report.items() if name.startswith("val_loss_")},
        }
