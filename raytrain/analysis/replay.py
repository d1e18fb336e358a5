"""Replays of a finished study: what another design or scheduler would have found, and what it would have cost.

A replay draws, for each trial of the design, one recorded seed of its point at random, with replacement. The recorded
seeds are then the whole world: the truth of a point is their mean, and its noise their spread, which of k seeds is
smaller than the real one by sqrt((k - 1) / k). A point with a single seed has no noise in a replay.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow
import scipy.stats

from raytrain.analysis.noise import SIGNIFICANCE
from raytrain.analysis.trials import points
from raytrain.design import choose
from raytrain.errors import UserError, unknown_value
from raytrain.factorial import Array, LeastSquares, Model, Point, fit_model, population
from raytrain.halving import halve, survivors

SCHEDULERS = ("none", "halving")
_RECORDED = ("seed", "rung", "train_flops", "seconds", "val_loss", "status")
_DESIGNS = 10  # the replays of a sampled design are spread over this many of it


@dataclasses.dataclass(frozen=True)
class Record:
    """A table to replay, as arrays. `losses`, `flops` and `seconds` are points x seeds x rungs: what a trial had
    reached and spent at each rung. A trial that diverged has NaN from then on, and spends no more. `seeds` is how many
    each point has.
    """

    points: list[Point]
    losses: Array
    flops: Array
    seconds: Array
    seeds: npt.NDArray[np.intp]

    @property
    def truth(self) -> Array:
        """points x rungs: the mean loss over the seeds that have one; NaN where none has."""
        count = np.sum(~np.isnan(self.losses), axis=1)
        return np.where(count > 0, np.nansum(self.losses, axis=1), np.nan) / np.maximum(count, 1)


@dataclasses.dataclass(frozen=True)
class Replay:
    """Means over replays. FLOPs and seconds are those of all trials of one replay.

    The regret of a winner is its true loss at the last rung less the least of all points, in nats. The winner is the
    best of the trials that ran to the end (`regret_observed`), or the point for which the fitted model predicts the
    least loss (`regret_model`; None under halving, whose last rung is too thin to fit). `coverage` is the part of the
    95% intervals that hold the true effect and `half_width` their mean half-width in nats, for main effects and for
    interactions. Under halving the effects are those at the first rung, which all trials reach. None: the design
    estimates none.
    """

    design: str
    scheduler: str
    replays: int
    trials: int
    flops: float | None
    seconds: float | None
    regret_observed: float | None
    regret_model: float | None
    coverage: float | None
    half_width: float | None
    coverage_interactions: float | None
    half_width_interactions: float | None


_JUDGED = ("regret_model", "coverage", "half_width", "coverage_interactions", "half_width_interactions")


def read_record(path: str | Path) -> Record:
    """The Parquet table at `path`, as `record` takes it. Raises UserError for a file that cannot be read."""
    try:
        table = pd.read_parquet(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(
            f"table ({path}) cannot be read: {getattr(error, 'strerror', None) or str(error).splitlines()[0]}"
        ) from None
    return record(table)


def record(table: pd.DataFrame) -> Record:
    """A table of trials by rung (see raytrain.analysis.trials). All its columns but those and `trial` are axes.

    Raises UserError for a table that lacks a column, or has trials that were stopped: how they would have gone on is
    not in it.
    """
    if missing := [column for column in _RECORDED if column not in table]:
        raise UserError(f"A table to replay needs the columns {', '.join(_RECORDED)}; missing: {', '.join(missing)}")
    if stopped := int((table["status"] == "stopped").sum()):
        raise UserError(f"A table to replay needs every trial's whole run; it has {stopped} rows of stopped trials")
    axes = [str(column) for column in table if column not in (*_RECORDED, "trial")]
    rows = [(frozenset(row.items()), row) for row in points(table, axes)]
    distinct = dict(reversed(rows))
    place = {key: index for index, key in enumerate(dict.fromkeys(key for key, _ in rows))}
    point = np.array([place[key] for key, _ in rows])
    seed = table["seed"].groupby(point).transform(lambda seeds: pd.factorize(seeds)[0]).to_numpy(int)
    rung = table["rung"].to_numpy(int)
    seeds = np.zeros(len(place), dtype=np.intp)
    np.maximum.at(seeds, point, seed + 1)
    losses, flops, seconds = (np.full((len(place), seeds.max(), rung.max() + 1), np.nan) for _ in range(3))
    for array, column in ((losses, "val_loss"), (flops, "train_flops"), (seconds, "seconds")):
        array[point, seed, rung] = table[column].to_numpy(float)
    flops, seconds = (np.nan_to_num(np.fmax.accumulate(array, axis=2)) for array in (flops, seconds))
    return Record([distinct[key] for key in place], losses, flops, seconds, seeds)


def replay(
    record: Record,
    design: str,
    scheduler: str = "none",
    *,
    replays: int = 1000,
    seed: int = 0,
    factor: int = 4,
    base: int = 0,
    interactions: bool = True,
    **options: Any,
) -> Replay:
    """Replay `design`, chosen among the record's points with `base` (the number of one) and `options` as in `choose`.

    Under halving a `factor`-th part of the trials goes on after each rung but the last.
    """
    if scheduler not in SCHEDULERS:
        raise unknown_value("scheduler", scheduler, SCHEDULERS)
    truth, draws = record.truth, np.random.default_rng(seed)
    batches = min(_DESIGNS, replays) if options.get("trials") else 1  # the other designs do not depend on their seed
    found: dict[str, list[Array]] = {}
    for batch in range(batches):
        plan = choose(record.points, design, base=base, seed=seed + batch, interactions=interactions, **options)
        rows = np.array([index for index, _ in plan.trials])
        count = replays // batches + (batch < replays % batches)
        drawn = (draws.random((len(rows), count)) * record.seeds[rows, None]).astype(int)
        losses = record.losses[rows[:, None], drawn]  # trials x replays x rungs
        last = _last_rungs(losses, scheduler, factor)
        ended = np.where(last == losses.shape[2] - 1, losses[:, :, -1], np.nan)
        rung = 0 if scheduler == "halving" else losses.shape[2] - 1
        part = judge(
            record.points, record.points[base], rows, losses[:, :, rung], truth[:, [rung]], interactions=interactions
        )
        if scheduler == "halving":
            part["regret_model"] = np.full(count, np.nan)
        part["regret_observed"] = _regret(truth[:, [-1]], rows[np.argmin(np.nan_to_num(ended, nan=np.inf), axis=0)])
        part["flops"] = record.flops[rows[:, None], drawn, last].sum(axis=0)
        part["seconds"] = record.seconds[rows[:, None], drawn, last].sum(axis=0)
        for name, values in part.items():
            found.setdefault(name, []).append(values)
    means = {name: _mean(np.concatenate(values)) for name, values in found.items()}
    return Replay(design, scheduler, replays, len(plan.trials), **means)


def judge(
    points: list[Point],
    base: Point,
    rows: npt.NDArray[np.intp],
    losses: Array,
    truth: Array,
    *,
    interactions: bool = True,
) -> dict[str, Array]:
    """What the fitted model gets right in each of many studies: the values of Replay from `regret_model` on, one a
    study.

    The studies ran the points number `rows` and saw `losses` (trials x studies; NaN where one diverged). `truth` is
    points x studies, or x 1 where it is one for all. A trial without a loss is not in the fit, so studies are taken
    together by which trials those are.
    """
    out = {name: np.full(losses.shape[1], np.nan) for name in _JUDGED}
    patterns, which = np.unique(np.isfinite(losses), axis=1, return_inverse=True)
    for pattern, kept in enumerate(patterns.T):
        studies = np.flatnonzero(which == pattern)
        run = [points[row] for row in rows[kept]]
        space = population(run, points)
        model, fit = fit_model(Model(space, base, interactions=interactions), run)
        inside = {frozenset(point.items()) for point in space}
        known = np.flatnonzero([frozenset(point.items()) in inside for point in points] & np.isfinite(truth[:, 0]))
        matrix = model.matrix([points[i] for i in known])
        true = truth[:, studies] if truth.shape[1] > 1 else truth
        seen = losses[np.ix_(kept, studies)]
        if not fit.unseen(matrix).any():
            out["regret_model"][studies] = _regret(true, known[np.argmin(fit.weights(matrix) @ seen, axis=0)])
        if not fit.df:
            continue
        weights = fit.weights(model.contrasts)
        scales = scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, fit.df) * np.linalg.norm(weights, axis=1)
        half_widths = scales[:, None] * fit.residual_sd(seen)
        true_effects = LeastSquares(matrix).weights(model.contrasts) @ true[known]
        covered = np.abs(weights @ seen - true_effects) <= half_widths
        aliased = np.any(fit.unseen(model.contrasts), axis=1)
        orders = np.array([len(effect.axes) for effect in model.effects])
        for order, suffix in ((1, ""), (2, "_interactions")):
            told = (orders == order) & ~aliased
            if told.any():
                out[f"coverage{suffix}"][studies] = covered[told].mean(axis=0)
                out[f"half_width{suffix}"][studies] = half_widths[told].mean(axis=0)
    return out


def _last_rungs(losses: Array, scheduler: str, factor: int) -> npt.NDArray[np.intp]:
    """trials x replays: the rung that each trial stops at, by its losses (trials x replays x rungs)."""
    trials, replays, rungs = losses.shape
    last = np.full((trials, replays), rungs - 1)
    for study in range(replays if scheduler == "halving" else 0):
        alive = {str(trial) for trial in range(trials)}
        for rung, keep in enumerate(survivors(trials, rungs - 1, factor)):
            kept = halve({trial: losses[int(trial), study, rung] for trial in alive}, keep)
            last[[int(trial) for trial in alive - kept], study] = rung
            alive = kept
    return last


def _regret(truth: Array, winners: npt.NDArray[np.intp]) -> Array:
    """For each study the true loss of its winner less the least of all points. `truth` is points x studies, or x 1."""
    return np.broadcast_to(truth, (len(truth), len(winners)))[winners, np.arange(len(winners))] - np.nanmin(
        truth, axis=0
    )


def _mean(values: Array) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))
