"""What MLflow's UI shows of a study: saved views of the table of runs, their links, and the parent's figures. Pure.

The menu "Views" offers what is a tag of the experiment, in the form in which the UI itself saves one.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain.analysis.answer import Answer
from raytrain.analysis.trials import axes_of
from raytrain.architecture import AXES
from raytrain.report.document import markdown
from raytrain.sweep.ladder import by_scale
from raytrain.sweep.space import TUNABLE

RANKING = "ranking"
NOTE_LENGTH = 5000  # characters; a tag holds 8,000
_TAG = "mlflow.sharedViewState."
_LINK = "/#/experiments/{}/runs?viewStateShareKey={}&workflowType=machine_learning"
_RESULTS = ["val_loss", "val_bpb", "compute_gain", "compute_gain_low", "compute_gain_high", "mfu", "loss_per_flop"]
_RESULTS += ["hardware_rank"]
_CURVES = ("val_loss", "loss")
_COLUMN_WIDTH = 100  # pixels


def key(study: Mapping[str, Any]) -> str:
    """What the link calls the study's view. Where the experiment is the study's alone, its one view."""
    return f"{RANKING}-{study['name']}" if "experiment" in study else RANKING


def views(study: Mapping[str, Any], created: float) -> dict[str, str]:
    """The tags of the experiment that are views: of the study's trials, and of all in the experiment. `created` is when
    the study began, in Unix seconds."""
    found = {key(study): f"tags.`raytrain.study` = '{study['name']}'"} | {RANKING: ""}
    if key(study) == RANKING:
        found = {RANKING: ""}
    return {_TAG + name: _view(study, name, only, int(created * 1000)) for name, only in found.items()}


def _view(study: Mapping[str, Any], name: str, only: str, created: int) -> str:
    columns = _columns(study, several=not only and "experiment" in study)
    state: dict[str, Any] = {"orderByKey": "metrics.`rank`", "orderByAsc": True, "searchFilter": only}
    state |= {"selectedColumns": columns, "columnOrder": columns}
    state |= {"columnWidths": dict.fromkeys(columns, _COLUMN_WIDTH)} | _charts()
    return json.dumps({"name": name, "createdAt": created, "updatedAt": created, "state": json.dumps(state)})


def _charts() -> dict[str, Any]:
    """The page of charts, with the curves of the losses before all others: MLflow adds one for each other metric."""
    sections = {"curves": "Loss curves", "model": "Model metrics", "system": "System metrics"}  # two are its own
    flags = {"display": True, "isReordered": False, "deleted": False, "isGenerated": True}
    line: dict[str, Any] = {"type": "LINE", "metricSectionId": "curves", "deleted": False, "isGenerated": True}
    line |= {"runsCountToCompare": 10, "xAxisKey": "step", "selectedXAxisMetricKey": "", "yAxisKey": "metric"}
    line |= {"xAxisScaleType": "linear", "scaleType": "linear", "lineSmoothness": 0, "range": {}}
    line |= {"yAxisExpressions": [], "ignoreOutliers": False}
    line |= {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    curves = [{"uuid": name, "metricKey": name, "selectedMetricKeys": [name], "displayName": name} for name in _CURVES]
    return {
        "compareRunSections": [{"uuid": uuid, "name": name} | flags for uuid, name in sections.items()],
        "compareRunCharts": [line | curve for curve in curves],
        "isAccordionReordered": True,  # else the sections are in the order of the alphabet
    }


def _columns(study: Mapping[str, Any], *, several: bool) -> list[str]:
    """The rank, then what varies, then results; what is alike in all trials comes last."""
    varied = list(dict.fromkeys(axis for own in by_scale(dict(study)) for axis in axes_of(own)[0]))
    configs = [trial["config"] for trial in study["trials"]]
    varied += [name for name in ("scale", *TUNABLE) if len({config.get(name) for config in configs}) > 1]
    rest = [
        axis for axis in AXES if (AXES[axis].is_required or axis in (study.get("axes") or ())) and axis not in varied
    ]
    columns = ["metrics.`rank`", *(["tags.`raytrain.study`"] if several else [])]
    columns += [*(f"params.`{axis}`" for axis in dict.fromkeys(varied)), "tags.`seed`"]
    return [*columns, *(f"metrics.`{name}`" for name in _RESULTS), *(f"params.`{axis}`" for axis in rest)]


def link(server: str, experiment: str, name: str) -> str:
    """Where a browser shows the view `name`."""
    return f"{server}{_LINK.format(experiment, name)}"


def description(sentences: Sequence[str]) -> str:
    """What the UI shows as the description of a run: Markdown, as long as a tag may be."""
    kept: list[str] = []
    for sentence in map(markdown, sentences):
        if len("\n\n".join([*kept, sentence])) > NOTE_LENGTH:
            return "\n\n".join([*kept, "The rest is in the report."])
        kept.append(sentence)
    return "\n\n".join(kept)


def figures(final: Answer) -> dict[str, float]:
    """The effects and the noise of a study that is over, as metrics of its parent.

    effect/AXIS.LEVEL, with _low and _high (95%), in nats per token against the baseline's level: of a ladder with the
    scale before, effect/SCALE.AXIS.LEVEL. noise_sd: of val_loss between seeds.
    """
    found: dict[str, float] = {}
    for own in final.scales or (final,):
        scale = f"{own.study['scale']}." if final.scales else ""
        if own.noise is not None:
            found[f"noise_sd/{own.study['scale']}" if final.scales else "noise_sd"] = own.noise.sd
        if own.effects is None:
            continue
        main = own.effects.table[own.effects.table["other_axis"].isna()]
        for row in main.to_dict("records"):
            name = re.sub(r"[^\w.-]+", "_", f"{scale}{row['axis']}.{row['level']}")
            ends = {"": row["estimate"], "_low": row["low"], "_high": row["high"]}
            found |= {f"effect/{name}{end}": float(value) for end, value in ends.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}
