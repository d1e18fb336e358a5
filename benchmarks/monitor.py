"""What logging, gradient statistics and evaluation add to a run, at their default intervals.

    python benchmarks/monitor.py [--scale 124m] [--steps 600] [--batch 65536] [--repeats 2] [--smoke]

The same run with them and without, in turn: milliseconds a step, from the report of the last step that warms up to that
of the last of all, so start-up, compilation and the last evaluation are in neither. "added" is over the run without.
"""

import argparse
import time
from typing import Any

import step as steps

from raytrain.training import config as configs
from raytrain.training.loop import train

BARE = {"log_interval": 10**9, "stats_interval": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="124m")
    parser.add_argument("--preset", default="llama")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=65536, help="tokens a step")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    flags = parser.parse_args()
    if flags.smoke:
        flags.scale, flags.steps, flags.batch, flags.repeats = "tiny", 20, 1024, 1
    steps.heading()
    print(f"{flags.preset} at {flags.scale}, {flags.steps} steps of {flags.batch:,} tokens")
    print("     without  with all     added  by evaluations")
    for _ in range(flags.repeats):
        bare, _ = run(flags, BARE | {"eval_interval": flags.steps})
        usual, evaluation = run(flags, {})
        print(f"{bare:9.2f} ms {usual:6.2f} ms {usual / bare - 1:9.2%} {evaluation / bare:15.2%}", flush=True)


def run(flags: argparse.Namespace, changes: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds a step between the two reports, and those of the evaluations between them."""
    values = {"preset": flags.preset, "scale": flags.scale, "max_iters": flags.steps, "global_batch": flags.batch}
    config, _ = configs.resolve(
        [("benchmark", values | {"checkpoint_interval": "none"} | changes)], data_vocab_size=256
    )
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
    each = 1000 / (flags.steps - first)
    return each * (reported[flags.steps] - reported[first]), each * sum(evaluations[:-1])


if __name__ == "__main__":
    main()
