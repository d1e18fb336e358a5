"""How long the training loop waits for its data, when the device would take so many tokens a second.

    python benchmarks/loader.py [--speeds 600000 1200000] [--micro_batch 64] [--block_size 1024]

A consumer that computes nothing takes each micro-batch, then waits as long as a device of that speed would train on it.
"waits" is the part of the step in which the next micro-batch was not there; "alone" is the speed of a consumer that
never waits itself. Both count the copy to the device, where there is one.
"""

import argparse
import os
import time

import step as steps
import torch

from raytrain.data import Loader, open_dataset
from raytrain.training.batches import Batches
from raytrain.training.parallel import World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeds", nargs="+", type=float, default=[600_000, 1_200_000], help="tokens/s")
    parser.add_argument("--micro_batch", type=int, default=64)
    parser.add_argument("--block_size", type=int, default=1024)
    parser.add_argument("--micro_batches", type=int, default=100)
    flags = parser.parse_args()
    steps.heading()
    print(f"{os.cpu_count()} cores; micro-batches of {flags.micro_batch} x {flags.block_size}\n")
    print("device, tokens/s   waits, of the step   longest wait, ms")
    for speed in flags.speeds:
        seconds = flags.micro_batch * flags.block_size / speed
        waits = consume(flags, seconds)
        print(f"{speed:16,.0f} {sum(waits) / (sum(waits) + len(waits) * seconds):20.2%} {1000 * max(waits):18.1f}")
    waits = consume(flags, 0.0)
    print(f"{'alone':>16} {flags.micro_batch * flags.block_size * len(waits) / sum(waits):20,.0f} tokens/s")


def consume(flags: argparse.Namespace, seconds: float) -> list[float]:
    """The seconds that each micro-batch was waited for, by a consumer that is busy for `seconds` with each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = Loader(open_dataset("stdlib").train, flags.block_size, 1337, 256)
    batches = Batches(loader, flags.micro_batch, World(0, 1, device, "single", torch.bfloat16))
    stream = batches.stream((step * flags.micro_batch, flags.micro_batch) for step in range(flags.micro_batches + 3))
    waits = []
    for _ in range(flags.micro_batches + 3):
        clock = time.perf_counter()
        next(stream)
        steps.sync()
        waits.append(time.perf_counter() - clock)
        time.sleep(seconds)
    return waits[3:]  # the first ones are read while nothing else happens


if __name__ == "__main__":
    main()
