"""The rows that matter of a ranking as a grid of the axes, with a mark where a variant differs from the baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from raytrain.analysis.answer import Answer
from raytrain.config.run import flat
from raytrain.report.document import Table
from raytrain.sweep.factorial import live
from raytrain.sweep.factors import level_text

_ROWS = 10
_DIFFERS, _SAME, _DEAD = "\N{BLACK CIRCLE}", "\N{MIDDLE DOT}", "\N{EN DASH}"


def chosen(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The ten variants that matter, of ranked ones in order: the best, the baseline and the last."""
    kept = [place for place, entry in enumerate(entries) if entry["is_baseline"] or place == len(entries) - 1]
    others = [place for place in range(len(entries)) if place not in kept]
    return [entries[place] for place in sorted([*kept, *others[: max(0, _ROWS - len(kept))]])]


def grid(answer: Answer, entries: Sequence[Mapping[str, Any]], losses: Sequence[str]) -> Table:
    """A row for each of `entries` (of `ranking.by_variant`), with its mean loss as the text in `losses`."""
    runs = [flat(trial["config"]) for trial in answer.study["trials"]]
    base = live(answer.baseline)
    rows = []
    for entry, loss in zip(entries, losses, strict=True):
        own = live({axis: entry.get(axis) for axis in answer.axes})
        levels = [_cell(axis, own, base, runs) for axis in answer.axes]
        name = entry["short_name"] + " (baseline)" * bool(entry["is_baseline"])
        rows.append([f"{entry['rank']:.0f}", loss, *levels, name])
    heads = [f"{axis}, {level_text(axis, base[axis], runs) if axis in base else _DEAD}" for axis in answer.axes]
    marked = frozenset(number for number, entry in enumerate(entries) if entry["is_baseline"])
    words = tuple(range(2, 3 + len(heads)))
    return Table(["rank", "val_loss", *heads, "variant"], rows, words, kept=marked)


def _cell(axis: str, own: Mapping[str, Any], base: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    if axis not in own or pd.isna(own[axis]):
        return _DEAD
    return _SAME if own[axis] == base.get(axis) else f"{_DIFFERS} {level_text(axis, own[axis], runs)}"
