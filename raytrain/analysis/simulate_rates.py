"""Simulated studies whose variants have best learning rates of their own, with a known truth.

A variant's loss is least + curvature (x - best)^2 in x = ln learning rate, or that of another shape: best rates are
spread over a factor of two both ways, and curvatures over a factor of eight.
"""

import itertools
import math

import numpy as np
import pandas as pd

from raytrain.analysis.curve import Indices
from raytrain.analysis.tuned import tuned_effects
from raytrain.sweep.design import choose
from raytrain.sweep.factorial import Array, Model, Point

NOISE_SD = 0.002  # nats
AXES = ("a", "b", "c")  # of two levels each
MAIN_SD, INTERACTION_SD = 0.010, 0.003  # nats, of the least losses
SPREAD = math.log(2)  # of best learning rates, both ways
CURVATURES = (0.004, 0.032)  # nats that a factor of two from the best rate loses


def shape(octaves: Array, skew: float) -> Array:
    """The loss over curvature so far from the best rate: a parabola, or (`skew` > 0) steeper above than below."""
    return octaves**2 if not skew else 2 * (np.expm1(skew * octaves) - skew * octaves) / skew**2


class World:
    """Eight variants, and what is true of them.

    Best rates and curvatures are each variant's own; with `by_level` slopes and curvatures are sums over levels, the
    model of a response surface. `null`: all variants are the same.
    """

    def __init__(
        self, draws: np.random.Generator, *, null: bool = False, skew: float = 0.0, by_level: bool = False
    ) -> None:
        self.points: list[Point] = [dict(zip(AXES, one, strict=True)) for one in itertools.product((0, 1), repeat=3)]
        self.levels = np.array([[point[axis] for axis in AXES] for point in self.points])
        self._skew = skew
        model = Model(self.points, self.points[0])
        sds = [MAIN_SD if len(effect.axes) == 1 else INTERACTION_SD for effect in model.effects]
        to_coefficients = np.linalg.inv(np.vstack([np.eye(1, model.size), model.contrasts]))
        drawn = draws.normal(0, sds) * (not null)
        self.least = model.matrix(self.points) @ to_coefficients @ np.concatenate([[3.3], drawn])
        low, high = CURVATURES
        if by_level and not null:
            parts = np.array([low, *draws.dirichlet(np.ones(len(AXES))) * (high - low)])
            slopes = draws.uniform(-2 * parts, 2 * parts)  # so all best rates are within an octave
            self.curvature = parts[0] + self.levels @ parts[1:]
            slope = slopes[0] + self.levels @ slopes[1:]
            self.best = np.log(1e-3) - SPREAD * slope / (2 * self.curvature)
            self.least -= slope**2 / (4 * self.curvature)
        else:
            count = 1 if null else len(self.points)
            self.best = np.log(1e-3) + np.resize(draws.uniform(-SPREAD, SPREAD, count), len(self.points))
            curvature = np.exp(draws.uniform(np.log(low), np.log(high), count))
            self.curvature = np.resize(curvature, len(self.points))
        self.effects = model.contrasts @ np.linalg.pinv(model.matrix(self.points)) @ self.least

    def loss(self, variant: Indices, x: Array) -> Array:
        """In nats, of variants at ln learning rates."""
        octaves = (x - self.best[variant]) / math.log(2)
        return np.asarray(self.least[variant] + self.curvature[variant] * shape(octaves, self._skew))

    def averaged_effects(self, rates: Array) -> Array:
        """The main effects where a level has one rate for all of its variants, the best of their mean loss."""
        x = np.linspace(np.log(rates[0]), np.log(rates[-1]), 2001)
        curves = np.array([self.loss(np.full(len(x), number), x) for number in range(len(self.points))])
        return np.array([curves[own == 1].mean(0).min() - curves[own == 0].mean(0).min() for own in self.levels.T])


def crossed(
    world: World, draws: np.random.Generator, rates: Array, seeds: int, *, seed_sd: float = 0.0, unequal: float = 1.0
) -> pd.DataFrame:
    """A study of every variant at every rate, each rate with `seeds` of its own; a seed acts on all (sd `seed_sd`) and
    on each level of the first axis (the same sd). The highest rate has `unequal` times the noise, the next its root."""
    variant, level, repeat = (grid.ravel() for grid in np.indices((8, len(rates), seeds)))
    seed = level * seeds + repeat
    acts = draws.normal(0, seed_sd, (3, len(rates) * seeds)) if seed_sd else np.zeros((3, len(rates) * seeds))
    half = np.array([point["a"] for point in world.points])[variant]
    above = np.maximum(level - (len(rates) - 3), 0) / 2
    noise = draws.normal(0, NOISE_SD, len(variant)) + acts[2, seed] + acts[half, seed]
    losses = world.loss(variant, np.log(rates)[level]) + noise * unequal**above
    table = pd.DataFrame([world.points[number] for number in variant])
    return table.assign(variant=variant, learning_rate=rates[level], seed=seed, val_loss=losses, status="complete")


def spread(world: World, draws: np.random.Generator, rates: Array, trials: int, seed: int = 0) -> pd.DataFrame:
    """A study by a D-optimal design of so many runs over variants and rates."""
    candidates = [{**point, "learning_rate": rate} for point in world.points for rate in rates]
    design = choose(candidates, "d_optimal", trials=trials, tuned="learning_rate", base=len(rates) // 2, seed=seed)
    rows = np.array([index for index, _ in design.trials])
    variant, level = np.divmod(rows, len(rates))
    losses = world.loss(variant, np.log(rates)[level]) + draws.normal(0, NOISE_SD, len(rows))
    table = pd.DataFrame([world.points[number] for number in variant])
    return table.assign(variant=variant, learning_rate=rates[level], seed=0, val_loss=losses, status="complete")


def studies(
    count: int,
    rates: Array,
    *,
    seeds: int = 2,
    trials: int | None = None,
    seed_sd: float = 0.0,
    unequal: float = 1.0,
    null: bool = False,
    skew: float = 0.0,
    by_level: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Of `count` studies, each of a world of its own: the part of 95% intervals that hold the effect at own best rates,
    their half-width over the noise's sd, and the parts of studies that claim any effect, or one of the wrong sign.

    With `trials` a D-optimal design spreads that many runs; else all variants run at all rates.
    """
    draws = np.random.default_rng(seed)
    results: dict[str, list[float]] = {"coverage": [], "half_width": [], "bounds": [], "claims": [], "wrong_sign": []}
    for _ in range(count):
        world = World(draws, null=null, skew=skew, by_level=by_level)
        if trials is None:
            table, truth = crossed(world, draws, rates, seeds, seed_sd=seed_sd, unequal=unequal), world.effects
        else:
            table, truth = spread(world, draws, rates, trials), world.averaged_effects(rates)
        rows = tuned_effects(
            table, AXES, world.points[0], table["variant"], ["learning_rate"], spreads=trials is not None
        ).effects
        is_known = (rows["bound"] == "") & rows["low"].notna()
        holds = (rows["low"] <= truth) & (truth <= rows["high"])
        claims = rows["is_clear"]
        results["coverage"] += holds[is_known].tolist()
        results["half_width"] += ((rows["high"] - rows["low"]) / 2 / NOISE_SD)[is_known].tolist()
        results["bounds"].append(float((~is_known).mean()))
        results["claims"].append(float(claims.any()))
        results["wrong_sign"].append(float((claims & (np.sign(rows["estimate"]) != np.sign(truth))).any()))
    means = {name: float(np.mean(values)) for name, values in results.items()}
    return means | {"runs": trials if trials is not None else 8 * len(rates) * seeds}
