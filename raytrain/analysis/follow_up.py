"""Fresh runs of all combinations of three axes that the residuals suggest to act together, and what they show.

The triple that is named is the most suspect of many. Runs with seeds of their own, chosen before they are seen, test
that one triple alone.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from raytrain.analysis.effects import effects
from raytrain.analysis.noise import SIGNIFICANCE
from raytrain.analysis.trials import OWN_ROLES, axes_of, points
from raytrain.analysis.triples import partial_f
from raytrain.errors import UserError
from raytrain.sweep.factorial import Model, Point, fit_model, live
from raytrain.sweep.stages import Stage, changed, fresh_seeds, run_again
from raytrain.sweep.trial import trials_of

FOLLOW_UP = "follow_up"  # the stage, and the role of its trials
_RUNS = 24  # at least
_SEEDS = 2  # of each combination at least: what two runs of one differ in is noise alone


@dataclasses.dataclass(frozen=True)
class FollowUp:
    """What `runs` fresh runs of all combinations of three axes show: `p` of their acting together."""

    axes: tuple[str, ...]
    runs: int
    p: float

    def __str__(self) -> str:
        first, second, third = self.axes
        names, told = f"{first}, {second} and {third}", f"{self.runs} fresh runs of all combinations of"
        if self.p < SIGNIFICANCE:
            return (
                f"Follow-up: {told} {names} confirm that they act together (p = {self.p:.2g}): their effects and "
                "interactions are averages over unlike cases, so compare whole combinations."
            )
        return f"Follow-up: {told} {names} do not show that they act together (p = {self.p:.2g})."


def follow_up(study: Mapping[str, Any], table: pd.DataFrame, candidates: Sequence[Point] | None) -> Stage:
    """The stage that runs every combination of the suspected triple's levels, all else at the baseline, each with seeds
    of its own.

    `table` is that of `ranking.read_study`. Raises UserError where no triple is suspected, or it cannot be settled.
    """
    axes, baseline = axes_of(study)
    rows = table[table["role"].isin(OWN_ROLES)]
    if (rows["status"] == "stopped").any():
        raise UserError("follow_up needs a study whose trials all run to their end; some were stopped at a rung")
    found = effects(rows, axes, baseline, candidates=candidates)
    if found.triple is None:
        raise UserError("follow_up has nothing to settle: no three axes are suspected to act together")
    by_id = {trial.id: trial for trial in trials_of(study)}
    planned = {_key(point): by_id[name] for point, name in zip(points(rows, axes), rows["trial"], strict=True)}
    base = planned.get(_key(live(baseline)))
    if base is None:
        raise UserError("follow_up changes the baseline's trial, and the study has none")
    cells = _cells(points(rows, axes), found.triple.axes, baseline, candidates)
    count = max(_SEEDS, math.ceil(_RUNS / len(cells)))
    templates = [planned.get(_key(cell)) or changed(base, cell) for cell in cells]
    seeds = fresh_seeds(by_id.values(), count * len(cells))
    trials = [
        run_again(template, seed, stage=FOLLOW_UP, role=FOLLOW_UP)
        for template, seed in zip(templates * count, seeds, strict=True)
    ]
    reason = (
        f"The residuals suggest that {found.triple} act together (p = {found.triple.p:.2g}): {len(trials)} fresh runs, "
        f"{count} of each of their {len(cells)} combinations."
    )
    return Stage(FOLLOW_UP, trials, reason, {"axes": list(found.triple.axes)})


def _cells(
    runs: Sequence[Point], axes: Sequence[str], baseline: Point, candidates: Sequence[Point] | None
) -> list[dict[str, Any]]:
    """The combinations of the levels of `axes` that were run, so far as the space has them."""
    levels = [list(dict.fromkeys(run[axis] for run in runs if axis in run)) for axis in axes]
    combined = (live(dict(baseline) | dict(zip(axes, own, strict=True))) for own in itertools.product(*levels))
    cells = {_key(cell): cell for cell in combined}
    known = None if candidates is None else {_key(live(point)) for point in candidates}
    return [cell for key, cell in cells.items() if known is None or key in known]


def _key(point: Point) -> str:
    return json.dumps(point, sort_keys=True, default=str)


def settled(study: Mapping[str, Any], table: pd.DataFrame) -> list[FollowUp]:
    """What each follow-up of `study` shows, where its runs are complete; `table` is one of `ranking.rank`."""
    out = []
    for stage in study.get("stages", ()):
        if stage["name"] == FOLLOW_UP:
            own = table[table["trial"].isin(stage["trials"]) & (table["status"] == "complete")]
            if (one := _test(own, stage["axes"])) is not None:
                out.append(one)
    return out


def _test(rows: pd.DataFrame, axes: list[str]) -> FollowUp | None:
    """The partial F test of the triple beside its axes and their pairs; None where the runs leave nothing to test."""
    runs = points(rows, axes)
    if not runs:
        return None
    model, fit = fit_model(Model(runs, runs[0]), runs)
    losses = rows["val_loss"].to_numpy(float)
    p = partial_f(runs, axes, fit, losses - losses.mean()) if model.effects else None
    return None if p is None else FollowUp(tuple(axes), len(runs), p)
