"""The gain of a variant at several sizes, its trend, and what may be expected at a size that was not run.

A gain at one size does not carry over to another, and a frontier of one size alone misjudges it: with few tokens a
parameter most of the loss is what data leaves over, with many what the size does. So the baseline runs at each size
with several numbers of tokens, and its losses are fitted by

    L(N, D) = E + A N^-alpha + B D^-beta        (Hoffmann et al., arXiv 2203.15556, approach 3)

of parameters N and tokens D. A variant of N parameters that reaches a loss with D tokens has the gain N' / N, where the
baseline needs N' parameters for that loss with as many tokens. At the same tokens that is the ratio of their compute.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from raytrain.analysis.gain import Estimate
from raytrain.analysis.noise import SIGNIFICANCE, Noise
from raytrain.errors import UserError
from raytrain.sweep.factorial import Array

_DRAWS = 1000
_EXPONENTS = (0.05, 1.0)
_LEAST = 6  # settings of (N, D): one more than coefficients
_GRID = 15


@dataclasses.dataclass(frozen=True)
class Surface:
    """The baseline's fit: `coefficients` (5 x 1 + draws) are E, A, B, alpha and beta, of N and D over `units`; the
    first column is the fit, the others are refits to bootstrapped losses with the noise `sds` (draws)."""

    coefficients: Array
    units: tuple[float, float]
    noise: Noise
    sds: Array


@dataclasses.dataclass(frozen=True)
class Ladder:
    """One variant's gains: at each of the `sizes` (parameters), simultaneous 95%; the `trend`, the slope of ln gain
    against ln N; `projected`, the gain at the size asked about; and whether it advances (`goes_on`): above 1 at every
    size."""

    sizes: list[float]
    gains: list[Estimate]
    trend: Estimate
    projected: Estimate
    goes_on: bool

    def describe(self, size: float) -> str:
        """Such as `gain 1.20 (95% 1.12 to 1.29) at 1e+07 parameters; ...`."""
        rungs = [f"{_text(gain)} at {n:.3g} parameters" for n, gain in zip(self.sizes, self.gains, strict=True)]
        verdict = "advances: above 1 at every size" if self.goes_on else "does not advance: not above 1 at every size"
        slope = (
            f"ln gain changes by {self.trend.value:+.3f} for each factor e of parameters" if self.trend.value else ""
        )
        parts = [*rungs, *([slope] if slope else []), f"{_text(self.projected)} projected to {size:.3g}"]
        return f"Gain {'; '.join(parts)}. It {verdict}, simultaneous 95%."


def _text(gain: Estimate) -> str:
    if gain.value is None:
        return f"not known ({gain.reason})"
    low, high = ("?" if end is None else f"{end:.3g}" for end in (gain.low, gain.high))
    return f"{gain.value:.3g} (95% {low} to {high})"


def fit_surface(parameters: Array, tokens: Array, losses: Array, noise: Noise, seed: int = 0) -> Surface:
    """Fit the baseline's runs, one entry each, with a parametric bootstrap over the seeds' `noise`.

    Variable projection: for given alpha and beta the best E, A and B are linear least squares, so that only these two
    are searched, on a grid that is then made finer about the best. Raises UserError for fewer than six settings.
    """
    if len({*zip(parameters.tolist(), tokens.tolist(), strict=True)}) < _LEAST or len(np.unique(parameters)) < 2:
        raise UserError(
            f"a ladder needs its baseline at two sizes or more and {_LEAST} settings of size and tokens (--ladder)"
        )
    units = float(np.exp(np.log(parameters).mean())), float(np.exp(np.log(tokens).mean()))
    n, d = parameters / units[0], tokens / units[1]
    fit = _search(n, d, losses[:, None])[:, 0]
    fitted = fit[0] + fit[1] * n ** -fit[3] + fit[2] * d ** -fit[4]
    draws = np.random.default_rng(seed)
    sds = noise.sd * np.sqrt(noise.df / draws.chisquare(noise.df, _DRAWS))
    refits = _search(n, d, fitted[:, None] + draws.standard_normal((len(n), _DRAWS)) * sds)
    return Surface(np.column_stack([fit, refits]), units, noise, sds)


def climb(
    surface: Surface, parameters: Array, tokens: Array, losses: Array, runs: Sequence[int], target: float, seed: int = 1
) -> Ladder:
    """The gains of one variant, of mean `losses` over `runs` at each size; projected to `target` parameters.

    Intervals at the sizes are simultaneous (Bonferroni). The trend and the projection are taken within each bootstrap
    draw, whose errors the sizes share; a projection's interval widens with the distance, and assumes that the trend
    continues.
    """
    draws = np.random.default_rng(seed)
    errors = draws.standard_normal((_DRAWS, len(losses))) / np.sqrt(np.asarray(runs, float)) * surface.sds[:, None]
    seen = losses + np.vstack([np.zeros(len(losses)), errors])
    floor, scale, data, alpha, beta = surface.coefficients[:, :, None]
    left = seen - floor - data * (tokens / surface.units[1]) ** -beta
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.log(scale / left) / alpha + math.log(surface.units[0]) - np.log(parameters)
    logs = np.where(left > 0, needed, np.inf)  # no size reaches below what the data leaves over
    gains = [_estimate(column, SIGNIFICANCE / len(losses)) for column in logs.T]
    x = np.log(parameters)
    spread = x - x.mean()
    with np.errstate(invalid="ignore"):
        slopes = logs @ spread / (spread @ spread) if len(x) > 1 else np.full(len(logs), np.nan)
        projected = logs.mean(axis=1) + slopes * (math.log(target) - x.mean())
    trend = _estimate(slopes, SIGNIFICANCE, is_log=False)
    goes_on = all(gain.low is not None and gain.low > 1 for gain in gains)
    return Ladder(parameters.tolist(), gains, trend, _estimate(projected, SIGNIFICANCE), goes_on)


def _estimate(values: Array, level: float, is_log: bool = True) -> Estimate:
    """The first value with the percentile interval of the others, at 1 - `level`."""
    if not np.isfinite(values[0]):
        return Estimate(None, reason="the loss is below what the baseline's surface reaches")
    low, high = np.quantile(np.nan_to_num(values[1:], nan=np.inf), [level / 2, 1 - level / 2], method="nearest")
    found = [float(np.exp(one) if is_log else one) if np.isfinite(one) else None for one in (values[0], low, high)]
    return Estimate(found[0], low=found[1], high=found[2])


def _search(n: Array, d: Array, losses: Array) -> Array:
    """(E, A, B, alpha, beta) x studies of `losses` (runs x studies), with E, A and B not below zero."""
    studies = losses.shape[1]
    best = np.full((5, studies), np.nan)
    cost = np.full(studies, np.inf)
    shared = np.array([[math.log(end)] * 2 for end in _EXPONENTS])
    for _ in range(4):
        for a in np.exp(np.linspace(shared[0, 0], shared[1, 0], _GRID)):
            for b in np.exp(np.linspace(shared[0, 1], shared[1, 1], _GRID)):
                columns = np.column_stack([np.ones_like(n), n**-a, d**-b])
                found = np.linalg.pinv(columns) @ losses
                squares = np.sum((losses - columns @ found) ** 2, axis=0)
                squares = np.where(np.all(found >= 0, axis=0), squares, np.inf)
                better = squares < cost
                cost = np.where(better, squares, cost)
                best[:, better] = np.vstack([found[:, better], np.full((2, better.sum()), [[a], [b]])])
        known = best[3:, np.isfinite(best[3])]
        if not known.size:
            break
        ends = np.log(np.quantile(known, [0.001, 0.999], axis=1))  # the next grid spans where the studies' optima lie
        step = (shared[1] - shared[0]) / (_GRID - 1)
        shared = np.array([np.maximum(ends[0] - step, shared[0]), np.minimum(ends[1] + step, shared[1])])
    return best
