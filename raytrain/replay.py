"""`python -m raytrain.replay TABLE --design ... --scheduler ...`: the winner of another design, and its cost.

TABLE is a Parquet file, or a study: its name under --runs, or its folder. `--export STUDY TABLE` writes the file.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from raytrain.analysis.replay import SCHEDULERS, read_record, replay
from raytrain.analysis.trials import export
from raytrain.errors import Parser, command, unknown_value
from raytrain.rundir.folders import find_study, in_runs
from raytrain.sweep.design import DESIGNS


@command
def main(argv: list[str] | None = None) -> None:
    """Replay a finished study under another design or scheduler."""
    parser = Parser("python -m raytrain.replay", __doc__)
    parser.add_argument("table", help="Parquet table of a finished study, a row for each trial and rung; or the study")
    parser.add_argument("--export", metavar="STUDY", help="write TABLE from this study, and no more")
    parser.add_argument("--design", default="full", help=f"{', '.join(DESIGNS)} [full]")
    parser.add_argument("--trials", type=int, help="runs in all, for random and d_optimal")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each point [1]")
    parser.add_argument(
        "--interactions", action=argparse.BooleanOptionalAction, default=True, help="estimate them [yes]"
    )
    parser.add_argument(
        "--base", type=int, default=0, help="number of the baseline among the table's points [0, the first]"
    )
    parser.add_argument("--scheduler", default="none", help=f"{', '.join(SCHEDULERS)} [none]")
    parser.add_argument(
        "--factor", type=int, default=4, help="halving: one trial in this many is promoted at a rung [4]"
    )
    parser.add_argument("--replays", type=int, default=1000, help="[1000]")
    parser.add_argument("--seed", type=int, default=0, help="seeds the designs and the draws [0]")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--runs", default="runs", help="where studies are kept [runs]")
    flags = vars(parser.parse_args(argv))
    table, as_json, study, runs = (flags.pop(name) for name in ("table", "json", "export", "runs"))
    if study is not None:
        export(find_study(study, Path(runs), "export"), table)
        print(table)
        return
    if flags["scheduler"] not in SCHEDULERS:
        raise unknown_value("scheduler", flags["scheduler"], SCHEDULERS)
    outcome = dataclasses.asdict(replay(read_record(in_runs(table, Path(runs))), **flags))
    if as_json:
        print(json.dumps(outcome))
        return
    for name, value in outcome.items():
        print(f"{name:24}{_text(name, value)}")


def _text(name: str, value: str | float | None) -> str:
    if value is None:
        return "not estimable"
    if name.startswith("coverage"):
        return f"{100 * float(value):.1f}%"
    if name.startswith(("regret", "half_width")):
        return f"{1000 * float(value):.3f} mnats"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
