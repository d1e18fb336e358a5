"""The report's section on learning rates: effects at own best ones beside those at a shared one, and where they are."""

import math
from typing import Any

import pandas as pd

from raytrain.analysis.answer import Answer
from raytrain.analysis.curve import Range
from raytrain.analysis.tuned import Optimum, Tuned
from raytrain.analysis.tuned_text import range_text
from raytrain.report.document import Block, Section, Table, Text

_DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_EDGES = {
    "highest": "best at the highest rate tried: the range is too low",
    "lowest": "best at the lowest rate tried: the range is too high",
    "unstable above": "does not train at the next rate above",
    "unstable below": "does not train at the next rate below",
    "waiting above": "the next rate above has not been run",
    "waiting below": "the next rate below has not been run",
    "inside": "",
}


def rates_section(answer: Answer) -> list[Section]:
    """The section, where the study tunes the learning rate and has effects."""
    if answer.tuned is None:
        return []
    tuning = answer.study["plan"]["tuning"]
    levels = "; ".join(f"{field} {', '.join(f'{level:g}' for level in own)}" for field, own in tuning["levels"].items())
    how = "The design spread its runs over" if tuning["spreads"] else "Every variant ran at"
    blocks: list[Block] = [
        Text(
            f"{how} {levels}. An effect at own best learning rates is the difference of two least losses, each of a "
            f"curve over the rates; beside it stands the same effect at the shared rate {answer.tuned.rate:g} alone. A "
            "bound stands where a best rate was not reached."
        ),
        _effects(answer.tuned),
        Text("The best learning rate of each level, averaged over the other axes, and what half and twice of it lose:"),
        _optima([(f"{axis}={level}", optimum) for (axis, level), optimum in answer.tuned.levels.items()], "level"),
    ]
    if answer.tuned.variants:
        blocks += [Text("The same of each variant:"), _optima([*answer.tuned.variants.items()], "variant")]
    return [Section("rates", "Learning rates", blocks)]


def _effects(tuned: Tuned) -> Table:
    shared = {row["effect"]: row for row in tuned.shared.to_dict("records")}
    rows = []
    for row in tuned.effects.to_dict("records"):
        against = row["reference"] if pd.isna(row["other_axis"]) else f"{row['reference']}, {row['other_reference']}"
        rows.append([row["effect"], str(against), *_estimate(row), _estimate(shared[row["effect"]])[0]])
    columns = ["effect", "against", "nats at own best rates (95%)", "bound", f"nats at {tuned.rate:g} alone (95%)"]
    return Table(columns, rows, texts=(0, 1, 3))


def _estimate(row: dict[Any, Any]) -> tuple[str, str]:
    if math.isnan(row["estimate"]):
        return _DASH, _DASH
    text = _signed(row["estimate"])
    if not math.isnan(row["low"]):
        text += f" ({_signed(row['low'])} to {_signed(row['high'])})"
    return text, row["bound"] or _DASH


def _optima(named: list[tuple[str, Optimum]], what: str) -> Table:
    rows = [
        [
            name,
            f"{optimum.rate:.3g}",
            range_text(optimum.interval) if optimum.interval != Range(None, None) else _DASH,
            _lost(optimum.half),
            _lost(optimum.twice),
            _EDGES[optimum.edge] or _DASH,
        ]
        for name, optimum in named
    ]
    return Table([what, "best rate", "95% interval", "half loses", "twice loses", "note"], rows, texts=(0, 5))


def _lost(lost: tuple[float, float] | None) -> str:
    return _DASH if lost is None else _signed(lost[0])


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", _MINUS)
