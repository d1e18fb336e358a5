"""The cost of tuning each variant, and the precision of comparisons after it. Pure: numpy.

Every variant runs at every level of the tuned fields. Each level has seeds of its own: so a variant has levels x seeds
different ones at no cost, and as a seed is a block of the error, intervals rest on that many (docs/log.md: about three
times narrower than with the same two seeds at each of five rates).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special

from raytrain.config.run import TrainConfig
from raytrain.sweep.trial import PlannedTrial

_SHORT = {"learning_rate": "lr", "weight_decay": "wd", "warmup_fraction": "warmup"}
_PLACES = 21  # of the optimum that the expected half-width is a mean over: the middle half of the range


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Fields tuned by a study, their `levels`, and the `recipe`'s own. A design that `spreads` its runs over levels has
    no more runs for them."""

    levels: Mapping[str, tuple[float, ...]]
    recipe: Mapping[str, float]
    spreads: bool
    trials: int
    flops: float  # of all those trials
    half_width: float | None  # 95%, of the difference of two variants at their own best rates, over the noise's sd

    @property
    def factor(self) -> int:
        """Runs for each that a study at one recipe has."""
        return 1 if self.spreads else math.prod(map(len, self.levels.values()))

    def describe(self) -> str:
        """Such as `learning_rate at 0.0003, 0.001, 0.003: 3 x the runs and FLOPs (24 for 8, 6e+13 FLOPs for 2e+13)`."""
        levels = "; ".join(
            f"{field} at {', '.join(f'{level:g}' for level in own)}" for field, own in self.levels.items()
        )
        if self.spreads:
            return f"{levels}: the design spreads its runs over them, at no further cost"
        return (
            f"{levels}: {self.factor} x the runs and FLOPs of a study at one recipe ({self.trials} for "
            f"{self.trials // self.factor}, {self.flops:.3g} FLOPs for {self.flops / self.factor:.3g})"
        )


def tuning_of(
    levels: Mapping[str, tuple[float, ...]],
    base: TrainConfig,
    trials: Sequence[PlannedTrial],
    seeds: int,
    *,
    spreads: bool,
) -> Tuning:
    """Of a study of `trials` around `base`."""
    known = None if spreads else half_width(levels.get("learning_rate", (1.0,)), seeds)
    recipe = {field: getattr(base, field) for field in levels}
    flops = float(sum(trial.config.train_flops for trial in trials))
    return Tuning(levels, recipe, spreads, len(trials), flops, known)


def suffix(setting: Mapping[str, float]) -> str:
    """The suffix of a trial's id for its levels of tuned fields, such as `-lr0.003`."""
    return "".join(f"-{_SHORT[field]}{level:g}" for field, level in setting.items())


def half_width(rates: Sequence[float], seeds: int) -> float | None:
    """The half-width, in noise sd, of the 95% interval of the difference of two variants at their own best rates.

    Of a crossing of variants with `rates` and `seeds` seeds at each: t(0.975, df) x the standard error of the
    difference over the noise's sd; None if no residual is left.

    For curves that are quadratic in ln rate, averaged over optima in the middle half of the range. The standard error
    is that of the fitted loss at the optimum, sqrt(2) for two variants; the degrees of freedom are those of a curve's
    residuals, with seeds as blocks (see raytrain.analysis.response).
    """
    x = np.log(rates)
    x = (x - (x[0] + x[-1]) / 2) / ((x[-1] - x[0]) / 2 or 1.0)
    terms = np.vander(np.repeat(x, seeds), min(3, len(x)), increasing=True)
    df = len(terms) - terms.shape[1]
    if not df:
        return None
    optima = np.linspace(-0.5, 0.5, _PLACES)[:, None] ** np.arange(terms.shape[1])
    errors = math.sqrt(2) * np.linalg.norm(optima @ np.linalg.pinv(terms), axis=1)
    return float(scipy.special.stdtrit(df, 0.975) * errors.mean())
