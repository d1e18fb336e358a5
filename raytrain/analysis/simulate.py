"""Simulated studies over the 720 variants, with a known truth."""

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from raytrain.analysis.effects import effects
from raytrain.analysis.estimates import holm
from raytrain.analysis.gain import compute_gain, fit_frontier
from raytrain.analysis.noise import SIGNIFICANCE, Means, Noise, declare_winner, group_means
from raytrain.analysis.ranking import places
from raytrain.analysis.replay import judge
from raytrain.sweep.design import choose
from raytrain.sweep.factorial import Array, LeastSquares, Model, Point, live
from raytrain.sweep.halving import halve, survivors

NOISE_SD = 0.0019  # nats: the sd of val_loss over 80 runs of one recipe (modded-nanogpt's log)
# Effects are drawn as normal with mean zero. One sd of a main effect is then 5 noise sd, of an interaction 1.6:
# between the choices that matter at once (no positions, post-norm) and the many that only replicates separate.
MAIN_SD, INTERACTION_SD = 0.010, 0.003
MEAN_LOSS = 3.3

LEVELS = {
    "normalization": ("layernorm_nobias", "layernorm", "rmsnorm"),
    "activation": ("gelu", "silu", "relu", "leaky_relu"),
    "position_encoding": ("learned_absolute", "rope", "none"),
    "norm_position": ("post", "pre"),
    "ffn_type": ("standard", "swiglu"),
    "bias": (False, True),
    "weight_tying": (True, False),
    "dropout": (0.0, 0.1),
}


def variants() -> list[Point]:
    """The 720 distinct variants of the full space, the gpt2 preset first."""
    spellings = (live(dict(zip(LEVELS, levels, strict=True))) for levels in itertools.product(*LEVELS.values()))
    return list({frozenset(point.items()): point for point in spellings}.values())


def truths(
    model: Model,
    points: list[Point],
    count: int,
    draws: np.random.Generator,
    main_sd: float = MAIN_SD,
    interaction_sd: float = INTERACTION_SD,
) -> tuple[Array, Array]:
    """`count` worlds with effects known: losses (points x count) and effects (as model.effects, x count)."""
    sds = [main_sd if len(effect.axes) == 1 else interaction_sd for effect in model.effects]
    drawn = draws.normal(0, 1, (len(sds), count)) * np.array(sds)[:, None]
    to_coefficients = np.linalg.inv(np.vstack([np.eye(1, model.size), model.contrasts]))
    coefficients = to_coefficients @ np.vstack([np.full((1, count), MEAN_LOSS), drawn])
    return model.matrix(points) @ coefficients, drawn


def study_table(
    points: list[Point],
    losses: Array,
    draws: np.random.Generator,
    *,
    seeds: int = 3,
    rungs: tuple[float, ...] = (2.5e14, 1e15),
    noise_sd: float = NOISE_SD,
    slope: float = 0.1,
) -> pd.DataFrame:
    """A table to replay: every point (of final `losses`) with `seeds` seeds, and its loss at each of `rungs` (FLOPs).

    At an earlier rung the loss is higher by `slope` nats for each factor e of FLOPs, and the noise of a run is its own
    at every rung.
    """
    rows = []
    for point, loss in zip(points, losses, strict=True):
        for seed in range(seeds):
            for rung, flops in enumerate(rungs):
                seen = loss + slope * np.log(rungs[-1] / flops) + draws.normal(0, noise_sd)
                spent = {"seed": seed, "rung": rung, "train_flops": flops, "seconds": flops / 1e13}
                rows.append({**point, **spent, "val_loss": seen, "status": "complete"})
    return pd.DataFrame(rows)


def coverage(trials: int = 128, replays: int = 1000, seed: int = 0) -> dict[str, float]:
    """A d_optimal design of `trials` runs in `replays` worlds of `truths`, each with noise of its own.

    The part of 95% intervals that hold the true effect; their half-widths over those that the plan promised; the mean
    true regret, in nats, of its winner, and of the best run of the full grid with one seed a point.
    """
    points, draws = variants(), np.random.default_rng(seed)
    truth, _ = truths(Model(points, points[0]), points, replays, draws)
    plan = choose(points, "d_optimal", trials=trials, seed=seed)
    rows = np.array([index for index, _ in plan.trials])
    judged = judge(points, points[0], rows, truth[rows] + draws.normal(0, NOISE_SD, (len(rows), replays)), truth)
    grid = np.argmin(truth + draws.normal(0, NOISE_SD, truth.shape), axis=0)
    regret_grid = truth[grid, np.arange(replays)] - truth.min(axis=0)
    out = {name: float(values.mean()) for name, values in judged.items()} | {"regret_grid": float(regret_grid.mean())}
    for order, suffix in ((1, ""), (2, "_interactions")):
        promised = np.mean(
            [
                precision.half_width
                for precision in plan.precisions
                if len(precision.axes) == order and precision.half_width
            ]
        )
        out[f"half_width{suffix}_over_promised"] = out[f"half_width{suffix}"] / float(promised * NOISE_SD)
    return out


def winners_declared(
    runs: npt.NDArray[np.intp], replays: int = 1000, seed: int = 0, sds: Array | None = None, shared: bool = False
) -> float:
    """The part of A/A studies that declare a winner among identical configurations, number i with `runs[i]` seeds.

    Their noise has the `sds`, by default NOISE_SD for all. With `shared` they run on the same seeds.
    """
    replicas = _equals(runs, replays, seed, sds, shared)
    return sum(declare_winner(means) is not None for means in replicas) / replays


def unequal_ranks(
    runs: npt.NDArray[np.intp], replays: int = 1000, seed: int = 0, sds: Array | None = None, shared: bool = False
) -> float:
    """The part of A/A studies in which any of the identical configurations, number i with `runs[i]` seeds, is ranked
    behind another. The rest as in `winners_declared`."""
    return sum(bool(places(means).max() > 1) for means in _equals(runs, replays, seed, sds, shared)) / replays


def _equals(runs: npt.NDArray[np.intp], replays: int, seed: int, sds: Array | None, shared: bool) -> Iterator[Means]:
    group = pd.Series(np.repeat(np.arange(len(runs)), runs))
    seeds = group.groupby(group).cumcount() if shared else pd.Series(range(len(group)))
    scale = np.full(len(group), NOISE_SD) if sds is None else sds[group]
    draws = np.random.default_rng(seed)
    for _ in range(replays):
        losses = MEAN_LOSS + draws.normal(0, 1, len(group)) * scale
        losses += shared * draws.normal(0, NOISE_SD, len(group))[seeds]
        yield group_means(pd.Series(losses), group, seeds)


def claims_made(replays: int = 1000, trials: int = 128, seed: int = 0) -> float:
    """The part of A/A studies with any significant effect: a d_optimal design over variants that are all the same."""
    points, draws = variants(), np.random.default_rng(seed)
    rows = [index for index, _ in choose(points, "d_optimal", trials=trials, seed=seed).trials]
    model = Model(points, points[0])
    fit = LeastSquares(model.matrix([points[row] for row in rows]))
    losses = draws.normal(0, NOISE_SD, (len(rows), replays))
    weights = fit.weights(model.contrasts)
    t = weights @ losses / (np.linalg.norm(weights, axis=1)[:, None] * fit.residual_sd(losses))
    p = 2 * scipy.stats.t.sf(np.abs(t), fit.df)
    return float(np.mean([holm(study).min() < SIGNIFICANCE for study in p.T]))


def stopping_pull(replays: int = 50, seed: int = 0) -> dict[str, float]:
    """The slope of estimated on true main effects when halving stops 96 of 128 trials at a quarter of the budget.

    It is below 1 if effects are pulled towards zero, and depends on what is done with the stopped trials.
    """
    points, draws = variants(), np.random.default_rng(seed)
    model = Model(points, points[0])
    row_of = {effect.name: row for row, effect in enumerate(model.effects)}
    truth, true = truths(model, points, replays, draws)
    rows = [index for index, _ in choose(points, "d_optimal", trials=128, seed=seed).trials]
    products: dict[str, list[tuple[float, float]]] = {}
    for study in range(replays):
        first, last = (truth[rows, study] + draws.normal(0, NOISE_SD, len(rows)) for _ in range(2))
        kept = first <= np.sort(first)[len(rows) // 4 - 1]
        common = pd.DataFrame([points[row] for row in rows]).assign(
            seed=0, status="complete", val_loss=first, train_flops=1e14
        )
        halved = common.assign(
            status=np.where(kept, "complete", "stopped"),
            val_loss=np.where(kept, last, first + 0.15 * np.log(4)),
            train_flops=np.where(kept, 4e14, 1e14),
        )
        for way, table in (
            ("stopped trials at their rung, with its offset", halved),
            ("stopped trials left out", halved[kept]),
            ("all trials at the first rung", common),
        ):
            estimated = effects(table, list(LEVELS), points[0], candidates=points).table
            estimated = estimated[estimated["other_axis"].isna() & estimated["estimate"].notna()]
            expected = true[[row_of[name] for name in estimated["effect"]], study]
            products.setdefault(way, []).append(
                (float(estimated["estimate"].to_numpy() @ expected), float(expected @ expected))
            )
    return {way: float(np.divide(*np.sum(pairs, axis=0))) for way, pairs in products.items()}


def rung_survival(when: str, replays: int = 1000, trials: int = 64, spread: float = 0.2, seed: int = 0) -> float:
    """The part of the true best sixteenth of `trials` that is among as many survivors of two rungs of halving by four.

    FLOPs per step differ between architectures by up to `spread`. A rung is `when` a trial has taken a number of
    `steps`; or at the first of its `reports`, 1/20 of the mean run apart, with the rung's FLOPs; or exactly at those
    `flops`. Losses fall by 0.15 nats for each factor e of FLOPs, as early in a run, more or less so by an
    architecture's own 0.001.
    """
    draws = np.random.default_rng(seed)
    best = trials // 16
    kept = 0
    for _ in range(replays):
        final = draws.normal(0, MAIN_SD, trials)
        tilt = draws.normal(0.15, 0.001, trials)
        step = draws.uniform(1 - spread, 1 + spread, trials)  # FLOPs of a step over the mean
        alive = {f"{trial:03}" for trial in range(trials)}
        for rung, keep in zip((1 / 16, 1 / 4), survivors(trials, 2, 4), strict=True):
            flops = {
                "steps": rung * step,
                "reports": np.ceil(20 * rung / step) / 20 * step,
                "flops": np.full(trials, rung),
            }
            losses = final - tilt * np.log(flops[when]) + draws.normal(0, NOISE_SD, trials)
            alive = halve({trial: losses[int(trial)] for trial in alive}, keep)
        kept += len(alive & {f"{trial:03}" for trial in np.argsort(final)[:best]})
    return kept / (best * replays)


def frontier_coverage(
    budgets: Array, replays: int = 300, seeds: int = 3, seed: int = 0, clock_sd: float = 0.0
) -> dict[str, float]:
    """The part of 95% intervals that hold the truth: of a frontier's E, A and alpha, and of two gains.

    One is a gain of 1.15 at the second budget, the other the baseline's own, 1.0, at each budget (where it has one).
    With `clock_sd`, the sd of the logarithm of a run's true FLOPs about those reported, as of hardware FLOPs.
    """
    draws = np.random.default_rng(seed)
    truth = {"E": 2.0, "A": 30.0, "alpha": 0.09}
    flops = np.repeat(budgets, seeds)
    held: dict[str, list[bool]] = {name: [] for name in (*truth, "gain", "baseline")}

    def loss(at: Array) -> Array:
        return truth["E"] + truth["A"] * at ** -truth["alpha"] + draws.normal(0, NOISE_SD, np.shape(at))

    def noisy_clock(at: Array) -> Array:
        return at * np.exp(draws.normal(0, clock_sd, np.shape(at)))

    for _ in range(replays):
        losses = loss(flops)
        if clock_sd:
            seen, kinds = noisy_clock(flops), len(flops) - len(budgets)
            means = np.repeat(np.log(seen).reshape(-1, seeds).mean(axis=1), seeds)
            clock = Noise(float(np.sqrt(np.sum((np.log(seen) - means) ** 2) / kinds)), kinds, "seeds")
            means = np.repeat(losses.reshape(-1, seeds).mean(axis=1), seeds)
            noise = Noise(float(np.sqrt(np.sum((losses - means) ** 2) / kinds)), kinds, "seeds")
            frontier = fit_frontier(seen, losses, noise, clock=clock, budget=np.repeat(range(len(budgets)), seeds))
        else:
            frontier = fit_frontier(flops, losses)
        for name, (low, high) in frontier.interval().items():
            held[name].append(low <= truth[name] <= high)
        for name, gain, spent in [("gain", 1.15, budgets[1]), *(("baseline", 1.0, budget) for budget in budgets)]:
            reached = float(loss(np.array(gain * spent)))
            estimate = compute_gain(reached, float(noisy_clock(np.array(spent))) if clock_sd else spent, frontier)
            if estimate.value is not None:
                held[name].append((estimate.low or 0) <= gain <= (estimate.high or np.inf))
    return {name: float(np.mean(values)) for name, values in held.items()}
