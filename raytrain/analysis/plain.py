"""The answer of a table alone, where there is no study's folder: a CSV file with a row a run."""

import functools
import os.path
from pathlib import Path
from typing import Any

import pandas as pd

from raytrain import architecture
from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.analysis.effects import Effects, effects, failure_rates
from raytrain.analysis.enough import shortfall, training_of
from raytrain.analysis.plateau import mark_plateaus, plateau_sentences, variants_of
from raytrain.analysis.tuned import as_effects, tuned_effects
from raytrain.analysis.tuned_text import tuned_sentences
from raytrain.analysis.wording import Told
from raytrain.errors import UserError, unknown_value
from raytrain.sweep.factorial import Point
from raytrain.sweep.factors import level_text

_RATE = "learning_rate"
_NEEDED = ("seed", "val_loss", "train_flops")


def read_table(path: str | Path) -> pd.DataFrame:
    """The runs in the CSV file `path`. Raises UserError if it cannot be read or lacks a column."""
    if not os.path.isfile(path):
        raise UserError(f"table ({path}) is no file")
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=["", "nan", "NaN"])
    except (OSError, ValueError) as error:
        raise UserError(f"table ({path}) cannot be read: {str(error).splitlines()[0]}") from None
    if missing := [name for name in _NEEDED if name not in table]:
        raise UserError(f"table ({path}) lacks the columns {', '.join(missing)}")
    for name, default in (("status", "complete"), ("role", "")):
        table[name] = table[name].astype(object).fillna(default) if name in table else default
    return table


def answer_table(
    table: pd.DataFrame,
    *,
    base: str = "llama",
    scale: str | None = None,
    vocab_size: int = 256,
    unigram_loss: float | None = None,
    command: str = "",
) -> list[str]:
    """The effects of the axes that vary in the runs of `table`, against the preset `base`, in sentences.

    With several learning rates, at each variant's own best one. `unigram_loss` (nats per token) is what a run on the
    plateau ends at; with the `scale` and the `vocab_size` of the models it is known how much they were trained, and
    `command` is what started the runs. Raises UserError where there is nothing to compare.
    """
    if base not in architecture.PRESETS:
        raise unknown_value("base", base, architecture.PRESETS)
    axes = [axis for axis in architecture.AXES if axis in table and table[axis].nunique() > 1]
    if not axes:
        raise UserError("no axis varies in this table")
    baseline = {axis: architecture.PRESETS[base].get(axis, table[axis].iloc[0]) for axis in axes}
    rates = [_RATE] if _RATE in table and table[_RATE].nunique() > 1 else []
    marked = mark_plateaus(table, variants_of(table, [*axes, *rates]), unigram_loss)
    runs = [{str(field): value for field, value in row.items()} for row in marked.to_dict("records")]
    text = functools.partial(level_text, rows=runs)
    estimated = _tuned(marked, axes, baseline) if rates else effects(marked, axes, baseline, text=text)
    training = training_of(_with_training(marked, base, scale, vocab_size) if scale else marked)
    return (shortfall(marked, estimated, training, command) + estimated.told).sentences


def _tuned(table: pd.DataFrame, axes: list[str], baseline: Point) -> Effects:
    tuned = tuned_effects(table, axes, baseline, pd.Series(pd.factorize(variants_of(table, axes))[0]), [_RATE])
    told = Told(warnings=plateau_sentences(table, [*axes, _RATE])) + tuned_sentences(tuned)
    if tuned.noise is None:
        main = tuned.effects[tuned.effects["other_axis"].isna() & tuned.effects["estimate"].notna()]
        for row in main.to_dict("records"):
            bound = {"": "", "unknown": "with neither optimum reached, "}.get(row["bound"], f"{row['bound']} ")
            against = f"{row['estimate']:+.4f} nats against {row['reference']}, with no noise to judge it by"
            told += Told([f"{row['effect']} at own best learning rates: {bound}{against}."])
    return as_effects(tuned, table, failure_rates(table, axes), told)


def _with_training(table: pd.DataFrame, base: str, scale: str, vocab_size: int) -> pd.DataFrame:
    """`table` with the tokens and parameters that its runs must have had."""
    if scale not in architecture.SCALES:
        raise unknown_value("scale", scale, architecture.SCALES)
    size: dict[str, Any] = architecture.SCALES[scale] | {"vocab_size": vocab_size}
    axes = [axis for axis in architecture.AXES if axis in table]
    rows = []
    for point in table[axes].to_dict("records"):
        arch = architecture.preset(base, **size | {str(axis): level for axis, level in point.items()})
        rows.append((parameter_count(arch)["total"], flops_per_token(arch).total))
    out = table.assign(parameters=[row[0] for row in rows], flops_per_token=[row[1] for row in rows])
    return out.assign(tokens=out["train_flops"] / out["flops_per_token"])
