"""The noise floor: the sd of val_loss over seeds, and what may be said in view of it."""

import dataclasses

import numpy as np
import pandas as pd
import scipy.stats

from raytrain.analysis.trials import budgets, points
from raytrain.sweep.factorial import Array

SHARED = ", less what a seed does to all"
SIGNIFICANCE = 0.05  # intervals are 95%; a claim is wrong in at most this part of studies without a difference


@dataclasses.dataclass(frozen=True)
class Noise:
    """An estimate of the sd of val_loss between runs of one variant, in nats.

    `source` is "seeds" for the spread over seeds, or "residuals" for what a fitted model leaves over: that holds the
    spread over seeds and, if the model lacks something, its lack of fit too. Where variants share their seeds it says
    ", less what a seed does to all": see `Means`.
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
    """The spread over seeds, that of `Means`, pooled over the points that were completed more than once at one budget.

    sd^2 = sum over points of sum (loss - point's mean)^2 / sum over points of (runs - 1): the noise is taken to be
    equal at all points. Trials stopped at a rung are left out: which were stopped depends on their noise. None without
    replicates.
    """
    done = table[(table["status"] == "complete") & table["val_loss"].notna()]
    if done.empty:
        return None
    keys = [frozenset(point.items()) for point in points(done, axes)]
    group = pd.Series(list(zip(keys, budgets(done["train_flops"].to_numpy(float)), strict=True)), index=done.index)
    return group_means(done["val_loss"], group, done["seed"]).noise


def pooled(values: pd.Series, group: pd.Series) -> Noise | None:
    """The spread of `values` about the mean of their `group`, pooled over groups; None if no group has two."""
    deviations = values - values.groupby(group).transform("mean")
    df = len(values) - group.nunique()
    return Noise(float(np.sqrt(np.sum(deviations**2) / df)), df, "seeds") if df > 0 else None


@dataclasses.dataclass(frozen=True)
class Means:
    """The means of `groups`, the `variances` (groups x groups) of their differences over that of the noise, and this.

    The variants of a study run on the same seeds, and a seed gives all of them the same order of the data and, where
    shapes agree, the same first weights: a part of the noise that they share, and that no difference holds. Each seed
    then has an offset of its own, as a block has (Fisher, The Design of Experiments, 1935): means are those that the
    groups would have on all seeds, and the noise is what is left. Without offsets if they would take up more than half
    of the degrees of freedom, or if some groups share no seed with the others.
    """

    groups: pd.Index
    means: Array
    variances: Array
    noise: Noise | None


def group_means(values: pd.Series, group: pd.Series, seed: pd.Series) -> Means:
    """The means of `values` by `group`, as `Means` has it.

    The offsets b solve (diag(m) - C' diag(1/n) C) b = sums by seed - C' means by group, with n runs of each group, m of
    each seed and C of both: least squares with a column for each, the groups eliminated.
    """
    codes, groups = pd.factorize(group)
    seeds, names = pd.factorize(seed)
    y, shape = values.to_numpy(float), (len(groups), len(names))
    cells = np.zeros(shape)
    np.add.at(cells, (codes, seeds), 1)
    n = cells.sum(axis=1)
    means = np.bincount(codes, y, minlength=shape[0]) / n
    df = len(y) - shape[0]
    information = np.diag(cells.sum(axis=0)) - cells.T @ (cells / n[:, None])
    inverse = np.linalg.pinv(information, hermitian=True, rcond=1e-9)
    lost = int(np.linalg.matrix_rank(information, hermitian=True, tol=1e-9 * len(y)))
    source = "seeds"
    if 0 < lost == shape[1] - 1 <= df / 2:
        offsets = inverse @ (np.bincount(seeds, y, minlength=shape[1]) - cells.T @ means)
        means, y = means - cells @ offsets / n, y - offsets[seeds]
        df, source = df - lost, f"{source}{SHARED}"
    else:
        inverse = np.zeros_like(inverse)
    covariance = np.diag(1 / n) + cells @ inverse @ cells.T / np.outer(n, n)
    own = np.diag(covariance)
    noise = Noise(float(np.sqrt(np.sum((y - means[codes]) ** 2) / df)), df, source) if df else None
    return Means(groups, means, own[:, None] + own - 2 * covariance, noise)


def equal_spread(values: pd.Series, group: pd.Series) -> float | None:
    """The p-value of all groups having one sd (Bartlett, Proceedings of the Royal Society A 160, 1937); None if fewer
    than two groups have a spread. A small one says that a pooled sd is too small for some groups and too large for
    others."""
    groups = [own.to_numpy() for _, own in values.groupby(group) if own.nunique() > 1]
    return float(scipy.stats.bartlett(*groups).pvalue) if len(groups) > 1 else None


def declare_winner(losses: Array, variances: Array, noise: Noise | None) -> int | None:
    """The index of the configuration that is best beyond the noise, or None, of mean `losses`. The `variances` of their
    differences are over that of the noise (see `Means`): 1/n_i + 1/n_j for n runs each.

    The best mean must beat every other by its two-sided 95% t margin, t s sqrt(variance). Picking the best of k
    and asking whether it beats the runner-up is then wrong in at most 5% of studies whatever k is: more equals crowd
    the runner-up closer, so two are the worst case, and there it is the two-sided t test (Gutmann and Maymin, Annals
    of Statistics 15, 1987, for equal n; for unequal n the test of this function simulates it).
    """
    mean = np.asarray(losses, float)
    known = np.flatnonzero(np.isfinite(mean))
    if noise is None or len(known) < 2:
        return None
    best = known[np.argmin(mean[known])]
    others = known[known != best]
    margins = noise.t * noise.sd * np.sqrt(variances[best, others])
    return int(best) if np.all(mean[others] - mean[best] > margins) else None
