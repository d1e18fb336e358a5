"""Which three axes act together in a way that the model of axes and their pairs lacks."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import scipy.stats

from raytrain.analysis.noise import SIGNIFICANCE
from raytrain.sweep.factorial import Array, LeastSquares, Point, interaction_columns, live

_LEAST_DF = 5  # residual degrees of freedom that a test must leave


@dataclasses.dataclass(frozen=True)
class Triple:
    """The three axes that are suspected most, and the p-value after Holm's adjustment for the triples `tested`."""

    axes: tuple[str, str, str]
    p: float
    tested: int

    def __str__(self) -> str:
        return f"{self.axes[0]}, {self.axes[1]} and {self.axes[2]}"


def suspect(runs: Sequence[Point], fit: LeastSquares, losses: Array, scale: Array | float = 1.0) -> Triple | None:
    """The triple of axes whose interaction the residuals of `fit` of `losses` (runs) show, or None.

    `scale` is what the rows of a weighted fit, and its losses, were divided by.

    For each triple the F test of its columns, added to the fit: the squares that they take up of the residuals, over
    those that are left (the partial F test). 5% for all triples together.
    """
    axes = list(dict.fromkeys(axis for run in runs for axis in live(run)))
    tested = ((partial_f(runs, triple, fit, losses, scale), triple) for triple in itertools.combinations(axes, 3))
    candidates = [(p, triple) for p, triple in tested if p is not None]
    if not candidates:
        return None
    p, triple = min(candidates)
    p = min(1.0, p * len(candidates))  # the first step of Holm
    return Triple(triple, p, len(candidates)) if p < SIGNIFICANCE else None


def partial_f(
    runs: Sequence[Point], triple: Sequence[str], fit: LeastSquares, losses: Array, scale: Array | float = 1.0
) -> float | None:
    """The p-value of the partial F test of the interaction of `triple`, as for `suspect`; None if nothing tests it."""
    residuals = fit.residuals(losses)
    total = float(residuals @ residuals)
    taken, df = _taken((interaction_columns(runs, triple).T / scale).T, fit, residuals)
    if not df or fit.df - df < _LEAST_DF or total <= 0:
        return None
    ratio = (taken / df) / ((total - taken) / (fit.df - df)) if total > taken else np.inf
    return float(scipy.stats.f.sf(ratio, df, fit.df - df))


def _taken(columns: Array, fit: LeastSquares, residuals: Array) -> tuple[float, int]:
    """The squares of `residuals` that `columns` take up beside `fit`, and their degrees of freedom."""
    if not columns.shape[1]:
        return 0.0, 0
    u, sizes, _ = np.linalg.svd(fit.residuals(columns), full_matrices=False)
    u = u[:, sizes > 1e-6 * max(1.0, float(sizes[0]))]
    return float(np.sum((u.T @ residuals) ** 2)), u.shape[1]
