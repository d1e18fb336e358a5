"""Replays of a finished study: the winner that another design or scheduler would have picked, and its cost.

A replay draws, for each trial of the design, one recorded seed of its point at random, with replacement. The recorded
seeds are then the whole world: the truth of a point is their mean, and its noise their spread, which of k seeds is
smaller than the real one by sqrt((k - 1) / k). A point with a single seed has no noise in a replay.
"""

import dataclasses
import os.path
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow
import scipy.stats

from raytrain.analysis.noise import SIGNIFICANCE
from raytrain.analysis.ranking import UNFINISHED
from raytrain.analysis.trials import points, rung_table
from raytrain.errors import UserError, unknown_value
from raytrain.sweep.design import choose
from raytrain.sweep.factorial import Array, LeastSquares, Model, Point, fit_model, live, population
from raytrain.sweep.halving import survivors

SCHEDULERS = ("none", "halving")
_RECORDED = ("seed", "rung", "train_flops", "seconds", "val_loss", "status")
_NO_AXES = (*_RECORDED, "trial", "decay_flops")
_DESIGNS = 10  # the replays of a sampled design are spread over this many of it


@dataclasses.dataclass(frozen=True)
class Record:
    """A table to replay, as arrays. `losses`, `flops` and `seconds` are points x seeds x rungs: what a trial had
    reached and spent (the branches that rungs were scored after included) at each rung. A trial that diverged has NaN
    from then on, and spends no more. `seeds` is how many each point has.
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
        out: Array = np.where(count > 0, np.nansum(self.losses, axis=1), np.nan) / np.maximum(count, 1)
        return out


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
    """The Parquet table at `path`, or that of the study in the folder `path`, as `record` takes it.

    Raises UserError for a file that cannot be read, or a folder that holds no study.
    """
    if os.path.isdir(path):  # Path.is_dir raises for a name too long for any file
        return record(rung_table(path))
    if not os.path.exists(path):
        raise UserError(f"table ({path}) is neither a file nor a study's folder")
    try:
        with open(path, "rb") as file:  # Arrow opens no name that is not UTF-8
            table = pd.read_parquet(file)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(
            f"table ({path}) cannot be read: {getattr(error, 'strerror', None) or str(error).splitlines()[0]}"
        ) from None
    return record(table)


def record(table: pd.DataFrame) -> Record:
    """A table of trials by rung (see raytrain.analysis.trials). All its columns but those and `trial` are axes.

    Raises UserError for a table that lacks a column, is empty, or has trials that were stopped or have not ended: how
    they would have ended is not in it.
    """
    if missing := [column for column in _RECORDED if column not in table]:
        raise UserError(f"A table to replay needs the columns {', '.join(_RECORDED)}; missing: {', '.join(missing)}")
    if stopped := int((table["status"] == "stopped").sum()):
        raise UserError(f"A table to replay needs every trial's whole run; it has {stopped} rows of stopped trials")
    if unfinished := int(table["status"].isin(UNFINISHED).sum()):
        raise UserError(f"A table to replay needs every trial's whole run; {unfinished} rows are of unfinished trials")
    if table.empty:
        raise UserError("A table to replay needs a trial; it has no rows")
    axes = [str(column) for column in table if column not in _NO_AXES]
    rows = [(frozenset(row.items()), row) for row in points(table, axes)]
    distinct = dict(reversed(rows))
    place = {key: index for index, key in enumerate(dict.fromkeys(key for key, _ in rows))}
    point = np.array([place[key] for key, _ in rows])
    seed = table["seed"].groupby(point).transform(lambda seeds: pd.factorize(seeds)[0]).to_numpy(int)
    rung = table["rung"].to_numpy(int)
    seeds = np.zeros(len(place), dtype=np.intp)
    np.maximum.at(seeds, point, seed + 1)
    losses, flops, seconds = (np.full((len(place), seeds.max(), rung.max() + 1), np.nan) for _ in range(3))
    spent = table["train_flops"] + (table["decay_flops"].fillna(0) if "decay_flops" in table else 0)
    for array, column in ((losses, table["val_loss"]), (flops, spent), (seconds, table["seconds"])):
        array[point, seed, rung] = column.to_numpy(float)
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

    Under halving one trial in `factor` is promoted at each rung but the last. Raises UserError for a number
    outside what it may be.
    """
    if scheduler not in SCHEDULERS:
        raise unknown_value("scheduler", scheduler, SCHEDULERS)
    for name, value, least in (("replays", replays, 1), ("seed", seed, 0), ("factor", factor, 2)):
        if value < least:
            raise UserError(f"{name} ({value}) must be {least} or more")
    if not 0 <= base < len(record.points):
        raise UserError(f"base ({base}) must be the number of a point, 0 to {len(record.points) - 1}")
    truth, draws = record.truth, np.random.default_rng(seed)
    batches = min(_DESIGNS, replays) if options.get("trials") else 1  # the other designs do not depend on their seed
    measures: dict[str, list[Array]] = {}
    for batch in range(batches):
        plan = choose(record.points, design, base=base, seed=seed + batch, interactions=interactions, **options)
        rows = np.array([index for index, _ in plan.trials])
        count = replays // batches + (batch < replays % batches)
        drawn = (draws.random((len(rows), count)) * record.seeds[rows, None]).astype(int)
        losses = record.losses[rows[:, None], drawn]  # trials x replays x rungs
        last = _last_rungs(losses, rows, scheduler, factor)
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
            measures.setdefault(name, []).append(values)
    means = {name: _mean(np.concatenate(values)) for name, values in measures.items()}
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
    items = [frozenset(live(point).items()) for point in points]
    levels = list(dict.fromkeys(item for row in rows for item in items[row]))
    has_level = np.array([[level in items[row] for level in levels] for row in rows])
    lenses: dict[bytes, _Lens] = {}  # by the levels that were run
    patterns, which = np.unique(np.isfinite(losses), axis=1, return_inverse=True)
    for pattern, kept in enumerate(patterns.T):
        studies = np.flatnonzero(which == pattern)
        levels_run = np.any(has_level[kept], axis=0).tobytes()
        if levels_run not in lenses:
            space = population([points[row] for row in rows[kept]], points)
            lenses[levels_run] = _Lens(Model(space, base, interactions=interactions), points, truth)
        lens = lenses[levels_run]
        fit: _FullRank | LeastSquares | None = _full_rank(lens.whole[rows[kept]])
        if fit is None:
            model, fit = fit_model(lens.model, [points[row] for row in rows[kept]])
            lens = lens if model is lens.model else _Lens(model, points, truth)
        model = lens.model
        true = truth[:, studies] if truth.shape[1] > 1 else truth
        seen = losses[np.ix_(kept, studies)]
        coefficients = fit.weights(np.eye(model.size)) @ seen
        if not fit.unseen(lens.matrix).any():
            out["regret_model"][studies] = _regret(true, lens.known[np.argmin(lens.matrix @ coefficients, axis=0)])
        if not fit.df:
            continue
        scales = scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, fit.df)
        scales *= np.linalg.norm(fit.weights(model.contrasts), axis=1)
        half_widths = scales[:, None] * fit.residual_sd(seen)
        covered = np.abs(model.contrasts @ coefficients - lens.weights @ true[lens.known]) <= half_widths
        aliased = np.any(fit.unseen(model.contrasts), axis=1)
        orders = np.array([len(effect.axes) for effect in model.effects])
        for order, suffix in ((1, ""), (2, "_interactions")):
            estimable = (orders == order) & ~aliased
            if estimable.any():
                out[f"coverage{suffix}"][studies] = covered[estimable].mean(axis=0)
                out[f"half_width{suffix}"][studies] = half_widths[estimable].mean(axis=0)
    return out


class _Lens:
    """The points as a model sees them: `whole`, their rows; those `known` to it and the truth, as `matrix`; and
    `weights`, by which the losses of the known make the true effects.
    """

    def __init__(self, model: Model, points: list[Point], truth: Array) -> None:
        self.model = model
        inside = {frozenset(point.items()) for point in model.points}
        is_inside = [frozenset(live(point).items()) in inside for point in points]
        self.whole = model.matrix(points)
        self.known = np.flatnonzero(is_inside & np.isfinite(truth[:, 0]))
        self.matrix = self.whole[self.known]
        self.weights = LeastSquares(self.matrix).weights(model.contrasts)


class _FullRank:
    """What LeastSquares does, at a tenth of its time, for runs that see every coefficient: by the normal equations."""

    def __init__(self, matrix: Array, inverse: npt.NDArray[np.floating[Any]]) -> None:
        self._matrix, self._pseudoinverse = matrix, inverse @ matrix.T
        self.df = len(matrix) - matrix.shape[1]

    def unseen(self, contrasts: Array) -> Array:
        return np.zeros_like(contrasts)

    def weights(self, contrasts: Array) -> Array:
        return contrasts @ self._pseudoinverse

    def residual_sd(self, losses: Array) -> Array:
        residuals = losses - self._matrix @ (self._pseudoinverse @ losses)
        return np.sqrt(np.sum(residuals**2, axis=0) / self.df) if self.df else np.full(losses.shape[1:], np.nan)


def _full_rank(matrix: Array) -> _FullRank | None:
    """None if the runs do not see every coefficient well: squaring the matrix halves the digits."""
    information = matrix.T @ matrix
    sizes = np.linalg.eigvalsh(information)
    return _FullRank(matrix, np.linalg.inv(information)) if sizes[0] > 1e-8 * sizes[-1] else None


def _last_rungs(losses: Array, rows: npt.NDArray[np.intp], scheduler: str, factor: int) -> npt.NDArray[np.intp]:
    """trials x replays: the rung that each trial stops at, by its losses (trials x replays x rungs).

    As `raytrain.sweep.halving.halve` decides, for all replays at once: of the variants (`rows`, a number for each
    trial) those with the lowest mean over seeds advance, NaN is the worst, and a tie goes to the smaller number as
    text. A seed that diverged stays behind.
    """
    trials, replays, rungs = losses.shape
    last = np.full((trials, replays), rungs - 1)
    if scheduler != "halving":
        return last
    variants, which = np.unique(rows, return_inverse=True)
    names = np.argsort(np.argsort([str(variant) for variant in variants]))
    name = np.broadcast_to(names[:, None], (len(variants), replays))
    alive = np.ones((trials, replays), dtype=bool)
    for rung, keep in enumerate(survivors(len(variants), rungs - 1, factor)):
        scored = alive & np.isfinite(losses[:, :, rung])
        sums, counts = np.zeros((2, len(variants), replays))
        np.add.at(sums, which, np.where(scored, losses[:, :, rung], 0.0))
        np.add.at(counts, which, scored)
        merits = np.divide(sums, counts, out=np.full_like(sums, np.inf), where=counts > 0)
        order = np.lexsort((name, merits), axis=0)
        kept = np.zeros_like(merits, dtype=bool)
        np.put_along_axis(kept, order[:keep], True, axis=0)
        goes_on = scored & kept[which]
        last[alive & ~goes_on] = rung
        alive = goes_on
    return last


def _regret(truth: Array, winners: npt.NDArray[np.intp]) -> Array:
    """For each study the true loss of its winner less the least of all points. `truth` is points x studies, or x 1."""
    out: Array = np.broadcast_to(truth, (len(truth), len(winners)))[winners, np.arange(len(winners))] - np.nanmin(
        truth, axis=0
    )
    return out


def _mean(values: Array) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))
