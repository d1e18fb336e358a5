"""The answer of a tuned study, in sentences."""

import math
from typing import Any

import pandas as pd

from raytrain.analysis.curve import Range
from raytrain.analysis.noise import SIGNIFICANCE
from raytrain.analysis.tuned import Tuned
from raytrain.analysis.wording import Told

_LISTED = 5  # of the levels at an edge
_BOUNDS = {
    "at most": "at most, as its own best learning rate was not reached",
    "at least": "at least, as the best learning rate of what it is compared with was not reached",
    "unknown": "with best learning rates on both sides that were not reached, so the true difference may be either way",
}


def tuned_sentences(tuned: Tuned) -> Told:
    """The effects at own best learning rates beside those at a shared one, and where the best rates are."""
    rows = tuned.effects
    unknown = [
        "The runs leave no noise to judge effects at own best learning rates by, so nothing here is called better "
        "or worse (--seeds 2 or more)."
    ]
    return Told(
        _claims(tuned),
        [*(unknown if rows["standard_error"].isna().all() else []), *_edges(tuned)],
        _sensitivity(tuned),
    )


def _claims(tuned: Tuned) -> list[str]:
    shared = {row["effect"]: row for row in tuned.shared.to_dict("records")}
    effects = tuned.effects.sort_values("estimate", key=lambda column: -column.abs()).to_dict("records")
    clear = [row for row in effects if row["is_clear"]]
    out = [
        f"At own best learning rates {row['effect']} {_verdict(row)} against {_reference(row)}"
        f"{_beside(row, shared[row['effect']], tuned.rate)}."
        for row in clear
    ]
    for row in effects:
        alike = shared[row["effect"]]
        if alike["p_holm"] < SIGNIFICANCE and not row["is_clear"]:
            out.append(
                f"{row['effect']} {_verb(alike['estimate'])} {abs(alike['estimate']):.4f} nats against "
                f"{_reference(row)} at learning rate {tuned.rate:g} alone; at own best ones it {_unclear(row)}."
            )
    widths = ((tuned.effects["high"] - tuned.effects["low"]) / 2).dropna()
    if not clear and len(widths):
        ends = " to ".join(dict.fromkeys(f"{end:.4f}" for end in (widths.min(), widths.max())))
        out.append(f"No difference at own best learning rates stands out; effects are known to +-{ends} nats.")
    return out


def _reference(row: dict[Any, Any]) -> str:
    return str(row["reference"]) if pd.isna(row["other_axis"]) else f"{row['reference']}, {row['other_reference']}"


def _verb(estimate: float) -> str:
    return "costs" if estimate > 0 else "saves"


def _verdict(row: dict[Any, Any]) -> str:
    low, high = (row["low"], row["high"]) if row["estimate"] > 0 else (-row["high"], -row["low"])
    bound = " or more" * bool(row["bound"])  # what may be claimed is a bound away from zero
    return f"{_verb(row['estimate'])} {abs(row['estimate']):.4f} nats{bound} (95% {low:.4f} to {high:.4f})"


def _beside(row: dict[Any, Any], shared: dict[Any, Any], rate: float) -> str:
    """What the same effect is at the shared rate."""
    value = shared["estimate"]
    if math.isnan(value):
        return f"; at the shared {rate:g} some of what it compares does not train"
    verdict = f"{_verb(value)} {abs(value):.4f}"
    if not math.isnan(shared["low"]) and shared["low"] <= 0 <= shared["high"]:
        verdict = f"shows no clear difference ({value:+.4f})"
    is_reversed = (value > 0) != (row["estimate"] > 0) and "no clear" not in verdict
    return f"; at the shared {rate:g} it {verdict}{', with the other sign' * is_reversed}"


def _unclear(own: dict[Any, Any]) -> str:
    if math.isnan(own["estimate"]):
        return "cannot be estimated"
    ends = "" if math.isnan(own["low"]) else f", 95% {own['low']:+.4f} to {own['high']:+.4f}"
    bound = f", {_BOUNDS[own['bound']]}" if own["bound"] else ""
    if not bound and (own["low"] > 0 or own["high"] < 0):
        bound = ", which alone excludes 0, but not after adjustment for all effects"
    return f"shows no clear difference ({own['estimate']:+.4f}{ends}{bound})"


_BOUND = "and its effect is a bound"
_EDGES = {
    "highest": f"is best at the highest learning rate tried ({{rate}}): the range is too low, {_BOUND}",
    "lowest": f"is best at the lowest learning rate tried ({{rate}}): the range is too high, {_BOUND}",
    "unstable above": f"is best at {{rate}} and untrained at the next above: the optimum may lie between, {_BOUND}",
    "unstable below": f"is best at {{rate}} and untrained at the next below: the optimum may lie between, {_BOUND}",
}


def _edges(tuned: Tuned) -> list[str]:
    at_edge = {item: optimum for item, optimum in tuned.levels.items() if optimum.edge in _EDGES}
    out = [
        f"{axis}={level} {_EDGES[optimum.edge].format(rate=f'{optimum.rate:.3g}')}."
        for (axis, level), optimum in list(at_edge.items())[:_LISTED]
    ]
    if len(at_edge) > _LISTED:
        out.append(f"So are {len(at_edge) - _LISTED} other levels: see the table of best learning rates.")
    if any(optimum.edge in ("highest", "lowest") for optimum in at_edge.values()):
        out.append("--tune_extend adds learning rates where the best is the last one tried.")
    return out


def _sensitivity(tuned: Tuned) -> list[str]:
    parts = []
    for name, side in (("twice", "twice"), ("half", "half")):
        lost = [getattr(optimum, side)[0] for optimum in tuned.levels.values() if getattr(optimum, side) is not None]
        if lost:
            ends = " to ".join(dict.fromkeys(f"{end:.4f}" for end in (min(lost), max(lost))))
            parts.append(f"{name} the best learning rate loses {ends} nats")
    return [f"Sensitivity, over the levels of all axes: {' and '.join(parts)}."] if parts else []


def range_text(ends: Range) -> str:
    """An interval of learning rates, such as `0.0017 to 0.0026` or `0.0017 or higher`."""
    if ends.low is None and ends.high is None:
        return "any that was tried"
    if ends.low is None:
        return f"{ends.high:.3g} or lower"
    return f"{ends.low:.3g} or higher" if ends.high is None else f"{ends.low:.3g} to {ends.high:.3g}"
