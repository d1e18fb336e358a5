"""python benchmarks/coverage.py: are the intervals, the claims and the winners of a study what they say? Simulated.

See raytrain.analysis.simulate for the worlds: 720 functions, pairwise interactions, noise of sd 0.0019 nats.
"""

import numpy as np

from raytrain.analysis import simulate

REPLAYS, NULLS, FRONTIERS = 1000, 10_000, 300


def main() -> None:
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
        "2 configurations, 5 seeds each": [5, 5],
    }.items():
        print(f"{words:56}{simulate.winners_declared(np.array(runs), NULLS):.3f}")
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


if __name__ == "__main__":
    main()
