"""Runs that were not trained: those that end at the loss of the training data's unigram frequencies.

A language model first learns how frequent each token is, and may stay there: a network whose gradients vanish still
moves the bias of its head. Its loss is then that of the training unigram on the validation set, whatever the network
is, so it is no measurement of an architecture's loss, and one such run among ten hides every effect.

A completed run is on the plateau if

    val_loss > unigram_loss - tolerance,   tolerance = t(0.95, df) s, but 0.02 nats at least and 0.1 at most

where s is the spread over seeds of runs that are not on it, with df degrees of freedom (the least where nothing gives
it). It is set aside as a diverged run is: in no effect, rank or gain, and counted.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from raytrain.analysis.noise import SIGNIFICANCE, pooled
from raytrain.analysis.trials import budgets, points
from raytrain.sweep.factorial import Array, Point

PLATEAU = "plateau"
LEAST_TOLERANCE, MOST_TOLERANCE = 0.02, 0.1  # nats
_RULES, _CONDITIONS = 3, 3  # rules at most, and conditions in one


def rates(count: npt.NDArray[np.integer[Any]], trials: npt.NDArray[np.integer[Any]]) -> tuple[Array, Array]:
    """The exact 95% intervals of `count` of `trials` (Clopper and Pearson, Biometrika 26, 1934)."""
    low = scipy.stats.beta.ppf(SIGNIFICANCE / 2, count, trials - count + 1)
    high = scipy.stats.beta.ppf(1 - SIGNIFICANCE / 2, count + 1, trials - count)
    return np.where(count == 0, 0.0, low), np.where(count == trials, 1.0, high)


@dataclasses.dataclass(frozen=True)
class Rate:
    """`count` of `trials`."""

    count: int
    trials: int

    def __str__(self) -> str:
        low, high = rates(np.array(self.count), np.array(self.trials))
        return f"{self.count} of {self.trials} (95% {low:.0%} to {high:.0%})"


def mark_plateaus(table: pd.DataFrame, variants: pd.Series, unigram_loss: float | None = None) -> pd.DataFrame:
    """`table`, one row a trial, with the status `plateau` for completed trials that ended there.

    `variants` gives rows that differ in their seed alone (and budget) the same value. `unigram_loss`, in nats per
    token, is that of the table's column of this name unless given; a trial without one stays what it is.
    """
    unigram = pd.Series(unigram_loss, index=table.index, dtype=float)
    if unigram_loss is None and "unigram_loss" in table:
        unigram = table["unigram_loss"].astype(float)
    above = table["val_loss"].astype(float) - unigram
    known = (table["status"] == "complete") & above.notna()
    is_on = known & (above > -LEAST_TOLERANCE)
    while True:  # what is on it no longer counts as spread over seeds
        more = known & ~is_on & (above > -_tolerance(table[known & ~is_on], variants))
        if not more.any():
            break
        is_on |= more
    return table.assign(status=table["status"].where(~is_on, PLATEAU))


def _tolerance(runs: pd.DataFrame, variants: pd.Series) -> float:
    """In nats, from the spread over seeds of `runs`."""
    if runs.empty:
        return LEAST_TOLERANCE
    budget = budgets(runs["train_flops"].to_numpy(float))
    noise = pooled(
        runs["val_loss"].astype(float), variants[runs.index].astype(str) + [f" {number}" for number in budget]
    )
    spread = noise.sd * float(scipy.stats.t.ppf(1 - SIGNIFICANCE, noise.df)) if noise else 0.0
    return max(LEAST_TOLERANCE, min(MOST_TOLERANCE, spread))


def variants_of(table: pd.DataFrame, axes: Sequence[str]) -> pd.Series:
    """For `mark_plateaus`: the point of each row in `axes`."""
    return pd.Series([repr(sorted(point.items())) for point in points(table, list(axes))], index=table.index)


def where_plateaus(table: pd.DataFrame, axes: Sequence[str]) -> list[tuple[str, Rate]]:
    """The levels of `axes` that explain which trials of `table` are on the plateau, with the counts there.

    A list of rules such as `norm_position=post with learning_rate>=0.003`, made one by one, of one to three conditions
    each: the rule that shortens the description of the outcomes most, by the likelihood of two rates in place of one,
    less ln(number of conditions) for each that it names and ln(trials) / 2 for the rate (minimum description length:
    Rissanen, Automatica 14, 1978). Trials under a rule are not seen by the next.
    """
    ended = table[table["status"].isin(("complete", "stopped", PLATEAU))]
    is_on = (ended["status"] == PLATEAU).to_numpy()
    conditions, has = _conditions(points(ended, list(axes)))
    left = np.ones(len(ended), bool)
    out: list[tuple[str, Rate]] = []
    while len(out) < _RULES and is_on[left].any():
        rules = [
            (_gain(is_on[left], np.all(has[left][:, list(places)], axis=1)) - count * math.log(len(conditions)), places)
            for count in range(1, _CONDITIONS + 1)
            for places in itertools.combinations(range(len(conditions)), count)
            if len({conditions[place][0] for place in places}) == count
        ]
        gain, places = max(rules, key=lambda rule: rule[0], default=(0.0, ()))
        if gain <= math.log(len(ended)) / 2:
            break
        under = left & has[:, list(places)].all(axis=1)
        name = " with ".join("".join(conditions[place]) for place in places)
        out.append((name, Rate(int(is_on[under].sum()), int(under.sum()))))
        left &= ~under
    return out


def plateau_sentences(table: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """The finding that trials of `table` are on the plateau, and which; none if none is."""
    count = int((table["status"] == PLATEAU).sum())
    if not count:
        return []
    ended = Rate(count, int(table["status"].isin(("complete", "stopped", PLATEAU)).sum()))
    out = (
        f"{ended} runs were not trained: they ended at the loss of the training unigram, within the noise, and are in "
        "no effect, rank or gain."
    )
    where = [f"{name}, {rate}" for name, rate in where_plateaus(table, axes)]
    return [f"{out} They are those of {'; '.join(where)}." if where else out]


def _conditions(runs: Sequence[Point]) -> tuple[list[tuple[str, str, str]], npt.NDArray[np.bool_]]:
    """Each level of each axis; for numbers of three levels or more also those from a level up, and down: as (axis,
    sign, level), and which points meet them (points x conditions)."""
    conditions, columns = [], []
    for axis in dict.fromkeys(axis for point in runs for axis in point):
        values = pd.Series([point.get(axis) for point in runs], dtype=object)
        levels = list(values.dropna().unique())
        is_ordered = len(levels) > 2 and all(isinstance(level, int | float) for level in levels)
        for level in sorted(levels) if is_ordered else levels:
            conditions.append((axis, "=", str(level)))
            columns.append((values == level).to_numpy(bool))
        for level in sorted(levels)[1:-1] if is_ordered else ():
            conditions += [(axis, ">=", str(level)), (axis, "<=", str(level))]
            numbers = values.astype(float)
            columns += [(numbers >= level).to_numpy(bool), (numbers <= level).to_numpy(bool)]
    return conditions, np.array(columns).T


def _gain(is_on: npt.NDArray[np.bool_], under: npt.NDArray[np.bool_]) -> float:
    """The log likelihood of two rates, under a rule and elsewhere, less that of one; none if the rule's is lower."""
    inside, outside = is_on[under], is_on[~under]
    if not len(inside) or (len(outside) and inside.mean() <= outside.mean()):
        return -math.inf
    return _log_likelihood(inside) + _log_likelihood(outside) - _log_likelihood(is_on)


def _log_likelihood(is_on: npt.NDArray[np.bool_]) -> float:
    n, k = len(is_on), int(is_on.sum())
    return sum(part * math.log(part / n) for part in (k, n - k) if part)
