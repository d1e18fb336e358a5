"""Do the fast recipes learn what the plain one does? Validation losses of the same run, over seeds.

    python benchmarks/curves.py [--scale 124m] [--steps 1000] [--seeds 2] [--smoke]

plain    autocast as PyTorch has it: the residual stream in float32, all logits at once
ours     --precision bf16: the residual stream in bf16, the head and its loss fused
fp8      --precision fp8

All keep fp32 weights. "from ours" is the mean difference over seeds, at one step; "noise" the sd of ours over seeds.
"""

import argparse
import statistics

import step as steps

from raytrain.config.resolve import resolve
from raytrain.model import transformer
from raytrain.training.loop import train
from raytrain.training.objective import NextTokenLoss

RECIPES = {"ours": "bf16", "plain": "bf16", "fp8": "fp8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="124m")
    parser.add_argument("--preset", default="llama")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--plain_steps", type=int, default=300, help="of the same schedule, after which plain ends")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32768, help="tokens a step")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--smoke", action="store_true")
    flags = parser.parse_args()
    if flags.smoke:
        flags.scale, flags.steps, flags.plain_steps, flags.batch = "tiny", 20, 10, 1024
    steps.heading()
    print(f"{flags.preset} at {flags.scale}, {flags.steps} steps of {flags.batch:,} tokens, {flags.seeds} seeds")
    recipes = ["ours", *(recipe for recipe in flags.recipes if recipe != "ours")]
    found: dict[str, list[dict[int, float]]] = {recipe: [] for recipe in recipes}
    for seed in range(flags.seeds):
        for recipe in recipes:
            found[recipe].append(curve(recipe, seed, flags))
            told = ", ".join(f"{loss:.4f} after {step}" for step, loss in found[recipe][-1].items())
            print(f"seed {seed}, {recipe}: {told}", flush=True)
    print("  step     noise      ours" + "".join(f"{recipe:>10}   from ours" for recipe in recipes[1:]))
    for step in found["ours"][0]:
        ours = [losses[step] for losses in found["ours"]]
        line = f"{step:6}{statistics.stdev(ours) if len(ours) > 1 else float('nan'):10.4f}{statistics.mean(ours):10.4f}"
        for recipe in recipes[1:]:
            there = [losses[step] for losses in found[recipe] if step in losses]
            mean = statistics.mean(there) if there else float("nan")
            line += f"{mean:10.4f}{mean - statistics.mean(ours):+12.4f}"
        print(line, flush=True)


def curve(recipe: str, seed: int, flags: argparse.Namespace) -> dict[int, float]:
    """val_loss by step."""
    values = {"preset": flags.preset, "scale": flags.scale, "max_iters": flags.steps, "global_batch": flags.batch}
    values |= {"eval_interval": max(1, flags.steps // 10), "eval_tokens": 262_144, "log_interval": 100, "seed": seed}
    values |= {"precision": RECIPES[recipe], "stats_interval": 0, "checkpoint_interval": "none"}
    config, _ = resolve([("benchmark", values)], data_vocab_size=256)
    autocast, head_loss = transformer.autocast, NextTokenLoss.head_loss
    if recipe == "plain":
        transformer.autocast = lambda x: x
        NextTokenLoss.head_loss = steps.plain_head
    losses: dict[int, float] = {}

    def on_report(report: dict) -> bool:
        if report["event"] == "eval":
            losses[report["step"]] = report["val_loss"]
        return recipe == "plain" and report.get("step", 0) >= flags.plain_steps

    train(config, on_report)
    transformer.autocast, NextTokenLoss.head_loss = autocast, head_loss
    steps.torch._dynamo.reset()
    return losses


if __name__ == "__main__":
    main()
