"""The next stage of a study, from what is in its folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import rich.console

from raytrain.analysis.answer import candidates
from raytrain.analysis.confirmation import confirm
from raytrain.analysis.extension import extend
from raytrain.analysis.follow_up import FOLLOW_UP, follow_up
from raytrain.analysis.plateau import mark_plateaus
from raytrain.analysis.ranking import UNFINISHED, numbers, programs, read_study
from raytrain.analysis.trials import axes_of
from raytrain.engine.cluster import Lanes
from raytrain.engine.job import one_line
from raytrain.errors import UserError
from raytrain.rundir.folders import read_study_json
from raytrain.sweep.stages import Stage, due, growing

Decide = Callable[[Mapping[str, Any], pd.DataFrame, Mapping[str, Any]], Stage | None]


def _confirm(study: Mapping[str, Any], table: pd.DataFrame, entry: Mapping[str, Any]) -> Stage | None:
    axes, _ = axes_of(study)
    return confirm(study, table, candidates(dict(study), axes), entry["seeds"])


def _extend(study: Mapping[str, Any], table: pd.DataFrame, entry: Mapping[str, Any]) -> Stage | None:
    return extend(study, table)


def _follow_up(study: Mapping[str, Any], table: pd.DataFrame, entry: Mapping[str, Any]) -> Stage:
    axes, _ = axes_of(study)
    return follow_up(study, table, candidates(dict(study), axes))


# By the name in `grows` of study.json: a pure function of the study, its table of trials and its own entry there.
DECISIONS: dict[str, Decide] = {"extend": _extend, "confirm": _confirm, FOLLOW_UP: _follow_up}


def next_stage(folder: Path) -> Stage | None:
    """What the study in `folder`, all of whose trials have ended, is to run next; None if nothing."""
    study = read_study_json(folder)
    entries = due(study)
    if not entries:
        return None
    table = _table(folder)
    return next((stage for entry in entries if (stage := DECISIONS[entry["stage"]](study, table, entry))), None)


def _table(folder: Path) -> pd.DataFrame:
    table = read_study(folder)
    table["val_loss"] = numbers(table, "val_loss")
    return mark_plateaus(table, programs(table))  # which are no measurement of what they are


def next_follow_up(folder: Path) -> Stage:
    """What would settle the triple that the study in `folder` suspects. Raises UserError if it suspects none."""
    study = read_study_json(folder, "plan")
    if "ladder" in study["plan"] or study["plan"].get("tuning"):
        raise UserError("follow_up is for a study of one scale and one recipe: the triples of others are not tested")
    table = _table(folder)
    if unfinished := int(table["status"].isin(UNFINISHED).sum()):
        raise UserError(f"follow_up needs a study that is over; {unfinished} of its trials have not ended (--resume)")
    return _follow_up(study, table, {})


def with_follow_up(folder: Path, study: Mapping[str, Any]) -> dict[str, Any]:
    """`study`, that in `folder`, to grow by a follow-up, and to be written. Raises UserError as `next_follow_up`."""
    return growing(study, next_follow_up(folder).name) | {"interrupted": True}


def plan_follow_up(folder: Path) -> str:
    """What a follow-up of the study in `folder` would run, and its cost. Raises UserError as `next_follow_up`."""
    stage, study = next_follow_up(folder), read_study_json(folder)
    labels = "; ".join(dict.fromkeys(trial.label for trial in stage.trials))
    flops = len(stage.trials) * study["budget_flops"]
    return f"follow-up   {stage.reason}\nvariants    {labels}\nbudget      {flops:.4g} model FLOPs in all"


def grow(folder: Path, lanes: Lanes, console: rich.console.Console) -> Stage | None:
    """The study's next stage, with lanes for it. One that cannot be decided is left out: what was found stays."""
    try:
        stage = next_stage(folder)
    except Exception as error:
        console.print(f"stage       was not decided: {one_line(error)}", markup=False)
        return None
    if stage is not None:
        lanes.take_in(stage.trials)
        console.print(f"{stage.name:<11} {stage.reason}", markup=False)
    return stage
