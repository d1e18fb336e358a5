"""The next stage of a study, from what is in its folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import rich.console

from raytrain.analysis.answer import candidates
from raytrain.analysis.confirmation import confirm
from raytrain.analysis.extension import extend
from raytrain.analysis.plateau import mark_plateaus
from raytrain.analysis.ranking import numbers, programs, read_study
from raytrain.analysis.trials import axes_of
from raytrain.engine.cluster import Lanes
from raytrain.engine.job import one_line
from raytrain.rundir.folders import read_study_json
from raytrain.sweep.stages import Stage, due

Decide = Callable[[Mapping[str, Any], pd.DataFrame, Mapping[str, Any]], Stage | None]


def _confirm(study: Mapping[str, Any], table: pd.DataFrame, entry: Mapping[str, Any]) -> Stage | None:
    axes, _ = axes_of(study)
    return confirm(study, table, candidates(dict(study), axes), entry["seeds"])


def _extend(study: Mapping[str, Any], table: pd.DataFrame, entry: Mapping[str, Any]) -> Stage | None:
    return extend(study, table)


# By the name in `grows` of study.json: a pure function of the study, its table of trials and its own entry there.
DECISIONS: dict[str, Decide] = {"extend": _extend, "confirm": _confirm}


def next_stage(folder: Path) -> Stage | None:
    """What the study in `folder`, all of whose trials have ended, is to run next; None if nothing."""
    study = read_study_json(folder)
    entries = due(study)
    if not entries:
        return None
    table = read_study(folder)
    table["val_loss"] = numbers(table, "val_loss")
    table = mark_plateaus(table, programs(table))  # which are no measurement of what they are
    return next((stage for entry in entries if (stage := DECISIONS[entry["stage"]](study, table, entry))), None)


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
