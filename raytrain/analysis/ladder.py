"""The gain of a variant at several sizes, its trend, and what may be expected at a size that was not run.

A gain at one size does not carry over to another, and a frontier of one size alone misjudges it: with few tokens a
parameter most of the loss is what data leaves over, with many what the size does. So the baseline runs at each size
with several numbers of tokens, and its losses are fitted by

    L(N, D) = E + A N^-alpha + B D^-beta        (Hoffmann et al., arXiv 2203.15556, approach 3)

of tokens D and size N, in model FLOPs per token, which unlike parameters count attention (as in DeepSeek LLM, arXiv
2401.02954). A variant of size N that reaches a loss with D tokens has the gain N' / N, where the baseline needs the
size N' for that loss with as many tokens: so it is the ratio of their compute.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from raytrain.analysis.gain import Estimate
from raytrain.analysis.noise import SIGNIFICANCE, Codes, Noise
from raytrain.errors import UserError
from raytrain.sweep.factorial import Array

_DRAWS = 2000
_EXPONENTS = (0.05, 1.0)
_LEAST = 6  # settings of (N, D): one more than coefficients
_GRID = 15
_FAR = 20.0  # a ln gain that is none: 5e8 times the compute


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean loss of `runs` runs of one size (FLOPs per token) with so many tokens each."""

    size: float
    tokens: float
    loss: float
    runs: int


@dataclasses.dataclass(frozen=True)
class Scale:
    """One scale of a ladder: a mean for each of the baseline's budgets, one for each variant at the scale's own budget
    by its label, and the spread over seeds of a run."""

    name: str
    baseline: Sequence[Mean]
    variants: Mapping[str, Mean]
    noise: Noise


@dataclasses.dataclass(frozen=True)
class Surface:
    """The baseline's fit: `coefficients` (5 x 1 + draws) are E, A, B, alpha and beta, of N and D over `units`; the
    first column is the fit, the others are refits to bootstrapped losses with the noise `sds` (scales x draws).
    `misfit` is the p-value of its losses being on such a surface; refits have as much more noise as puts them there if
    it is below 0.05 (Birge, Physical Review 40, 1932)."""

    coefficients: Array
    units: tuple[float, float]
    sds: Array
    misfit: float | None


@dataclasses.dataclass(frozen=True)
class Climb:
    """One variant's gains: at each scale, simultaneous 95%; the `trend`, the slope of ln gain against ln N;
    `projected`, the gain at the size asked about; and whether it is promoted: above 1 at every scale."""

    gains: dict[str, Estimate]
    trend: Estimate
    projected: Estimate
    is_promoted: bool


@dataclasses.dataclass(frozen=True)
class Ladder:
    """The climbs of all variants by their label, over the scales `names`; projected to the scale `target`."""

    names: list[str]
    target: str
    climbs: dict[str, Climb]
    misfit: float | None

    def describe(self) -> list[str]:
        """Who is promoted, then a sentence a variant."""
        where = " and ".join([", ".join(self.names[:-1]), self.names[-1]])
        promoted = [label for label, climb in self.climbs.items() if climb.is_promoted]
        hold = "simultaneous 95% intervals over variants and scales"
        out = [f"Promoted: {'; '.join(promoted)}. The compute gain is above 1 at {where} ({hold})."]
        if not promoted:
            count = len(self.climbs)
            out = [f"Promoted: none of {count} variants. No compute gain is above 1 at each of {where} ({hold})."]
        out += [f"{label}: {describe(climb, self.target)}" for label, climb in self.climbs.items()]
        if self.misfit is not None and self.misfit < SIGNIFICANCE:
            out.append(
                f"The baseline's losses are not on a surface E + A N^-alpha + B D^-beta (p = {self.misfit:.2g}), so "
                "the intervals of gains by size are wider by as much."
            )
        return out


def describe(climb: Climb, target: str) -> str:
    """Such as `compute gain 1.2 (95% 1.12 to 1.29) at tiny, ...; no clear trend ...; projected to 1.3b: ...`."""
    parts = [f"compute gain {', '.join(f'{text(gain)} at {name}' for name, gain in climb.gains.items())}"]
    if (slope := climb.trend.value) is not None:
        low, high = climb.trend.low, climb.trend.high
        is_clear = (low is not None and low > 0) or (high is not None and high < 0)
        word = ("it grows with size" if slope > 0 else "it shrinks with size") if is_clear else "no clear trend"
        parts.append(f"{word} (ln gain {slope:+.3f} for each factor e, 95% {_end(low, '+')} to {_end(high, '+')})")
        parts.append(f"projected to {target}: {text(climb.projected)}, if the trend continues")
    return "; ".join(parts) + "."


def text(gain: Estimate) -> str:
    """A gain with its 95% interval, or the reason that there is none."""
    if gain.value is None:
        return f"not known ({gain.reason})"
    return f"{gain.value:#.3g} (95% {_end(gain.low)} to {_end(gain.high)})"


def _end(value: float | None, sign: str = "-") -> str:
    return "unbounded" if value is None else format(value, f"{sign}#.3g")


def ladder(scales: Sequence[Scale], target: str, size: float) -> Ladder:
    """The gains of every variant of `scales`, from the smallest up, projected to the scale `target` of that `size`.

    Raises UserError where the baseline's runs do not determine its surface.
    """
    surface = fit_surface(scales)
    labels = list(dict.fromkeys(label for scale in scales for label in scale.variants))
    climbs = {label: climb(surface, scales, label, size, variants=len(labels)) for label in labels}
    first = sorted(labels, key=lambda label: (not climbs[label].is_promoted, -(climbs[label].projected.value or 0)))
    return Ladder([scale.name for scale in scales], target, {label: climbs[label] for label in first}, surface.misfit)


def fit_surface(scales: Sequence[Scale], seed: int = 0) -> Surface:
    """Fit the baseline's means, with a parametric bootstrap over each scale's noise.

    Variable projection: for given alpha and beta the best E, A and B are linear least squares, so that only these two
    are searched, on a grid that is then made finer about the best. Raises UserError for fewer than six settings.
    """
    means = [(number, mean) for number, scale in enumerate(scales) for mean in scale.baseline]
    where = np.array([number for number, _ in means], dtype=np.intp)
    if len({*where.tolist()}) < 2 or len(means) < _LEAST:
        raise UserError(
            f"gains by size need the baseline at two scales or more and {_LEAST} settings of size and tokens; it has "
            f"completed {len(means)}"
        )
    sizes, tokens, losses, runs = np.array([dataclasses.astuple(mean) for _, mean in means], float).T
    units = float(np.exp(np.log(sizes).mean())), float(np.exp(np.log(tokens).mean()))
    n, d = sizes / units[0], tokens / units[1]
    fit = _search(n, d, losses[:, None], runs)[:, 0]
    fitted = fit[0] + fit[1] * n ** -fit[3] + fit[2] * d ** -fit[4]
    misfit, stretch = _misfit(losses - fitted, runs, where, [scale.noise for scale in scales], fit)
    draws = np.random.default_rng(seed)
    sds = np.array(
        [noise.sd * np.sqrt(noise.df / draws.chisquare(noise.df, _DRAWS)) for noise in (one.noise for one in scales)]
    )
    errors = stretch * draws.standard_normal((len(n), _DRAWS)) * sds[where] / np.sqrt(runs)[:, None]
    return Surface(np.column_stack([fit, _search(n, d, fitted[:, None] + errors, runs)]), units, sds, misfit)


def _misfit(
    residuals: Array, runs: Array, where: Codes, noises: Sequence[Noise], fit: Array
) -> tuple[float | None, float]:
    """The p-value of residuals no larger than the noise makes them (F test), and by how much they exceed that if so."""
    free = sum(1 + (_EXPONENTS[0] < fit[at + 2] < _EXPONENTS[1]) for at in (1, 2) if fit[at]) + (fit[0] > 0)
    df = len(residuals) - int(free)
    sds = np.array([noise.sd for noise in noises])[where]
    if df < 1 or not sds.all():
        return None, 1.0
    ratio = float(np.sum(runs * (residuals / sds) ** 2)) / df
    p = float(scipy.stats.f.sf(ratio, df, sum(noise.df for noise in noises)))
    return p, math.sqrt(ratio) if p < SIGNIFICANCE else 1.0


def climb(
    surface: Surface, scales: Sequence[Scale], label: str, target: float, *, variants: int = 1, seed: int = 1
) -> Climb:
    """The gains of the variant `label`, projected to a model of `target` FLOPs per token.

    Intervals at the scales are simultaneous over these and so many `variants` (Bonferroni). The trend and the
    projection are taken within each bootstrap draw, whose errors the sizes share; a projection's interval widens with
    the distance, and assumes that the trend continues.
    """
    where = [number for number, scale in enumerate(scales) if label in scale.variants]
    own = [dataclasses.astuple(scales[number].variants[label]) for number in where]
    sizes, tokens, losses, runs = np.array(own, float).T
    draws = np.random.default_rng(seed)
    errors = draws.standard_normal((_DRAWS, len(losses))) / np.sqrt(runs) * surface.sds[where].T
    seen = losses + np.vstack([np.zeros(len(losses)), errors])
    floor, scale, data, alpha, beta = surface.coefficients[:, :, None]
    left = seen - floor - data * (tokens / surface.units[1]) ** -beta
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.log(scale / left) / alpha + math.log(surface.units[0]) - np.log(sizes)
    logs = np.where(left > 0, needed, np.inf)  # no size reaches below what the data leaves over
    level = SIGNIFICANCE / (len(scales) * variants)
    known = {scales[number].name: _estimate(column, level) for number, column in zip(where, logs.T, strict=True)}
    gains = {one.name: known.get(one.name, Estimate(None, reason="no run has a loss")) for one in scales}
    trend = projected = Estimate(None, reason="a trend needs gains at two scales")
    if len(where) > 1:
        x = np.log(sizes)
        spread = x - x.mean()
        with np.errstate(invalid="ignore"):
            slopes = logs @ spread / (spread @ spread)
            beyond = logs.mean(axis=1) + slopes * (math.log(target) - x.mean())
        trend, projected = _estimate(slopes, SIGNIFICANCE, is_log=False), _estimate(beyond, SIGNIFICANCE)
    is_promoted = all(gain.low is not None and gain.low > 1 for gain in gains.values())
    return Climb(gains, trend, projected, is_promoted)


def _estimate(values: Array, level: float, is_log: bool = True) -> Estimate:
    """The first value with the percentile interval of the others, at 1 - `level`."""
    values = np.where(np.abs(values) > _FAR, np.copysign(np.inf, values), values)
    if not np.isfinite(values[0]):
        return Estimate(None, reason="the loss is beyond what the baseline's surface reaches")
    # A refit without a value leaves the interval open on both sides.
    ends = (np.where(np.isnan(values[1:]), end, values[1:]) for end in (-np.inf, np.inf))
    parts = level / 2, 1 - level / 2
    low, high = (np.quantile(draws, part, method="nearest") for draws, part in zip(ends, parts, strict=True))
    found = [float(np.exp(one) if is_log else one) if np.isfinite(one) else None for one in (values[0], low, high)]
    return Estimate(found[0], low=found[1], high=found[2])


def _search(n: Array, d: Array, losses: Array, runs: Array) -> Array:
    """(E, A, B, alpha, beta) x studies of `losses` (means of `runs` x studies), with E, A and B not below zero."""
    root = np.sqrt(runs)[:, None]
    studies = losses.shape[1]
    best = np.full((5, studies), np.nan)
    cost = np.full(studies, np.inf)
    shared = np.array([[math.log(end)] * 2 for end in _EXPONENTS])
    for _ in range(4):
        for a in np.exp(np.linspace(shared[0, 0], shared[1, 0], _GRID)):
            for b in np.exp(np.linspace(shared[0, 1], shared[1, 1], _GRID)):
                columns = np.column_stack([np.ones_like(n), n**-a, d**-b])
                found = np.linalg.pinv(root * columns) @ (root * losses)
                squares = np.sum((root * (losses - columns @ found)) ** 2, axis=0)
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
