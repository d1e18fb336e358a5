"""Seconds to the first compiled step of an architecture, model and imports aside: never seen, and seen before.

python benchmarks/compile.py [--models gpt2 llama] [--smoke]

cold          a fresh process, empty caches on disk
other         then, in that process, another architecture (another norm): what one more costs a lane
warm          a fresh process, the caches of the first
again         a second model in that process after torch._dynamo.reset(), as a lane does between trials
kept          a third, without the reset
evaluation    the first evaluation after it, in the cold process
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import step as steps
import torch

ROWS = ("cold", "evaluation", "other", "warm", "again", "kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gpt2", "llama"], choices=steps.MODELS)
    parser.add_argument("--smoke", action="store_true", help="a toy size")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.case:
        return child(json.loads(flags.case))
    steps.heading()
    print("model " + "".join(f"{row:>12}" for row in ROWS) + "   graphs   cache hits, misses (warm)")
    for name in flags.models:
        case = steps.case_of(name, flags.smoke, n_layer=2 if flags.smoke else 12) | {"repeats": 1, "smoke": False}
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (run(case | {"only": only}, cache) for only in ("cold", "warm"))
        found = cold | warm
        seconds = "".join(f"{found[row]:10.2f} s" if row in found else f"{'failed':>12}" for row in ROWS)
        hits = f"{warm.get('hits')}, {warm.get('misses')}"
        print(f"{name:6}{seconds}   {cold.get('graphs')}        {hits}", flush=True)


def run(case: dict[str, Any], cache: str) -> dict[str, Any]:
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        print(done.stderr[-2500:], file=sys.stderr)
        return {}


def child(case: dict[str, Any]) -> None:
    """Prints the rows of one process."""
    from torch._dynamo.utils import counters

    torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {}
    if case["only"] == "cold":
        found["cold"], evaluate = first_step(case)
        found["graphs"] = counters["stats"]["unique_graphs"]
        found["evaluation"] = seconds(evaluate)
        torch._dynamo.reset()
        norm = "rmsnorm" if case["arch"]["normalization"] != "rmsnorm" else "layernorm"
        found["other"], _ = first_step(case | {"arch": case["arch"] | {"normalization": norm}})
    else:
        found["warm"], _ = first_step(case)
        found["hits"] = counters["aot_autograd"]["autograd_cache_hit"]
        found["misses"] = counters["aot_autograd"]["autograd_cache_miss"]
        torch._dynamo.reset()
        found["again"], _ = first_step(case)
        found["kept"], _ = first_step(case)
    print(json.dumps(found))


def first_step(case: dict[str, Any]) -> tuple[float, Any]:
    """Seconds of a new model's first step, and its evaluation."""
    _, step, evaluate = steps.make_step(case)
    return seconds(step), evaluate


def seconds(work: Any) -> float:
    steps.sync()
    clock = time.perf_counter()
    work()
    steps.sync()
    return time.perf_counter() - clock


if __name__ == "__main__":
    main()
