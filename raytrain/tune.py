"""`python -m raytrain.tune`: a sweep over a search space, on this machine or on the cluster of RAY_ADDRESS or a job."""

import argparse
import gc
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytrain.config.flags import BUDGET, FIRST, RESULTS, RUNS_ON, add_field, add_flags, command_parser, group
from raytrain.config.predecessor import hint_for_argument
from raytrain.config.resolve import read_flags
from raytrain.engine.limit import read_time_limit
from raytrain.errors import UserError, command
from raytrain.interrupts import held
from raytrain.plugins.loader import load_named
from raytrain.rundir.folders import check_name, find_study
from raytrain.sweep.design import DESIGNS
from raytrain.sweep.plan import Plan
from raytrain.sweep.planning import OPTIONS, SCHEDULERS, plan
from raytrain.uris import shown_command

_FIRST = ("flops", "scale", "data")  # fields of a run among the ten that help begins with
_EXAMPLES = """
python -m raytrain.tune                                                        # a first answer, in minutes
python -m raytrain.tune --space one_factor --base llama --seeds 3 --plan
python -m raytrain.tune --space full --design d_optimal --trials 128 --plan
python -m raytrain.tune --space full --scale 124m --plan --on 8xH100 --price 3
"""


@command
def main(argv: list[str] | None = None) -> int | None:
    """Plan, run or resume a sweep."""
    if plugins := load_named(argv):
        from raytrain.training.plugin_check import check  # torch takes seconds to import

        for plugin in plugins:
            check(plugin)
    flags = _parser().parse_args(argv)
    time_limit = read_time_limit(flags.time_limit)
    if (name := flags.resume or flags.follow_up) is not None:
        _check_resume(flags)
        with held():
            from raytrain.engine.place import home
            from raytrain.engine.stages import plan_follow_up  # Ray takes seconds to import
            from raytrain.engine.study import resume_study

        if flags.plan:
            print(plan_follow_up(find_study(name, home(Path(flags.runs)), "follow_up")))
            return 0
        return resume_study(
            name,
            follow_up=flags.follow_up is not None,
            runs=Path(flags.runs),
            tracking_uri=flags.tracking_uri,
            storage=flags.storage,
            data=flags.data,
            concurrent=flags.concurrent,
            time_limit=time_limit,
            as_json=flags.json,
        )
    if flags.name is not None:
        check_name(flags.name)
    if flags.on is not None and not flags.plan:
        raise UserError(f"on ({flags.on}) goes with --plan: a sweep runs on this machine or the cluster that it is in")
    planned = _plan(flags)
    if flags.plan:
        print(json.dumps(planned.to_dict() | {"functions": planned.variants}) if flags.json else planned)
        return 0
    with held():
        from raytrain.engine.study import run_study  # a plan must not wait for it

    return run_study(
        planned,
        runs=Path(flags.runs),
        name=flags.name,
        tracking_uri=flags.tracking_uri,
        storage=flags.storage,
        keep_models=flags.keep_models,
        experiment=flags.experiment,
        time_limit=time_limit,
        command=shlex.join(["python", "-m", "raytrain.tune", *shown_command(sys.argv[1:] if argv is None else argv)]),
        as_json=flags.json,
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "tune",
        "A sweep over a search space, on this machine or on the Ray cluster of RAY_ADDRESS or of a job.",
        "[--space SPACE] [--flops F] [--seeds N] [options]",
        _EXAMPLES,
        lambda argument: hint_for_argument(argument).replace("--preset", "--base"),
    )
    _add_first(group(parser, FIRST).add_argument)
    _add_sweep(group(parser, "sweep").add_argument)
    _add_design(group(parser, "design: which runs, and what they can tell").add_argument)
    add_flags(parser, besides=_FIRST)
    group(parser, BUDGET).add_argument(
        "--tokens_per_parameter",
        type=float,
        metavar="N",
        help="training tokens for each parameter of the base [20 with --ladder; else the scale's FLOPs]",
    )
    group(parser, BUDGET).add_argument(
        "--time_limit",
        metavar="TIME",
        help="end the study in good order after so long, as 90m or 4h (or seconds), with a report on what there is; "
        "--resume goes on [none]",
    )
    _add_places(group(parser, RUNS_ON).add_argument)
    _add_results(group(parser, RESULTS).add_argument)
    return parser


def _add_first(add: Callable[..., Any]) -> None:
    add(
        "--space",
        default="quickstart",
        help="quickstart, presets, one_factor, full, modern, or a YAML file [quickstart]",
    )
    add("--base", metavar="PRESET", help="preset that the space varies around [the space's own]")
    add_field(add, "flops")
    add(
        "--seeds",
        type=int,
        metavar="N",
        help="trials of each variant, from --seed upwards; of the base 3 or more under --design [the space's, or 1]",
    )
    add_field(add, "scale")
    add_field(add, "data")
    add(
        "--tune",
        type=_field_levels,
        action="append",
        default=[],
        metavar="FIELD=LEVELS",
        help="run every variant at these levels of learning_rate, weight_decay or warmup_fraction, and judge each at "
        "its own best, as learning_rate=3e-4,1e-3,3e-3 [the space's, or none]",
    )
    add("--plan", action="store_true", help="print what would run, and start nothing")
    add("--name", help="the study's folder under --runs [the space and the time]")
    add(
        "--resume",
        metavar="NAME",
        help="continue the study of this name under --runs, or in this folder, after an interruption",
    )


def _add_sweep(add: Callable[..., Any]) -> None:
    add("--max_trials", type=int, metavar="N", help="train a fixed random part of the space, the base first")
    add(
        "--tune_extend",
        action="store_true",
        help="run variants that are best at the last learning rate tried at one more, up to twice",
    )
    add(
        "--confirm",
        type=int,
        metavar="K",
        help="once all trials have ended run leader, runner-up and baseline with K fresh seeds; 0: no "
        "[3 with a --design without replicates, else 0]",
    )
    add(
        "--follow_up",
        metavar="NAME",
        help="in the study of this name, which is over, run what settles whether the three axes that its answer "
        "suspects act together",
    )
    add(
        "--frontier_budgets",
        type=_numbers,
        default=(),
        metavar="M,M",
        help="run the base at these multiples of the budget too, for compute gains [none]",
    )
    add(
        "--ladder",
        default=(),
        metavar="SCALE,SCALE",
        help="run every variant at these scales, each with its own budget, for gains by size [the space's, or none]",
    )
    add("--project_to", metavar="SCALE", help="the scale that a ladder's gains are projected to [the largest]")
    add(
        "--scheduler",
        default="none",
        metavar="NAME",
        help=f"{', '.join(SCHEDULERS)}: whether trials stop at rungs [none]",
    )
    add("--factor", type=int, default=4, metavar="N", help="halving: one in N trials continues after a rung [4]")


def _add_design(add: Callable[..., Any]) -> None:
    add("--design", metavar="NAME", help=f"which points to run: {', '.join(DESIGNS)} [every one, or --max_trials]")
    add("--trials", type=int, metavar="N", help="runs in all, for the designs random and d_optimal")
    add(
        "--interactions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether d_optimal estimates pairwise interactions too [yes]",
    )
    add(
        "--reference",
        default="gpt2",
        metavar="PRESET",
        help="preset that leave_one_out puts each choice back to [gpt2]",
    )
    add(
        "--independent_seeds",
        action="store_true",
        help="give each variant seeds of its own, instead of the same ones to all",
    )


def _add_places(add: Callable[..., Any]) -> None:
    add("--gpus_per_trial", type=int, metavar="N", help="GPUs of each trial; 0 trains on CPUs [1 where there are GPUs]")
    add("--workers_per_trial", type=int, metavar="N", help="ranks of each trial on CPUs [1; on GPUs, one a GPU]")
    add("--trials_per_gpu", type=int, metavar="N", help="small trials that share a GPU [1]")
    add("--concurrent", type=int, metavar="N", help="most trials at a time [as many as fit]")
    add(
        "--compile_ahead",
        type=int,
        metavar="N",
        help="processes of each node that compile trials before they come [as many as cores are idle beside lanes of "
        "GPUs, else 0]",
    )
    add(
        "--storage",
        metavar="URI",
        help="folder or URI (s3://...) for checkpoints, which all nodes reach [the study's folder]",
    )
    add("--on", metavar="NxDEVICE", help="plan for 16xB200, 8xH100, 64xcpu [this machine]")
    add("--price", type=float, metavar="X", help="of an hour of one device, for the plan [none]")
    add("--measure", action="store_true", help="time a few steps for the plan's estimate")


def _add_results(add: Callable[..., Any]) -> None:
    add(
        "--runs",
        default="runs",
        metavar="FOLDER",
        help="where studies are kept; in a Ray job, from the home folder of the head node [runs]",
    )
    add(
        "--keep_models",
        default="best",
        metavar="WHICH",
        help="final weights to keep: none, best (of rank 1 and the baseline) or all, for raytrain.generate and "
        "raytrain.export [best]",
    )
    add("--experiment", metavar="NAME", help="MLflow's, for studies of one question [the space's name]")
    add("--tracking_uri", metavar="URI", help="MLflow's [$MLFLOW_TRACKING_URI, or mlflow.db under --runs]")
    add("--json", action="store_true", help="print one JSON object on stdout, all else on stderr")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas between, such as 0.25,4") from None


def _field_levels(text: str) -> tuple[str, list[str]]:
    field, sign, levels = text.partition("=")
    if not sign or not field or not levels:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a field and its levels, such as learning_rate=3e-4,1e-3,3e-3"
        )
    return field, levels.split(",")


def _check_resume(flags: argparse.Namespace) -> None:
    """A resumed study keeps its plan, so flags that plan one have no meaning. Raises UserError for those."""
    usual, how = vars(_parser().parse_args([])), "resume" if flags.resume is not None else "follow_up"
    allowed = [how, "runs", "tracking_uri", "storage", "data", "concurrent", "time_limit", "json", "plugin"]
    allowed += ["plan"] if how == "follow_up" else []
    for name, value in vars(flags).items():
        if name not in allowed and value != usual[name]:
            raise UserError(
                f"{name} ({value}) cannot be combined with --{how}, which continues as planned; allowed: "
                f"{', '.join(allowed[1:])}"
            )


def _plan(flags: argparse.Namespace) -> Plan:
    """The plan that the flags ask for: those of a run by their fields' names, the others by their options'."""
    options = {name: value for name, value in vars(flags).items() if name in OPTIONS} | {"tune": dict(flags.tune)}
    return plan(flags.space, **options, **read_flags(flags))


if __name__ == "__main__":
    code = main()
    gc.freeze()  # else Python, as it ends, looks through all that Ray, torch and MLflow have made: for two seconds
    raise SystemExit(code)
