"""What a sweep will do, before anything starts: its trials, their FLOPs, a guess at the time. No torch, no ray."""

import collections
import dataclasses
import hashlib
import math
import os
import re
import shutil
import subprocess
from typing import Any

from raytrain.architecture import PRESETS
from raytrain.design import Design, choose
from raytrain.errors import UserError
from raytrain.flops import flops_per_token
from raytrain.hardware import peak_flops
from raytrain.space import Candidate, Expansion, Space
from raytrain.training.config import TrainConfig

_ASSUMED_MFU = 0.4  # on a GPU whose peak is known
_ASSUMED_GPU_FLOPS = 50e12  # FLOP/s of one GPU whose peak is not
_ASSUMED_CORE_FLOPS = 50e9  # FLOP/s of one CPU core; the tiny scale in fp32 was measured at 60 to 70


@dataclasses.dataclass(frozen=True)
class PlannedTrial:
    """One run of a sweep. `id` is its folder's name; `labels` are what the space calls it."""

    id: str
    labels: tuple[str, ...]
    config: TrainConfig

    @property
    def label(self) -> str:
        return self.labels[0]

    def to_dict(self) -> dict[str, Any]:
        """As study.json holds it."""
        config = self.config
        return {
            "id": self.id,
            "label": self.label,
            "labels": list(self.labels),
            "hash": config.architecture.hash,
            "seed": config.seed,
            "config": config.to_dict(),
        }


@dataclasses.dataclass(frozen=True)
class Spread:
    """Training FLOPs per token over all functions of a space: the least and the most, and whose they are."""

    least: int
    most: int
    least_label: str
    most_label: str

    @property
    def ratio(self) -> float:
        return self.most / self.least

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.least:,}, the same for all functions"
        return f"{self.least:,} ({self.least_label}) to {self.most:,} ({self.most_label}): x{self.ratio:.3f}"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of training, by what there is to train on, and what the guess rests on."""

    seconds: float
    basis: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep, complete: `trials` in the order to run them, each to `budget_flops`."""

    space: str
    base: str
    scale: str
    points: int
    programs: int
    functions: int
    budget_flops: int
    trials: tuple[PlannedTrial, ...]
    spread: Spread
    estimate: Estimate
    design: Design | None = None

    @property
    def counts(self) -> dict[str, int]:
        return {
            "points": self.points,
            "programs": self.programs,
            "functions": self.functions,
            "trials": len(self.trials),
        }

    @property
    def total_flops(self) -> int:
        """Model FLOPs of all trials."""
        return sum(trial.config.train_flops for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        spread = dataclasses.asdict(self.spread) | {"ratio": self.spread.ratio}
        names = {"space": self.space, "base": self.base, "scale": self.scale}
        flops = {"budget_flops": self.budget_flops, "total_flops": self.total_flops, "flops_per_token": spread}
        estimate = dataclasses.asdict(self.estimate)
        plan = names | self.counts | flops | {"estimate": estimate, "trial_ids": [trial.id for trial in self.trials]}
        if self.design is not None:
            half_widths = {power.effect: power.half_width for power in self.design.power}
            design: dict[str, Any] = {"name": self.design.name, "d_efficiency": self.design.d_efficiency}
            design |= {"residual_df": self.design.residual_df, "half_widths_in_noise_sd": half_widths}
            plan |= {"design": design}
        return plan

    def __str__(self) -> str:
        spread = self.spread
        return "\n".join(
            (
                f"space       {self.space} around {self.base}, scale {self.scale}",
                f"points      {self.points} -> {self.programs} -> {self.functions} (points, programs, functions)",
                f"trials      {len(self.trials)}",
                *([f"design      {self.design.describe()}"] if self.design else []),
                f"budget      {self.budget_flops:.4g} model FLOPs each, {self.total_flops:.4g} in all",
                f"FLOPs/token {spread}",
                f"time        about {duration(self.estimate.seconds)} of training: {self.estimate.basis}",
            )
        )


def make_plan(
    space: Space,
    expansion: Expansion,
    *,
    budget_flops: int,
    scale: str,
    seeds: int = 1,
    max_trials: int | None = None,
    base: TrainConfig | None = None,
    gpus_per_trial: float | None = None,
    concurrent: int | None = None,
    design: str | None = None,
    trials: int | None = None,
    interactions: bool = True,
    reference: str = "gpt2",
) -> Plan:
    """Plan a sweep over the candidates of `expansion`, each with seeds `config.seed`, `config.seed` + 1, ...

    The order is shuffled, by a hash of each trial's id, so it is the same everywhere and does not depend on the rest of
    the space. `max_trials` keeps the first so many; `base`, if it is a candidate, comes first in either case.
    With `design` (see `raytrain.design.choose`, which takes `trials`, `seeds`, `interactions` and the levels of the
    preset `reference`) that chooses and orders the trials instead, around `base`, which must be a candidate. Raises
    UserError for what does not fit.
    """

    def is_base(config: TrainConfig) -> bool:
        if base is None or config.architecture.hash != base.architecture.hash:
            return False
        return config.replace(architecture=base.architecture, seed=base.seed) == base

    def place(config: TrainConfig, name: str) -> tuple[bool, str]:
        return not is_base(config), hashlib.sha256(name.encode()).hexdigest()

    named = list(zip(expansion.candidates, _names(expansion.candidates), strict=True))
    named.sort(key=lambda item: place(item[0].config, item[1]))

    def planned(candidate: Candidate, name: str, seed: int) -> PlannedTrial:
        return PlannedTrial(f"{name}-s{seed}", candidate.labels, candidate.config.replace(seed=seed))

    chosen_design = None
    if design is None:
        seeds_of = {name: range(c.config.seed, c.config.seed + seeds) for c, name in named}
        chosen = [planned(candidate, name, seed) for candidate, name in named for seed in seeds_of[name]][:max_trials]
        chosen.sort(key=lambda trial: place(trial.config, trial.id))
    else:
        if not is_base(named[0][0].config):
            raise UserError(f"design {design} needs the base ({space.base}) among the points of space {space.name}")
        chosen_design = choose(
            [_levels(space, candidate.config) for candidate, _ in named],
            design,
            trials=trials,
            seeds=seeds,
            seed=named[0][0].config.seed,
            interactions=interactions,
            reference={axis: level for axis, level in PRESETS[reference].items() if axis in space.levels},
        )
        chosen = [planned(*named[index], seed) for index, seed in chosen_design.trials]
    return Plan(
        space=space.name,
        base=space.base,
        scale=scale,
        points=expansion.points,
        programs=expansion.programs,
        functions=len(expansion.candidates),
        budget_flops=budget_flops,
        trials=tuple(chosen),
        spread=_spread(expansion.candidates),
        estimate=_estimate(
            sum(trial.config.train_flops for trial in chosen),
            chosen[0].config,
            gpus_per_trial,
            min(len(chosen), concurrent or len(chosen)),
        ),
        design=chosen_design,
    )


def _levels(space: Space, config: TrainConfig) -> dict[str, Any]:
    """The level of each axis of `space` that a function can differ in: the attention backend is none."""
    values = config.to_dict() | config.architecture.to_dict()
    return {axis: values[axis] for axis in space.levels if axis not in ("preset", "attention_backend")}


def _names(candidates: list[Candidate]) -> list[str]:
    """What each candidate is called: its architecture's name and hash; its label, then a digest, if not enough."""
    names = [f"{c.config.architecture.name}-{c.config.architecture.hash[:6]}" for c in candidates]
    labels = [re.sub(r"[^A-Za-z0-9.=_-]+", "_", candidate.labels[0]) for candidate in candidates]
    digests = [hashlib.sha256(repr(candidate.config).encode()).hexdigest()[:8] for candidate in candidates]
    for more in (labels, digests):
        times = collections.Counter(names)
        names = [name if times[name] == 1 else f"{name}-{add}" for name, add in zip(names, more, strict=True)]
    return names


def _spread(candidates: list[Candidate]) -> Spread:
    flops = [(flops_per_token(candidate.config.architecture).total, candidate.labels[0]) for candidate in candidates]
    least, most = min(flops, key=lambda item: item[0]), max(flops, key=lambda item: item[0])
    return Spread(least[0], most[0], least[1], most[1])


def _estimate(total_flops: int, config: TrainConfig, gpus_per_trial: float | None, at_once: int) -> Estimate:
    """Of `at_once` trials at a time, which may leave GPUs idle. (Fewer trials than cores get several cores each.)"""
    gpus = _gpus() if config.device != "cpu" and gpus_per_trial != 0 else []
    gpus = gpus[: round(at_once * (gpus_per_trial or 1))]
    if not gpus:
        cores = os.cpu_count() or 1
        return Estimate(
            total_flops / (cores * _ASSUMED_CORE_FLOPS),
            f"{cores} CPU cores of this machine at an assumed {_ASSUMED_CORE_FLOPS / 1e9:g} GFLOP/s each",
        )
    peak = peak_flops(gpus[0], "bfloat16" if config.precision != "fp32" else "float32")
    if peak is None and config.peak_tflops is not None:
        peak = config.peak_tflops * 1e12
    place = f"{len(gpus)} x {gpus[0]} of this machine"
    if peak is None:
        rate, basis = _ASSUMED_GPU_FLOPS, f"{place} at an assumed {_ASSUMED_GPU_FLOPS / 1e12:g} TFLOP/s each"
    else:
        rate = peak * _ASSUMED_MFU
        basis = f"{place} at an assumed MFU of {_ASSUMED_MFU:.0%} of {peak / 1e12:g} TFLOP/s"
    return Estimate(total_flops / (len(gpus) * rate), basis)


def _gpus() -> list[str]:
    """The names of this machine's NVIDIA GPUs, as the driver's own tool gives them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    shown = subprocess.run([tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return [line.strip() for line in shown.stdout.splitlines() if line.strip()] if shown.returncode == 0 else []


def duration(seconds: float) -> str:
    """Such as `45 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for size, unit in ((86400 * 2, "days"), (3600 * 2, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.3g} {unit}"
    return f"{math.ceil(seconds)} s"
