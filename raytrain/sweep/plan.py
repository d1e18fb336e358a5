"""What a sweep will do, before anything starts: its trials, their FLOPs, a guess at the time. No torch, no ray."""

import collections
import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raytrain.architecture import PRESETS
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError
from raytrain.sweep.budget import Budget, Spread, flops_spread
from raytrain.sweep.design import SAMPLED, Design, choose, resolution
from raytrain.sweep.estimate import NO_REQUEST, Estimate, Machine, ResourceRequest, estimate, shorter
from raytrain.sweep.factors import compared, factors_of, is_speed_only, levels_of
from raytrain.sweep.halving import Halving, survivors
from raytrain.sweep.space import Candidate, Expansion, Space
from raytrain.sweep.trial import PlannedTrial, own_seeds, without_seed
from raytrain.sweep.tuning import Tuning, suffix, tuning_of

EXTENSIONS = 2  # times that a study goes beyond its learning rates


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep, complete: `trials` in the order to run them, each to `budget_flops` but for those of the frontier.

    `axes` are the levels of the space's axes, `baseline` those of its base; `factors` the axes that the trials differ
    in, with the base's level: of an axis "preset", those that its presets differ in. `request` is what the trials are
    to run on. `confirm` is how many fresh seeds the leader, the runner-up and the baseline run with once all trials
    have ended; `total_flops` and `estimate` hold what that costs at most. `tune_extend`: whether variants that are best
    at the last learning rate tried run at more of them before; neither holds that.
    """

    space: str
    base: str
    scale: str
    points: int
    programs: int
    variants: int
    budget_flops: int
    trials: tuple[PlannedTrial, ...]
    axes: Mapping[str, tuple[Any, ...]]
    baseline: Mapping[str, Any]
    factors: Mapping[str, Any]
    spread: Spread
    estimate: Estimate
    total_flops: float
    design: Design | None = None
    halving: Halving | None = None
    request: ResourceRequest = NO_REQUEST
    tuning: Tuning | None = None
    confirm: int = 0
    independent_seeds: bool = False
    tune_extend: bool = False
    budget: Budget | None = None  # of the base
    price: float | None = None  # of an hour of one device

    @property
    def grows(self) -> list[dict[str, Any]]:
        """The stages that may follow, as study.json holds them: see raytrain.sweep.stages."""
        extend = [{"stage": "extend", "most": EXTENSIONS}] if self.tune_extend else []
        return extend + ([{"stage": "confirm", "seeds": self.confirm}] if self.confirm else [])

    @property
    def confirming(self) -> int:
        """Runs of the confirmation at most: of three variants, or two where the baseline leads or there are no more."""
        return self.confirm * min(3, self.variants) if self.variants > 1 else 0

    @property
    def counts(self) -> dict[str, int]:
        return {
            "points": self.points,
            "programs": self.programs,
            "variants": self.variants,
            "trials": len(self.trials),
        }

    @property
    def _own(self) -> list[PlannedTrial]:
        """The trials that share the budget."""
        return [trial for trial in self.trials if not trial.role]

    @property
    def _halved(self) -> set[str]:
        """The units that continue or stop at a rung: a name for each variant (at each level of tuned fields)."""
        return {without_seed(trial.id) for trial in self._own}

    @property
    def scheduler(self) -> dict[str, Any]:
        """As study.json holds it."""
        if self.halving is None:
            return {"name": "none"}
        halving = self.halving
        keep = survivors(len(self._halved), len(halving.rungs), halving.factor)
        rungs = {"factor": halving.factor, "rungs": list(halving.rungs), "keep": keep}
        return {"name": "halving", "unit": "variant", **rungs, "rung_decay": halving.decay}

    @property
    def resolution(self) -> float | None:
        """The half-width of the 95% interval of the difference between two variants, in noise sd: see `resolution`."""
        runs = collections.Counter(trial.config.replace(seed=0) for trial in self._own)
        return resolution(list(runs.values()), shared=not self.independent_seeds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        spread = dataclasses.asdict(self.spread) | {"ratio": self.spread.ratio}
        names = {"space": self.space, "base": self.base, "scale": self.scale}
        flops = {"budget_flops": self.budget_flops, "total_flops": self.total_flops, "flops_per_token": spread}
        estimate = dataclasses.asdict(self.estimate)
        plan = names | self.counts | flops | {"estimate": estimate, "trial_ids": [trial.id for trial in self.trials]}
        plan |= {"axes": {axis: list(levels) for axis, levels in self.axes.items()}, "baseline": dict(self.baseline)}
        plan |= {"factors": dict(self.factors)}
        if self.budget is not None:
            plan |= {"training": self.budget.to_dict()}
        plan |= {"grows": self.grows, "scheduler": self.scheduler, "resolution_in_noise_sd": self.resolution}
        if self.tuning is not None:
            plan |= {"tuning": dataclasses.asdict(self.tuning) | {"factor": self.tuning.factor}}
        if self.design is not None:
            half_widths = {precision.effect: precision.half_width for precision in self.design.precisions}
            design: dict[str, Any] = {"name": self.design.name, "d_efficiency": self.design.d_efficiency}
            design |= {"residual_df": self.design.residual_df, "half_widths_in_noise_sd": half_widths}
            plan |= {"design": design}
        return plan

    def __str__(self) -> str:
        frontier = len(self.trials) - len(self._own)
        extra = f", {frontier} of them the base at other budgets" if frontier else ""
        lines = [
            f"space       {self.space} around {self.base}, scale {self.scale}",
            *self._about(),
            f"points      {self.points} -> {self.programs} -> {self.variants} (points, programs, variants)",
            f"trials      {len(self.trials)}{extra}",
            *compared([trial.config.flat() for trial in self._own], self.factors),
            *([f"design      {self.design.describe()}"] if self.design else []),
            *([f"tune        {self.tuning.describe()}"] if self.tuning else []),
            *([f"extend      {self._extends()}"] if self.tune_extend else []),
            *([] if self.design and not self.tuning else [f"resolution  {self._resolves()}"]),
            *self._rungs(),
            *self._confirms(),
            *self._budgets(),
            *self.estimate.describe(self.price),
            *self._long(),
        ]
        return "\n".join(lines)

    def _long(self) -> list[str]:
        is_whole = self.design is None and self.halving is None and self.tuning is None
        levels = sum(len(levels) - 1 for axis, levels in self.axes.items() if axis != "preset") if is_whole else None
        return shorter(self.estimate.seconds, len(self.trials), self.budget_flops, levels)

    def _about(self) -> list[str]:
        return []

    def _budgets(self) -> list[str]:
        return [
            f"budget      {self.budget_flops:.4g} model FLOPs each, {self.total_flops:.4g} in all",
            *(self.budget.describe() if self.budget else []),
            f"FLOPs/token {self.spread}",
        ]

    def _resolves(self) -> str:
        if self.tuning is not None:
            return self._resolves_tuned()
        if self.resolution is None:
            return "none: without replicates no difference is distinguishable from noise (--seeds 2 or more)"
        whose = "own seeds" if self.independent_seeds else "shared seeds"
        return f"the difference between two variants is known to +-{self.resolution:.2f} noise sd (95%, {whose})"

    def _resolves_tuned(self) -> str:
        assert self.tuning is not None
        if self.tuning.half_width is not None:
            return (
                "the difference of two variants, each at its own best, is known to about "
                f"+-{self.tuning.half_width:.2f} noise sd (95%)"
            )
        if self.tuning.spreads:
            return "effects at the middle rate as above; at each level's own best about as well where that is inside"
        return "none: a curve through as many runs as it has coefficients leaves no noise (--seeds 2 or more)"

    def _extends(self) -> str:
        assert self.tuning is not None
        runs = len(self._own) // self.tuning.factor
        return (
            f"then a learning rate more where the best is the last tried, {EXTENSIONS} times at most, for the variants "
            f"that need it: {runs} runs for each if all do, {runs * self.budget_flops:.3g} FLOPs, not in the sums below"
        )

    def _confirms(self) -> list[str]:
        if not self.confirming:
            return []
        flops = self.confirming * self.budget_flops
        return [
            f"confirm     then leader, runner-up and baseline again with {self.confirm} fresh seeds each: "
            f"{self.confirming} runs at most, {flops:.3g} FLOPs, {flops / (self.total_flops - flops):.0%} more "
            "(--confirm 0 for none)"
        ]

    def _rungs(self) -> list[str]:
        if self.halving is None:
            return []
        scheduler = self.scheduler
        rungs = ", ".join(f"{rung:.3g}" for rung in scheduler["rungs"])
        keep = " -> ".join(map(str, [len(self._halved), *scheduler["keep"]]))
        decay = (
            f"after a decay of {self.halving.decay:.0%} of its FLOPs"
            if self.halving.decay
            else ("in mid-schedule, which may mislead (--schedule wsd --rung_decay 0.1)")
        )
        return [f"rungs       {rungs} FLOPs: {keep} variants, with all their seeds; each scored {decay}"]


def make_plan(
    space: Space,
    expansion: Expansion,
    *,
    budget_flops: int,
    scale: str,
    seeds: int = 1,
    max_trials: int | None = None,
    base: TrainConfig | None = None,
    request: ResourceRequest = NO_REQUEST,
    design: str | None = None,
    trials: int | None = None,
    interactions: bool = True,
    reference: str = "gpt2",
    halving: Halving | None = None,
    frontier: Sequence[float] = (),
    measured: Callable[[TrainConfig], float | None] = lambda config: None,
    confirm: int = 0,
    independent_seeds: bool = False,
    tune_extend: bool = False,
    machine: Machine | None = None,
    price: float | None = None,
    data_tokens: int | None = None,
) -> Plan:
    """Plan a sweep over the candidates of `expansion`, each with seeds `config.seed`, `config.seed` + 1, ...

    The order is shuffled, by a hash of each trial's id, so it is the same everywhere and does not depend on the rest of
    the space. `max_trials` keeps the first so many; `base`, if it is a candidate, comes first in either case.
    With `design` (see `raytrain.sweep.design.choose`, which takes `trials`, `seeds`, `interactions` and the levels of
    the preset `reference`) that chooses and orders the trials instead, around `base`, which must be a candidate.

    Where the space tunes fields, each chosen candidate runs at all of their levels, each level with seeds of its own
    (see raytrain.sweep.tuning); the designs d_optimal and random spread their runs over learning rates instead.
    `max_trials` then keeps whole variants.

    `frontier` are multiples of the budget at which the base runs too, with two seeds or more, last of all. `measured`
    gives the FLOP/s of one device in a run, or None, which leaves it to assumptions. The estimate is for `machine`, by
    default this one, at `price` an hour of one device. Raises UserError for what does not fit.
    """

    tuned_fields = {} if base is None else {field: getattr(base, field) for field in space.tune}

    def is_base(config: TrainConfig) -> bool:
        if base is None or config.architecture.hash != base.architecture.hash:
            return False
        return config.replace(architecture=base.architecture, seed=base.seed, **tuned_fields) == base

    def place(config: TrainConfig, name: str) -> tuple[bool, str]:
        return not is_base(config), hashlib.sha256(name.encode()).hexdigest()

    named = list(zip(expansion.candidates, _names(expansion.candidates), strict=True))
    named.sort(key=lambda item: place(item[0].config, item[1]))

    def planned(candidate: Candidate, name: str, seed: int, setting: Mapping[str, float]) -> PlannedTrial:
        config = candidate.config.replace(seed=seed, **setting)
        workers = space.workers(config.flat())
        trial_id = f"{name}{suffix(setting)}-s{seed}"
        levels = levels_of(space, config)
        return PlannedTrial(trial_id, candidate.labels, config, levels, workers=workers, tuned=setting)

    chosen_design = None
    spreads = bool(space.tune) and design in SAMPLED
    if design is None:
        whole = max_trials if max_trials is None else max_trials // (seeds * len(space.settings))
        if space.tune and whole == 0:
            raise UserError(
                f"max_trials ({max_trials}) must be {seeds * len(space.settings)} or more: those of one variant"
            )
        kept = named[:whole] if space.tune else named
        runs = [(place_of, c.config.seed + k) for place_of, (c, _) in enumerate(kept) for k in range(seeds)]
        chosen = [planned(*named[index], seed, setting) for index, seed, setting in _crossed(runs, space)]
        chosen = chosen if space.tune else chosen[:max_trials]
        chosen.sort(key=lambda trial: place(trial.config, trial.id))
    else:
        if not is_base(named[0][0].config):
            raise UserError(f"design {design} needs the base ({space.base}) among the points of space {space.name}")
        settings = space.settings if spreads else [{}]
        first = min(range(len(settings)), key=lambda k: _away(settings[k], named[0][0].config))
        chosen_design = choose(
            [levels_of(space, candidate.config) | setting for candidate, _ in named for setting in settings],
            design,
            base=first,
            trials=trials,
            seeds=seeds,
            seed=named[0][0].config.seed,
            interactions=interactions,
            reference={axis: level for axis, level in PRESETS[reference].items() if axis in space.levels},
            tuned=next(iter(space.tune)) if spreads else None,
        )
        if spreads:
            spread = [(*divmod(index, len(settings)), seed) for index, seed in chosen_design.trials]
            chosen = [planned(*named[index], seed, settings[k]) for index, k, seed in spread]
        else:
            crossed = _crossed(chosen_design.trials, space)
            chosen = [planned(*named[index], seed, setting) for index, seed, setting in crossed]
            if space.tune:  # the precision of single runs is not that of curves
                trials_of = tuple((index, seed) for index, seed, _ in crossed)
                chosen_design = dataclasses.replace(chosen_design, trials=trials_of, precisions=())
    base = base or chosen[0].config
    if independent_seeds:
        chosen = own_seeds(chosen)
    elif chosen_design is not None and seeds > 1:
        chosen_design = chosen_design.by_seed(seeds)
    total = float(sum(trial.config.train_flops for trial in chosen))
    if halving is not None:
        total = halving.spent(len({without_seed(trial.id) for trial in chosen}), len(chosen), budget_flops)
    known = halving is None and any(is_base(trial.config) for trial in chosen)  # a rung may stop it
    known &= not spreads  # a few rates of the baseline do not determine its best
    extra = _frontier(space, base, budget_flops, frontier, max(2, seeds), known=known)
    total += sum(trial.config.train_flops for trial in extra)
    variants = len(expansion.candidates)
    total += confirm * min(3, variants) * budget_flops if variants > 1 else 0
    return Plan(
        space=space.name,
        base=space.base,
        scale=scale,
        points=expansion.points,
        programs=expansion.programs,
        variants=variants,
        budget_flops=budget_flops,
        trials=(*chosen, *extra),
        axes={axis: levels for axis, levels in space.levels.items() if not is_speed_only(axis)},
        baseline=levels_of(space, base),
        factors=factors_of(space, [trial.config for trial in chosen], base),
        spread=flops_spread(expansion.candidates),
        estimate=estimate(total, [*chosen, *extra], request, machine or Machine.here(), measured),
        total_flops=total,
        design=chosen_design,
        halving=halving,
        confirm=confirm,
        independent_seeds=independent_seeds,
        tune_extend=tune_extend,
        budget=Budget.of(base, data_tokens),
        price=price,
        request=request,
        tuning=tuning_of(space.tune, base, [*chosen, *extra], seeds, spreads=spreads) if space.tune else None,
    )


def _crossed(runs: Sequence[tuple[int, int]], space: Space) -> list[tuple[int, int, dict[str, float]]]:
    """`runs`, of (candidate, seed), at each setting of the tuned fields, which has seeds of its own."""
    first = min(seed for _, seed in runs)
    stride = 1 + max(seed for _, seed in runs) - first
    return [(index, seed + k * stride, setting) for index, seed in runs for k, setting in enumerate(space.settings)]


def _away(setting: Mapping[str, float], config: TrainConfig) -> float:
    """How far a setting is from the recipe's own."""
    return sum(abs(math.log(value / getattr(config, field))) for field, value in setting.items())


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
    trials = []
    arch = base.architecture
    for multiple in wanted:
        runs = [(0, seed) for seed in range(base.seed, base.seed + seeds)]
        for _, seed, setting in _crossed(runs, space):
            config = base.replace(flops=float(budget * multiple), rungs=(), rung_decay=0.0, seed=seed, **setting)
            label = f"{space.base} at {multiple:g} x the budget"
            name = f"{arch.name}-{arch.hash[:6]}-x{multiple:g}{suffix(setting)}-s{seed}"
            trials.append(
                PlannedTrial(name, (label,), config, levels_of(space, config), role="frontier", tuned=setting)
            )
    return trials


def _names(candidates: list[Candidate]) -> list[str]:
    """What each candidate is called: its architecture's name and hash; its label, then a digest, if not enough."""
    names = [f"{c.config.architecture.name}-{c.config.architecture.hash[:6]}" for c in candidates]
    labels = [re.sub(r"[^A-Za-z0-9.=_-]+", "_", candidate.labels[0]) for candidate in candidates]
    digests = [hashlib.sha256(repr(candidate.config).encode()).hexdigest()[:8] for candidate in candidates]
    for more in (labels, digests):
        times = collections.Counter(names)
        names = [name if times[name] == 1 else f"{name}-{add}" for name, add in zip(names, more, strict=True)]
    return names
