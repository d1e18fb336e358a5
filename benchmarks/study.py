"""Where the lane-seconds of a study went, from its own events.

    python benchmarks/study.py runs/NAME [--before runs/OTHER]
    python benchmarks/study.py --run first|second --runs RUNS --name NAME [--scale_down]

A row for each process that worked on the study: wall seconds and lane-seconds (wall x lanes), their shares, and the
seconds of "other" for a trial; below, the parts of it. With `--before`, the rows of another study above those of the
first, and by how many times its wall time is longer. `--run` makes one of the two studies that docs/benchmarks.md shows
on one GPU, and then prints the same; `--scale_down` makes it small enough to try on CPUs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from raytrain.engine.timing import LaneSeconds, by_driver
from raytrain.rundir.log import read_log

STUDIES = {
    "first": "--space full --design d_optimal --trials 128 --scale small --global_batch 32768 --flops 2.5e14 "
    "--trials_per_gpu 4 --confirm 0",
    "second": "--space {space} --scale tiny --flops 2.5e12 --seeds 12 --tune learning_rate=5e-4,1e-3,2e-3 "
    "--trials_per_gpu 8",
}
DOWN = {
    "first": "--trials 24 --interactions False --scale tiny --flops 2e10 --compile True --concurrent 1",
    "second": "--seeds 2 --flops 1e11 --concurrent 2",
}
SIXTEEN = """
base: llama
axes:
  normalization: [layernorm, rmsnorm]
  norm_position: [pre, post]
  ffn_type: [standard, swiglu]
  weight_tying: [false, true]
"""
HEAD = f"{'study':24}{'wall':>9}{'lane-seconds':>14}{'start':>8}{'first steps':>13}{'steady':>8}{'evaluation':>12}"
HEAD += f"{'other':>8}{'s a trial':>11}"


def row(name: str, spent: LaneSeconds) -> str:
    """The issue's columns for one process."""
    start, first, steady, evaluation, other = (f"{seconds / spent.total:.1%}" for seconds in spent.parts().values())
    return (
        f"{name:24}{spent.wall:7.1f} s{spent.total:14,.1f}{start:>8}{first:>13}{steady:>8}{evaluation:>12}"
        f"{other:>8}{spent.other / spent.segments:11.2f}"
    )


def details(spent: LaneSeconds) -> str:
    """The seconds of one segment, by what they were spent on."""
    parts = {"first steps": spent.first_steps, "steady": spent.steady, "evaluation": spent.evaluation}
    parts |= {"set-up": spent.set_up, "checkpoints": spent.checkpoints}
    parts["engine and idle"] = spent.other - spent.set_up - spent.checkpoints
    words = ", ".join(f"{name} {seconds / spent.segments:.2f}" for name, seconds in parts.items())
    return f"  {spent.segments} segments on {spent.lanes} lanes; seconds of each: {words}"


def show(folder: Path) -> float:
    """Prints the rows of the study in `folder`; returns its wall seconds, over all processes."""
    found = [spent for spent in by_driver(read_log(folder / "events.jsonl")) if spent is not None]
    if not found:
        sys.exit(f"{folder}: no process of this study wrote down where its time went")
    for spent in found:
        print(row(folder.name, spent), details(spent), sep="\n")
    return sum(spent.wall for spent in found)


def run(which: str, runs: str, name: str, *, scale_down: bool) -> Path:
    """Make one of `STUDIES` in `runs`/`name`."""
    with tempfile.TemporaryDirectory(prefix="study-") as temporary:
        space = Path(temporary) / "sixteen.yaml"
        space.write_text(SIXTEEN, encoding="utf-8")
        flags = STUDIES[which].format(space=space) + (f" {DOWN[which]}" if scale_down else "")
        if scale_down:
            flags = flags.replace("--trials_per_gpu 4", "--device cpu").replace("--trials_per_gpu 8", "--device cpu")
        command = [sys.executable, "-m", "raytrain.tune", *flags.split(), "--runs", runs, "--name", name]
        print(*command[1:], flush=True)
        subprocess.run(command, check=False)
    return Path(runs) / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--run", choices=STUDIES)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--name", default="study")
    parser.add_argument("--scale_down", action="store_true")
    flags = parser.parse_args()
    if flags.run is None and flags.study is None:
        parser.error("give a study's folder, or --run")
    folder = run(flags.run, flags.runs, flags.name, scale_down=flags.scale_down) if flags.run else flags.study
    print(HEAD)
    before = show(flags.before) if flags.before else None
    after = show(folder)
    if before is not None:
        print(f"{before / after:.2f} times the wall time before")


if __name__ == "__main__":
    main()
