"""python benchmarks/coverage.py: are the intervals, the claims and the winners of a study what they say? Simulated.

See raytrain.analysis.simulate for the worlds: 720 variants, pairwise interactions, noise of sd 0.0019 nats. At the end
the command that replays a table, timed.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from raytrain.analysis import simulate, simulate_rates, worlds
from raytrain.sweep.factorial import Model

REPLAYS, NULLS, FRONTIERS, STUDIES, SEEDS = 1000, 10_000, 300, 150, 20
TUNED = 400  # studies of each kind
THREE, FOUR, FIVE = (
    [1e-3 * step**place for place in places]
    for step, places in (
        (2.8, (-1, 0, 1)),
        (2.5, (-1.5, -0.5, 0.5, 1.5)),
        (2.0, (-2, -1, 0, 1, 2)),
    )
)  # learning rates
DESIGNS = (
    "--design d_optimal --trials 128",
    "--design random --trials 128",
    "--design one_at_a_time --seeds 5",
    "--design full",
    "--design full --scheduler halving",
)
KEYS = ((1000, "regret_model"), (1, "coverage"))


def real_noise() -> None:
    """Worlds whose noise is as real training's is."""
    print("\nNoise that is not simple: the part of studies, or of 95% intervals that hold the truth\n")
    rows: list[tuple[str, Callable[[], dict[str, float]]]] = [
        ("seeds act on axes, 2 seeds", lambda: worlds.seeds_by_axis(2, REPLAYS)),
        ("seeds act on axes, 3 seeds", lambda: worlds.seeds_by_axis(3, REPLAYS)),
        ("10% of runs on the plateau", lambda: worlds.plateaus(STUDIES)),
        ("post-norm with 10 times the noise", lambda: worlds.noisy_arm(10, STUDIES)),
        ("post-norm with 3 times the noise", lambda: worlds.noisy_arm(3, STUDIES)),
        ("all arms with one noise", lambda: worlds.noisy_arm(1, STUDIES)),
        ("one of 24 with 10 times, confirmed", lambda: worlds.confirmations(replays=REPLAYS)),
        ("gains of 24 equal variants", lambda: worlds.equal_gains(replays=FRONTIERS)),
        *[
            (
                f"a spline frontier, {len(budgets)} budgets",
                functools.partial(worlds.spline_coverage, budgets, FRONTIERS),
            )
            for budgets in (np.array([2.5e14, 5e14, 1e15]), np.array([2.5e14, 5e14, 1e15, 2e15]))
        ],
        ("one triple of sd 10 mnats", lambda: worlds.one_triple(replays=FRONTIERS)),
        *[
            (f"ladder, gain 1.2, {tokens:g} tokens/parameter", functools.partial(worlds.ladder_readings, tokens))
            for tokens in (0.65, 20.0, 100.0)
        ],
    ]
    noisy = np.where(np.arange(24) == 5, 10 * simulate.NOISE_SD, simulate.NOISE_SD)
    for seeds in (2, 3):
        for shared in (False, True):
            runs = np.full(24, seeds)
            words = f"one of 24 with 10 times, {seeds} seeds{', shared' * shared}"
            winner = functools.partial(simulate.winners_declared, runs, REPLAYS, 0, noisy, shared)
            rows.append((words, lambda winner=winner: {"false winners": winner()}))
    for words, world in rows:
        start = time.perf_counter()
        found = ", ".join(f"{name} {value:.4g}" for name, value in world().items())
        print(f"{words} ({time.perf_counter() - start:.0f} s): {found}", flush=True)


def main() -> None:
    """Print all of it."""
    real_noise()
    if sys.argv[1:] == ["worlds"]:
        return
    print(f"d_optimal designs, {REPLAYS} worlds each: coverage of the 95% intervals of main effects and interactions,")
    print("their half-widths (over those promised), and the winner's true regret beside that of the 720-run grid\n")
    print("trials  coverage        half-width, mnats               regret, mnats   grid's")
    for trials in (96, 128, 192, 256):
        found = simulate.coverage(trials, REPLAYS)
        main, pairs = found["half_width"], found["half_width_interactions"]
        print(
            f"{trials:6}  {found['coverage']:.3f}  {found['coverage_interactions']:.3f}    "
            f"{1000 * main:.2f}  {1000 * pairs:.2f} "
            f"({found['half_width_over_promised']:.3f}, {found['half_width_interactions_over_promised']:.3f})"
            f"{1000 * found['regret_model']:13.3f}{1000 * found['regret_grid']:13.3f}"
        )

    print(f"\nA/A: the part of {NULLS} studies without any difference that declare one; 0.05 is allowed\n")
    for words, runs in {
        "20 configurations, 3 seeds each": [3] * 20,
        "20 configurations, 1 seed each but the baseline's 5": [5] + [1] * 19,
        "2 configurations, 5 seeds each": [5] * 2,
    }.items():
        print(f"{words:56}{simulate.winners_declared(np.array(runs), NULLS):.3f}")
    for count in (3, 20):
        words = f"any two ranks that differ, {count} configurations, 3 seeds"
        print(f"{words:56}{simulate.ranks_told_apart(np.array([3] * count), NULLS):.3f}")
    print(f"{'any effect of a d_optimal design, 128 trials':56}{simulate.claims_made(NULLS):.3f}")

    print("\nHalving keeps 32 of 128 trials: the part of main effects that estimates show\n")
    for words, part in simulate.stopping_pull().items():
        print(f"{words:56}{part:.3f}")

    print(f"\nFrontiers loss = 2 + 30 FLOPs^-0.09, 3 seeds a budget, {FRONTIERS} each: coverage of the 95% intervals\n")
    print(f"{'budgets':28}" + "".join(f"{name:>10}" for name in ("E", "A", "alpha", "gain 1.15", "baseline")))
    for budgets in ([2.5e14, 5e14, 1e15], [2.5e14, 1e15, 4e15], [2.5e14, 5e14, 1e15, 2e15]):
        found = simulate.frontier_coverage(np.array(budgets), FRONTIERS)
        names = ", ".join(f"{budget:.2g}" for budget in budgets)
        print(f"{names:28}" + "".join(f"{part:10.3f}" for part in found.values()))

    learning_rates()

    print(f"\nThe command raytrain.replay: {REPLAYS} replays of a table of 720 variants, {SEEDS} seeds, two rungs\n")
    print(f"{'':36}   time, s   regret, mnats: run, model    coverage    FLOPs")
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "study.parquet"
        points, draws = simulate.variants(), np.random.default_rng(0)
        losses, _ = simulate.truths(Model(points, points[0]), points, 1, draws)
        simulate.study_table(points, losses[:, 0], draws, seeds=SEEDS).to_parquet(table)
        for design in DESIGNS:
            start = time.perf_counter()
            command = [sys.executable, "-m", "raytrain.replay", str(table), *design.split(), "--json"]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds = time.perf_counter() - start
            model, part = (f"{scale * found[key]:.3f}" if found[key] is not None else "-" for scale, key in KEYS)
            print(
                f"{design:36}{seconds:10.1f}{1000 * found['regret_observed']:23.3f}{model:>7}{part:>12}"
                f"{found['flops']:9.3g}"
            )


def learning_rates() -> None:
    """World 2: effects of eight variants at own best learning rates."""
    print(f"\nBest learning rates spread over x/2 and curvatures over a factor of 8; 8 variants, {TUNED} studies each:")
    print(
        "coverage of effects at own best rates that are no bounds, the half-width in noise sd, and the parts of studies"
    )
    print("with any claim and with one of the wrong sign; runs beside the grid of five rates and two seeds, 80\n")
    print(f"{'':56}{'runs':>6}{'coverage':>10}{'half-width':>12}{'bounds':>8}{'claims':>8}{'wrong':>8}")
    for words, options in {
        "every variant at 5 rates, 2 seeds each": {"rates": FIVE, "seeds": 2},
        "the same, 3 seeds": {"rates": FIVE, "seeds": 3},
        "4 rates, 2 seeds": {"rates": FOUR, "seeds": 2},
        "3 rates, 3 seeds": {"rates": THREE, "seeds": 3},
        "5 rates, 2 seeds; seed x axis sd = noise": {"rates": FIVE, "seeds": 2, "seed_sd": simulate_rates.NOISE_SD},
        "the same, 10 x the noise at the highest rate": {
            "rates": FIVE, "seeds": 2, "seed_sd": simulate_rates.NOISE_SD, "unequal": 10.0,
        },
        "5 rates, 2 seeds; losses steeper above the best rate": {"rates": FIVE, "seeds": 2, "skew": 0.35},
        "d_optimal over 3 rates; curves by level": {"rates": THREE, "trials": 40, "by_level": True},
        "d_optimal over 5 rates; curves by level": {"rates": FIVE, "trials": 40, "by_level": True},
        "d_optimal over 3 rates; each variant its own curve": {"rates": THREE, "trials": 40},
        "A/A: 5 rates, 2 seeds": {"rates": FIVE, "seeds": 2, "null": True},
        "A/A: the same, seed x axis sd = noise": {
            "rates": FIVE, "seeds": 2, "null": True, "seed_sd": simulate_rates.NOISE_SD,
        },
        "A/A: d_optimal over 3 rates": {"rates": THREE, "trials": 40, "null": True},
    }.items():  # fmt: skip
        found = simulate_rates.studies(TUNED, np.array(options.pop("rates")), **options)
        print(
            f"{words:56}{found['runs']:6.0f}{found['coverage']:10.3f}{found['half_width']:12.2f}{found['bounds']:8.3f}"
            f"{found['claims']:8.3f}{found['wrong_sign']:8.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
