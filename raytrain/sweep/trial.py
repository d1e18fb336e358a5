"""One planned run of a sweep."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain.config.run import TrainConfig


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

    def to_dict(self) -> dict[str, Any]:
        """As study.json holds it."""
        config = self.config
        trial = {
            "id": self.id,
            "label": self.label,
            "labels": list(self.labels),
            "hash": config.architecture.hash,
            "seed": config.seed,
            "levels": dict(self.levels),
            "config": config.to_dict(),
        }
        return trial | {key: value for key in ("role", "workers", "tuned") if (value := getattr(self, key))}


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
