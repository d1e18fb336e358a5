"""The noise floor: the sd of val_loss over seeds, and which claims it allows."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from raytrain.analysis.trials import budgets, points
from raytrain.sweep.factorial import Array

Codes = npt.NDArray[np.intp]
SHARED = ", less what a seed does to all"
WINNER_SIGNIFICANCE = 0.02  # two-sided, by the noise of the two alone: see `declare_winner`
SIGNIFICANCE = 0.05  # intervals are 95%; a claim is wrong in at most this part of studies without a difference


@dataclasses.dataclass(frozen=True)
class Noise:
    """An estimate of the sd of val_loss between runs of one variant, in nats.

    `source` is "seeds" for the spread over seeds, or "residuals" for what a fitted model leaves over: that holds the
    spread over seeds and, if the model lacks something, its lack of fit too. Where variants share their seeds it states
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
    """The means of `groups`, and what is known of their differences, two ways.

    If the noise is one for all: the `variances` (groups x groups) of the differences over that of the `noise`. The
    variants of a study run on the same seeds, and a seed gives all of them the same order of the data and, where shapes
    agree, the same first weights: a part of the noise that they share, and that no difference holds. Each seed then has
    an offset of its own, as a block has (Fisher, The Design of Experiments, 1935): means are those that the groups
    would have on all seeds, and the noise is what is left. Without offsets if they would take up more than half of the
    degrees of freedom, or if some groups share no seed with the others.

    If it is not: the standard `errors` and degrees of freedom `dfs` of each difference by itself (groups x groups),
    from the two groups' own spreads, less the seeds' offsets (Welch, Biometrika 34, 1947), where a group of one run is
    taken to have the pooled noise; or, of two groups with two seeds or more in common, from the differences in these
    (Student's paired test), if that gives the wider interval, as it does where a seed moves the two apart.

    `unequal` is the p-value of all groups having one sd (`bartlett`); None where fewer than two have a spread.
    """

    groups: pd.Index
    means: Array
    variances: Array
    noise: Noise | None
    runs: Array
    errors: Array
    dfs: Array
    unequal: float | None

    @property
    def is_unequal(self) -> bool:
        return self.unequal is not None and self.unequal < SIGNIFICANCE


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
    df, lost = len(y) - shape[0], 0
    inverse = np.zeros((shape[1], shape[1]))
    if len(y) and cells.sum(axis=0).max() > 1:  # some seed is shared
        information = np.diag(cells.sum(axis=0)) - cells.T @ (cells / n[:, None])
        lost = int(np.linalg.matrix_rank(information, hermitian=True, tol=1e-9 * len(y)))
    source = "seeds"
    if 0 < lost == shape[1] - 1 <= df / 2:
        inverse = np.linalg.pinv(information, hermitian=True, rcond=1e-9)
        offsets = inverse @ (np.bincount(seeds, y, minlength=shape[1]) - cells.T @ means)
        means, y = means - cells @ offsets / n, y - offsets[seeds]
        df, source = df - lost, f"{source}{SHARED}"
    covariance = np.diag(1 / n) + cells @ inverse @ cells.T / np.outer(n, n)
    own = np.diag(covariance)
    squares = np.bincount(codes, (y - means[codes]) ** 2, minlength=shape[0])
    noise = Noise(float(np.sqrt(squares.sum() / df)), df, source) if df else None
    share = df / (len(y) - shape[0]) if df else 1.0  # of the degrees of freedom within groups, those left by offsets
    differs = bartlett(squares[n > 1], (n[n > 1] - 1) * share)
    if lost and differs is not None:  # offsets even out the spreads of few groups, and seeds those without offsets
        raw = values.to_numpy(float)
        apart = np.bincount(codes, (raw - (np.bincount(codes, raw) / n)[codes]) ** 2, minlength=shape[0])
        differs = min(1.0, 2 * min(differs, bartlett(apart[n > 1], n[n > 1] - 1) or 1.0))
    variances = own[:, None] + own - 2 * covariance
    return Means(groups, means, variances, noise, n, *_pair_errors(y, codes, seeds, cells, noise, share), differs)


def _pair_errors(
    y: Array, codes: Codes, seeds: Codes, cells: Array, noise: Noise | None, share: float
) -> tuple[Array, Array]:
    """(errors, dfs) of `Means`, of runs of the groups `codes` and `seeds`, counted in `cells` (groups x seeds). Offsets
    have left a `share` of the squares within groups."""
    n, met = cells.sum(axis=1), (cells > 0).astype(float)
    y = y - y.mean() if len(y) else y
    at = np.zeros(cells.shape)
    np.add.at(at, (codes, seeds), y)
    at /= np.maximum(cells, 1)  # the mean of each group at each seed
    both = met @ met.T
    total = at @ met.T - met @ at.T  # of the differences at shared seeds
    squares = (at**2) @ met.T + met @ (at**2).T - 2 * at @ at.T
    means = np.bincount(codes, y, minlength=len(n)) / n
    spread = np.bincount(codes, (y - means[codes]) ** 2, minlength=len(n))
    with np.errstate(divide="ignore", invalid="ignore"):
        paired = np.sqrt(np.maximum(squares - total**2 / both, 0) / (both - 1) / both)
        variance = np.where(n > 1, spread / (n - 1) / share, noise.sd**2 if noise else np.nan) / n
        freedom = np.where(n > 1, n - 1, noise.df if noise else np.nan)
        apart = variance[:, None] + variance
        welch = apart**2 / (variance[:, None] ** 2 / freedom[:, None] + variance**2 / freedom)
        apart = np.sqrt(apart)
        t = scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, np.stack([np.where(both > 1, both - 1, np.nan), welch]))
        is_paired = (both > 1) & ~(t[0] * paired < t[1] * apart)
    return np.where(is_paired, paired, apart), np.where(is_paired, both - 1, welch)


def bartlett(squares: Array, df: Array) -> float | None:
    """The p-value of one variance behind all sums of `squares` with their `df` (Bartlett, Proceedings of the Royal
    Society A 160, 1937); None if fewer than two have a spread. A small one means that a pooled sd is too small for some
    and too large for others."""
    squares, df = squares[squares > 0], df[squares > 0]
    if len(squares) < 2:
        return None
    statistic = df.sum() * np.log(squares.sum() / df.sum()) - np.sum(df * np.log(squares / df))
    correction = 1 + (np.sum(1 / df) - 1 / df.sum()) / (3 * (len(df) - 1))
    return float(scipy.stats.chi2.sf(statistic / correction, len(df) - 1))


def declare_winner(groups: Means) -> int | None:
    """The index of the group that is best (of least mean) beyond the noise, or None.

    It must beat every other group by two margins. The one is the two-sided 95% t margin of the pooled noise, t s
    sqrt(variance). Picking the best of k and asking whether it beats the runner-up is then wrong in at most 5% of
    studies whatever k is: more equals crowd the runner-up closer, so two are the worst case, and there it is the
    two-sided t test (Gutmann and Maymin, Annals of Statistics 15, 1987, for equal n; for unequal n the test of this
    function simulates it).

    The other margin is the 98% one of the pair's own error, as a group that is noisier than the rest comes first by
    its noise: it then wins falsely in at most 1% of studies. A group of one run, whose noise nothing shows, never does.
    """
    if groups.noise is None or len(groups.means) < 2:
        return None
    best = int(np.argmin(groups.means))
    if groups.runs[best] < 2:
        return None
    others = np.arange(len(groups.means)) != best
    margins = groups.noise.t * groups.noise.sd * np.sqrt(groups.variances[best, others])
    own = scipy.stats.t.ppf(1 - WINNER_SIGNIFICANCE / 2, groups.dfs[best, others]) * groups.errors[best, others]
    return best if np.all(groups.means[others] - groups.means[best] > np.maximum(margins, own)) else None
