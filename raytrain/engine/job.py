"""What a driver and its lanes have in common. Without torch, which takes seconds to import and no driver needs."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from raytrain.errors import UserError
from raytrain.plugins.loader import sources
from raytrain.sweep.schedule import Segment
from raytrain.sweep.trial import AssignedTrial

Report = dict[str, Any]
OWNER_CPUS = 0.01  # what the owner of a lane of many ranks takes of their CPUs: nothing, but Ray wants a number
HANG_TIMEOUT = 900.0  # the first step of a large model compiles for minutes, and none takes so long

# What is shown of a trial under which name, from the newest report that has it. Tune gets it too.
_METRICS = {
    "step": "step",
    "tokens": "tokens",
    "train_flops": "train_flops",
    "loss": "train_loss",
    "train_loss": "train_loss",
    "val_loss": "val_loss",
    "mfu": "mfu",
    "tokens_per_second": "tokens_per_second",
    "memory_peak_gb": "memory_gb",
    "memory_resident_gb": "memory_gb",
    "status": "outcome",
}


@dataclasses.dataclass(frozen=True)
class LaneShape:
    """What one lane takes: `workers` ranks, each with `gpus` GPUs (a fraction shares one) and `cpus` CPU threads."""

    workers: int = 1
    gpus: float = 0
    cpus: int = 1

    def __str__(self) -> str:
        ranks = "one rank" if self.workers == 1 else f"{self.workers} ranks, each"
        gpus = f"{self.gpus:g} GPU{'s' * (self.gpus > 1)} and " if self.gpus else ""
        return f"{ranks} with {gpus}{self.cpus} CPU{'s' * (self.cpus > 1)}"


@dataclasses.dataclass(frozen=True)
class Job:
    """One segment of a trial for a lane: the run's config as plain values, the folder for its checkpoints, or a URI,
    the number of the rung at which it is to pause, if it is, the source of each plugin that it uses, by name, and where
    its final weights go, if they are to be kept: a folder or a URI too."""

    config: dict[str, Any]
    folder: str | None = None
    rung: int | None = None
    plugins: dict[str, str] = dataclasses.field(default_factory=dict)
    weights: str | None = None

    @classmethod
    def of(cls, trial: AssignedTrial, segment: Segment, weights: str | None = None) -> "Job":
        """`segment` of `trial`. Raises UserError for levels of plugins that no other process can have."""
        config = trial.config if segment.micro_batch is None else trial.config.replace(micro_batch=segment.micro_batch)
        stored = config.to_dict()
        return cls(stored, trial.folder, segment.rung, sources(stored), weights)


def one_line(error: BaseException) -> str:
    """The type and the first line of an error's text; of a user's mistake, the text alone."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def newest(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of `reports`, oldest first, the newest value of each metric that is shown."""
    return {_METRICS[name]: value for report in reports for name, value in report.items() if name in _METRICS}
