"""What reports, gradient statistics and evaluation add to a run, at their default intervals.

    python benchmarks/monitor.py [--scale 124m] [--steps 200] [--batch 65536] [--repeats 2] [--smoke]

The same run with them and without, in turn: milliseconds a step, from the report of the last step that warms up to that
of the last of all, so start-up and compilation are in neither. Evaluations are counted apart: one, in seconds, and the
five of a run of the scale's own budget, over the rest of it. Reports are read from the device and given to nobody.
"""

import argparse
import statistics
import time
from typing import Any

import step as steps

from raytrain.config.resolve import resolve
from raytrain.training.loop import train

BARE = {"log_interval": 10**9, "stats_interval": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="124m")
    parser.add_argument("--preset", default="llama")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=65536, help="tokens a step")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    flags = parser.parse_args()
    if flags.smoke:
        flags.scale, flags.steps, flags.batch, flags.repeats = "tiny", 20, 1024, 1
    steps.heading()
    print(f"{flags.preset} at {flags.scale}, {flags.steps} steps of {flags.batch:,} tokens")
    recipe, _ = resolve([("benchmark", {"preset": flags.preset, "scale": flags.scale})], data_vocab_size=256)
    budget = recipe.total_sequences * recipe.architecture.block_size / flags.batch  # in steps of this benchmark
    print("     without  reports, statistics     added   evaluation   five, of the budget")
    for _ in range(flags.repeats):
        bare, _ = run(flags, BARE | {"eval_interval": flags.steps})
        usual, evaluation = run(flags, {})
        print(
            f"{bare:9.2f} ms {usual:18.2f} ms {usual / bare - 1:9.2%} {evaluation:10.3f} s "
            f"{5000 * evaluation / bare / budget:21.2%}",
            flush=True,
        )


def run(flags: argparse.Namespace, changes: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds a step between the two reports, and the median of the evaluations' seconds."""
    values = {"preset": flags.preset, "scale": flags.scale, "max_iters": flags.steps, "global_batch": flags.batch}
    config, _ = resolve([("benchmark", values | {"checkpoint_interval": "none"} | changes)], data_vocab_size=256)
    reported: dict[int, float] = {}
    evaluations: list[float] = []

    def on_report(report: dict[str, Any]) -> bool:
        now = time.perf_counter()
        if report["event"] == "step":
            reported[report["step"]] = now
        if report["event"] == "eval":
            evaluations.append(now - reported[report["step"]])
        return False

    train(config, on_report)
    steps.torch._dynamo.reset()
    first = 2 if 2 in reported else 1  # two steps warm up where there are CUDA graphs
    seconds = reported[flags.steps] - reported[first] - sum(evaluations[:-1])
    return 1000 * seconds / (flags.steps - first), statistics.median(evaluations)


if __name__ == "__main__":
    main()
