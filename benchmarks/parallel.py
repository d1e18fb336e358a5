"""Memory, tokens/s and MFU of each strategy, and the scaling from one GPU to several, at a fixed batch a GPU.

    python benchmarks/parallel.py [--gpus 2] [--scales 124m 1.3b] [--steps 20]

Every row is a run of its own, under torchrun as a user starts it: `llama` at the named scale, compiled, bf16. "gain" is
tokens/s over those of one GPU, on the same number of tokens a GPU and step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

# Sequences a GPU and step, and of those in a micro-batch.
BATCH = {"124m": (64, 32), "1.3b": (32, 8)}
ROWS = ("single", "ddp", "zero1", "fsdp", "fsdp + recomputation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--scales", nargs="+", default=list(BATCH))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--factor", type=int, default=1, help="times as many sequences a GPU and step")
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    flags = parser.parse_args()
    print(f"{flags.gpus} x {torch.cuda.get_device_name()}, torch {torch.__version__}, python {sys.version.split()[0]}")
    print("scale  strategy               GPUs  GB a GPU    tokens/s    MFU   gain  val_loss")
    for scale in flags.scales:
        alone = None
        for strategy in flags.rows:
            size = 1 if strategy == "single" else flags.gpus
            result = run(scale, strategy, size, flags.steps, flags.factor)
            if result is None:
                print(f"{scale:6} {strategy:22} {size:4} failed", flush=True)
                continue
            alone = alone or result["tokens_per_second"]
            print(
                f"{scale:6} {strategy:22} {result['world_size']:4} {result['memory_peak_gb']:9.1f} "
                f"{result['tokens_per_second']:11,.0f} {result['mfu']:6.1%} {result['tokens_per_second'] / alone:6.2f} "
                f"{result['val_loss']:9.4f}",
                flush=True,
            )


def run(scale: str, strategy: str, size: int, steps: int, factor: int) -> dict | None:
    """The result of one run; None if it failed, with its last words on stderr."""
    sequences, micro_batch = factor * BATCH[scale][0], BATCH[scale][1]
    block_size = {"124m": 1024, "1.3b": 2048}[scale]
    name, _, recompute = strategy.partition(" + ")
    settings = {
        "preset": "llama",
        "scale": scale,
        "parallel": name,
        "activation_checkpointing": "full" if recompute else "none",
        "global_batch": sequences * block_size * size,
        "micro_batch": micro_batch,
        "max_iters": steps,
        "eval_interval": steps,
        "eval_tokens": sequences * block_size,
        "stats_interval": 0,
        "checkpoint_interval": "none",
    }
    flags = [f"--{field}={value}" for field, value in settings.items()]
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
        command += ["-m", "raytrain.train", *flags, "--runs", runs, "--name", "run"]
        done = subprocess.run(command, capture_output=True, text=True)
        try:
            return json.loads((Path(runs) / "run" / "result.json").read_text())
        except OSError:
            print(done.stdout[-1500:], done.stderr[-1500:], file=sys.stderr)
            return None


if __name__ == "__main__":
    main()
