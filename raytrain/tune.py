"""`python -m raytrain.tune`: a sweep over a search space, on this machine or on the cluster of RAY_ADDRESS or a job."""

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytrain.architecture import PRESETS
from raytrain.data import open_dataset
from raytrain.data.corpora import STDLIB
from raytrain.design import DESIGNS
from raytrain.errors import Parser, UserError, command, unknown_value
from raytrain.plan import Plan, make_plan
from raytrain.space import expand, load_space
from raytrain.training import config as configs
from raytrain.training.config import TrainConfig


@command
def main(argv: list[str] | None = None) -> int | None:
    flags = _parser().parse_args(argv)
    plan = _plan(flags)
    if flags.plan:
        print(json.dumps(plan.to_dict()) if flags.json else plan)
        return 0
    from raytrain.engine.study import run_study  # Ray takes seconds to import, and a plan must not wait for them

    try:
        return run_study(
            plan,
            runs=Path(flags.runs),
            name=flags.name,
            tracking_uri=flags.tracking_uri,
            gpus_per_trial=flags.gpus_per_trial,
            workers_per_trial=flags.workers_per_trial,
            concurrent=flags.concurrent,
            storage=flags.storage,
            command=shlex.join(["python", "-m", "raytrain.tune", *(sys.argv[1:] if argv is None else argv)]),
            as_json=flags.json,
        )
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m raytrain.tune", __doc__)
    sweep = parser.add_argument_group("sweep")
    sweep.add_argument("--space", default="presets", help="presets, one_factor, full, or a YAML file [presets]")
    sweep.add_argument("--base", help="preset that the space varies around [the space's own]")
    sweep.add_argument("--max_trials", type=int, help="train a fixed random part of the space, the base first")
    sweep.add_argument("--seeds", type=int, default=1, help="trials of each function, from --seed upwards [1]")
    sweep.add_argument("--design", help=f"which points to run: {', '.join(DESIGNS)} [every one, or --max_trials]")
    sweep.add_argument("--reference", default="gpt2", help="preset that leave_one_out puts each choice back to [gpt2]")
    sweep.add_argument("--trials", type=int, help="runs in all, for the designs random and d_optimal")
    sweep.add_argument(
        "--interactions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether d_optimal estimates pairwise interactions too [yes]",
    )
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
    sweep.add_argument("--concurrent", type=int, help="most trials at a time [as many as fit]")
    configs.add_flags(parser)
    return parser


def _plan(flags: argparse.Namespace) -> Plan:
    """Raises UserError for any mistake in the command line, the space and the data."""
    for name, least in (
        ("max_trials", 1),
        ("trials", 1),
        ("seeds", 1),
        ("gpus_per_trial", 0),
        ("workers_per_trial", 1),
        ("concurrent", 1),
    ):
        value = getattr(flags, name)
        if value is not None and value < least:
            raise UserError(f"{name} ({value}) must be {least} or more")
    if flags.trials is not None and flags.design is None:
        raise UserError(
            f"trials ({flags.trials}) goes with --design random or d_optimal; --max_trials cuts a sweep short"
        )
    if flags.max_trials is not None and flags.design is not None:
        raise UserError(
            f"max_trials ({flags.max_trials}) would spoil design {flags.design}; say how many with --trials"
        )
    if flags.reference not in PRESETS:
        raise unknown_value("reference", flags.reference, PRESETS)
    space = load_space(flags.space, flags.base)
    layers = [("flag", configs.read_flags(flags))]
    if flags.config:
        layers.insert(0, (flags.config, configs.read_file(flags.config)))
    for layer, values in layers:
        if "preset" in values:
            raise UserError(f"preset ({values['preset']}) is for one run; a sweep varies around --base")
        for name in values:
            if name in space.levels:
                raise UserError(
                    f"{name} ({layer}) is an axis of space {space.name}: leave it out, or vary something else"
                )
    given = {name: value for _, values in layers for name, value in values.items()}

    def resolve(values: Mapping[str, Any]) -> TrainConfig:
        data = str(values.get("data", given.get("data", STDLIB)))
        config, _ = configs.resolve([*layers, ("space", values)], data_vocab_size=_vocab_size(data))
        config.check_ranks(flags.gpus_per_trial or flags.workers_per_trial or 1)
        if "checkpoint_interval" not in given:  # a sweep keeps no checkpoints unless it is told to
            config = config.replace(checkpoint_interval=None)
        if config.init_from is not None and not Path(config.init_from).is_dir():
            raise UserError(f"init_from ({config.init_from}) is no folder")
        # Trials may run in another working directory.
        paths = {name: getattr(config, name) for name in ("data", "init_from")}
        return config.replace(**{n: str(Path(p).absolute()) for n, p in paths.items() if p not in (None, STDLIB)})

    base = resolve({"preset": space.base} if PRESETS[space.base] else space.points()[0].values)
    budget = base.train_flops if any(given.get(name) is not None for name in ("max_iters", "tokens")) else base.flops
    assert budget is not None

    def resolve_trial(values: Mapping[str, Any]) -> TrainConfig:
        return resolve(values).replace(max_iters=None, tokens=None, flops=float(budget))

    return make_plan(
        space,
        expand(space, resolve_trial),
        budget_flops=round(budget),
        scale=base.scale,
        seeds=flags.seeds,
        max_trials=flags.max_trials,
        base=resolve_trial({"preset": space.base} if PRESETS[space.base] else space.points()[0].values),
        gpus_per_trial=flags.gpus_per_trial,
        concurrent=flags.concurrent,
        design=flags.design,
        trials=flags.trials,
        interactions=flags.interactions,
        reference=flags.reference,
    )


_vocab_size = functools.cache(lambda data: open_dataset(data).vocab_size)

if __name__ == "__main__":
    raise SystemExit(main())
