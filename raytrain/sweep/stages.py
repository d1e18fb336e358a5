"""A study that grows: trials that the results of earlier ones decide. Pure: what to add follows from values alone.

study.json says in `grows` which stages may follow, in order, and in `stages` which did. A stage is decided once all
trials before it have ended; the same results decide the same. Its trials are written into study.json together with the
stage, by one rename, and join the schedule by an event. A driver that dies before the first write decides again; one
that dies between the two finds the stage without its event, and writes that.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raytrain import architecture
from raytrain.architecture import AXES, SIZES
from raytrain.sweep.trial import without_seed
from raytrain.sweep.tuning import suffix

Trial = Mapping[str, Any]  # as study.json has it


@dataclasses.dataclass(frozen=True)
class Stage:
    """`trials` to add; `reason` is one sentence for people, `facts` what else study.json is to keep of the decision."""

    name: str
    trials: Sequence[Trial]
    reason: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As study.json has it, without the trials themselves."""
        names = [trial["id"] for trial in self.trials]
        return {"name": self.name, "trials": names, "reason": self.reason} | dict(self.facts)


def with_stage(study: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """study.json with `stage` and its trials in it."""
    trials = [*study["trials"], *(dict(trial) for trial in stage.trials)]
    counts = dict(study["counts"]) | {"trials": len(trials)}
    return dict(study) | {"trials": trials, "counts": counts, "stages": [*study.get("stages", ()), stage.to_dict()]}


def due(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of `grows` that may still add a stage: those after the last that did, which may itself add `most`."""
    done = [stage["name"] for stage in study.get("stages", ())]
    out: list[dict[str, Any]] = []
    for entry in study.get("grows", ()):
        count = done.count(entry["stage"])
        if count:
            out.clear()
        if count < entry.get("most", 1):
            out.append(entry)
    return out


def growing(study: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """study.json that may grow by `stage` once more, after those that it has."""
    grows = list(study.get("grows", ()))
    times = sum(done["name"] == stage for done in study.get("stages", ()))
    others = [entry for entry in grows if entry["stage"] != stage]
    return dict(study) | {"grows": [*others, {"stage": stage, "most": times + 1}]}


def fresh_seeds(trials: Iterable[Trial], count: int) -> range:
    """`count` seeds above any that the study has used."""
    first = 1 + max(trial["seed"] for trial in trials)
    return range(first, first + count)


def run_again(
    template: Trial, seed: int, *, stage: str, role: str, tuned: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The variant of `template` with another seed, to the end of its budget without rungs, as a trial of `stage`.

    `tuned` are its levels of the tuned fields, by default those of `template`.
    """
    stem = without_seed(template["id"])
    config = dict(template["config"]) | {"seed": seed, "rungs": [], "rung_decay": 0.0}
    if tuned:
        stem = stem.removesuffix(suffix(template.get("tuned", {}))) + suffix(tuned)
        config |= tuned
    name = f"{stem}-s{seed}"
    out = dict(template) | {"id": name, "seed": seed, "config": config, "stage": stage, "role": role}
    if tuned:
        out["tuned"] = dict(tuned)
    if "folder" in template:  # of checkpoints, one a trial
        out["folder"] = f"{template['folder'].rpartition('/')[0]}/{name}"
    if config["checkpoint_interval"] is None:
        out.pop("folder", None)
    return out | {"like": template.get("like", template["id"])}


def changed(template: Trial, levels: Mapping[str, Any]) -> dict[str, Any]:
    """The trial of `template`, a run of the baseline, with other `levels` (any fields of a run).

    It may be a variant that the study has not run.
    """
    config = dict(template["config"])
    arch = architecture.from_dict(config["architecture"])
    is_usual = dataclasses.replace(arch, d_ff=None).ffn_width == arch.ffn_width  # as a program it is spelled out
    usual = {"d_ff": None} if is_usual else {}
    shape = {name: level for name, level in levels.items() if name in (*AXES, *SIZES)}
    arch = architecture.from_dict(arch.to_dict() | usual | shape).program()
    config |= {"architecture": arch.to_dict()} | {name: v for name, v in levels.items() if name not in shape}
    before = template.get("levels", {})
    own = dict(before) | dict(levels)
    label = " ".join(f"{axis}={level}" for axis, level in own.items() if before.get(axis) != level)
    recipe = "".join(f"-{name}={level}" for name, level in levels.items() if name not in shape)
    seed = template["seed"]
    out = {"id": f"{arch.name}-{arch.hash[:6]}{recipe}-s{seed}", "label": label, "labels": [label], "hash": arch.hash}
    return dict(template) | out | {"levels": own, "config": config, "like": template["id"]}
