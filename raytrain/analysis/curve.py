"""A curve of loss against ln learning rate: its least value, where that is, and the error of what is read from it.

What is asked of a curve is a smooth function of its coefficients, so near the estimate it is a weighted sum of losses
(the delta method). For the least value, m = min over x of b(x)'beta with the basis b, the derivative is b(x*) (the
envelope theorem): its variance is that of the fitted loss at x*, as if x* were known. Pure: plain arrays.
"""

import dataclasses
import functools
import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import scipy.stats

from raytrain.sweep.factorial import Array

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

    `weights` (coefficients x runs) times the losses are the coefficients, the constant first. `below` and `above`
    state what lies beyond the ends: "" where no rate was tried there, "unstable" where the next one diverged or stayed
    on the plateau, "waiting" where its runs have not ended, "tried" where there are usable rates too far away to fit.
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
        row = self.row(x)
        return Estimate(float(row @ self.coefficients), row @ self.weights)

    def within(self, x: float) -> Estimate | None:
        """The loss at x; None beyond the ends."""
        return self.at(x) if self.low - 1e-9 <= x <= self.high + 1e-9 else None

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
        between it and the next rate tried. "waiting above" ("waiting below") where the next has not been run. Of a
        single usable rate, the side where none was tried is named.
        """
        edges = [
            f"{beyond} {side}" if beyond else name
            for end, beyond, name, side in (
                (self.low, self.below, "lowest", "below"),
                (self.high, self.above, "highest", "above"),
            )
            if self.x == end and beyond != "tried"
        ]
        return min(edges, key=lambda edge: edge not in ("lowest", "highest"), default="inside")

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


class SumErrors(Protocol):
    """What gives weighted sums of losses, `weights` (sums x runs), their (standard errors, degrees of freedom); `sd` is
    the noise of a run about the curves, with `df`; NaN where nothing gives it."""

    sd: float
    df: int

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
    leaves no residual has the others' mean variance. Residuals, variants and seeds are those of `rows`, the runs that
    were fitted; the residuals are over the `scale` of each run's noise.
    """

    def __init__(
        self, variant: Indices, seeds: Indices, residuals: Array, df: Array, rows: Indices, scale: Array | float = 1.0
    ) -> None:
        self._variant, self._rows, self._scale = variant, rows, scale
        self._seeds = np.unique(seeds, return_inverse=True)[1]
        table = np.zeros((int(self._seeds.max(initial=-1)) + 1, len(df)))
        table[self._seeds, variant] = residuals
        known = df > 0
        scaled = table / np.sqrt(np.maximum(df, 1))
        self._omega = scaled.T @ scaled
        self.df = int(df.sum())
        self.sd = math.sqrt(float(np.sum((residuals * scale) ** 2)) / self.df) if self.df else math.nan
        self._omega[~known, ~known] = float(np.sum(residuals**2)) / self.df if self.df else math.nan
        self._df = np.where(known, df, df[known].min() if known.any() else np.nan)

    def __call__(self, weights: Array) -> tuple[Array, Array]:
        """(standard error, degrees of freedom) of each of `weights` (sums x runs); NaN where nothing gives the noise.

        Degrees of freedom are the harmonic mean of the variants', by their parts of the variance: exact where all have
        one weight in a seed. Satterthwaite's, with the estimated Omega, come out too many (docs/log.md).
        """
        shape = (int(self._seeds.max(initial=-1)) + 1, len(self._df))
        cells = np.zeros((math.prod(shape), len(weights)))
        cells[np.ravel_multi_index((self._seeds, self._variant), shape)] = (weights[:, self._rows] * self._scale).T
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


def best_rate(curve: Curve, errors: SumErrors) -> Range:
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
