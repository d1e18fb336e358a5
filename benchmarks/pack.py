"""Small trials: steps/s of one, uncompiled, compiled and with CUDA graphs; and of several on one GPU at once.

    python benchmarks/pack.py [--scale tiny] [--batch TOKENS] [--steps 2000] [--together 1 2 4 8] [--smoke]

Every trial is `raytrain.train` in a process of its own. Its speed leaves out its first step, evaluation and start-up.
"together" is the sum of the speeds of so many at once, over that of one alone. CUDA graphs are used whatever the size,
so at larger scales "compiled" and "with CUDA graphs" show where they cease to pay.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import step as steps

# By name: whether it compiles, and the most FLOPs of a micro-batch for which it uses CUDA graphs.
WAYS = {"uncompiled": (False, "0"), "compiled": (True, "0"), "with CUDA graphs": (True, "math.inf")}
START = (
    "import math, sys; from raytrain import train; from raytrain.training import graphs; "
    "graphs.MOST_FLOPS = {}; sys.exit(train.main())"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--preset", default="llama")
    parser.add_argument("--batch", type=int, help="tokens a step, in place of the scale's own")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--together", nargs="*", type=int, default=[2, 4, 8])
    parser.add_argument("--smoke", action="store_true", help="a few steps, not compiled")
    flags = parser.parse_args()
    if flags.smoke:
        flags.steps, flags.ways, flags.together = 20, ["uncompiled"], [2]
    steps.heading()
    print(f"{flags.preset} at {flags.scale}             at once   steps/s of each   of all   ratio   loss")
    alone = base = None  # steps/s of the last that ran alone; what a ratio is over
    rows = [(way, 1) for way in flags.ways] + [(flags.ways[-1], count) for count in flags.together]
    for way, count in rows:
        found = run(flags, way, count)
        if not found:
            print(f"{way:30} {count:7}   failed", flush=True)
            continue
        total = sum(1 / result["step_seconds"] for result in found)
        if count == 1:
            alone = total
        base = alone if count > 1 else base or total
        speeds = f"{total / count:17.1f} {total:8.1f} {total / (base or total):7.2f}"
        print(f"{way:30} {count:7} {speeds}   {found[0]['train_loss']:.4f}", flush=True)


def run(flags: argparse.Namespace, way: str, count: int) -> list[dict]:
    """The results of `count` runs at once; none if one failed."""
    compiled, most = WAYS[way]
    settings = {"preset": flags.preset, "scale": flags.scale, "compile": compiled, "max_iters": flags.steps}
    settings |= {"log_interval": 100_000, "stats_interval": 0, "eval_interval": flags.steps, "eval_tokens": 1024}
    settings |= {"checkpoint_interval": "none"} | ({"global_batch": flags.batch} if flags.batch else {})
    command = [sys.executable, "-c", START.format(most)]
    command += [f"--{field}={value}" for field, value in settings.items()]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        running = [
            subprocess.Popen(
                [*command, "--runs", folder, "--name", f"run{index}"],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(count)
        ]
        for process in running:
            _, words = process.communicate()
            if process.returncode:
                print(words[-2000:], file=sys.stderr)
        files = [Path(folder) / f"run{index}" / "result.json" for index in range(count)]
        return [json.loads(file.read_text()) for file in files] if all(file.exists() for file in files) else []


if __name__ == "__main__":
    main()
