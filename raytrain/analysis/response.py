"""Loss against learning rate: each variant at its own best one. Pure: plain arrays in, numpy alone.

The loss of a variant is taken to be smooth in x = ln learning rate, with one least value. Near it a polynomial in x is
fitted by least squares: a quadratic, or the least degree above whose remainder the spread over seeds explains
(`LACK_OF_FIT`). Runs are weighted by the noise at their rate, where that differs between rates.

docs/log.md has the simulated coverage, also of what was tried beside this: a correction of the least value's bias
-Var(slope) / (2 curvature), one degree for all, and one noise for all rates.
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import scipy.stats

from raytrain.analysis import arms, strata
from raytrain.analysis.curve import BySeed, Curve, Indices, SumErrors
from raytrain.sweep.factorial import Array, LeastSquares

REACH = math.log(5)  # a curve is fitted to rates within this factor of the best one tried, and to the three nearest
_LEAST_LEVELS = 3
LACK_OF_FIT = 0.10  # p below which a higher degree is taken: a wrong shape is worse than a wider interval
_UNEQUAL = 1e-3  # p below which rates count as unequally noisy: the test takes the runs of a seed as independent
_ROUNDING = 1e-20  # nats^2 a run: losses that the curves give to the last digit


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of variants, by their number; those without a usable run have none. `degree` is what was fitted."""

    curves: dict[int, Curve]
    errors: SumErrors
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
        if window := _window(x[own], losses[own], usable[own], failed[own]):
            windows[int(number)] = window
            inside |= own & usable & (x >= window.low) & (x <= window.high)
    rows = np.flatnonzero(inside)
    if not len(rows):
        return Curves({}, BySeed(rows, rows, np.zeros(0), np.zeros(0), rows), 2)
    runs = _Runs.of(variant[rows], x[rows], losses[rows], seeds[rows])
    chosen = _degree(runs)
    centre = float((runs.x.min() + runs.x.max()) / 2)
    curves: dict[int, Curve] = {}
    for number, window in windows.items():
        own = runs.variant == number
        terms = _terms(runs.x[own], chosen, centre) / runs.scale[own, None]
        weights = np.zeros((terms.shape[1], len(x)))
        weights[:, rows[own]] = np.linalg.pinv(terms) / runs.scale[own]
        curves[number] = Curve(centre, coefficients=weights[:, rows] @ runs.losses, weights=weights, **vars(window))
    return Curves(curves, _errors(runs, chosen, rows), chosen)


@dataclasses.dataclass(frozen=True)
class _Runs:
    """What is fitted. `scale` (nats) is the noise at each run's rate, where it differs between rates; else 1."""

    variant: Indices
    x: Array
    losses: Array
    seeds: Indices
    scale: Array

    @classmethod
    def of(cls, variant: Indices, x: Array, losses: Array, seeds: Indices) -> "_Runs":
        """With the noise at each rate, where that of differences between variants clearly depends on it (`arms`).

        Near the rate at which training fails, losses scatter many times as much as at the best rate. What a seed does
        to all variants is left out: it is in no difference.
        """
        equal = cls(variant, x, losses, seeds, np.ones(len(x)))
        matrix = equal.matrix(None if equal.is_replicated else 2)
        fit = LeastSquares(np.hstack([matrix, equal.seed_columns]))
        arms_noise = arms.unequal([{"rate": rate} for rate in x.tolist()], fit, losses - losses.mean())
        return (
            equal
            if arms_noise is None or arms_noise.p > _UNEQUAL
            else dataclasses.replace(equal, scale=arms_noise.sds[arms_noise.codes])
        )

    @property
    def is_replicated(self) -> bool:
        """Whether a variant ran twice at a rate."""
        return len(np.unique(np.column_stack([self.variant, self.x]), axis=0)) < len(self.x)

    @property
    def seed_columns(self) -> Array:
        return np.eye(int(self.seeds.max()) + 1)[self.seeds][:, np.unique(self.seeds)]

    def matrix(self, degree: int | None) -> Array:
        """runs x coefficients: each variant's polynomial; with `degree` None a mean at each of its rates."""
        parts = []
        for number in np.unique(self.variant):
            own = self.variant == number
            part = np.zeros((len(self.x), len(np.unique(self.x[own]))))
            rates = np.unique(self.x[own], return_inverse=True)[1]
            terms = np.eye(part.shape[1])[rates] if degree is None else _terms(self.x[own], degree, self.x[own].mean())
            part[own, : terms.shape[1]] = terms
            parts.append(part[:, : terms.shape[1]])
        return np.hstack(parts)

    def fit(self, matrix: Array) -> LeastSquares:
        return LeastSquares(matrix / self.scale[:, None])

    @property
    def scaled(self) -> Array:
        """The losses over their noise. Centred by a constant, which every variant's curve has: no digits are lost."""
        return np.asarray((self.losses - self.losses.mean()) / self.scale)


def _errors(runs: _Runs, degree: int, rows: Indices) -> SumErrors:
    """Of sums over all runs, of which `rows` were fitted."""
    matrix = runs.matrix(degree)
    fit = runs.fit(matrix)
    cells = np.unique(np.column_stack([runs.variant, runs.seeds]), axis=0)
    if len(cells) < len(rows):  # a variant runs in a seed at several rates
        return _Blocks(fit, runs, rows)
    numbers, place = np.unique(runs.variant, return_inverse=True)
    counts = [np.sum(runs.variant == n) - np.linalg.matrix_rank(matrix[runs.variant == n]) for n in numbers]
    return BySeed(place, runs.seeds, fit.residuals(runs.scaled), np.array(counts, float), rows, runs.scale)


class _Blocks:
    """Each sum against its own variation over seeds (raytrain.analysis.strata); nothing where there is but one."""

    def __init__(self, fit: LeastSquares, runs: _Runs, rows: Indices) -> None:
        self._blocks, self._losses = strata.Blocks(fit, runs.seeds), runs.scaled
        self._rows, self._scale = rows, runs.scale
        self._is_known = len(np.unique(runs.seeds)) > 1
        residuals = fit.residuals(self._losses) * self._scale
        self.df = fit.df
        self.sd = float(np.sqrt(np.sum(residuals**2) / fit.df)) if self._is_known and fit.df else math.nan

    def __call__(self, weights: Array) -> tuple[Array, Array]:
        if not self._is_known:
            return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
        return self._blocks(weights[:, self._rows] * self._scale, self._losses)


@dataclasses.dataclass(frozen=True)
class _Window:
    """What of a variant's rates is fitted; see Curve."""

    low: float
    high: float
    below: str
    above: str


def _window(x: Array, losses: Array, usable: npt.NDArray[np.bool_], failed: npt.NDArray[np.bool_]) -> _Window | None:
    """The usable rates about the best one, no other between: those within REACH, and the three nearest."""
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
        return "tried" if trains[place] else "unstable" if failed[x == levels[place]].any() else "waiting"

    return _Window(float(levels[kept[0]]), float(levels[kept[-1]]), beyond(kept[0] - 1), beyond(kept[-1] + 1))


def _terms(x: Array, degree: int, centre: float) -> Array:
    """runs x coefficients: powers of x - `centre`, as many as there are rates at most."""
    return np.vander(x - centre, min(degree + 1, len(np.unique(x))), increasing=True)


def _degree(runs: _Runs) -> int:
    """The least degree, 2 or more, that the losses do not contradict (F tests at LACK_OF_FIT, all variants together).

    What a seed does to all variants may be large, and as each rate has seeds of its own, it looks like a shape. So the
    differences between variants are tested less the seeds' offsets, and the mean curve against the spread of the seeds'
    own means. Without replicates a degree is held against the next.
    """
    top = max(len(np.unique(runs.x[runs.variant == number])) for number in np.unique(runs.variant)) - 1
    for degree in range(2, top):
        if all(p >= LACK_OF_FIT / 2 for p in (_shapes_differ(runs, degree), _shape_of_all(runs, degree))):
            return degree
    return max(2, top)


def _shapes_differ(runs: _Runs, degree: int) -> float:
    """p of the variants' own shapes beyond `degree`."""
    is_alone = len(np.unique(runs.variant)) == 1
    offsets = np.zeros((len(runs.x), 0)) if is_alone else runs.seed_columns
    if is_alone and runs.is_replicated:
        return 1.0  # the whole question is that of its one shape
    finer = runs.matrix(None if runs.is_replicated else degree + 1)
    fits = [runs.fit(np.hstack([matrix, offsets])) for matrix in (runs.matrix(degree), finer)]
    squares = [float(np.sum(fit.residuals(runs.scaled) ** 2)) for fit in fits]
    return _f_test(squares[0] - squares[1], fits[0].df - fits[1].df, squares[1], fits[1].df, len(runs.x))


def _shape_of_all(runs: _Runs, degree: int) -> float:
    """p of the shape of the mean curve beyond `degree`, by the means of residuals in each seed."""
    residuals = runs.fit(runs.matrix(degree)).residuals(runs.scaled)
    cells, place = np.unique(np.column_stack([runs.x, runs.seeds]), axis=0, return_inverse=True)
    place = place.ravel()
    counts = np.bincount(place)
    means = np.bincount(place, residuals) / np.sqrt(counts)  # of one variance, whatever the number of variants
    rate = np.unique(cells[:, 0], return_inverse=True)[1]
    per_rate = np.bincount(rate)
    by_rate = np.bincount(rate, means) / per_rate
    between, within = float(per_rate @ by_rate**2), float(np.sum((means - by_rate[rate]) ** 2))
    return _f_test(between, len(per_rate) - 1 - degree, within, len(means) - len(per_rate), len(runs.x))


def _f_test(square: float, df: int, rest: float, rest_df: int, runs: int) -> float:
    """p of the mean `square` being no more than that of the `rest`; 1 where there is nothing to test, or by."""
    if df <= 0 or rest_df <= 0 or square <= _ROUNDING * runs:
        return 1.0
    return float(scipy.stats.f.sf(square / df / (rest / rest_df), df, rest_df)) if rest > 0 else 0.0
