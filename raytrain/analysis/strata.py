"""The error that each contrast is judged by: the variation of that contrast itself, over the units that were drawn.

Where all variants run on the same seeds, a seed is a block, and what it does to one level of an axis (seed x axis) is
no part of another contrast's error. So each contrast has an error stratum of its own, as in a split-plot experiment:
its values in the single seeds, k of them with k - 1 degrees of freedom. Pooling the strata is right only if seeds act
alike on all axes, which real training does not show (docs/log.md), and k - 1 degrees of freedom cannot test.

The estimator is the cluster-robust variance CR2 with seeds as clusters and its degrees of freedom by Satterthwaite
(Bell and McCaffrey, Survey Methodology 28, 2002; Pustejovsky and Tipton, Journal of Business & Economic Statistics 36,
2018). With every variant in every seed it is the spread of the per-seed contrasts over sqrt(k), with k - 1 degrees of
freedom, exactly; where runs are lost it stays unbiased under independent noise of one size.

Where each run has a seed of its own there are no blocks: what a seed does to a level is independent from run to run, a
part of the ordinary residuals. These have one variance, or one for each level of an axis (`Arms`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
import scipy.stats

from raytrain.analysis.noise import SIGNIFICANCE, Codes, Noise
from raytrain.sweep.factorial import Array, LeastSquares, Point


@dataclasses.dataclass(frozen=True)
class Contrasts:
    """Estimates with their standard errors and degrees of freedom, one entry a contrast; NaN where there is no error
    to go by."""

    estimate: Array
    standard_error: Array
    df: Array

    @property
    def half_width(self) -> Array:
        """Of the 95% interval, from Student's t."""
        out: Array = scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, self.df) * self.standard_error
        return out

    @property
    def ends(self) -> tuple[Array, Array]:
        """Of the 95% intervals."""
        return self.estimate - self.half_width, self.estimate + self.half_width

    @property
    def p(self) -> Array:
        """Two-sided, of the contrast being zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            out: Array = 2 * scipy.stats.t.sf(np.abs(self.estimate / self.standard_error), self.df)
            return out

    @property
    def rows(self) -> list[tuple[float, float, float, float]]:
        """(estimate, standard error, low, high) of each."""
        return list(zip(*map(np.ndarray.tolist, (self.estimate, self.standard_error, *self.ends)), strict=True))


class Errors(Protocol):
    """The (standard error, df) of estimates that are `weights` (contrasts x runs) times losses, of one study (runs) or
    of many (runs x studies); df has one entry a contrast."""

    def __call__(self, weights: Array, losses: Array) -> tuple[Array, Array]: ...


class Pooled:
    """One variance for all runs: standard error = sd x the norm of the weights, with `noise` or that of the fit's
    residuals."""

    def __init__(self, fit: LeastSquares, noise: Noise | None = None) -> None:
        self._fit, self._noise = fit, noise

    def __call__(self, weights: Array, losses: Array) -> tuple[Array, Array]:
        norms = np.linalg.norm(weights, axis=1)
        sd = self._noise.sd if self._noise else self._fit.residual_sd(losses)
        df = self._noise.df if self._noise else self._fit.df or np.nan
        return np.multiply.outer(norms, sd), np.full_like(norms, df)


class Blocks:
    """Each contrast against its own variation over the blocks (runs' `codes`): CR2, see the module."""

    def __init__(self, fit: LeastSquares, codes: Codes) -> None:
        self._fit, self._parts = fit, []
        for block in np.unique(codes):
            rows = np.flatnonzero(codes == block)
            sizes, vectors = np.linalg.eigh(np.eye(len(rows)) - fit.basis[rows] @ fit.basis[rows].T)
            kept = sizes > 1e-8  # the rest is fitted to the last digit, and holds no residual
            self._parts.append((rows, (vectors[:, kept] / np.sqrt(sizes[kept])) @ vectors[:, kept].T))

    def __call__(self, weights: Array, losses: Array) -> tuple[Array, Array]:
        residuals = self._fit.residuals(losses)
        adjusted = [weights[:, rows] @ root for rows, root in self._parts]  # each contrasts x runs of the block
        values = [a @ residuals[rows] for a, (rows, _) in zip(adjusted, self._parts, strict=True)]
        # Their covariance (blocks x blocks) under independent noise of variance 1, from which Satterthwaite's df follow
        seen = np.array([a @ self._fit.basis[rows] for a, (rows, _) in zip(adjusted, self._parts, strict=True)])
        covariance = -np.einsum("scr,tcr->cst", seen, seen)
        places = np.arange(len(values))
        covariance[:, places, places] += np.array([np.sum(a**2, axis=1) for a in adjusted]).T
        trace = np.trace(covariance, axis1=1, axis2=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            df = trace**2 / np.sum(covariance**2, axis=(1, 2))
        return np.sqrt(np.sum(np.square(values), axis=0)), df


@dataclasses.dataclass(frozen=True)
class SeedBlocks:
    """The runs' seeds as numbers, and how many of them are blocks."""

    codes: Codes
    count: int


def find_blocks(points: Sequence[Point], seeds: pd.Series) -> SeedBlocks | None:
    """The seeds of the runs if they are blocks: at least two of them ran half of the distinct points or more.

    None otherwise: each run has a seed of its own, or all but a few replicates share one. What a single seed does to a
    level is then in its effect, and nothing in the study shows it.
    """
    codes, names = pd.factorize(seeds)
    keys = [frozenset(point.items()) for point in points]
    met = [len({key for key, code in zip(keys, codes, strict=True) if code == seed}) for seed in range(len(names))]
    count = sum(2 * points_met >= len(set(keys)) for points_met in met)
    return SeedBlocks(codes, count) if count > 1 and len(set(keys)) > 1 else None
