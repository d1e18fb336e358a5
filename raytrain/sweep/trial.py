"""One run of a sweep: as it is planned, and as it is assigned to a device and a place for its checkpoints."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain.config.run import TrainConfig
from raytrain.uris import joined, stored


def without_seed(trial_id: str) -> str:
    """What the ids of one variant's trials have in common, less the seed at their end."""
    return re.sub(r"-s[0-9]+$", "", trial_id)


@dataclasses.dataclass(frozen=True)
class PlannedTrial:
    """One run of a sweep. `id` is its folder's name; `labels` are what the space calls it.

    `levels` are those of the space's axes that its variant depends on. `role` is "frontier" for a run of the base at a
    budget of its own, else empty. `workers` are the ranks that the space's placement gives it, if it does. `tuned` are
    its levels of the tuned fields.
    """

    id: str
    labels: tuple[str, ...]
    config: TrainConfig
    levels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    role: str = ""
    workers: int | None = None
    tuned: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.labels[0]

    @property
    def hash(self) -> str:
        """Of its variant."""
        return self.config.architecture.hash

    def to_dict(self) -> dict[str, Any]:
        """As study.json holds it."""
        config = self.config
        trial = {
            "id": self.id,
            "label": self.label,
            "labels": list(self.labels),
            "hash": self.hash,
            "seed": config.seed,
            "levels": dict(self.levels),
            "config": config.to_dict(),
        }
        return trial | {key: value for key in ("role", "workers", "tuned") if (value := getattr(self, key))}


@dataclasses.dataclass(frozen=True)
class AssignedTrial(PlannedTrial):
    """A trial of a study: its `config` has the device that it runs on.

    `folder` is for its checkpoints, if it keeps any: a path, or a URI without secrets. `stage` names the later stage
    that added it, after the trial that it is `like`; both are empty for one of the plan.
    """

    folder: str | None = None
    stage: str = ""
    like: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As study.json holds it."""
        return super().to_dict() | {key: value for key in ("folder", "stage", "like") if (value := getattr(self, key))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AssignedTrial":
        """As `to_dict` gave it, in this version or an earlier one. Raises UserError as `TrainConfig.from_dict` does."""
        names = {field.name for field in dataclasses.fields(cls)}
        own = {name: value for name, value in values.items() if name in names}
        return cls(**own | {"labels": tuple(values["labels"]), "config": TrainConfig.from_dict(values["config"])})


def assign(trial: PlannedTrial, *, on_gpus: bool, storage: str) -> AssignedTrial:
    """`trial` with its device, and its folder in `storage`, a path or a URI, if it is to keep checkpoints or to pause.

    Without GPUs the device is the CPU: else a rank without a GPU of its own would take the node's first.
    """
    config = trial.config if on_gpus else trial.config.replace(device="cpu")
    keeps = config.checkpoint_interval is not None or bool(config.rungs)
    folder = stored(joined(storage, trial.id)) if keeps else None
    return AssignedTrial(**vars(trial) | {"config": config, "folder": folder})


def trials_of(study: Mapping[str, Any]) -> list[AssignedTrial]:
    """The trials of `study` (study.json), those of later stages among them."""
    return [AssignedTrial.from_dict(trial) for trial in study["trials"]]


def own_seeds(trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    """`trials` in their order, with seeds of which no two trials share one.

    They are consecutive, from the least of those planned on, those of a variant one after another; the first variant of
    `trials` begins.
    """
    by_variant: dict[str, list[int]] = {}
    for place, trial in enumerate(trials):
        by_variant.setdefault(without_seed(trial.id), []).append(place)
    first = min(trial.config.seed for trial in trials)
    out = list(trials)
    for seed, place in enumerate((place for places in by_variant.values() for place in places), start=first):
        trial = trials[place]
        name = f"{without_seed(trial.id)}-s{seed}"
        out[place] = dataclasses.replace(trial, id=name, config=trial.config.replace(seed=seed))
    return out
