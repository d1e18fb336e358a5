"""The estimate of the best variant from runs with fresh seeds.

The best of many is partly the luckiest, and the more so the noisier it is. Runs of it, of the runner-up and of the
baseline with fresh seeds, chosen before they are seen, have no such luck in them: the differences between these alone
are unbiased, and a winner, its gain and what is expected of it rest on them.
"""

import dataclasses

import numpy as np
import pandas as pd
import scipy.stats

from raytrain.analysis.noise import SIGNIFICANCE, WINNER_SIGNIFICANCE, group_means
from raytrain.sweep.factorial import Array


@dataclasses.dataclass(frozen=True)
class Difference:
    """The leader's mean loss less that of `other`, over fresh seeds, in nats; the ends are simultaneous 95% ones."""

    other: str
    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """`leader` has the mean loss `loss` over `seeds` fresh seeds; its `differences` from those that ran with it."""

    leader: str
    loss: float
    seeds: int
    differences: list[Difference]

    @property
    def is_winner(self) -> bool:
        """Whether it is better than each of the others beyond the noise."""
        return all(difference.high < 0 for difference in self.differences)


def confirmation(runs: pd.DataFrame) -> Confirmation | None:
    """Of `runs` with `variant` (a label), `seed` and `val_loss`, those of the leader first.

    A difference is judged by the two variants' own noise (`noise.Means`), each of two at 2%, as a winner is
    (`noise.declare_winner`), so all together at 5% and less (Bonferroni): a leader that is noisier than the rest, and
    came first by it, is then a winner in at most 1% of cases. None if the leader or all others have less than two runs.
    """
    groups = group_means(runs["val_loss"].astype(float), runs["variant"], runs["seed"])
    known = [place for place in range(1, len(groups.groups)) if groups.runs[place] > 1]
    if not known or groups.runs[0] < 2:
        return None
    out, level = [], min(SIGNIFICANCE / len(known), WINNER_SIGNIFICANCE)
    for place in known:
        margin = scipy.stats.t.ppf(1 - level / 2, groups.dfs[0, place]) * groups.errors[0, place]
        estimate = float(groups.means[0] - groups.means[place])
        name = str(groups.groups[place])
        out.append(Difference(name, estimate, estimate - float(margin), estimate + float(margin)))
    own = runs.loc[runs["variant"] == groups.groups[0], "val_loss"]
    return Confirmation(str(groups.groups[0]), float(own.mean()), len(own), out)


def shrunken(estimates: Array, errors: Array) -> Array:
    """`estimates` of many variants, drawn together by as much as their standard `errors` have driven them apart.

    Empirical Bayes: with the mean m and the variance v beyond what the errors explain, m + (estimate - m) v / (v +
    error^2) (Efron and Morris, Journal of the American Statistical Association 70, 1975). What the first of many is
    expected to be, where it has not run anew.
    """
    mean = float(estimates.mean())
    beyond = max(0.0, float(estimates.var(ddof=1) - np.mean(errors**2))) if len(estimates) > 1 else 0.0
    total = beyond + errors**2
    out: Array = mean + (estimates - mean) * np.divide(beyond, total, out=np.zeros_like(total), where=total > 0)
    return out
