"""`python -m raytrain.tune`: a sweep over a search space, on this machine or on the cluster of RAY_ADDRESS or a job."""

import argparse
import functools
import gc
import json
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytrain.architecture import PRESETS
from raytrain.config.resolve import add_flags, read_file, read_flags, read_value, resolve
from raytrain.config.run import AUTO, TrainConfig
from raytrain.data import open_dataset
from raytrain.data.corpora import STDLIB
from raytrain.errors import Parser, UserError, command, unknown_value
from raytrain.interrupts import held
from raytrain.rundir.folders import check_name
from raytrain.sweep.design import DESIGNS
from raytrain.sweep.estimate import ResourceRequest
from raytrain.sweep.halving import Halving
from raytrain.sweep.measure import measured_rate
from raytrain.sweep.plan import Plan, make_plan
from raytrain.sweep.space import expand, load_space

SCHEDULERS = ("none", "halving")


@command
def main(argv: list[str] | None = None) -> int | None:
    flags = _parser().parse_args(argv)
    if flags.resume is not None:
        _check_resume(flags)
        with held():
            from raytrain.engine.study import resume_study  # Ray takes seconds to import

        return resume_study(
            flags.resume,
            runs=Path(flags.runs),
            tracking_uri=flags.tracking_uri,
            concurrent=flags.concurrent,
            as_json=flags.json,
        )
    plan = _plan(flags)
    if flags.plan:
        print(json.dumps(plan.to_dict()) if flags.json else plan)
        return 0
    with held():
        from raytrain.engine.study import run_study  # a plan must not wait for it

    return run_study(
        plan,
        runs=Path(flags.runs),
        name=flags.name,
        tracking_uri=flags.tracking_uri,
        request=_request(flags),
        storage=flags.storage,
        command=shlex.join(["python", "-m", "raytrain.tune", *(sys.argv[1:] if argv is None else argv)]),
        as_json=flags.json,
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m raytrain.tune", __doc__)
    sweep = parser.add_argument_group("sweep")
    sweep.add_argument("--space", default="presets", help="presets, one_factor, full, or a YAML file [presets]")
    sweep.add_argument("--base", help="preset that the space varies around [the space's own]")
    sweep.add_argument("--max_trials", type=int, help="train a fixed random part of the space, the base first")
    sweep.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="trials of each function, from --seed upwards; of the base 3 or more under --design [1]",
    )
    sweep.add_argument("--design", help=f"which points to run: {', '.join(DESIGNS)} [every one, or --max_trials]")
    sweep.add_argument("--reference", default="gpt2", help="preset that leave_one_out puts each choice back to [gpt2]")
    sweep.add_argument("--trials", type=int, help="runs in all, for the designs random and d_optimal")
    sweep.add_argument(
        "--interactions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether d_optimal estimates pairwise interactions too [yes]",
    )
    sweep.add_argument(
        "--scheduler", default="none", help=f"{', '.join(SCHEDULERS)}: whether trials stop at rungs [none]"
    )
    sweep.add_argument("--factor", type=int, default=4, help="halving: one trial of so many goes on after a rung [4]")
    sweep.add_argument(
        "--frontier_budgets",
        type=_numbers,
        default=(),
        metavar="M,M",
        help="run the base at these multiples of the budget too, for compute gains [none]",
    )
    sweep.add_argument("--measure", action="store_true", help="time a few steps for the plan's estimate")
    sweep.add_argument("--resume", metavar="NAME", help="go on with this study, whatever ended it")
    sweep.add_argument("--plan", action="store_true", help="print what would run, and start nothing")
    sweep.add_argument("--json", action="store_true", help="print one JSON object on stdout, all else on stderr")
    sweep.add_argument("--name", help="the study's folder under --runs [the space and the time]")
    sweep.add_argument(
        "--runs",
        default="runs",
        help="where studies are kept; in a Ray job, from the home folder of the head node [runs]",
    )
    sweep.add_argument(
        "--storage", help="folder or URI (s3://...) for checkpoints, which all nodes reach [the study's folder]"
    )
    sweep.add_argument("--tracking_uri", help="MLflow's [$MLFLOW_TRACKING_URI, or mlflow.db under --runs]")
    sweep.add_argument(
        "--gpus_per_trial", type=int, help="GPUs of each trial; 0 trains on CPUs [1 where there are GPUs]"
    )
    sweep.add_argument("--workers_per_trial", type=int, help="ranks of each trial on CPUs [1; on GPUs, one a GPU]")
    sweep.add_argument("--trials_per_gpu", type=int, help="small trials that share a GPU [1]")
    sweep.add_argument("--concurrent", type=int, help="most trials at a time [as many as fit]")
    add_flags(parser)
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas between, such as 0.25,4") from None


def _check_resume(flags: argparse.Namespace) -> None:
    """A study goes on as it was planned, so flags that plan one have no meaning. Raises UserError for those."""
    usual = vars(_parser().parse_args([]))
    allowed = ("resume", "runs", "tracking_uri", "concurrent", "json")
    for name, value in vars(flags).items():
        if name not in allowed and value != usual[name]:
            raise UserError(
                f"{name} ({value}) does not go with --resume, which goes on as planned; these do: "
                f"{', '.join(allowed[1:])}"
            )


def _request(flags: argparse.Namespace) -> ResourceRequest:
    return ResourceRequest(flags.gpus_per_trial, flags.workers_per_trial, flags.trials_per_gpu, flags.concurrent)


def _check(flags: argparse.Namespace) -> None:
    """Raises UserError for values of the sweep's own flags that cannot be."""
    for name, least in (
        ("max_trials", 1),
        ("trials", 1),
        ("seeds", 1),
        ("gpus_per_trial", 0),
        ("workers_per_trial", 1),
        ("trials_per_gpu", 1),
        ("concurrent", 1),
        ("factor", 2),
    ):
        value = getattr(flags, name)
        if value is not None and value < least:
            raise UserError(f"{name} ({value}) must be {least} or more")
    if flags.name is not None:
        check_name(flags.name)
    if flags.trials is not None and flags.design is None:
        raise UserError(
            f"trials ({flags.trials}) goes with --design random or d_optimal; --max_trials cuts a sweep short"
        )
    if flags.max_trials is not None and flags.design is not None:
        raise UserError(
            f"max_trials ({flags.max_trials}) would spoil design {flags.design}; say how many with --trials"
        )
    if (flags.trials_per_gpu or 1) > 1 and flags.gpus_per_trial not in (None, 1):
        raise UserError(f"trials_per_gpu ({flags.trials_per_gpu}) shares one GPU; gpus_per_trial must be 1 then")
    if any(not 0 < multiple < math.inf for multiple in flags.frontier_budgets):
        raise UserError(f"frontier_budgets ({flags.frontier_budgets}) must be above 0 and finite, as multiples")
    for name, allowed in (("reference", PRESETS), ("scheduler", SCHEDULERS)):
        if getattr(flags, name) not in allowed:
            raise unknown_value(name, getattr(flags, name), allowed)


def _plan(flags: argparse.Namespace) -> Plan:
    """Raises UserError for any mistake in the command line, the space and the data."""
    _check(flags)
    space = load_space(flags.space, flags.base)
    layers = [("flag", read_flags(flags))]
    if flags.config:
        layers.insert(0, (flags.config, read_file(flags.config)))
    for layer, values in layers:
        if "preset" in values:
            raise UserError(f"preset ({values['preset']}) is for one run; a sweep varies around --base")
        for name in values:
            if name in space.levels:
                raise UserError(
                    f"{name} ({layer}) is an axis of space {space.name}: leave it out, or vary something else"
                )
    given = {name: value for _, values in layers for name, value in values.items()}
    if (flags.trials_per_gpu or 1) > 1 and given.get("micro_batch") == AUTO:
        raise UserError("micro_batch (auto) has a GPU to itself while it tries; with --trials_per_gpu give a number")

    def resolved(values: Mapping[str, Any], *without: str) -> TrainConfig:
        data = str(values.get("data", given.get("data", STDLIB)))
        kept = [(layer, {name: v for name, v in said.items() if name not in without}) for layer, said in layers]
        config, _ = resolve([*kept, ("space", values)], data_vocab_size=_vocab_size(data))
        config.check_ranks(
            space.workers(config.to_dict() | config.architecture.to_dict())
            or flags.gpus_per_trial
            or flags.workers_per_trial
            or 1
        )
        if "checkpoint_interval" not in given:  # a sweep keeps no checkpoints unless it is told to
            config = config.replace(checkpoint_interval=None)
        if config.init_from is not None and not Path(config.init_from).is_dir():
            raise UserError(f"init_from ({config.init_from}) is no folder")
        # Trials may run in another working directory.
        paths = {name: getattr(config, name) for name in ("data", "init_from")}
        return config.replace(**{n: str(Path(p).absolute()) for n, p in paths.items() if p not in (None, STDLIB)})

    first = {"preset": space.base} if PRESETS[space.base] else space.points()[0].values
    base = resolved(first, "rungs")  # which are checked against the budget that it gives
    budget = base.train_flops if any(given.get(name) is not None for name in ("max_iters", "tokens")) else base.flops
    assert budget is not None
    rungs = read_value("rungs", given.get("rungs", ()))
    if flags.scheduler == "halving" and not rungs:
        rungs = tuple(budget / flags.factor**k for k in (2, 1))

    def resolve_trial(values: Mapping[str, Any]) -> TrainConfig:
        config = resolved(values, "rungs")
        return config.replace(max_iters=None, tokens=None, flops=float(budget), rungs=rungs)

    return make_plan(
        space,
        expand(space, resolve_trial),
        budget_flops=round(budget),
        scale=base.scale,
        seeds=flags.seeds,
        max_trials=flags.max_trials,
        base=resolve_trial(first),
        request=_request(flags),
        design=flags.design,
        trials=flags.trials,
        interactions=flags.interactions,
        reference=flags.reference,
        halving=Halving(flags.factor, rungs, base.rung_decay) if flags.scheduler == "halving" else None,
        frontier=flags.frontier_budgets,
        measured=functools.partial(measured_rate, now=flags.measure),
    )


_vocab_size = functools.cache(lambda data: open_dataset(data).vocab_size)

if __name__ == "__main__":
    code = main()
    gc.freeze()  # else Python, as it ends, looks through all that Ray, torch and MLflow have made: for two seconds
    raise SystemExit(code)
