"""Loss against learning rate: each variant at its own best one. Pure: plain arrays in, numpy alone.

The loss of a variant is taken to be smooth in x = ln learning rate, with one least value. Near it a polynomial in x is
fitted by least squares: a quadratic, or the least degree above whose remainder the spread over seeds explains
(`LACK_OF_FIT`). What is asked of a curve is then its least value, where that is, and what a rate twice or half as large
loses. Each of these is a smooth function of the coefficients, so near the estimate it is a weighted sum of losses (the
delta method), and `BySeed` gives the error of any such sum with seeds as blocks.

For the least value, m = min over x of b(x)'beta with the basis b, the derivative is b(x*) (the envelope theorem), so
its variance is that of the fitted loss at x*, as if x* were known. docs/log.md has the simulated coverage, also of what
was tried beside it: a correction of the bias -Var(slope) / (2 curvature), and one degree for all.
"""

import dataclasses
import functools
import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import scipy.stats

from raytrain.sweep.factorial import Array

REACH = math.log(5)  # a curve is fitted to rates within this factor of the best one tried, and to the three nearest
_LEAST_LEVELS = 3
LACK_OF_FIT = 0.10  # p below which a higher degree is taken: a wrong shape is worse than a wider interval
_ROUNDING = 1e-20  # nats^2 a run: losses that the curves give to the last digit
_GRID = 401

Indices = npt.NDArray[np.intp]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number (nats, or ln learning rate) and the weight of each run's loss in it."""

    value: float
    weights: Array

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.weights - other.weights)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Loss as a polynomial in x - `centre`, x = ln learning rate, from `low` to `high`.

    `weights` (coefficients x runs) times the losses are the coefficients, the constant first. `below` and `above` say
    what lies beyond the ends: "" where no rate was tried there, "unstable" where the next one diverged or stayed on
    the plateau, "tried" where there are usable rates too far away to fit.
    """

    centre: float
    low: float
    high: float
    coefficients: Array
    weights: Array
    below: str = ""
    above: str = ""

    def row(self, x: float, derivative: int = 0) -> Array:
        """The polynomial's terms at x, or their `derivative`-th derivatives."""
        powers = np.arange(len(self.coefficients))
        factors = np.array([math.perm(power, derivative) for power in powers], float)
        return factors * (x - self.centre) ** np.maximum(powers - derivative, 0)

    def at(self, x: float) -> Estimate:
        """The loss at x."""
        return self._of(self.row(x))

    def _of(self, row: Array) -> Estimate:
        return Estimate(float(row @ self.coefficients), row @ self.weights)

    @functools.cached_property
    def x(self) -> float:
        """The ln learning rate of the least loss between the ends."""
        polynomial = np.polynomial.Polynomial(self.coefficients)
        roots = np.atleast_1d(polynomial.deriv().roots() if len(self.coefficients) > 2 else [])
        inner = roots[np.abs(np.imag(roots)) < 1e-9].real + self.centre
        places = np.array([self.low, self.high, *inner[(inner > self.low) & (inner < self.high)]])
        return float(places[np.argmin(polynomial(places - self.centre))])

    @property
    def least(self) -> Estimate:
        """The least loss."""
        return self.at(self.x)

    @property
    def edge(self) -> str:
        """Where the best rate is: "lowest" or "highest" if the last one tried on that side, "inside" if between others.

        "unstable above" ("unstable below") where it is the last at which the variant trains: the optimum may lie
        between it and the next rate tried.
        """
        for end, beyond, name, side in (
            (self.low, self.below, "lowest", "below"),
            (self.high, self.above, "highest", "above"),
        ):
            if self.x == end and beyond != "tried":
                return f"unstable {side}" if beyond else name
        return "inside"

    def lost(self, factor: float) -> Estimate | None:
        """What a learning rate `factor` times the best one loses; None where that lies beyond the ends.

        The best rate is an estimate too: d x* / d beta = -b'(x*) / f''(x*) carries its error over.
        """
        x = self.x + math.log(factor)
        if not self.low - 1e-9 <= x <= self.high + 1e-9:
            return None
        row = self.row(x) - self.row(self.x)
        value = float(row @ self.coefficients)
        curvature = float(self.row(self.x, 2) @ self.coefficients)
        if self.low < self.x < self.high and curvature > 0:
            row = row - float(self.row(x, 1) @ self.coefficients) * self.row(self.x, 1) / curvature
        return Estimate(value, row @ self.weights)


class Errors(Protocol):
    """What gives weighted sums of losses, `weights` (sums x runs), their (standard errors, degrees of freedom)."""

    def __call__(self, weights: Array) -> tuple[Array, Array]: ...


class BySeed:
    """The standard error of weighted sums of losses, with seeds as blocks that no variant runs in twice.

    A seed's errors are a draw of one vector with an entry for each variant, whose covariance Omega is the same for all
    seeds, and any: variants of one level may go together. It is estimated by the residuals e (seeds x variants) of the
    variants' own curves, with their degrees of freedom f:

        Omega_uv = sum over seeds of e_su e_sv / sqrt(f_u f_v),    variance = sum over seeds of w_s' Omega w_s

    For a difference that all rates have one weight in this is the residual variance of the differences themselves,
    seed by seed, about their own curve, with its f degrees of freedom: the error stratum of that contrast. Where
    windows differ, covariances come out a little small, which widens intervals of differences. A variant whose curve
    leaves no residual has the others' mean variance.
    """

    def __init__(self, variant: Indices, seeds: Indices, residuals: Array, df: Array) -> None:
        self._variant, self._df = variant, df
        self._seeds = np.unique(seeds, return_inverse=True)[1]
        table = np.zeros((self._seeds.max(initial=-1) + 1, len(df)))
        np.add.at(table, (self._seeds, variant), residuals)
        known = df > 0
        scaled = table / np.sqrt(np.maximum(df, 1))
        self._omega = scaled.T @ scaled
        self.sd = math.sqrt(float(np.sum(residuals**2)) / float(df.sum())) if known.any() else math.nan
        self._omega[~known, ~known] = self.sd**2
        self._df = np.where(known, df, df[known].min() if known.any() else np.nan)

    def __call__(self, weights: Array) -> tuple[Array, Array]:
        """(standard error, degrees of freedom) of each of `weights` (sums x runs); NaN where nothing gives the noise.

        Degrees of freedom are the harmonic mean of the variants', by their part of the variance.
        """
        shape = (int(self._seeds.max()) + 1, len(self._df))
        cells = np.zeros((math.prod(shape), len(weights)))
        np.add.at(cells, np.ravel_multi_index((self._seeds, self._variant), shape), weights.T)
        blocks = cells.T.reshape(len(weights), *shape)
        variance = np.einsum("wsu,uv,wsv->w", blocks, self._omega, blocks, optimize=True)
        parts = np.sum(blocks**2, axis=1) * np.diag(self._omega)
        with np.errstate(invalid="ignore", divide="ignore"):
            df = parts.sum(axis=1) / np.sum(parts / self._df, axis=1)
        return np.sqrt(np.maximum(variance, 0)), df


@dataclasses.dataclass(frozen=True)
class Range:
    """`low` to `high`, 95%. An end that the tried rates leave open is None."""

    low: float | None
    high: float | None


def best_rate(curve: Curve, errors: Errors) -> Range:
    """The 95% interval of the learning rate of the least loss, by the slope there being zero.

    All rates between the ends, and joined to the best one, whose fitted slope is within t standard errors of zero: for
    a quadratic this is Fieller's interval of -b / 2c (Journal of the Royal Statistical Society B 16, 1954). It is
    open at an end of the tried rates that it reaches.
    """
    grid = np.linspace(curve.low, curve.high, _GRID)
    rows = np.array([curve.row(x, 1) for x in grid])
    error, df = errors(rows @ curve.weights)
    if not np.isfinite(error).all():
        return Range(None, None)
    near = np.abs(rows @ curve.coefficients) <= scipy.stats.t.ppf(0.975, df) * error
    first = last = int(np.argmin(np.abs(grid - curve.x)))
    while first > 0 and near[first - 1]:
        first -= 1
    while last < _GRID - 1 and near[last + 1]:
        last += 1
    ends = (None if first == 0 else math.exp(grid[first]), None if last == _GRID - 1 else math.exp(grid[last]))
    return Range(*ends)


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of variants, by their number; those without a usable run have none. `degree` is what was fitted."""

    curves: dict[int, Curve]
    errors: Errors
    degree: int


def fit_curves(variant: Indices, x: Array, losses: Array, failed: npt.NDArray[np.bool_], seeds: Indices) -> Curves:
    """A curve for each variant, of runs at ln learning rates `x` with `losses` (nats) and `seeds`.

    A rate at which half of a variant's runs or more `failed` (diverged, or on the plateau) bounds what is fitted of it
    and has no part in the fit, nor have failed runs at other rates.
    """
    usable = ~failed & np.isfinite(losses)
    windows: dict[int, _Window] = {}
    inside = np.zeros(len(x), bool)
    for number in np.unique(variant):
        own = variant == number
        if window := _window(x[own], losses[own], usable[own]):
            windows[int(number)] = window
            inside |= own & usable & (x >= window.low) & (x <= window.high)
    chosen = _degree(variant[inside], x[inside], losses[inside])
    centre = float((x[inside].min() + x[inside].max()) / 2) if inside.any() else 0.0
    curves: dict[int, Curve] = {}
    residuals, df = np.zeros(len(x)), np.zeros(variant.max(initial=-1) + 1)
    for number, window in windows.items():
        own = np.flatnonzero(inside & (variant == number))
        terms = _terms(x[own], chosen, centre)
        inverse = np.linalg.pinv(terms)
        weights = np.zeros((terms.shape[1], len(x)))
        weights[:, own] = inverse
        curves[number] = Curve(centre, coefficients=inverse @ losses[own], weights=weights, **vars(window))
        residuals[own] = losses[own] - terms @ (inverse @ losses[own])
        df[number] = len(own) - terms.shape[1]
    return Curves(curves, BySeed(variant, seeds, residuals, df), chosen)


@dataclasses.dataclass(frozen=True)
class _Window:
    """What of a variant's rates is fitted; see Curve."""

    low: float
    high: float
    below: str
    above: str


def _window(x: Array, losses: Array, usable: npt.NDArray[np.bool_]) -> _Window | None:
    """The usable rates about the best one, no unstable one between: those within REACH, and the three nearest."""
    levels = np.unique(x)
    trains = np.array([np.mean(usable[x == level]) > 0.5 for level in levels])
    if not trains.any():
        return None
    means = np.array(
        [losses[usable & (x == level)].mean() if ok else np.inf for level, ok in zip(levels, trains, strict=True)]
    )
    best = int(np.argmin(means))
    first, last = best, best
    while first > 0 and trains[first - 1]:
        first -= 1
    while last < len(levels) - 1 and trains[last + 1]:
        last += 1
    away = np.abs(levels - levels[best])
    third = np.sort(away[first : last + 1])[:_LEAST_LEVELS][-1]
    kept = [place for place in range(first, last + 1) if away[place] <= max(REACH, third) + 1e-9]

    def beyond(place: int) -> str:
        if not 0 <= place < len(levels):
            return ""
        return "tried" if trains[place] else "unstable"

    return _Window(float(levels[kept[0]]), float(levels[kept[-1]]), beyond(kept[0] - 1), beyond(kept[-1] + 1))


def _terms(x: Array, degree: int, centre: float) -> Array:
    """runs x coefficients: powers of x - `centre`, as many as there are rates at most."""
    return np.vander(x - centre, min(degree + 1, len(np.unique(x))), increasing=True)


def _degree(variant: Indices, x: Array, losses: Array) -> int:
    """The least degree, 2 or more, that all variants' losses together do not contradict (F test, LACK_OF_FIT).

    With replicates a degree's remainder is held against their spread; without, the next degree's gain against what
    that leaves.
    """
    groups = [np.flatnonzero(variant == number) for number in np.unique(variant)]
    top = max((len(np.unique(x[own])) for own in groups), default=0) - 1
    cells = sum(len(np.unique(x[own])) for own in groups)

    def misfit(degree: int) -> tuple[float, int]:
        square, rank = 0.0, 0
        for own in groups:
            terms = _terms(x[own], degree, float(x[own].mean()))
            fit = np.linalg.lstsq(terms, losses[own] - losses[own].mean(), rcond=None)[0]
            square += float(np.sum((losses[own] - losses[own].mean() - terms @ fit) ** 2))
            rank += terms.shape[1]
        return square, len(x) - rank

    for degree in range(2, top):
        square, df = misfit(degree)
        better, rest = misfit(top if len(x) > cells else degree + 1)
        if df == rest or rest <= 0 or square <= _ROUNDING * len(x):
            return degree
        f = (square - better) / (df - rest) / (better / rest) if better > 0 else math.inf
        if scipy.stats.f.sf(f, df - rest, rest) >= LACK_OF_FIT:
            return degree
    return max(2, top)
