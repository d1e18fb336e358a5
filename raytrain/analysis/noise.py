"""The noise floor: the sd of val_loss over seeds, and what may be said in view of it."""

import dataclasses

import numpy as np
import pandas as pd
import scipy.stats

from raytrain.analysis.trials import budgets, points
from raytrain.factorial import Array

SIGNIFICANCE = 0.05  # intervals are 95%; a claim is wrong in at most this part of studies without a difference


@dataclasses.dataclass(frozen=True)
class Noise:
    """An estimate of the sd of val_loss between runs of one function, in nats.

    `source` is "seeds" for the spread over seeds, or "residuals" for what a fitted model leaves over: that holds the
    spread over seeds and, if the model lacks something, its lack of fit too.
    """

    sd: float
    df: int
    source: str

    @property
    def interval(self) -> tuple[float, float]:
        """95%, from df s^2 / sd^2 being chi-square with df degrees of freedom (normal noise)."""
        low, high = scipy.stats.chi2.ppf([1 - SIGNIFICANCE / 2, SIGNIFICANCE / 2], self.df)
        return self.sd * float(np.sqrt(self.df / low)), self.sd * float(np.sqrt(self.df / high))

    @property
    def t(self) -> float:
        """The two-sided 95% quantile to go with the sd."""
        return float(scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, self.df))

    def describe(self) -> str:
        low, high = self.interval
        return f"{self.sd:.5f} nats ({low:.5f} to {high:.5f}) from {self.source}, {self.df} degrees of freedom"


def seed_noise(table: pd.DataFrame, axes: list[str]) -> Noise | None:
    """The spread over seeds, pooled over the points that were completed more than once at one budget.

    sd^2 = sum over points of sum (loss - point's mean)^2 / sum over points of (runs - 1): the noise is taken to be
    equal at all points. Trials stopped at a rung are left out: which were stopped depends on their noise. None without
    replicates.
    """
    done = table[(table["status"] == "complete") & table["val_loss"].notna()]
    if done.empty:
        return None
    keys = [frozenset(point.items()) for point in points(done, axes)]
    group = pd.Series(list(zip(keys, budgets(done["train_flops"].to_numpy(float)), strict=True)), index=done.index)
    return pooled(done["val_loss"], group)


def pooled(values: pd.Series, group: pd.Series) -> Noise | None:
    """The spread of `values` about the mean of their `group`, pooled over groups; None if no group has two."""
    deviations = values - values.groupby(group).transform("mean")
    df = len(values) - group.nunique()
    return Noise(float(np.sqrt(np.sum(deviations**2) / df)), df, "seeds") if df > 0 else None


def equal_spread(values: pd.Series, group: pd.Series) -> float | None:
    """The p-value of all groups having one sd (Bartlett, Proceedings of the Royal Society A 160, 1937); None if fewer
    than two groups have a spread. A small one says that a pooled sd is too small for some groups and too large for
    others."""
    groups = [own.to_numpy() for _, own in values.groupby(group) if own.nunique() > 1]
    return float(scipy.stats.bartlett(*groups).pvalue) if len(groups) > 1 else None


def declare_winner(losses: Array, runs: Array, noise: Noise | None) -> int | None:
    """The index of the configuration that is best beyond the noise, or None. `losses` are means over `runs` runs each.

    The best mean must beat every other by its two-sided 95% t margin, t s sqrt(1/n_i + 1/n_j). Picking the best of k
    and asking whether it beats the runner-up is then wrong in at most 5% of studies whatever k is: more equals crowd
    the runner-up closer, so two are the worst case, and there it is the two-sided t test (Gutmann and Maymin, Annals
    of Statistics 15, 1987, for equal n; for unequal n the test of this function simulates it).
    """
    mean, n = np.asarray(losses, float), np.asarray(runs, float)
    known = np.flatnonzero(np.isfinite(mean) & (n > 0))
    if noise is None or len(known) < 2:
        return None
    best = known[np.argmin(mean[known])]
    others = known[known != best]
    margins = noise.t * noise.sd * np.sqrt(1 / n[best] + 1 / n[others])
    return int(best) if np.all(mean[others] - mean[best] > margins) else None
