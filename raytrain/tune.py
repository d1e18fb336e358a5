"""`python -m raytrain.tune`: a sweep over a search space, on this machine or on the cluster of RAY_ADDRESS or a job."""

import argparse
import gc
import json
import shlex
import sys
from pathlib import Path

from raytrain.config.resolve import add_flags, read_flags
from raytrain.errors import Parser, UserError, command
from raytrain.interrupts import held
from raytrain.plugins.loader import load_named
from raytrain.rundir.folders import check_name, find_study
from raytrain.sweep.design import DESIGNS
from raytrain.sweep.plan import Plan
from raytrain.sweep.planning import OPTIONS, SCHEDULERS, plan
from raytrain.uris import shown_command


@command
def main(argv: list[str] | None = None) -> int | None:
    """Plan, run or resume a sweep."""
    if plugins := load_named(argv):
        from raytrain.training.plugin_check import check  # torch takes seconds to import

        for plugin in plugins:
            check(plugin)
    flags = _parser().parse_args(argv)
    if (name := flags.resume or flags.follow_up) is not None:
        _check_resume(flags)
        with held():
            from raytrain.engine.stages import plan_follow_up  # Ray takes seconds to import
            from raytrain.engine.study import home, resume_study

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
        command=shlex.join(["python", "-m", "raytrain.tune", *shown_command(sys.argv[1:] if argv is None else argv)]),
        as_json=flags.json,
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m raytrain.tune", __doc__)
    sweep = parser.add_argument_group("sweep")
    sweep.add_argument(
        "--space",
        default="quickstart",
        help="quickstart, presets, one_factor, full, modern, or a YAML file [quickstart]",
    )
    sweep.add_argument("--base", help="preset that the space varies around [the space's own]")
    sweep.add_argument("--max_trials", type=int, help="train a fixed random part of the space, the base first")
    sweep.add_argument(
        "--seeds",
        type=int,
        help="trials of each variant, from --seed upwards; of the base 3 or more under --design [the space's, or 1]",
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
    sweep.add_argument(
        "--factor", type=int, default=4, help="halving: one in so many trials continues after a rung [4]"
    )
    sweep.add_argument(
        "--frontier_budgets",
        type=_numbers,
        default=(),
        metavar="M,M",
        help="run the base at these multiples of the budget too, for compute gains [none]",
    )
    sweep.add_argument(
        "--independent_seeds",
        action="store_true",
        help="give each variant seeds of its own, instead of the same ones to all",
    )
    sweep.add_argument(
        "--confirm",
        type=int,
        metavar="K",
        help="once all trials have ended run leader, runner-up and baseline with K fresh seeds; 0: no "
        "[3 with a --design without replicates, else 0]",
    )
    sweep.add_argument(
        "--tune",
        type=_field_levels,
        action="append",
        default=[],
        metavar="FIELD=LEVELS",
        help="run every variant at these levels of learning_rate, weight_decay or warmup_fraction, and judge each at "
        "its own best, as learning_rate=3e-4,1e-3,3e-3 [the space's, or none]",
    )
    sweep.add_argument(
        "--tune_extend",
        action="store_true",
        help="run variants that are best at the last learning rate tried at one more, up to twice",
    )
    sweep.add_argument(
        "--ladder",
        default=(),
        metavar="SCALE,SCALE",
        help="run every variant at these scales, each with its own budget, for gains by size [the space's, or none]",
    )
    sweep.add_argument(
        "--tokens_per_parameter",
        type=float,
        metavar="N",
        help="the budget, as training tokens for each parameter of the base [20 with --ladder; else the scale's FLOPs]",
    )
    sweep.add_argument(
        "--project_to", metavar="SCALE", help="the scale that a ladder's gains are projected to [the largest]"
    )
    sweep.add_argument("--measure", action="store_true", help="time a few steps for the plan's estimate")
    sweep.add_argument(
        "--resume",
        metavar="NAME",
        help="continue the study of this name under --runs, or in this folder, after an interruption",
    )
    sweep.add_argument(
        "--follow_up",
        metavar="NAME",
        help="in the study of this name, which is over, run what settles whether the three axes that its answer "
        "suspects act together",
    )
    sweep.add_argument("--plan", action="store_true", help="print what would run, and start nothing")
    sweep.add_argument("--on", metavar="NxDEVICE", help="plan for 16xB200, 8xH100, 64xcpu [this machine]")
    sweep.add_argument("--price", type=float, help="of an hour of one device, for the plan [none]")
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
    sweep.add_argument(
        "--keep_models",
        default="best",
        help="final weights to keep: none, best (of rank 1 and the baseline) or all, for raytrain.generate and "
        "raytrain.export [best]",
    )
    sweep.add_argument("--experiment", help="MLflow's, for studies of one question [the space's name]")
    sweep.add_argument("--tracking_uri", help="MLflow's [$MLFLOW_TRACKING_URI, or mlflow.db under --runs]")
    sweep.add_argument(
        "--gpus_per_trial", type=int, help="GPUs of each trial; 0 trains on CPUs [1 where there are GPUs]"
    )
    sweep.add_argument("--workers_per_trial", type=int, help="ranks of each trial on CPUs [1; on GPUs, one a GPU]")
    sweep.add_argument("--trials_per_gpu", type=int, help="small trials that share a GPU [1]")
    sweep.add_argument("--concurrent", type=int, help="most trials at a time [as many as fit]")
    sweep.add_argument(
        "--compile_ahead",
        type=int,
        help="processes of each node that compile trials before they come [as many as cores are idle beside lanes of "
        "GPUs, else 0]",
    )
    add_flags(parser)
    return parser


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
    allowed = [how, "runs", "tracking_uri", "storage", "data", "concurrent", "json", "plugin"]
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
