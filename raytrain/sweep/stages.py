"""A study that grows: trials that the results of earlier ones decide. Pure: what to add follows from values alone.

study.json says in `grows` which stages may follow, in order, and in `stages` which did. A stage is decided once all
trials before it have ended; the same results decide the same. Its trials are written into study.json together with the
stage, by one rename, and join the schedule by an event. A driver that dies before the first write decides again; one
that dies between the two finds the stage without its event, and writes that.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raytrain.architecture import AXES, SIZES
from raytrain.sweep.trial import AssignedTrial, PlannedTrial, without_seed
from raytrain.sweep.tuning import suffix


@dataclasses.dataclass(frozen=True)
class Stage:
    """`trials` to add; `reason` is one sentence for people, `facts` what else study.json is to keep of the decision."""

    name: str
    trials: Sequence[AssignedTrial]
    reason: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As study.json has it, without the trials themselves."""
        names = [trial.id for trial in self.trials]
        return {"name": self.name, "trials": names, "reason": self.reason} | dict(self.facts)


def with_stage(study: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """study.json with `stage` and its trials in it."""
    trials = [*study["trials"], *(trial.to_dict() for trial in stage.trials)]
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


def fresh_seeds(trials: Iterable[PlannedTrial], count: int) -> range:
    """`count` seeds above any that the study has used."""
    first = 1 + max(trial.config.seed for trial in trials)
    return range(first, first + count)


def run_again(
    template: AssignedTrial, seed: int, *, stage: str, role: str, tuned: Mapping[str, float] | None = None
) -> AssignedTrial:
    """The variant of `template` with another seed, to the end of its budget without rungs, as a trial of `stage`.

    `tuned` are its levels of the tuned fields, by default those of `template`.
    """
    stem = without_seed(template.id)
    if tuned:
        stem = stem.removesuffix(suffix(template.tuned)) + suffix(tuned)
    name = f"{stem}-s{seed}"
    config = template.config.replace(seed=seed, rungs=(), rung_decay=0.0, **(tuned or {}))
    keeps = template.folder is not None and config.checkpoint_interval is not None
    folder = f"{str(template.folder).rpartition('/')[0]}/{name}" if keeps else None  # of checkpoints, one a trial
    out = dataclasses.replace(template, id=name, config=config, stage=stage, role=role, folder=folder)
    return dataclasses.replace(out, tuned=tuned or template.tuned, like=template.like or template.id)


def changed(template: AssignedTrial, levels: Mapping[str, Any]) -> AssignedTrial:
    """The trial of `template`, a run of the baseline, with other `levels` (any fields of a run).

    It may be a variant that the study has not run.
    """
    arch = template.config.architecture
    is_usual = dataclasses.replace(arch, d_ff=None).ffn_width == arch.ffn_width  # as a program it is spelled out
    config = template.config.change(({"d_ff": None} if is_usual else {}) | dict(levels))
    arch = config.architecture.program()
    own = dict(template.levels) | dict(levels)
    label = " ".join(f"{axis}={level}" for axis, level in own.items() if template.levels.get(axis) != level)
    recipe = "".join(f"-{name}={level}" for name, level in levels.items() if name not in (*AXES, *SIZES))
    name = f"{arch.name}-{arch.hash[:6]}{recipe}-s{config.seed}"
    config = config.replace(architecture=arch)
    return dataclasses.replace(template, id=name, labels=(label,), config=config, levels=own, like=template.id)
