"""Unequal noise: whether the spread of the runs differs between the levels of an axis, and a fit that allows for it.

The levels of one axis are its arms. Their variances are those of the greatest residual likelihood (REML: Patterson and
Thompson, Biometrika 58, 1971), which for arms solve

    s_a^2 = sum over the arm's runs of r^2 / f_a,   f_a = sum over them of (1 - leverage)

with the residuals and leverages of the fit that is weighted by 1 / s_a^2, here by iteration (Horn, Horn and Duncan,
Journal of the American Statistical Association 70, 1975). Whether they differ is tested by the ratio of likelihoods,
twice whose logarithm is divided by Bartlett's factor 1 + (sum of 1 / f_a - 1 / sum of f_a) / (3 (arms - 1)) and held
against chi^2: with few runs it is too large otherwise, and equal noise seems unequal in up to 13% of studies. A
contrast's variance is then a sum over arms, with degrees of freedom by Satterthwaite (Biometrics Bulletin 2, 1946): the
comparison of Welch (Biometrika 34, 1947) where it is one of two arms, and the arm's own noise where it is within one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from raytrain.analysis.noise import SIGNIFICANCE, Codes, Noise
from raytrain.analysis.strata import Errors
from raytrain.sweep.factorial import Array, LeastSquares, Point

_PASSES, _SETTLED = 200, 1e-4
_LEAST_DF = 2  # an arm with less residual than this has no variance of its own
_SURE = 1e-3  # p below which weights follow from unequal noise
_ROUNDING = 1e-10  # nats: losses that the model gives to the last digit have no noise


@dataclasses.dataclass(frozen=True)
class Unequal:
    """The axis whose levels differ most surely in their noise, the noise of each, and the p-value of their being equal,
    adjusted by Holm for all axes that were tested. `sds` are those of the runs."""

    axis: str
    arms: dict[Any, Noise]
    p: float
    codes: Codes
    sds: Array

    @property
    def is_sure(self) -> bool:
        """Whether runs may be weighted by it: weights of noise that is equal, and seemed not to be, make false claims
        in 40% of studies."""
        return self.p < _SURE

    def describe(self) -> str:
        """Such as `norm_position (sd 0.0191 at post, 0.0019 at pre; p = 1e-12)`."""
        sds = ", ".join(f"{noise.sd:.2g} at {level}" for level, noise in self.arms.items())
        return f"{self.axis} (sd {sds} nats; p = {self.p:.2g})"


def unequal(points: Sequence[Point], fit: LeastSquares, losses: Array) -> Unequal | None:
    """The axis whose levels have unequal noise (5% for all axes together) in `fit` of `losses` (runs), or None."""
    candidates = []
    if not fit.df or fit.residual_sd(losses) < _ROUNDING:
        return None
    for axis in dict.fromkeys(axis for point in points for axis in point):
        levels = pd.Series([point.get(axis) for point in points], dtype=object)
        codes, names = pd.factorize(levels, use_na_sentinel=False)
        arms = _variances(fit.basis, losses, codes)
        if len(names) > 1 and arms is not None:
            sds, df, ratio = arms
            noises = {
                "none" if pd.isna(name) else name: Noise(float(sd), max(1, round(own)), "residuals")
                for name, sd, own in zip(names, sds, df, strict=True)
            }
            bartlett = 1 + (np.sum(1 / df) - 1 / df.sum()) / (3 * (len(names) - 1))
            p = float(scipy.stats.chi2.sf(ratio / bartlett, len(names) - 1))
            candidates.append(Unequal(axis, noises, p, codes, sds))
    least = min(candidates, key=lambda one: one.p, default=None)
    if least is None or least.p * len(candidates) >= SIGNIFICANCE:  # the first step of Holm
        return None
    return dataclasses.replace(least, p=least.p * len(candidates))


def _variances(basis: Array, losses: Array, codes: Codes) -> tuple[Array, Array, float] | None:
    """The sd and the degrees of freedom of each arm, and twice the log of the likelihood's ratio to that of one sd.

    `basis` is orthonormal, of all that is fitted. None if an arm has too few residual degrees of freedom.
    """
    arms = codes.max() + 1
    residuals = losses - basis @ (basis.T @ losses)
    sds = np.full(arms, np.sqrt(np.sum(residuals**2) / (len(losses) - basis.shape[1])))
    first = _likelihood(basis, losses, sds[codes])
    for _ in range(_PASSES):
        residuals, leverage = _weighted(basis, losses, sds[codes])
        df = np.bincount(codes, 1 - leverage, minlength=arms).astype(float)
        if df.min() < _LEAST_DF:
            return None
        estimates = np.sqrt(np.bincount(codes, residuals**2, minlength=arms) / df)
        if not estimates.min() > _ROUNDING:
            return None
        steps, sds = estimates / sds, estimates
        if np.abs(steps - 1).max() < _SETTLED:
            break
    return sds, df, 2 * (_likelihood(basis, losses, sds[codes]) - first)


def _weighted(basis: Array, losses: Array, sds: Array) -> tuple[Array, Array]:
    """The residuals and the leverages of the fit weighted by 1 / sds^2."""
    scaled = basis / sds[:, None]
    inverse = np.linalg.inv(scaled.T @ scaled)
    residuals = losses - basis @ (inverse @ (scaled.T @ (losses / sds)))
    return residuals, np.einsum("nr,nr->n", scaled @ inverse, scaled)


def _likelihood(basis: Array, losses: Array, sds: Array) -> float:
    """The log of the residual likelihood, up to a constant."""
    scaled = basis / sds[:, None]
    residuals, _ = _weighted(basis, losses, sds)
    log_det = np.linalg.slogdet(scaled.T @ scaled)[1]
    return float(-np.sum(np.log(sds)) - log_det / 2 - np.sum((residuals / sds) ** 2) / 2)


class Arms:
    """The errors of contrasts of the weighted fit `fit`, whose rows and losses were divided by the `unequal` sds.

    As the weights are estimates too, a contrast varies more than the weighted fit reports: Kenward and Roger's adjusted
    variance (Biometrics 53, 1997), with which and Satterthwaite's degrees of freedom its interval is. With U the
    orthonormal basis of the fit, H_a = U_a' U_a of the arm's rows, and V the covariance of the arms' relative variances

        V = 2 I^-1,   I_ab = [a = b] (n_a - 2 tr H_a) + tr H_a H_b

    the variance of weights w, with q_a = U_a' w_a, is |w|^2 + 2 sum over a, b of V_ab ([a = b] |w_a|^2 - q_a' q_b), and
    its degrees of freedom are 2 |w|^4 / sum over a, b of V_ab |w_a|^2 |w_b|^2.
    """

    def __init__(self, fit: LeastSquares, unequal: Unequal) -> None:
        self._rows = [unequal.codes == arm for arm in range(len(unequal.sds))]
        self._bases = [fit.basis[rows] for rows in self._rows]
        grams = [basis.T @ basis for basis in self._bases]
        information = np.array([[np.sum(one * other) for other in grams] for one in grams])
        information += np.diag(
            [len(basis) - 2 * np.trace(gram) for basis, gram in zip(self._bases, grams, strict=True)]
        )
        self._covariance = 2 * np.linalg.inv(information)

    def __call__(self, weights: Array, losses: Array) -> tuple[Array, Array]:
        parts = np.array([np.sum(weights[:, rows] ** 2, axis=1) for rows in self._rows])  # arms x contrasts
        seen = np.array([weights[:, rows] @ basis for rows, basis in zip(self._rows, self._bases, strict=True)])
        spread = -np.einsum("acr,bcr->abc", seen, seen)
        places = np.arange(len(parts))
        spread[places, places] += parts
        total = parts.sum(axis=0)
        variance = total + 2 * np.einsum("ab,abc->c", self._covariance, spread)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(variance), 2 * total**2 / np.einsum("ab,ac,bc->c", self._covariance, parts, parts)


class Wider:
    """The errors of contrasts of an unweighted fit where it is not sure that noise is unequal: by one noise for all or
    by the `arms`, whose noise at each run is `scale` (nats), whichever gives the wider 95% interval."""

    def __init__(self, pooled: Errors, arms: Arms, scale: Array) -> None:
        self._pooled, self._arms, self._scale = pooled, arms, scale

    def __call__(self, weights: Array, losses: Array) -> tuple[Array, Array]:
        errors, dfs = np.stack(
            [self._pooled(weights, losses), self._arms(weights * self._scale, losses / self._scale)], axis=1
        )
        is_own = np.less(*(scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, dfs) * errors))
        return np.where(is_own, errors[1], errors[0]), np.where(is_own, dfs[1], dfs[0])
