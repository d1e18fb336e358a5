"""From a space and options to a plan: what `python -m raytrain.tune` and `raytrain.plan` both call. No torch, no ray.

A new option of planning is a keyword of `plan`, checked in `_check_counts` or `_check_options`; the flag of the same
name in `raytrain.tune` reaches it by that name.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raytrain.accounting.flops import parameter_count
from raytrain.architecture import PRESETS, SCALES
from raytrain.config.resolve import fields, read_file, read_ladder, read_value, resolve
from raytrain.config.run import AUTO, STOPS, TrainConfig
from raytrain.data import open_dataset
from raytrain.data.corpora import STDLIB
from raytrain.data.eval_data import open_eval_data
from raytrain.errors import UserError, shown, unknown_value
from raytrain.sweep.budget import OPTIMAL
from raytrain.sweep.design import SAMPLED
from raytrain.sweep.estimate import Machine, ResourceRequest
from raytrain.sweep.halving import Halving
from raytrain.sweep.ladder import FRONTIER, Target, ladder_plan
from raytrain.sweep.measure import measured_rate
from raytrain.sweep.plan import Plan, make_plan
from raytrain.sweep.space import Space, expand, load_space, read_space

SCHEDULERS = ("none", "halving")
_EVALUATIONS = 2  # of a trial, by default: at half of its steps, and at the end
_MOST = {"seeds": 1000, "trials": 100_000}  # else, 2^31
_MOST_RUNS = 100_000  # distinct models times seeds
_MOST_BUDGETS = 100
_SHAPE = ("n_layer", "n_head", "n_embd")  # what makes a scale
CONFIRM = 3  # fresh seeds where a design has no replicates
_LEAST = {
    "max_trials": 1,
    "trials": 1,
    "seeds": 1,
    "gpus_per_trial": 0,
    "workers_per_trial": 1,
    "trials_per_gpu": 1,
    "concurrent": 1,
    "compile_ahead": 0,
    "factor": 2,
    "confirm": 0,
}


def plan(
    space: str | Path | Space | Mapping[str, Any] = "quickstart",
    *,
    base: str | None = None,
    config: str | Path | None = None,
    seeds: int | None = None,
    max_trials: int | None = None,
    design: str | None = None,
    trials: int | None = None,
    interactions: bool = True,
    reference: str = "gpt2",
    scheduler: str = "none",
    factor: int = 4,
    frontier_budgets: Sequence[float] = (),
    tune: Mapping[str, Any] | None = None,
    tune_extend: bool = False,
    independent_seeds: bool = False,
    confirm: int | None = None,
    ladder: str | Sequence[str] = (),
    tokens_per_parameter: float | None = None,
    project_to: str | None = None,
    measure: bool = False,
    on: str | None = None,
    price: float | None = None,
    gpus_per_trial: int | None = None,
    workers_per_trial: int | None = None,
    trials_per_gpu: int | None = None,
    concurrent: int | None = None,
    compile_ahead: int | None = None,
    **run: Any,
) -> Plan:
    """Plan a sweep over `space`; nothing starts, and nothing is written.

    Args:
        space: the name of a space in search_spaces/ (quickstart, presets, one_factor, full, modern), a YAML file, a
            `Space`, or a mapping: of axes to levels, such as `{"normalization": ["layernorm", "rmsnorm"]}`, or of what
            such a file holds.
        base: preset that the space varies around, instead of the space's own.
        config: YAML file of fields of a run; `run` overrides it.
        seeds: trials of each distinct model, with the seeds `seed`, `seed` + 1, ...; None: the space's own, or 1.
        max_trials: train a fixed random part of the space, the base first.
        design: which points to run: full, one_at_a_time, leave_one_out, random or d_optimal; None: every one.
        trials: runs in all, for the designs random and d_optimal.
        interactions: whether d_optimal estimates pairwise interactions too.
        reference: preset that leave_one_out puts each choice back to.
        scheduler: none, or halving, which stops trials at rungs.
        factor: with halving, one in this many trials continues after a rung.
        frontier_budgets: multiples of the budget that the base runs at too, for compute gains.
        tune: fields of the recipe to tune for each distinct model, with their levels, over those of the space:
            `{"learning_rate": [3e-4, 1e-3, 3e-3]}`; also weight_decay and warmup_fraction.
        independent_seeds: give each variant seeds of its own, instead of the same ones to all.
        confirm: fresh seeds of the leader, the runner-up and the baseline once all trials have ended; None: 3 with a
            design without replicates, else 0.
        tune_extend: whether variants that are best at the last learning rate tried run at one more, up to twice.
        ladder: two or more scales at each of which every variant runs, with a budget and (where it is tuned) a learning
            rate of its own, over those of the space: gains by size, and who is promoted.
        tokens_per_parameter: the budget, as training tokens for each parameter of the base, in place of `flops` and its
            like; with `ladder` None is 20.
        project_to: the scale that a ladder's gains are projected to; None: the largest.
        on: the devices that the estimate is for, such as "16xB200", "8xH100" or "64xcpu"; None: this machine.
        price: of an hour of one device, for the estimate.
        measure: time a few steps on this machine for the plan's estimate.
        gpus_per_trial: GPUs of each trial; 0 trains on CPUs; None: 1 where there are GPUs.
        workers_per_trial: ranks of each trial on CPUs; on GPUs there is one a GPU.
        trials_per_gpu: small trials that share a GPU.
        concurrent: most trials at a time; None: as many as fit.
        compile_ahead: processes of each node that compile trials before they come; None: as many as cores are idle
            beside lanes of GPUs.
        run: any field of `TrainConfig` or `Architecture` that all trials share, such as `flops=1e13` (model FLOPs of
            each trial), `scale="small"` or `learning_rate=1e-3`. Text is read as on the command line.

    Raises UserError, one line, for any mistake in the arguments, the space and the data.
    """
    request = ResourceRequest(gpus_per_trial, workers_per_trial, trials_per_gpu, concurrent, compile_ahead)
    the_space = _read_space(space, base)
    seeds = the_space.seeds if seeds is None else seeds
    _check_counts({"max_trials": max_trials, "trials": trials, "seeds": seeds, "factor": factor, "confirm": confirm})
    _check_counts(dataclasses.asdict(request))
    _check_options(max_trials, design, trials, reference, scheduler, frontier_budgets, request)
    _check_cost(on, price, measure=measure)
    if tune:
        the_space = the_space.tuned(tune)
    _check_tune(the_space, design, scheduler, tune_extend=tune_extend)
    scales = read_ladder(ladder) or the_space.ladder
    layers = _layers(the_space, config, run)
    given = {name: value for _, values in layers for name, value in values.items() if value is not None}
    if (trials_per_gpu or 1) > 1 and given.get("micro_batch") == AUTO:
        raise UserError("micro_batch (auto) has a GPU to itself while it tries; with trials_per_gpu give a number")
    tokens = _tokens_per_parameter(tokens_per_parameter, given if tokens_per_parameter is None else run, scales)
    if scales:
        refused = given | {"design": design, "max_trials": max_trials, "confirm": confirm, "tune_extend": tune_extend}
        _check_ladder(scales, refused | {"scheduler": None if scheduler == "none" else scheduler}, the_space)
    elif project_to is not None:
        raise UserError(f"project_to ({project_to}) goes with a ladder of scales (--ladder)")
    at_scale = functools.partial(
        _plan_at,
        the_space,
        request,
        tokens_per_parameter=tokens,
        scheduler=scheduler,
        factor=factor,
        seeds=seeds,
        max_trials=max_trials,
        design=design,
        trials=trials,
        interactions=interactions,
        reference=reference,
        frontier=tuple(frontier_budgets) or (FRONTIER if scales else ()),
        tune_extend=tune_extend,
        independent_seeds=independent_seeds,
        confirm=(CONFIRM if design is not None and seeds == 1 else 0) if confirm is None else confirm,
        measured=functools.partial(measured_rate, now=measure) if on is None else (lambda config: None),
        machine=None if on is None else Machine.named(on),
        price=price,
    )
    if not scales:
        return at_scale(layers)
    plans = [at_scale([*layers, ("ladder", {"scale": scale})]) for scale in scales]
    return ladder_plan(plans, _target(the_space, request, layers, plans, project_to or [*SCALES][-1]))


def _plan_at(
    space: Space,
    request: ResourceRequest,
    layers: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    tokens_per_parameter: float | None,
    scheduler: str,
    factor: int,
    seeds: int,
    **options: Any,
) -> Plan:
    """The plan at one scale; `options` are those of `make_plan`."""
    runs = _Runs(space, layers, request)
    first = {"preset": space.base} if PRESETS[space.base] else space.points()[0].values
    baseline = runs.resolve(first)  # its rungs are checked against the budget that it gives
    if tokens_per_parameter is not None:
        tokens = round(tokens_per_parameter * parameter_count(baseline.architecture)["total"])
        baseline = baseline.replace(**dict.fromkeys(STOPS) | {"tokens": tokens})
    budget = baseline.train_flops if baseline.flops is None else baseline.flops
    rungs = read_value("rungs", runs.given.get("rungs", ()))
    if scheduler == "halving" and not rungs:
        rungs = tuple(budget / factor**k for k in (2, 1))

    def resolve_trial(values: Mapping[str, Any]) -> TrainConfig:
        return runs.resolve(values).replace(max_iters=None, tokens=None, flops=float(budget), rungs=rungs)

    expansion = expand(space, resolve_trial)
    if (runs_in_all := len(expansion.candidates) * seeds) > _MOST_RUNS:
        raise UserError(
            f"The sweep has {runs_in_all:,} trials, and may have {_MOST_RUNS:,}: take fewer seeds or levels"
        )
    base = resolve_trial(first)
    return make_plan(
        space,
        expansion,
        budget_flops=round(budget),
        scale=baseline.scale,
        seeds=seeds,
        base=base,
        data_tokens=_training_tokens(base.data),
        request=request,
        halving=Halving(factor, rungs, baseline.rung_decay) if scheduler == "halving" else None,
        **options,
    )


OPTIONS = tuple(
    name for name, parameter in inspect.signature(plan).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
)


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Makes the run of a point: its own values over `layers` (name, values), which all runs share."""

    space: Space
    layers: Sequence[tuple[str, Mapping[str, Any]]]
    request: ResourceRequest

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for _, values in self.layers for name, value in values.items()}

    def resolve(self, values: Mapping[str, Any]) -> TrainConfig:
        """The run of a point's `values`, without rungs. Raises UserError for one that cannot be."""
        data = str(values.get("data", self.given.get("data", STDLIB)))
        shared = [(layer, {name: v for name, v in own.items() if name != "rungs"}) for layer, own in self.layers]
        config, _ = resolve([*shared, ("space", values)], **_vocabulary(data))
        ranks = self.request.gpus_per_trial or self.request.workers_per_trial or 1
        config.check_ranks(self.space.workers(config.flat()) or ranks)
        if "checkpoint_interval" not in self.given:  # a sweep keeps no checkpoints unless it is asked to
            config = config.replace(checkpoint_interval=None)
        if "evaluations" not in self.given:  # one halfway shows how fast the loss still falls
            config = config.replace(evaluations=_EVALUATIONS)
        if config.init_from is not None and not Path(config.init_from).is_dir():
            raise UserError(f"init_from ({config.init_from}) is no folder")
        # Trials may run in another working directory.
        paths = {name: getattr(config, name) for name in ("data", "init_from")}
        config = config.replace(**{n: _absolute(p) for n, p in paths.items() if p is not None})
        config = config.replace(eval_data=tuple((name, _absolute(place)) for name, place in config.eval_data))
        arch = config.architecture
        _eval_data(config.eval_data, config.data, arch.block_size, config.eval_tokens, arch.vocab_size)  # it checks
        return config


def _absolute(place: str) -> str:
    return place if place == STDLIB else str(Path(place).absolute())


_training_tokens = functools.cache(lambda data: len(open_dataset(data).train))
_vocabulary = functools.cache(lambda data: open_dataset(data).vocabulary)
_eval_data = functools.cache(open_eval_data)


def _read_space(given: str | Path | Space | Mapping[str, Any], base: str | None) -> Space:
    if isinstance(given, Mapping):
        is_file = "axes" in given or "presets" in given
        return read_space("axes", dict(given) if is_file else {"axes": dict(given)}, base)
    if not isinstance(given, Space):
        return load_space(str(given), base)
    if base not in (None, given.base):
        raise UserError(f"base ({base}) cannot change that of a Space ({given.base})")
    return given


def _layers(space: Space, config: str | Path | None, run: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The values that all runs share, from the file `config` and from `run`."""
    for name in run:
        if name not in (*fields(), "preset"):
            raise unknown_value("argument", name, (*OPTIONS, *fields()))
    layers: list[tuple[str, Mapping[str, Any]]] = [("argument", run)]
    if config is not None:
        layers.insert(0, (str(config), read_file(str(config))))
    shared = dict(space.run) | ({"eval_data": dict(space.eval_data)} if space.eval_data else {})
    if shared:
        layers.insert(0, (f"space {space.name}", shared))
    for _, values in layers:
        if "preset" in values:
            raise UserError(f"preset ({values['preset']}) is for one run; a sweep varies around base (--base)")
        for name in values:
            if name in space.levels:
                raise UserError(
                    f"{name} ({values[name]}) is an axis of space {space.name}: leave it out, or vary something else"
                )
    return layers


def _check_tune(space: Space, design: str | None, scheduler: str, *, tune_extend: bool) -> None:
    """Raises UserError where the tuned fields do not go with the other options."""
    fields = ", ".join(space.tune)
    if space.tune and scheduler != "none":
        raise UserError(f"tune ({fields}) cannot be combined with scheduler {scheduler}, which compares trials as one")
    if design in SAMPLED and space.tune and [*space.tune] != ["learning_rate"]:
        raise UserError(f"tune ({fields}): design {design} spreads runs over learning_rate alone")
    if tune_extend and "learning_rate" not in space.tune:
        raise UserError("tune_extend needs learning_rate among the tuned fields (--tune learning_rate=...)")
    if tune_extend and design in SAMPLED:
        raise UserError(f"tune_extend cannot be combined with design {design}, where no variant runs at every rate")


def _tokens_per_parameter(wanted: float | None, given: Mapping[str, Any], scales: Sequence[str]) -> float | None:
    """What sets the budget, if tokens per parameter do. Raises UserError for one that cannot be, or is given twice."""
    if wanted is None:
        wanted = OPTIMAL if scales else None
    elif not isinstance(wanted, int | float) or isinstance(wanted, bool) or not 0 < wanted < math.inf:
        raise UserError(f"tokens_per_parameter ({shown(wanted)}) must be above 0 and finite")
    for stop in STOPS if wanted is not None else ():
        if given.get(stop) is not None:
            raise UserError(f"{stop} ({given[stop]}) cannot be combined with tokens_per_parameter ({wanted:g})")
    return wanted


def _check_ladder(scales: Sequence[str], refused: Mapping[str, Any], space: Space) -> None:
    """Raises UserError for what a ladder does not go with: what it sets itself, or what compares trials as one."""
    text = f"ladder ({','.join(scales)})"
    own = ("scale", *_SHAPE, "rungs", "design", "max_trials", "confirm", "tune_extend", "scheduler")
    for name in own:
        if refused.get(name):
            raise UserError(f"{name} ({shown(refused[name])}) cannot be combined with {text}")
    for name in _SHAPE:
        if name in space.levels:
            raise UserError(f"{name}, an axis of space {space.name}, cannot be combined with {text}, which sets it")


def _target(
    space: Space,
    request: ResourceRequest,
    layers: Sequence[tuple[str, Mapping[str, Any]]],
    plans: Sequence[Plan],
    scale: str,
) -> Target:
    """The base at `scale`, with the vocabulary of the ladder's `plans`. Raises UserError if they have several."""
    if scale not in SCALES:
        raise unknown_value("scale in project_to", scale, SCALES)
    sizes = {plan.scale: plan.trials[0].config.architecture.vocab_size for plan in plans}
    if len({*sizes.values()}) > 1:
        text = ", ".join(f"{size:,} at {name}" for name, size in sizes.items())
        raise UserError(f"ladder: scales have different vocabularies ({text}), and so losses: give vocab_size")
    first = {"preset": space.base} if PRESETS[space.base] else space.points()[0].values
    own = {"scale": scale, "vocab_size": next(iter(sizes.values()))}
    return Target.of(scale, _Runs(space, [*layers, ("project_to", own)], request).resolve(first).architecture)


def _check_counts(given: Mapping[str, Any]) -> None:
    """Raises UserError for a value that is no whole number, or below what its option allows."""
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{name} ({shown(value)}) must be a whole number")
        if value < _LEAST[name]:
            raise UserError(f"{name} ({shown(value)}) must be {_LEAST[name]} or more")
        if value > _MOST.get(name, 2**31):
            raise UserError(f"{name} ({shown(value)}) must be {_MOST.get(name, 2**31):,} or less")


def _check_cost(on: str | None, price: float | None, *, measure: bool) -> None:
    """Raises UserError for what cannot be of an estimate."""
    if measure and on is not None:
        raise UserError(f"measure times steps on this machine; it cannot be combined with on ({on})")
    if price is not None and not 0 <= price < math.inf:
        raise UserError(f"price ({price:g}) must be 0 or more, and finite")


def _check_options(
    max_trials: int | None,
    design: str | None,
    trials: int | None,
    reference: str,
    scheduler: str,
    frontier_budgets: Sequence[float],
    request: ResourceRequest,
) -> None:
    """Raises UserError for options that cannot be, or do not go together."""
    if trials is not None and design is None:
        raise UserError(f"trials ({trials}) goes with design random or d_optimal; max_trials cuts a sweep short")
    if max_trials is not None and design is not None:
        raise UserError(f"max_trials ({max_trials}) cannot be combined with design {design}; give trials instead")
    if (request.trials_per_gpu or 1) > 1 and request.gpus_per_trial not in (None, 1):
        raise UserError(f"trials_per_gpu ({request.trials_per_gpu}) shares one GPU; gpus_per_trial must be 1 then")
    if len(frontier_budgets) > _MOST_BUDGETS:
        raise UserError(f"frontier_budgets has {len(frontier_budgets):,} values, and may have {_MOST_BUDGETS}")
    if any(not isinstance(multiple, int | float) or not 0 < multiple < math.inf for multiple in frontier_budgets):
        raise UserError(f"frontier_budgets ({shown(frontier_budgets)}) must be above 0 and finite, as multiples")
    for name, value, allowed in (("reference", reference, PRESETS), ("scheduler", scheduler, SCHEDULERS)):
        if value not in allowed:
            raise unknown_value(name, value, allowed)
