"""What a sweep will do, before anything starts: its trials, their FLOPs, a guess at the time. No torch, no ray."""

import collections
import dataclasses
import hashlib
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import scipy.special

from raytrain.architecture import PRESETS
from raytrain.design import Design, choose
from raytrain.errors import UserError
from raytrain.flops import flops_per_token
from raytrain.halving import survivors
from raytrain.hardware import peak_flops
from raytrain.memory import peak_memory
from raytrain.space import Candidate, Expansion, Space
from raytrain.training.config import DEFAULT_TOKENS, TrainConfig

_NO_FACTORS = ("preset", "attention_backend")  # axes that are a choice of others, or change speed alone
_ASSUMED_MFU = 0.4  # on a GPU whose peak is known
_ASSUMED_GPU_FLOPS = 50e12  # FLOP/s of one GPU whose peak is not
_ASSUMED_CORE_FLOPS = 50e9  # FLOP/s of one CPU core; the tiny scale in fp32 was measured at 60 to 70


@dataclasses.dataclass(frozen=True)
class PlannedTrial:
    """One run of a sweep. `id` is its folder's name; `labels` are what the space calls it.

    `levels` are those of the space's axes that its function depends on. `role` is "frontier" for a run of the base at a
    budget of its own, else empty. `workers` are the ranks that the space's placement gives it, if it does.
    """

    id: str
    labels: tuple[str, ...]
    config: TrainConfig
    levels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    role: str = ""
    workers: int | None = None

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
        return trial | {key: value for key in ("role", "workers") if (value := getattr(self, key))}


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
class Machine:
    """What this machine has to train on: the names and memory (bytes) of its NVIDIA GPUs, as the driver's own tool
    gives them, its CPU cores and memory."""

    gpus: tuple[str, ...]
    gpu_bytes: float
    cores: int
    cpu_bytes: float

    @classmethod
    def here(cls) -> "Machine":
        cpu_bytes = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        names, memory = [], []
        if tool := shutil.which("nvidia-smi"):
            query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
            shown = subprocess.run(query, capture_output=True, text=True)
            for line in shown.stdout.splitlines() if shown.returncode == 0 else []:
                name, _, mebibytes = line.rpartition(",")
                names.append(name.strip())
                memory.append(float(mebibytes) * 2**20)
        return cls(tuple(names), min(memory, default=0.0), os.cpu_count() or 1, cpu_bytes)


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving: one trial of `factor` goes on after each of `rungs` (model FLOPs). `decay` is the part of a
    rung's FLOPs that the branch takes after which it is scored."""

    factor: int
    rungs: tuple[float, ...]
    decay: float

    def spent(self, trials: int, budget: float) -> float:
        """Model FLOPs of a study of `trials` trials, those of the branches among them."""
        alive = [trials, *survivors(trials, len(self.rungs), self.factor)]
        trunk = sum(
            n * (end - begin) for n, (begin, end) in zip(alive, pairwise((0, *self.rungs, budget)), strict=True)
        )
        return trunk + sum(n * self.decay * rung for n, rung in zip(alive, self.rungs, strict=False))


@dataclasses.dataclass(frozen=True)
class Wish:
    """What the user said of lanes; None leaves it to what there is."""

    gpus_per_trial: int | None = None
    workers_per_trial: int | None = None
    trials_per_gpu: int | None = None
    concurrent: int | None = None


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of training, `lanes` trials at a time, on so many `devices` ("GPU" or "core"); what the guess rests on;
    and the memory (bytes) of the largest trial's rank at its peak beside what there is for it."""

    seconds: float
    devices: int
    device: str
    basis: str
    lanes: int
    memory: float
    memory_limit: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep, complete: `trials` in the order to run them, each to `budget_flops` but for those of the frontier.

    `axes` are the levels of the space's axes, `baseline` those of its base.
    """

    space: str
    base: str
    scale: str
    points: int
    programs: int
    functions: int
    budget_flops: int
    trials: tuple[PlannedTrial, ...]
    axes: Mapping[str, tuple[Any, ...]]
    baseline: Mapping[str, Any]
    spread: Spread
    estimate: Estimate
    total_flops: float
    design: Design | None = None
    halving: Halving | None = None

    @property
    def counts(self) -> dict[str, int]:
        return {
            "points": self.points,
            "programs": self.programs,
            "functions": self.functions,
            "trials": len(self.trials),
        }

    @property
    def _own(self) -> list[PlannedTrial]:
        """The trials that share the budget."""
        return [trial for trial in self.trials if not trial.role]

    @property
    def scheduler(self) -> dict[str, Any]:
        """As study.json holds it."""
        if self.halving is None:
            return {"name": "none"}
        halving = self.halving
        keep = survivors(len(self._own), len(halving.rungs), halving.factor)
        rungs = {"factor": halving.factor, "rungs": list(halving.rungs), "keep": keep}
        return {"name": "halving", **rungs, "rung_decay": halving.decay}

    @property
    def resolution(self) -> float | None:
        """The half-width of the 95% interval of the difference between two functions, in noise sd.

        t(0.975, df) sqrt(2 / n) with n runs of each and df = sum over functions of (runs - 1); None without replicates.
        """
        runs = collections.Counter(trial.config.replace(seed=0) for trial in self._own)
        df = sum(count - 1 for count in runs.values())
        if not df:
            return None
        return float(scipy.special.stdtrit(df, 0.975)) * math.sqrt(2 / min(runs.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        spread = dataclasses.asdict(self.spread) | {"ratio": self.spread.ratio}
        names = {"space": self.space, "base": self.base, "scale": self.scale}
        flops = {"budget_flops": self.budget_flops, "total_flops": self.total_flops, "flops_per_token": spread}
        estimate = dataclasses.asdict(self.estimate)
        plan = names | self.counts | flops | {"estimate": estimate, "trial_ids": [trial.id for trial in self.trials]}
        plan |= {"axes": {axis: list(levels) for axis, levels in self.axes.items()}, "baseline": dict(self.baseline)}
        plan |= {"scheduler": self.scheduler, "resolution_in_noise_sd": self.resolution}
        if self.design is not None:
            half_widths = {power.effect: power.half_width for power in self.design.power}
            design: dict[str, Any] = {"name": self.design.name, "d_efficiency": self.design.d_efficiency}
            design |= {"residual_df": self.design.residual_df, "half_widths_in_noise_sd": half_widths}
            plan |= {"design": design}
        return plan

    def __str__(self) -> str:
        frontier = len(self.trials) - len(self._own)
        extra = f", {frontier} of them the base at other budgets" if frontier else ""
        estimate = self.estimate
        fit = "fits" if estimate.memory <= estimate.memory_limit else "does NOT fit"
        lines = [
            f"space       {self.space} around {self.base}, scale {self.scale}",
            f"points      {self.points} -> {self.programs} -> {self.functions} (points, programs, functions)",
            f"trials      {len(self.trials)}{extra}",
            *([f"design      {self.design.describe()}"] if self.design else []),
            *([] if self.design else [f"resolution  {self._resolves()}"]),
            *self._rungs(),
            f"budget      {self.budget_flops:.4g} model FLOPs each, {self.total_flops:.4g} in all",
            f"FLOPs/token {self.spread}",
            f"memory      about {estimate.memory / 1e9:.2g} GB a rank at most; that {fit} in the "
            f"{estimate.memory_limit / 1e9:.3g} GB there are for it here",
            f"time        about {duration(estimate.seconds)} of training, "
            f"{estimate.seconds * estimate.devices / 3600:.3g} {estimate.device}-hours, {estimate.lanes} "
            f"trial{'s' * (estimate.lanes > 1)} at a time: {estimate.basis}",
        ]
        return "\n".join(lines)

    def _resolves(self) -> str:
        if self.resolution is None:
            return "none: without replicates no difference can be told from noise (--seeds 2 or more)"
        return f"the difference of two functions is known to +-{self.resolution:.2f} noise sd (95%)"

    def _rungs(self) -> list[str]:
        if self.halving is None:
            return []
        scheduler = self.scheduler
        rungs = ", ".join(f"{rung:.3g}" for rung in scheduler["rungs"])
        keep = " -> ".join(map(str, [len(self._own), *scheduler["keep"]]))
        decay = (
            f"after a decay of {self.halving.decay:.0%} of its FLOPs"
            if self.halving.decay
            else ("in mid-schedule, which may mislead (--schedule wsd --rung_decay 0.1)")
        )
        return [f"rungs       {rungs} FLOPs: {keep} trials; each scored {decay}"]


def make_plan(
    space: Space,
    expansion: Expansion,
    *,
    budget_flops: int,
    scale: str,
    seeds: int = 1,
    max_trials: int | None = None,
    base: TrainConfig | None = None,
    wish: Wish = Wish(),
    design: str | None = None,
    trials: int | None = None,
    interactions: bool = True,
    reference: str = "gpt2",
    halving: Halving | None = None,
    frontier: Sequence[float] = (),
    measured: Callable[[TrainConfig], float | None] = lambda config: None,
) -> Plan:
    """Plan a sweep over the candidates of `expansion`, each with seeds `config.seed`, `config.seed` + 1, ...

    The order is shuffled, by a hash of each trial's id, so it is the same everywhere and does not depend on the rest of
    the space. `max_trials` keeps the first so many; `base`, if it is a candidate, comes first in either case.
    With `design` (see `raytrain.design.choose`, which takes `trials`, `seeds`, `interactions` and the levels of the
    preset `reference`) that chooses and orders the trials instead, around `base`, which must be a candidate.

    `frontier` are multiples of the budget at which the base runs too, with two seeds or more, last of all. `measured`
    tells the FLOP/s of one device at a run, or None, which leaves it to assumptions. Raises UserError for what does not
    fit.
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
        config = candidate.config.replace(seed=seed)
        workers = space.workers(config.to_dict() | config.architecture.to_dict())
        return PlannedTrial(f"{name}-s{seed}", candidate.labels, config, _levels(space, config), workers=workers)

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
    base = base or chosen[0].config
    total = float(sum(trial.config.train_flops for trial in chosen))
    if halving is not None:
        total = halving.spent(len(chosen), budget_flops)
    known = halving is None and any(is_base(trial.config) for trial in chosen)  # a rung may stop it
    extra = _frontier(space, base, budget_flops, frontier, max(2, seeds), known=known)
    total += sum(trial.config.train_flops for trial in extra)
    return Plan(
        space=space.name,
        base=space.base,
        scale=scale,
        points=expansion.points,
        programs=expansion.programs,
        functions=len(expansion.candidates),
        budget_flops=budget_flops,
        trials=(*chosen, *extra),
        axes={axis: levels for axis, levels in space.levels.items() if axis != "attention_backend"},
        baseline=_levels(space, base),
        spread=_spread(expansion.candidates),
        estimate=_estimate(total, [*chosen, *extra], wish, Machine.here(), measured),
        total_flops=total,
        design=chosen_design,
        halving=halving,
    )


def _frontier(
    space: Space, base: TrainConfig, budget: float, multiples: Sequence[float], seeds: int, *, known: bool
) -> list[PlannedTrial]:
    """The base's runs at `multiples` of the budget; at the budget itself too, unless the study has those (`known`)."""
    if not multiples:
        return []
    wanted = sorted({*multiples, *(() if known else (1.0,))})
    if len(wanted) + known < 3:
        text = ",".join(f"{multiple:g}" for multiple in multiples)
        raise UserError(f"frontier_budgets ({text}): a frontier needs three budgets in all, the study's among them")
    found = []
    arch = base.architecture
    for multiple in wanted:
        for seed in range(base.seed, base.seed + seeds):
            config = base.replace(flops=float(budget * multiple), rungs=(), rung_decay=0.0, seed=seed)
            label = f"{space.base} at {multiple:g} x the budget"
            name = f"{arch.name}-{arch.hash[:6]}-x{multiple:g}-s{seed}"
            found.append(PlannedTrial(name, (label,), config, _levels(space, config), role="frontier"))
    return found


def _levels(space: Space, config: TrainConfig) -> dict[str, Any]:
    """The level of each axis of `space` that the run's function can differ in."""
    values = config.to_dict() | config.architecture.to_dict()
    dead = space.dead(values)
    return {axis: values[axis] for axis in space.levels if axis not in _NO_FACTORS and axis not in dead}


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


def _estimate(
    total_flops: float,
    trials: Sequence[PlannedTrial],
    wish: Wish,
    machine: Machine,
    measured: Callable[[TrainConfig], float | None],
) -> Estimate:
    """Of as many trials at a time as fit, which may leave GPUs idle."""
    config = trials[0].config
    gpus = machine.gpus if config.device != "cpu" and wish.gpus_per_trial != 0 else ()
    most = min(len(trials), wish.concurrent or len(trials))
    ranks = (wish.gpus_per_trial if gpus else wish.workers_per_trial) or 1
    share = (wish.trials_per_gpu or 1) if gpus else 1
    lanes = max(1, min(most, len(gpus) * share // ranks if gpus else machine.cores // ranks))
    precision = "fp32" if config.precision == "fp32" or not gpus else "bf16"
    memory = max(_memory(trial.config, trial.workers or ranks, precision, on_gpu=bool(gpus)) for trial in trials)
    limit = machine.gpu_bytes / share if gpus else machine.cpu_bytes / (lanes * ranks)

    devices = min(len(gpus), -(-lanes * ranks // share)) if gpus else machine.cores
    place = f"{devices} x {gpus[0]} of this machine" if gpus else f"{devices} CPU cores of this machine"
    rate = measured(config)
    if rate is not None:
        basis = f"{place}, measured at {rate / 1e12:.3g} TFLOP/s each"
    elif not gpus:
        rate, basis = _ASSUMED_CORE_FLOPS, f"{place} at an assumed {_ASSUMED_CORE_FLOPS / 1e9:g} GFLOP/s each"
    else:
        peak = peak_flops(gpus[0], "bfloat16" if precision == "bf16" else "float32")
        if peak is None and config.peak_tflops is not None:
            peak = config.peak_tflops * 1e12
        if peak is None:
            rate, basis = _ASSUMED_GPU_FLOPS, f"{place} at an assumed {_ASSUMED_GPU_FLOPS / 1e12:g} TFLOP/s each"
        else:
            rate = peak * _ASSUMED_MFU
            basis = f"{place} at an assumed MFU of {_ASSUMED_MFU:.0%} of {peak / 1e12:g} TFLOP/s"
    seconds = total_flops / (devices * rate)
    return Estimate(seconds, devices, "GPU" if gpus else "core", basis, lanes, memory, limit)


def _memory(config: TrainConfig, ranks: int, precision: str, *, on_gpu: bool) -> float:
    """Bytes of one rank at its peak."""
    parallel = config.parallel if config.parallel != "auto" else "ddp" if ranks > 1 else "single"
    per_rank = max(1, config.batch_sequences // ranks)
    usual = max(1, DEFAULT_TOKENS["cuda" if on_gpu else "cpu"] // config.architecture.block_size)
    return peak_memory(
        config.architecture,
        config.micro_batch if isinstance(config.micro_batch, int) else min(per_rank, usual),
        precision=precision,
        parallel=parallel,
        world_size=ranks,
        shard_size=config.fsdp_shard_size,
        checkpointing=config.activation_checkpointing,
    )


def duration(seconds: float) -> str:
    """Such as `45 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for size, unit in ((86400 * 2, "days"), (3600 * 2, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.3g} {unit}"
    return f"{math.ceil(seconds)} s"
