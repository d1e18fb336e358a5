"""The response surface of a study whose design spread its runs over variants and learning rates.

Each variant ran at a rate or two, so none has a curve of its own. The model of axes, their pairs and the learning rate
(raytrain.sweep.factorial) gives one to each variant, or to the mean of several.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from raytrain.analysis.curve import Curve
from raytrain.analysis.trials import FAILED, RATE, points
from raytrain.sweep.factorial import Array, LeastSquares, Model, Point, fit_model, population


@dataclasses.dataclass(frozen=True)
class Surface:
    """A fitted surface: `losses` are those of the complete runs; `tried` are these and the ones that `failed`, whose
    levels and rates bound the curves and do not bend them."""

    full: Model  # all terms, of which `model` has those that the runs determine
    model: Model
    fit: LeastSquares
    losses: Array
    tried: Sequence[Point]
    failed: npt.NDArray[np.bool_]

    def curve(self, averaged: Sequence[Point], levels: Mapping[str, Any]) -> Curve | None:
        """The mean curve over the points `averaged`, between the rates at which runs of each of `levels`, by axis,
        train; None where the runs do not determine it, or no rate is left."""
        rows = self.model.over_rates(averaged)
        if self.fit.unseen(rows).any():
            return None
        ranges = [self._stable(axis, level) for axis, level in levels.items()]
        low, high = max(one[0] for one in ranges), min(one[1] for one in ranges)
        if low > high:
            return None
        below = next((one[2] for one in ranges if one[0] == low and one[2]), "")
        above = next((one[3] for one in ranges if one[1] == high and one[3]), "")
        scaled = self.fit.weights(rows / self.model.reach ** np.arange(3)[:, None])
        return Curve(self.model.middle, low, high, scaled @ self.losses, scaled, below, above)

    def _stable(self, axis: str, level: Any) -> tuple[float, float, str, str]:
        """The range of a level's ln rates, and what lies below and above it as in a Curve: about the rate with the most
        runs that trained, to the next at which half failed."""
        own = np.array([point.get(axis) == level for point in self.tried])
        rates, failed = np.array([point[RATE] for point in self.tried])[own], self.failed[own]
        tried = np.unique(rates)
        trains = np.array([failed[rates == rate].mean() < 0.5 for rate in tried])
        runs = np.array([np.sum(~failed & (rates == rate)) for rate in tried])
        first = last = int(np.argmax(np.where(trains, runs, -1)))
        while first > 0 and trains[first - 1]:
            first -= 1
        while last < len(tried) - 1 and trains[last + 1]:
            last += 1
        below, above = "unstable" if first else "", "unstable" if last < len(tried) - 1 else ""
        return math.log(tried[first]), math.log(tried[last]), below, above


def fit_surface(
    table: pd.DataFrame, axes: Sequence[str], baseline: Point, candidates: Sequence[Point] | None
) -> Surface:
    """The surface of `table`, a row a trial at the study's budget, averaged over `candidates`, by default those run."""
    complete = (table["status"] == "complete") & table["val_loss"].notna()
    counted = table[complete | table["status"].isin(FAILED)]
    runs = _with_rates(table[complete], axes)
    rates = sorted(table[RATE].unique())
    spelled = None if candidates is None else [{**point, RATE: rate} for point in candidates for rate in rates]
    full = Model(population(runs, spelled), baseline, tuned=RATE)
    model, fit = fit_model(full, runs)
    losses = table.loc[complete, "val_loss"].to_numpy(float)
    return Surface(full, model, fit, losses, _with_rates(counted, axes), counted["status"].isin(FAILED).to_numpy())


def _with_rates(table: pd.DataFrame, axes: Sequence[str]) -> list[dict[str, Any]]:
    return [{**point, RATE: rate} for point, rate in zip(points(table, list(axes)), table[RATE], strict=True)]
