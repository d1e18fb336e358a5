"""Simulated studies whose noise is not as simple as those of raytrain.analysis.simulate: as real training's is."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.interpolate

from raytrain.analysis.confirmed import confirmation
from raytrain.analysis.effects import Effects, effects
from raytrain.analysis.estimates import holm
from raytrain.analysis.gain import compute_gain, compute_gains, fit_frontier
from raytrain.analysis.ladder import Mean, Scale, ladder
from raytrain.analysis.noise import SIGNIFICANCE, Codes, Noise
from raytrain.analysis.simulate import LEVELS, MEAN_LOSS, NOISE_SD, truths, variants
from raytrain.analysis.strata import Blocks, Contrasts, Pooled
from raytrain.analysis.triples import suspect
from raytrain.sweep.design import choose
from raytrain.sweep.factorial import Array, LeastSquares, Model, Point, interaction_columns

_ARM = "norm_position"


def seeds_by_axis(seeds: int, replays: int = 1000, seed: int = 0) -> dict[str, float]:
    """Studies of 24 variants without any effect, where each seed does something of its own to each level of each axis,
    as large as the noise, and three times as much to all variants.

    With the same `seeds` for all variants: the coverage of the effects' 95% intervals by their own strata, for main
    effects and interactions, and the least and the most of one effect; the part of studies with any claim; the same by
    the pooled residuals; and the mean half-widths of main effects in noise sd, with shared seeds and with a seed of its
    own for each run.
    """
    levels: dict[str, tuple[int, ...]] = {"a": (0, 1), "b": (0, 1, 2), "c": (0, 1), "d": (0, 1)}
    points = [dict(zip(levels, chosen, strict=True)) for chosen in itertools.product(*levels.values())]
    model, draws = Model(points, points[0]), np.random.default_rng(seed)
    runs, codes = points * seeds, np.repeat(range(seeds), len(points))
    is_main = np.array([len(effect.axes) == 1 for effect in model.effects])
    fit = LeastSquares(model.matrix(runs), np.eye(seeds)[codes][:, 1:])
    losses = _by_axis(runs, codes, levels, replays, draws)
    own = _contrasts(model, fit, losses, Blocks(fit, codes))
    pooled = _contrasts(model, fit, losses, Pooled(fit))
    held, held_pooled = (np.abs(each.estimate) <= each.half_width for each in (own, pooled))
    apart_fit, apart_codes = LeastSquares(model.matrix(runs)), np.arange(len(runs))
    apart = _by_axis(runs, apart_codes, levels, replays, draws)
    independent = _contrasts(model, apart_fit, apart, Pooled(apart_fit))
    return {
        "main effects": float(held[is_main].mean()),
        "interactions": float(held[~is_main].mean()),
        "least": float(held.mean(axis=1).min()),
        "most": float(held.mean(axis=1).max()),
        "claims": _claims(own),
        "pooled main effects": float(held_pooled[is_main].mean()),
        "pooled claims": _claims(pooled),
        "half-width": float(own.half_width[is_main].mean()),
        "half-width, own seeds": float(independent.half_width[is_main].mean()),
        "own seeds": float((np.abs(independent.estimate) <= independent.half_width).mean()),
    }


def _by_axis(
    runs: list[dict[str, int]],
    codes: Codes,
    levels: dict[str, tuple[int, ...]],
    replays: int,
    draws: np.random.Generator,
) -> Array:
    """Losses (runs x replays) in noise sd, of runs with the seeds `codes`."""
    count = int(codes.max()) + 1
    out = draws.normal(0, 1, (len(runs), replays)) + draws.normal(0, 3, (count, replays))[codes]
    for axis, names in levels.items():
        out += draws.normal(0, 1, (count, len(names), replays))[codes, [run[axis] for run in runs]]
    return out


def _contrasts(model: Model, fit: LeastSquares, losses: Array, errors: Blocks | Pooled) -> Contrasts:
    weights = fit.weights(model.contrasts)
    error, df = errors(weights, losses)
    return Contrasts(weights @ losses, error, df[:, None])


def _claims(contrasts: Contrasts) -> float:
    return float(np.mean([holm(p).min() < SIGNIFICANCE for p in contrasts.p.T]))


def plateaus(replays: int = 200, trials: int = 128, seed: int = 0) -> dict[str, float]:
    """d_optimal studies with one effect, of 3 noise sd, in which a tenth of the runs is stuck 1 nat above.

    The part that find the effect and that claim another, if those are set aside, and if not.
    """
    points, draws = variants(), np.random.default_rng(seed)
    rows = [index for index, _ in choose(points, "d_optimal", trials=trials, seed=seed).trials]
    table = _table([points[row] for row in rows])
    unigram = MEAN_LOSS + 1
    out = dict.fromkeys(("found", "false claims", "found without", "false claims without"), 0.0)
    for _ in range(replays):
        trained = MEAN_LOSS + 3 * NOISE_SD * (table[_ARM] == "pre").to_numpy(float)
        losses = np.where(draws.random(trials) < 0.1, unigram, trained) + draws.normal(0, NOISE_SD, trials)
        study = table.assign(val_loss=losses)
        for loss, ending in ((unigram, ""), (None, " without")):
            estimated = effects(study, list(LEVELS), points[0], candidates=points, unigram_loss=loss)
            claimed = set(estimated.table.loc[estimated.table["p_holm"] < SIGNIFICANCE, "effect"])
            out[f"found{ending}"] += f"{_ARM}=pre" in claimed
            out[f"false claims{ending}"] += bool(claimed - {f"{_ARM}=pre"})
    return {name: value / replays for name, value in out.items()}


def noisy_arm(ratio: float, replays: int = 200, trials: int = 128, seed: int = 0) -> dict[str, float]:
    """d_optimal studies without any effect whose post-norm runs have `ratio` times the noise.

    The part that detect it; the coverage of the intervals of effects within each arm, and of all effects; and the part
    with any claim.
    """
    points, draws = variants(), np.random.default_rng(seed)
    rows = [index for index, _ in choose(points, "d_optimal", trials=trials, seed=seed).trials]
    table = _table([points[row] for row in rows])
    sds = NOISE_SD * np.where(table[_ARM] == "post", ratio, 1.0)
    held: dict[str, list[float]] = {"post": [], "pre": [], "all": []}
    detected, claims = 0, 0
    for _ in range(replays):
        losses = MEAN_LOSS + draws.normal(0, 1, trials) * sds
        estimated: Effects = effects(table.assign(val_loss=losses), list(LEVELS), points[0], candidates=points)
        detected += estimated.unequal is not None and estimated.unequal.axis == _ARM
        claims += bool((estimated.table["p_holm"] < SIGNIFICANCE).any())
        held["all"] += list((estimated.table["low"] <= 0) & (estimated.table["high"] >= 0))
        for arm, own in estimated.within.groupby("arm"):
            if estimated.unequal is not None and estimated.unequal.axis == _ARM:
                held[str(arm)] += list((own["low"] <= 0) & (own["high"] >= 0))
    out = {f"coverage, {name}": float(np.mean(values)) if values else np.nan for name, values in held.items()}
    return {"detected": detected / replays, **out, "claims": claims / replays}


def spline_coverage(budgets: Array, replays: int = 300, seeds: int = 3, seed: int = 0) -> dict[str, float]:
    """Frontiers whose slope against ln FLOPs wanders: of 0.1 nats times exp of a cubic spline through normal draws of
    sd 0.5, a factor of 2 in FLOPs apart. A gain of 1.15 at the second budget.

    The part of its 95% intervals that hold it, where there is one; that are refused; and that are one or the other. The
    part of those that the power law alone would hold is `power law`.
    """
    draws = np.random.default_rng(seed)
    start, end = np.log(budgets[0]) - 1, np.log(budgets[-1]) + 1
    grid = np.linspace(start, end, 2000)
    knots = np.arange(start, end + np.log(2), np.log(2))
    covered, refused, power_law = [], 0, []
    for _ in range(replays):
        slope = 0.1 * np.exp(scipy.interpolate.CubicSpline(knots, draws.normal(0, 0.5, len(knots)))(grid))
        curve = MEAN_LOSS - np.concatenate([[0], np.cumsum(slope[1:] * np.diff(grid))])
        flops = np.repeat(budgets, seeds)
        frontier = fit_frontier(flops, np.interp(np.log(flops), grid, curve) + draws.normal(0, NOISE_SD, len(flops)))
        loss = np.interp(np.log(1.15 * budgets[1]), grid, curve) + draws.normal(0, NOISE_SD / np.sqrt(seeds))
        gain = compute_gain(float(loss), float(budgets[1]), frontier, seeds)
        if gain.value is None:
            refused += 1
        else:
            covered.append((gain.low or 0) <= 1.15 <= (gain.high or np.inf))
        floor, scale, alpha, *_ = frontier.draws
        with np.errstate(invalid="ignore", divide="ignore"):
            needed = frontier.unit * (scale / (loss - floor)) ** (1 / alpha)
        low, high = np.nanquantile(needed / budgets[1], [0.025, 0.975])
        power_law.append(low <= 1.15 <= high)
    either = (sum(covered) + refused) / replays
    parts = {"covered": float(np.mean(covered)), "refused": refused / replays, "covered or refused": either}
    return parts | {"power law": float(np.mean(power_law))}


def confirmations(
    ratio: float = 10.0, seeds: int = 2, fresh: int = 3, variants: int = 24, replays: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Studies of equal variants, one of them with `ratio` times the noise, whose leader, runner-up and baseline run
    anew with `fresh` seeds, the same for all three.

    The part that confirm a winner; the bias, in nats, of the leader's loss by its first runs and by fresh ones, over
    the studies whose leader is not the noisy one; and the coverage of the intervals of its differences.
    """
    draws = np.random.default_rng(seed)
    sds = NOISE_SD * np.where(np.arange(variants) == variants - 1, ratio, 1.0)
    first = draws.normal(0, 1, (replays, variants)) * sds / np.sqrt(seeds)
    winners, held, again = 0, [], []
    leaders = np.argsort(first, axis=1)
    for order in leaders:
        chosen = [*order[:2], *([0] if 0 not in order[:2] else [])]
        losses = draws.normal(0, 1, (len(chosen), fresh)) * sds[chosen][:, None] + draws.normal(0, NOISE_SD, fresh)
        names = np.repeat([str(name) for name in chosen], fresh)
        runs = pd.DataFrame({"variant": names, "seed": list(range(fresh)) * len(chosen), "val_loss": losses.ravel()})
        confirmed = confirmation(runs)
        assert confirmed is not None
        winners += confirmed.is_winner
        held.append(all(one.low <= 0 <= one.high for one in confirmed.differences))
        again.append(confirmed.loss)
    is_quiet = leaders[:, 0] != variants - 1
    return {
        "false winners": winners / replays,
        "noisy leaders": float(1 - is_quiet.mean()),
        "bias of first runs": float(first.min(axis=1)[is_quiet].mean()),
        "bias of fresh runs": float(np.mean(np.array(again)[is_quiet])),
        "coverage": float(np.mean(held)),
    }


def equal_gains(variants: int = 24, seeds: int = 2, replays: int = 300, seed: int = 0) -> dict[str, float]:
    """Studies of equal variants on a frontier of four budgets: the part in which any is claimed to save compute, in
    which the leader's interval holds its gain, 1; and both by each one's own 95% interval."""
    draws = np.random.default_rng(seed)
    budgets = np.array([2.5e14, 5e14, 1e15, 2e15])
    flops = np.repeat(budgets, 3)
    out = dict.fromkeys(("saves compute", "leader", "saves compute, each alone", "leader, alone"), 0.0)

    def loss(at: Array) -> Array:
        return 2.0 + 30 * at**-0.09 + draws.normal(0, NOISE_SD, at.shape)

    for _ in range(replays):
        runs, base = loss(np.full((variants, seeds), 1e15)), loss(flops)
        df = variants * (seeds - 1) + len(flops) - len(budgets)
        squares = np.sum((runs - runs.mean(axis=1, keepdims=True)) ** 2)
        squares += np.sum((base - np.repeat(base.reshape(-1, 3).mean(axis=1), 3)) ** 2)
        frontier = fit_frontier(flops, base, Noise(float(np.sqrt(squares / df)), df, "seeds"))
        means, spent, count = runs.mean(axis=1), np.full(variants, 1e15), np.full(variants, float(seeds))
        together = compute_gains(means, spent, frontier, count)
        alone = [compute_gains(means[[i]], spent[[i]], frontier, count[[i]])[0] for i in range(variants)]
        for gains, ending in ((together, ""), (alone, ", alone")):
            leader = gains[int(np.argmin(means))]
            out[f"leader{ending}"] += (leader.low or 0) <= 1 <= (leader.high or np.inf)
            name = "saves compute" + ", each alone" * bool(ending)
            out[name] += any(gain.low is not None and gain.low > 1 for gain in gains)
    return {name: value / replays for name, value in out.items()}


def one_triple(sd: float = 0.010, replays: int = 300, trials: int = 128, seed: int = 0) -> dict[str, float]:
    """d_optimal studies of worlds of `simulate.truths`, to which one triple of axes, drawn at random, adds an
    interaction of `sd` nats over all variants, beyond what axes and pairs explain.

    The part that name it, that name another, and that name one where there is none; and the coverage of what the model
    expects of its best point against the baseline, where it is asked and where it would have been.
    """
    points, draws = variants(), np.random.default_rng(seed)
    model = Model(points, points[0])
    rows = np.array([index for index, _ in choose(points, "d_optimal", trials=trials, seed=seed).trials])
    everywhere, fit = LeastSquares(model.matrix(points)), LeastSquares(model.matrix([points[row] for row in rows]))
    matrix, runs = model.matrix(points) - model.matrix([points[0]]), [points[row] for row in rows]
    triples = list(itertools.combinations(LEVELS, 3))
    parts = {triple: everywhere.residuals(interaction_columns(points, triple)) for triple in triples}
    triples = [triple for triple in triples if np.abs(parts[triple]).max(initial=0) > 1e-6]
    out = dict.fromkeys(("named", "another", "named without one"), 0.0)
    held: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(replays):
        truth = truths(model, points, 1, draws)[0][:, 0]
        triple = triples[draws.integers(len(triples))]
        extra = parts[triple] @ draws.normal(0, 1, parts[triple].shape[1])
        for losses, is_there in ((truth + sd * extra / extra.std(), True), (truth, False)):
            seen = losses[rows] + draws.normal(0, NOISE_SD, trials)
            suspected = suspect(runs, fit, seen)
            if not is_there:
                out["named without one"] += suspected is not None
                continue
            out["named"] += suspected is not None and suspected.axes == triple
            out["another"] += suspected is not None and suspected.axes != triple
            best = int(np.argmin(matrix @ (fit.weights(np.eye(model.size)) @ seen)))
            own = _contrasts_of(fit, matrix[[best]], seen)
            held[suspected is None].append(bool(abs(own.estimate[0] - losses[best] + losses[0]) <= own.half_width[0]))
    out = {name: value / replays for name, value in out.items()}
    return out | {"expected, where asked": _mean(held[True]), "expected, where not": _mean(held[False])}


def _contrasts_of(fit: LeastSquares, contrasts: Array, losses: Array) -> Contrasts:
    weights = fit.weights(contrasts)
    return Contrasts(weights @ losses, *Pooled(fit)(weights, losses))


def _mean(values: list[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


def ladder_readings(
    tokens_per_parameter: float, replays: int = 50, seed: int = 0, sizes: Sequence[float] = (1e7, 4e7, 1.6e8)
) -> dict[str, float]:
    """A variant with 1.2 times the parameter efficiency, of `sizes`, by the losses of Hoffmann et al. (E 1.69, A 406.4,
    alpha 0.34, B 410.7, beta 0.28), 3 seeds and a noise of NOISE_SD; the baseline also at half and twice the tokens.

    The least and the greatest mean reading over sizes; the part of studies whose intervals hold all of them, and whose
    projection to 1e9 parameters holds 1.2; and that promote a variant which is the baseline's equal.
    """
    draws = np.random.default_rng(seed)
    readings, held, projected, promoted = [], 0, 0, 0

    def mean(size: float, tokens: float, gain: float = 1.0) -> Mean:
        exact = 1.69 + 406.4 * (gain * size) ** -0.34 + 410.7 * tokens**-0.28
        return Mean(size, tokens, exact + draws.normal(0, NOISE_SD / np.sqrt(3)), 3)

    def scale(size: float) -> Scale:
        tokens = tokens_per_parameter * size
        variants = {"better": mean(size, tokens, 1.2), "equal": mean(size, tokens)}
        noise = Noise(NOISE_SD * np.sqrt(draws.chisquare(10) / 10), 10, "seeds")
        return Scale(f"{size:g}", [mean(size, part * tokens) for part in (0.5, 1.0, 2.0)], variants, noise)

    for _ in range(replays):
        climbs = ladder([scale(size) for size in sizes], "1e9", 1e9).climbs
        gains = climbs["better"].gains.values()
        readings.append([gain.value if gain.value is not None else np.nan for gain in gains])
        held += all((gain.low or 0) <= 1.2 <= (gain.high or np.inf) for gain in gains)
        target = climbs["better"].projected
        projected += (target.low or 0) <= 1.2 <= (target.high or np.inf)
        promoted += climbs["equal"].is_promoted
    means = np.nanmean(readings, axis=0)
    parts = {"least": float(means.min()), "most": float(means.max()), "coverage": held / replays}
    return parts | {"projection": projected / replays, "an equal promoted": promoted / replays}


def _table(points: list[Point]) -> pd.DataFrame:
    """A table of runs with a seed each, complete, without losses."""
    rows = [{**dict.fromkeys(LEVELS), **point} for point in points]
    return pd.DataFrame(rows).assign(seed=range(len(points)), status="complete", train_flops=1e15)
