"""The linear model of a study: columns for axes and their pairs, effects, and least squares. Pure: numpy alone.

A point is a mapping of level by axis. An axis that does not change what a point computes is dead there: absent, None,
NaN, or `activation` under swiglu. The loss of a point is modelled as

    mean + sum over live axes of g_A(level) + sum over pairs of live axes of g_AB(level, level)

where each g averages to zero over the candidates, the points of the space, and is zero where an axis is dead: so a
conditional axis is a contrast among the points that have it. An effect is then a contrast of coefficients:

- the effect of a level is its loss less that of its axis's reference level, averaged over the candidates' settings of
  the other axes (a marginal mean: Searle, Speed and Milliken, The American Statistician 34, 1980);
- an interaction of two levels is the effect of the first with the second, less its effect with the second's reference.

Where a field is tuned, such as the learning rate, a point has a value of it too, and the model is a response surface in
x, its centred and scaled logarithm: to the sum above come

    b x + c x^2 + sum over live axes of (b_A(level) x + c_A(level) x^2)

so each level has an optimum and a curvature of its own, and effects are those at the middle of the range, x = 0.
"""

import copy
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raytrain.axes import dead

Array = npt.NDArray[np.float64]
Point = Mapping[str, Any]


def live(point: Point) -> dict[str, Any]:
    """The levels that the point's variant depends on: without those that another level leaves dead (`axes.dead`)."""
    dead_axes = dead(point)
    return {
        axis: level
        for axis, level in point.items()
        if level is not None and level == level and axis not in dead_axes  # NaN is not itself
    }


@dataclasses.dataclass(frozen=True)
class Factor:
    """One axis in a term: its levels, the reference first, and their shares of the candidates that have the term."""

    axis: str
    levels: tuple[Any, ...]
    shares: tuple[float, ...]

    @property
    def coding(self) -> Array:
        """levels x (levels - 1): the identity below a first row that makes each column average to zero by `shares`."""
        return np.vstack([-np.array(self.shares[1:]) / self.shares[0], np.eye(len(self.levels) - 1)])

    def columns(self, points: Sequence[Point]) -> Array:
        """points x (levels - 1), zero where the axis is dead."""
        coding = np.vstack([self.coding, np.zeros(len(self.levels) - 1)])
        place = {level: index for index, level in enumerate(self.levels)}
        return coding[[place.get(point.get(self.axis), -1) for point in points]]

    def contrast(self, level: Any) -> Array:
        """The row of `level` less that of the reference."""
        out: Array = self.coding[self.levels.index(level)] - self.coding[0]
        return out


@dataclasses.dataclass(frozen=True)
class Power:
    """A power of x = (ln value - `middle`) / `reach` of a tuned field, as a factor of one column in a term."""

    field: str
    middle: float
    reach: float
    power: int

    levels = (0, 1)  # of which a factor has one column less

    @property
    def axis(self) -> str:
        return f"{self.field}^{self.power}"

    def columns(self, points: Sequence[Point]) -> Array:
        """points x 1."""
        values = np.array([point[self.field] for point in points], float)
        out: Array = ((np.log(values) - self.middle) / self.reach)[:, None] ** self.power
        return out


@dataclasses.dataclass(frozen=True)
class Effect:
    """The effect of one level, or the interaction of two, against reference levels. A good one is below zero."""

    axes: tuple[str, ...]
    levels: tuple[Any, ...]
    references: tuple[Any, ...]

    @property
    def settings(self) -> list[tuple[str, Any]]:
        return list(zip(self.axes, self.levels, strict=True))

    @property
    def name(self) -> str:
        return " x ".join(f"{axis}={level}" for axis, level in self.settings)


class Model:
    """The model whose averages are over `candidates` and whose references are the levels of `base`.

    A term is a tuple of factors: none (the mean), one (an axis) or two (a pair). An axis of one level has no term. With
    `tuned`, the field that candidates have a value of beside their levels, powers of that are factors too.
    Where an axis lives under some levels of another only, their interaction spans those levels; under a single one, as
    activation under ffn_type=standard, there is none.
    """

    def __init__(
        self, candidates: Iterable[Point], base: Point, *, interactions: bool = True, tuned: str | None = None
    ) -> None:
        self.points = points = [live(point) for point in candidates]
        self.tuned = tuned
        base = live(base)
        axes = [axis for axis in dict.fromkeys(axis for point in points for axis in point) if axis != tuned]

        def factor(axis: str, other: str) -> Factor:
            seen = Counter(point[axis] for point in points if axis in point and other in point)
            levels = sorted(seen, key=lambda level: level != base.get(axis))  # stable: the reference comes first
            return Factor(axis, tuple(levels), tuple(seen[level] / seen.total() for level in levels))

        mains: list[tuple[Factor | Power, ...]] = [(factor(axis, axis),) for axis in axes]
        terms = list(mains)
        if interactions:
            terms += [(factor(a, b), factor(b, a)) for a, b in itertools.combinations(axes, 2)]
        if tuned is not None:
            values = np.log([point[tuned] for point in points])
            low, high = float(values.min()), float(values.max())
            self.middle, self.reach = (low + high) / 2, (high - low) / 2 or 1.0
            powers = [Power(tuned, self.middle, self.reach, power) for power in (1, 2)]
            terms += [(*term, power) for term in [(), *mains] for power in powers]
        self._set([(), *(term for term in terms if all(len(factor.levels) > 1 for factor in term))])

    def _set(self, terms: list[tuple[Factor | Power, ...]]) -> None:
        self.terms = terms
        ends = np.cumsum([math.prod(len(factor.levels) - 1 for factor in term) for term in terms])
        self.size = int(ends[-1])  # number of coefficients
        starts = [0, *ends[:-1]]
        self._where = {
            tuple(factor.axis for factor in term): slice(start, end)
            for term, start, end in zip(terms, starts, ends, strict=True)
        }
        self.effects = [
            Effect(tuple(f.axis for f in term), levels, tuple(f.levels[0] for f in term))
            for term in terms[1:]
            if not any(isinstance(factor, Power) for factor in term)
            for levels in itertools.product(*(factor.levels[1:] for factor in term))
        ]
        self.contrasts = np.array([self.contrast(effect) for effect in self.effects]).reshape(-1, self.size)

    def without(self, pairs: Container[tuple[str, ...]]) -> "Model":
        """The same model less the terms of `pairs` of axes."""
        out = copy.copy(self)
        out._set([term for term in self.terms if tuple(factor.axis for factor in term) not in pairs])
        return out

    @property
    def pairs(self) -> list[tuple[str, ...]]:
        """The pairs of axes that have a term."""
        pairs = [term for term in self.terms if len(term) == 2 and not isinstance(term[1], Power)]
        return [tuple(factor.axis for factor in term) for term in pairs]

    def over_rates(self, points: Sequence[Point]) -> Array:
        """3 x coefficients: the mean over `points` as a parabola in x of the tuned field, the constant first."""
        assert self.tuned is not None
        field = self.tuned
        at = [
            np.mean(self.matrix([{**point, field: math.exp(self.middle + self.reach * x)} for point in points]), 0)
            for x in (-1, 0, 1)
        ]
        return np.array([at[1], (at[2] - at[0]) / 2, (at[2] + at[0]) / 2 - at[1]])

    def matrix(self, points: Iterable[Point]) -> Array:
        """points x coefficients: for each term the products of its factors' columns."""
        alive = [live(point) for point in points]
        blocks = []
        for term in self.terms:
            block = np.ones((len(alive), 1))
            for factor in term:
                block = (block[:, :, None] * factor.columns(alive)[:, None, :]).reshape(len(alive), -1)
            blocks.append(block)
        return np.hstack(blocks)

    def contrast(self, effect: Effect) -> Array:
        """The coefficients of `effect`."""
        term = self.terms[list(self._where).index(effect.axes)]
        factors = [factor for factor in term if isinstance(factor, Factor)]
        rows = [factor.contrast(level) for factor, level in zip(factors, effect.levels, strict=True)]
        out = np.zeros(self.size)
        out[self._where[effect.axes]] = np.kron(*rows) if len(rows) == 2 else rows[0]
        return out

    def contrast_within(self, effect: Effect, varied: int, other: Any) -> Array:
        """The coefficients of the effect of an interaction's level number `varied` (0 or 1), with the other at `other`.

        The mean over the candidates that have both, each less the same point at the level's reference: levels that come
        with `other`, as ffn_type=standard does with an activation, then count too.
        """
        axis, given = effect.axes[varied], effect.axes[1 - varied]
        have = [p for p in self.points if p.get(axis) == effect.levels[varied] and p.get(given) == other]
        changed = [p | {axis: effect.references[varied]} for p in have]
        out: Array = np.mean(self.matrix(have) - self.matrix(changed), axis=0)
        return out


def interaction_columns(runs: Sequence[Point], axes: Sequence[str]) -> Array:
    """runs x columns: the products of the axes' indicators of all levels but the first."""
    alive = [live(run) for run in runs]
    out = np.ones((len(runs), 1))
    for axis in axes:
        levels = list(dict.fromkeys(run[axis] for run in alive if axis in run))
        own = np.array([[float(axis in run and run[axis] == level) for level in levels[1:]] for run in alive])
        out = (out[:, :, None] * own.reshape(len(runs), 1, -1)).reshape(len(runs), -1)
    return out


class LeastSquares:
    """One factorisation of a model matrix (runs x coefficients), for any number of right-hand sides.

    With the singular value decomposition X = U S V' cut at its rank, a contrast c is estimable if it lies in the span
    of V; then its estimate c' V S^-1 U' y and that estimate's variance do not depend on how X was coded. `nuisance`
    (runs x any) holds columns to allow for, of which no contrast speaks.
    """

    def __init__(self, matrix: Array, nuisance: Array | None = None) -> None:
        self._size = matrix.shape[1]
        if nuisance is not None:
            matrix = np.hstack([matrix, nuisance])
        u, sizes, v = np.linalg.svd(matrix, full_matrices=False)
        self.rank = int(np.sum(sizes > sizes[0] * 1e-9))
        self.df = len(matrix) - self.rank
        self.basis, self._v = u[:, : self.rank], v[: self.rank].T  # runs x rank: orthonormal, of what is fitted
        self._pseudoinverse = ((self._v / sizes[: self.rank]) @ self.basis.T)[: self._size]

    def unseen(self, contrasts: Array) -> Array:
        """The part of each contrast (contrasts x coefficients) that the runs do not determine; zero if estimable."""
        padded = np.hstack([contrasts, np.zeros((len(contrasts), len(self._v) - self._size))])
        rest = padded - padded @ self._v @ self._v.T
        return np.where(np.abs(rest) < 1e-7, 0.0, rest)

    def weights(self, contrasts: Array) -> Array:
        """contrasts x runs: the weight of each loss in an estimate, whose standard error is noise sd x a row's norm."""
        out: Array = contrasts @ self._pseudoinverse
        return out

    def residuals(self, losses: Array) -> Array:
        """What the fit leaves over of `losses` (runs, or runs x studies)."""
        return losses - self.basis @ (self.basis.T @ losses)

    def residual_sd(self, losses: Array) -> Array:
        """Of one study (runs) or many (runs x studies); NaN without residual degrees of freedom."""
        if not self.df:
            return np.full(losses.shape[1:], np.nan)
        out: Array = np.sqrt(np.sum(self.residuals(losses) ** 2, axis=0) / self.df)
        return out


def population(runs: Iterable[Point], candidates: Iterable[Point] | None = None) -> list[dict[str, Any]]:
    """The distinct points to average over: `candidates`, by default the points run, so far as their levels were run."""
    alive = [live(run) for run in runs]
    seen = {item for run in alive for item in run.items()}
    points = alive if candidates is None else [live(point) for point in candidates]
    return list({frozenset(point.items()): point for point in points if seen >= point.items()}.values())


def fit_model(model: Model, runs: Sequence[Point], nuisance: Array | None = None) -> tuple[Model, LeastSquares]:
    """`model` less the pairs of axes that would hide a main effect, and its factorisation on `runs`.

    One-at-a-time runs keep no pair: they see each effect at the base of the other axes alone. A pair with an empty
    cell, for instance because all its trials diverged, is dropped alone. Where the runs are too few for the pairs
    together, all go.
    """
    main = model.without(model.pairs)
    mains = len(main.effects)
    main_fit = LeastSquares(main.matrix(runs), nuisance)
    visible = ~main_fit.unseen(main.contrasts).any(axis=1)

    def attempt(part: Model) -> LeastSquares | None:
        fit = LeastSquares(part.matrix(runs), nuisance)
        return None if fit.unseen(part.contrasts[:mains])[visible].any() else fit

    if fit := attempt(model):
        return model, fit
    hiding = {pair for pair in model.pairs if not attempt(model.without({*model.pairs} - {pair}))}
    rest = model.without(hiding)
    fit = attempt(rest)
    return (rest, fit) if fit else (main, main_fit)
