"""python benchmarks/rungs.py: do the best architectures survive successive halving whose rungs are steps, or FLOPs?

Simulated: see raytrain.analysis.simulate.rung_survival. 64 trials, two rungs, one in four goes on after each.
"""

from raytrain.analysis.simulate import rung_survival

REPLAYS = 2000
RUNGS = {
    "steps": "at a number of steps",
    "reports": "at the first report past the FLOPs",
    "flops": "at exactly the FLOPs",
}


def main() -> None:
    spreads = (0.0, 0.1, 0.2, 0.3)
    print("The part of the true best 4 of 64 that survive, by the spread of FLOPs per step:\n")
    print(f"{'rung':36}" + "".join(f"  +-{100 * spread:2.0f}%" for spread in spreads))
    for when, words in RUNGS.items():
        parts = [rung_survival(when, REPLAYS, spread=spread) for spread in spreads]
        print(f"{words:36}" + "".join(f"{part:7.3f}" for part in parts))


if __name__ == "__main__":
    main()
