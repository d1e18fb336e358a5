"""Compute gain: how much more compute the baseline would need for a trial's loss.

The baseline's own runs at three budgets or more give its frontier, loss(F) = E + A F^-alpha (the shape of Kaplan et
al., arXiv 2001.08361, and Hoffmann et al., arXiv 2203.15556). A trial that reaches a loss L with F FLOPs has the gain

    frontier's FLOPs for L / F,   where the frontier's FLOPs for L are (A / (L - E))^(1 / alpha)

so the baseline's is 1.0 at every budget. Hardware FLOPs, on a frontier fitted to them, give the hardware gain.

A curve of three coefficients goes through any three budgets, and its shape is then an assumption. So every interval
also holds what the budgets themselves allow, whatever the shape: between two of them a curve that bends one way in
ln FLOPs lies between their chord and the chords beside it, extended (`_between`). Where these are too far apart to read
a gain off, it has none.

A gain holds at this size and these budgets alone (for other sizes see raytrain.analysis.ladder).
"""

import dataclasses
import math

import numpy as np
import scipy.stats

from raytrain.analysis.noise import SIGNIFICANCE, Codes, Noise
from raytrain.analysis.trials import budgets
from raytrain.errors import UserError
from raytrain.sweep.factorial import Array

_ALPHAS = (0.01, 3.0)  # far beyond the 0.05 to 0.5 of published fits
_DRAWS = 2000
_FARTHEST = 3.0  # a factor between neighbouring budgets, for chords to bound what is between them
_WIDEST = 0.3  # of the logarithm of a gain that the budgets alone allow: it is not read off if they leave more open


@dataclasses.dataclass(frozen=True)
class Frontier:
    """loss(F) = floor + scale (F / unit)^-alpha, fitted for `low` <= F <= `high` FLOPs.

    `unit` is the geometric mean of the fitted FLOPs, which keeps `scale` in nats. `draws` (5 x draws) holds floor,
    scale and alpha of refits to bootstrapped runs, the noise sd behind each, and the sd of ln FLOPs (0 if exact).
    `misfit` is the p-value of the budgets' mean losses lying no further from the fit than the noise puts them; None if
    the fit has as many coefficients as budgets. A small one means that the baseline's losses do
    not fall in this way. Gains are then read off between the budgets, without the curve, and its refits have `stretch`
    times the noise, as much as puts the budgets where they are (Birge, Physical Review 40, 1932).
    `nodes` (2 x 1 + draws x budgets) are ln FLOPs and loss at the budgets: their means, then bootstrapped.
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
    nodes: Array
    stretch: float = 1.0

    @property
    def is_misfit(self) -> bool:
        return self.misfit is not None and self.misfit < SIGNIFICANCE

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
    budget: Codes | None = None,
) -> Frontier:
    """Fit the frontier to the baseline's runs, one entry each.

    `noise` is by default their spread about the mean of their budget; give it for hardware FLOPs, which no two runs
    share, with `clock`, the noise of their logarithm, which is then a part of every interval, and the number of each
    run's `budget`, 0 for the smallest. Raises UserError for fewer than three budgets, or no noise.

    Variable projection (Golub and Pereyra, SIAM Journal on Numerical Analysis 10, 1973): for a fixed alpha the best E
    and A are linear least squares in closed form, here with E, A >= 0, so only alpha is searched, on a grid that is
    then made finer: there is nothing to fail to converge.

    The bootstrap is parametric: it adds normal noise to the fit, with an sd drawn from its distribution given the
    seeds (df s^2 / chi-square). To resample two or three seeds of a budget would understate the noise by a fifth or
    more.
    """
    flops, losses = np.asarray(flops, float), np.asarray(losses, float)
    used = np.isfinite(losses)
    flops, losses = flops[used], losses[used]
    budget = budgets(flops) if budget is None else np.unique(budget[used], return_inverse=True)[1]
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
    misfit, stretch = None, 1.0
    at_bound = (not floor) + (not _ALPHAS[0] < alpha < _ALPHAS[1])
    free = 3 - at_bound if scale else 1  # coefficients
    if clock is None and count > free and noise.sd:
        runs = np.bincount(budget)
        off = (np.bincount(budget, losses - fitted) / runs) ** 2
        ratio = float(np.sum(runs * off)) / (count - free) / noise.sd**2
        misfit = float(scipy.stats.f.sf(ratio, count - free, noise.df))
        if misfit < SIGNIFICANCE:
            stretch = math.sqrt(ratio)
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
    runs = np.bincount(budget)
    nodes = np.array([np.bincount(budget, values) / runs for values in (np.log(flops), losses)])
    errors = draws.standard_normal((2, _DRAWS, count)) * np.array([clocks, sds])[:, :, None] / np.sqrt(runs)
    nodes = np.concatenate([nodes[:, None], nodes[:, None] + errors], axis=1)
    drawn = np.vstack([refits, sds, clocks])
    return Frontier(floor, scale, alpha, unit, *ends, noise, drawn, misfit, nodes, stretch)


def compute_gain(loss: float, flops: float, frontier: Frontier, runs: int = 1, seed: int = 1) -> Estimate:
    """The gain of a trial of mean `loss` over `runs` runs of `flops` FLOPs each, its interval with both sides' noise.

    Of hardware FLOPs, `flops` is the runs' geometric mean.

    Nothing is extrapolated: a loss that lies, beyond the noise, outside what the frontier's budgets reach has no gain.
    An end of the interval may.
    """
    return compute_gains(np.array([loss]), np.array([flops]), frontier, np.array([runs]), seed=seed)[0]


def compute_gains(
    losses: Array, flops: Array, frontier: Frontier, runs: Array, *, wider: Array | float = 1.0, seed: int = 1
) -> list[Estimate]:
    """The gains of several variants, with intervals that hold all of the true gains together in 95% of studies.

    So the first of many is judged as such. The bootstrap's draws are common to all, and the ends of each interval are
    the quantiles that no variant leaves in 95% of the draws (Beran, Journal of the American Statistical Association 83,
    1988). `wider` is by how much each variant's own noise is taken to exceed the frontier's.
    """
    reasons = [_out_of_range(loss, frontier, n) for loss, n in zip(losses, runs, strict=True)]
    used = np.array([not reason for reason in reasons])
    if not used.any():
        return [Estimate(None, reason=reason) for reason in reasons]
    n = runs[used] / np.broadcast_to(wider, losses.shape)[used] ** 2
    gains = _log_gains(losses[used], flops[used], frontier, n, seed)
    low, high = _between(losses[used], flops[used], frontier, n, seed)
    order = np.argsort(np.argsort(gains[1:], axis=0), axis=0) + 0.5
    depth = np.minimum(order, len(order) - order).min(axis=1) / len(order)
    tail = min(float(np.quantile(depth, SIGNIFICANCE)), SIGNIFICANCE / 2)
    if frontier.is_misfit:
        gains = (low + high) / 2
    joined = iter(_joined(*parts, tail) for parts in zip(gains.T, low.T, high.T, strict=True))
    return [Estimate(None, reason=reason) if reason else next(joined) for reason in reasons]


def _joined(gains: Array, low: Array, high: Array, tail: float) -> Estimate:
    """The gain by the curve, with the interval that holds both its own and what the budgets alone allow."""
    if not high[0] - low[0] <= _WIDEST:
        return Estimate(
            None,
            reason="the baseline's loss bends so much between its budgets that its frontier does not show what compute "
            "this loss needs: give it budgets nearer to this one (--frontier_budgets)",
        )
    with np.errstate(invalid="ignore"):
        ends = [np.quantile(draws[1:], q, method="nearest") for draws, q in ((gains, tail), (gains, 1 - tail))]
        ends = [min(ends[0], np.quantile(low[1:], tail)), max(ends[1], np.quantile(high[1:], 1 - tail))]
    value = float(np.clip(gains[0], low[0], high[0]))
    known = [float(np.exp(end)) if math.isfinite(end) else None for end in ends]
    return Estimate(float(np.exp(value)), low=known[0], high=known[1])


def _between(losses: Array, flops: Array, frontier: Frontier, runs: Array, seed: int) -> tuple[Array, Array]:
    """The least and the greatest ln gain (1 + draws x trials) that the frontier's budgets allow, whatever its shape.

    Between two neighbours a curve of ln FLOPs that bends one way lies between the chord through both and the chords on
    either side, extended; the two bound it whichever way it bends. Beyond the ends, where only the noise puts a loss,
    the slope is that of the last chord, to a factor of 2.
    """
    x, y = frontier.nodes
    draws = np.random.default_rng(seed + 1)
    sds, clocks = (np.concatenate([[0.0], frontier.draws[row]])[:, None] for row in (3, 4))
    shape = len(x), len(losses)
    level = losses + draws.standard_normal(shape) / np.sqrt(runs) * sds
    spent = np.log(flops) + draws.standard_normal(shape) / np.sqrt(runs) * clocks
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = -np.diff(y) / np.diff(x)  # of the chords: above zero where more compute is better
    slopes = np.where(slopes > 0, slopes, 1e-12)
    passed = np.sum(np.logical_and.accumulate(y[:, None, :] > level[:, :, None], axis=2), axis=2)  # nodes above it
    last = y.shape[1] - 1
    place = np.clip(passed - 1, 0, last - 1)

    def at(values: Array, index: Codes) -> Array:
        return np.take_along_axis(values, index, axis=1)

    left, right, fallen = at(x, place), at(x, place + 1), at(y, place) - level
    before, after = at(slopes, np.maximum(place - 1, 0)), at(slopes, np.minimum(place + 1, last - 1))
    own = at(slopes, place)
    chord = left + fallen / own
    sides = np.array(
        [
            np.where(place > 0, left + fallen / before, np.nan),
            np.where(place < last - 1, right - (level - at(y, place + 1)) / after, np.nan),
        ]
    )
    near, far = np.nanmax(sides, axis=0), np.nanmin(sides, axis=0)
    low = np.where(near <= chord, near, np.minimum(far, chord))  # all to the left of it: the curve is convex here
    high = np.where(far >= chord, far, np.maximum(near, chord))  # all to the right: concave
    low, high = (np.clip(end, left, right) for end in (np.minimum(low, chord), np.maximum(high, chord)))
    over, under = y[:, -1:] - level, level - y[:, :1]
    beyond, short = passed > last, passed == 0
    low = np.where(
        beyond, x[:, -1:] + over / slopes[:, -1:] / 2, np.where(short, x[:, :1] - under / slopes[:, :1] * 2, low)
    )
    high = np.where(
        beyond, x[:, -1:] + over / slopes[:, -1:] * 2, np.where(short, x[:, :1] - under / slopes[:, :1] / 2, high)
    )
    return low - spent, high - spent


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
    weights = x / (x @ x)
    curve = _log_gains(losses[used], flops[used], frontier, runs[used], seed) @ weights
    low, high = _between(losses[used], flops[used], frontier, runs[used], seed)
    least, most = ((np.where(weights > 0, *ends)) @ weights for ends in ((low, high), (high, low)))
    tails = SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2
    ends = [np.quantile(draws[1:], tails, method="nearest") for draws in (curve, least, most)]
    if frontier.is_misfit:
        curve, ends = (least + most) / 2, ends[1:]
    known = [min(end[0] for end in ends), max(end[1] for end in ends)]
    bounds = [float(end) if math.isfinite(end) else None for end in known]
    return Estimate(float(curve[0]), low=bounds[0], high=bounds[1])


def _out_of_range(loss: float, frontier: Frontier, runs: int) -> str:
    if not math.isfinite(loss):
        return "the trial has no loss"
    margin = frontier.noise.t * frontier.noise.sd / math.sqrt(runs)
    first, last = frontier.nodes[1, 0, 0], frontier.nodes[1, 0, -1]
    if not frontier.scale:
        return "the baseline's loss does not fall with its FLOPs"
    if loss < last - margin or (loss <= frontier.floor and not frontier.is_misfit):
        reached, which, budget = last, "below", frontier.high
    elif loss > first + margin:
        reached, which, budget = first, "above", frontier.low
    else:
        return _untested(loss, frontier)
    return f"val_loss {loss:.4f} is {which} the baseline's {reached:.4f} at {budget:.3g} FLOPs, where its frontier ends"


def _untested(loss: float, frontier: Frontier) -> str:
    """Why no shape of the frontier is to be believed about `loss`; "" if one is.

    The power law is where it was tested, by four budgets or more; the chords are where they are short."""
    x, y = frontier.nodes[:, 0]
    place = int(np.clip(np.sum(np.logical_and.accumulate(y > loss)) - 1, 0, len(x) - 2))
    gap = math.exp(x[place + 1] - x[place])
    if gap <= _FARTHEST or not (frontier.misfit is None or frontier.is_misfit):
        return ""
    return (
        f"the baseline's budgets about this loss are a factor of {gap:.3g} apart, and nothing tests its frontier's "
        f"shape between them: give it budgets a factor of {_FARTHEST:g} apart at most, or four on a power law"
    )


def _log_gains(losses: Array, flops: Array, frontier: Frontier, runs: int | Array, seed: int) -> Array:
    """1 + draws x trials: ln gain by the fit, then by each bootstrap draw with losses and FLOPs drawn anew."""
    fit = np.array([frontier.floor, frontier.scale, frontier.alpha, 0.0, 0.0])
    floor, scale, alpha, sds, clocks = np.hstack([fit[:, None], frontier.draws])
    draws = np.random.default_rng(seed)
    shape = len(sds), len(losses)
    errors, clock_errors = (draws.standard_normal(shape) / np.sqrt(runs) for _ in range(2))
    left = losses + errors * sds[:, None] - floor[:, None]
    spent = np.log(flops) + clock_errors * clocks[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = np.log(scale[:, None] / left) / alpha[:, None] + math.log(frontier.unit) - spent
    return np.where(left > 0, gains, np.inf)  # no compute reaches below the floor


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
