"""Compute gain: how much more compute the baseline would need for a trial's loss.

The baseline's own runs at three budgets or more give its frontier, loss(F) = E + A F^-alpha (the shape of Kaplan et
al., arXiv 2001.08361, and Hoffmann et al., arXiv 2203.15556). A trial that reaches a loss L with F FLOPs has the gain

    frontier's FLOPs for L / F,   where the frontier's FLOPs for L are (A / (L - E))^(1 / alpha)

so the baseline's is 1.0 at every budget. Hardware FLOPs, on a frontier fitted to them, give the hardware gain.
"""

import dataclasses
import math

import numpy as np
import scipy.stats

from raytrain.analysis.noise import SIGNIFICANCE, Noise
from raytrain.analysis.trials import budgets
from raytrain.errors import UserError
from raytrain.sweep.factorial import Array

_ALPHAS = (0.01, 3.0)  # far beyond the 0.05 to 0.5 of published fits
_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Frontier:
    """loss(F) = floor + scale (F / unit)^-alpha, fitted for `low` <= F <= `high` FLOPs.

    `unit` is the geometric mean of the fitted FLOPs, which keeps `scale` in nats. `draws` (5 x draws) holds floor,
    scale and alpha of refits to bootstrapped runs, the noise sd behind each, and the sd of ln FLOPs (0 if exact).
    `misfit` is the p-value of the budgets' mean losses lying no further from the fit than the noise puts them; None if
    the fit has as many coefficients as budgets, or FLOPs are not exact. A small one says that the baseline's losses do
    not fall in this way, and that gains are wrong by as much as the baseline's own are not 1. The refits then have
    `stretch` times the noise, as much as puts the budgets where they are (Birge, Physical Review 40, 1932), and a loss
    is taken to lie off the curve by an error of its own, of sd `miss`: what the budgets' means do beyond their noise.
    """

    floor: float
    scale: float
    alpha: float
    unit: float
    low: float
    high: float
    noise: Noise
    draws: Array
    misfit: float | None
    stretch: float = 1.0
    miss: float = 0.0

    def loss(self, flops: float) -> float:
        out: float = self.floor + self.scale * (flops / self.unit) ** -self.alpha
        return out

    def interval(self) -> dict[str, tuple[float, float]]:
        """95% intervals of E (floor), A (in nats FLOPs^alpha) and alpha."""
        floor, scale, alpha, *_ = self.draws
        ends = np.quantile([floor, scale * self.unit**alpha, alpha], [SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2], axis=1)
        return {name: (float(low), float(high)) for name, low, high in zip(("E", "A", "alpha"), *ends, strict=True)}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; or no value, and the reason. An end that would be infinite is None."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def fit_frontier(
    flops: Array,
    losses: Array,
    noise: Noise | None = None,
    seed: int = 0,
    *,
    clock: Noise | None = None,
    like: Frontier | None = None,
) -> Frontier:
    """Fit the frontier to the baseline's runs, one entry each.

    `noise` is by default their spread about the mean of their budget; give it for hardware FLOPs, which no two runs
    share, with `clock`, the noise of their logarithm, which is then a part of every interval, and `like`, the frontier
    in model FLOPs: this one misses the losses as that does. Raises UserError for fewer than three budgets, or no noise.

    Variable projection (Golub and Pereyra, SIAM Journal on Numerical Analysis 10, 1973): for a fixed alpha the best E
    and A are linear least squares in closed form, here with E, A >= 0, so only alpha is searched, on a grid that is
    then made finer: there is nothing to fail to converge.

    The bootstrap is parametric: it adds normal noise to the fit, with an sd drawn from what the seeds say of it
    (df s^2 / chi-square). To resample two or three seeds of a budget would understate the noise by a fifth or more.
    """
    flops, losses = np.asarray(flops, float), np.asarray(losses, float)
    used = np.isfinite(losses)
    flops, losses = flops[used], losses[used]
    budget = budgets(flops)
    count = len(np.unique(budget))
    if count < 3:
        raise UserError(f"A frontier needs the baseline at three budgets or more; it has {count}")
    if noise is None:
        means = np.bincount(budget, losses) / np.bincount(budget)
        df = len(losses) - count
        if not df:
            raise UserError("A frontier needs the noise: run the baseline with two seeds or more at a budget")
        noise = Noise(float(np.sqrt(np.sum((losses - means[budget]) ** 2) / df)), df, "seeds")
    unit = float(np.exp(np.mean(np.log(flops))))
    floor, scale, alpha = (float(value) for value in _fit(flops / unit, losses[:, None])[:, 0])
    fitted = floor + scale * (flops / unit) ** -alpha
    misfit, stretch, miss = None, like.stretch if like else 1.0, like.miss if like else 0.0
    at_bound = (not floor) + (not _ALPHAS[0] < alpha < _ALPHAS[1])
    free = 3 - at_bound if scale else 1  # coefficients
    if clock is None and count > free and noise.sd:
        runs = np.bincount(budget)
        off = (np.bincount(budget, losses - fitted) / runs) ** 2
        ratio = float(np.sum(runs * off)) / (count - free) / noise.sd**2
        misfit = float(scipy.stats.f.sf(ratio, count - free, noise.df))
        if misfit < SIGNIFICANCE:
            stretch = math.sqrt(ratio)
            miss = noise.sd * math.sqrt(max(ratio - 1, 0) * count / len(losses))
    draws = np.random.default_rng(seed)
    shape = (len(flops), _DRAWS)
    sds, clocks = (
        source.sd * np.sqrt(source.df / draws.chisquare(source.df, _DRAWS)) if source else np.zeros(_DRAWS)
        for source in (noise, clock)
    )
    refits = _fit(
        flops[:, None] / unit * np.exp(clocks * draws.standard_normal(shape)) if clock else flops / unit,
        fitted[:, None] + stretch * sds * draws.standard_normal(shape),
    )
    ends = float(flops.min()), float(flops.max())
    return Frontier(floor, scale, alpha, unit, *ends, noise, np.vstack([refits, sds, clocks]), misfit, stretch, miss)


def compute_gain(loss: float, flops: float, frontier: Frontier, runs: int = 1, seed: int = 1) -> Estimate:
    """The gain of a trial of mean `loss` over `runs` runs of `flops` FLOPs each, its interval with both sides' noise.

    Of hardware FLOPs, `flops` is the runs' geometric mean.

    Nothing is extrapolated: a loss that lies, beyond the noise, outside what the frontier's budgets reach has no gain.
    An end of the interval may.
    """
    if reason := _out_of_range(loss, frontier, runs):
        return Estimate(None, reason=reason)
    gains = np.exp(_log_gains(np.array([loss]), np.array([flops]), frontier, runs, seed)[:, 0])
    return _estimate(gains)


def gain_trend(losses: Array, flops: Array, frontier: Frontier, runs: int | Array = 1, seed: int = 1) -> Estimate:
    """The slope of ln gain against ln FLOPs, from one architecture's mean losses at two budgets or more, over `runs`.

    Below zero the gain vanishes as runs grow; -0.1, say, takes a tenth of it for each factor e. The budgets share the
    frontier's errors, so the slope is taken within each bootstrap draw.
    """
    losses, flops = np.asarray(losses, float), np.asarray(flops, float)
    runs = np.broadcast_to(runs, len(losses))
    used = [not _out_of_range(loss, frontier, n) for loss, n in zip(losses, runs, strict=True)]
    if len(np.unique(flops[used])) < 2:
        return Estimate(None, reason="the trend needs gains at two budgets or more")
    x = np.log(flops[used]) - np.log(flops[used]).mean()
    return _estimate(_log_gains(losses[used], flops[used], frontier, runs[used], seed) @ x / (x @ x))


def _out_of_range(loss: float, frontier: Frontier, runs: int) -> str:
    if not math.isfinite(loss):
        return "the trial has no loss"
    margin = frontier.noise.t * math.hypot(frontier.noise.sd / math.sqrt(runs), frontier.miss)
    if not frontier.scale:
        return "the baseline's loss does not fall with its FLOPs"
    if loss < frontier.loss(frontier.high) - margin or loss <= frontier.floor:
        reached, which, budget = frontier.loss(frontier.high), "below", frontier.high
    elif loss > frontier.loss(frontier.low) + margin:
        reached, which, budget = frontier.loss(frontier.low), "above", frontier.low
    else:
        return ""
    return f"val_loss {loss:.4f} is {which} the baseline's {reached:.4f} at {budget:.3g} FLOPs, where its frontier ends"


def _log_gains(losses: Array, flops: Array, frontier: Frontier, runs: int | Array, seed: int) -> Array:
    """1 + draws x trials: ln gain by the fit, then by each bootstrap draw with losses and FLOPs drawn anew."""
    fit = np.array([frontier.floor, frontier.scale, frontier.alpha, 0.0, 0.0])
    floor, scale, alpha, sds, clocks = np.hstack([fit[:, None], frontier.draws])
    draws = np.random.default_rng(seed)
    shape = len(sds), len(losses)
    errors, clock_errors = (draws.standard_normal(shape) / np.sqrt(runs) for _ in range(2))
    misses = np.where(sds[:, None], frontier.miss * draws.standard_normal(shape), 0.0)  # none in the fit itself
    left = losses + errors * sds[:, None] + misses - floor[:, None]
    spent = np.log(flops) + clock_errors * clocks[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = np.log(scale[:, None] / left) / alpha[:, None] + math.log(frontier.unit) - spent
    return np.where(left > 0, gains, np.inf)  # no compute reaches below the floor


def _estimate(values: Array) -> Estimate:
    """The first value, with the 95% percentile interval of the others."""
    low, high = np.quantile(values[1:], [SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2], method="nearest")
    ends = [float(end) if math.isfinite(end) else None for end in (low, high)]
    return Estimate(float(values[0]), low=ends[0], high=ends[1])


def _fit(flops: Array, losses: Array) -> Array:
    """(E, A, alpha) x studies, of `losses` (runs x studies) at `flops` (runs, or runs x studies)."""
    flops = flops if flops.ndim == 2 else flops[:, None]

    def project(alpha: Array) -> tuple[Array, Array, Array]:
        """E, A and the sum of squares at `alpha` (1 or studies)."""
        x = flops**-alpha
        x_mean, y_mean = x.mean(axis=0), losses.mean(axis=0)
        scale = np.sum((x - x_mean) * (losses - y_mean), axis=0) / np.sum((x - x_mean) ** 2, axis=0)
        scale = np.maximum(scale, 0)
        below = y_mean < scale * x_mean  # E would be negative
        scale = np.where(below, np.sum(x * losses, axis=0) / np.sum(x**2, axis=0), scale)
        floor = np.where(below, 0, y_mean - scale * x_mean)
        return floor, scale, np.sum((losses - floor - scale * x) ** 2, axis=0)

    low, high = np.full(losses.shape[1], _ALPHAS[0]), np.full(losses.shape[1], _ALPHAS[1])
    for _ in range(3):  # each pass narrows the grid to the two steps about its best
        grid = np.geomspace(low, high, 51)
        best = np.argmin([project(alpha)[2] for alpha in grid], axis=0)
        low, alpha, high = (
            np.take_along_axis(grid, np.clip(best + step, 0, 50)[None], axis=0)[0] for step in (-1, 0, 1)
        )
    floor, scale, _ = project(alpha)
    return np.vstack([floor, scale, alpha])
