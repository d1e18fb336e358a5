"""Which variants to run again with fresh seeds: the leader, the runner-up and the baseline.

The best of many is partly the luckiest. Runs with fresh seeds, chosen before they are seen, have no such luck in them.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from raytrain.analysis.ranking import at_budget, numbers
from raytrain.analysis.response import fit_curves
from raytrain.analysis.surface import fit_surface
from raytrain.analysis.trials import FAILED, OWN_ROLES, RATE, axes_of, budgets, points
from raytrain.sweep.factorial import Model, Point, fit_model, live, population
from raytrain.sweep.stages import Stage, changed, fresh_seeds, run_again
from raytrain.sweep.trial import AssignedTrial, trials_of

PLACES = ("leader", "runner_up", "baseline")


@dataclasses.dataclass(frozen=True)
class Order:
    """Variants, best first, with their expected losses; `basis` names the estimator."""

    basis: str
    points: Sequence[Point]
    losses: Sequence[float]
    tuned: Sequence[Mapping[str, float]] = ()  # in a study that tunes: the best levels of each


def in_order(runs: Sequence[Point], losses: Sequence[float], baseline: Point, candidates: Sequence[Point]) -> Order:
    """The variants by the mean of their runs, if all of `candidates` ran twice or more.

    Else by the model of axes and their pairs, among all candidates that the runs can estimate: it borrows strength
    from the other runs, where a single run is mostly noise. By their means again if the model cannot estimate any.
    Ties go by the text of the levels, so that the order is a function of the values.
    """
    alive = [live(run) for run in runs]
    groups: dict[str, list[float]] = {}
    for point, loss in zip(alive, losses, strict=True):
        groups.setdefault(_key(point), []).append(loss)
    wanted = {_key(live(point)): live(point) for point in [*candidates, *alive]}
    is_replicated = set(groups) == set(wanted) and min(map(len, groups.values())) > 1
    if not is_replicated and (expected := _by_model(alive, losses, baseline, list(wanted.values()))):
        return _sorted("fitted model", wanted, expected)
    return _sorted("mean of its runs", wanted, {key: float(np.mean(group)) for key, group in groups.items()})


def after_halving(runs: Sequence[Point], losses: Sequence[float], flops: Sequence[float]) -> Order:
    """The variants by how far they came, then by the mean of their runs that came so far.

    A rung stops what is worse there, and its loss is no more to be compared with that of those that went on.
    """
    groups: dict[str, list[tuple[int, float]]] = {}
    wanted = {_key(live(run)): live(run) for run in runs}
    for run, loss, place in zip(runs, losses, budgets(np.asarray(flops, float)), strict=True):
        groups.setdefault(_key(live(run)), []).append((-int(place), loss))
    furthest = {key: min(place for place, _ in group) for key, group in groups.items()}
    means = {key: float(np.mean([x for place, x in group if place == furthest[key]])) for key, group in groups.items()}
    keys = sorted(groups, key=lambda key: (furthest[key], means[key], key))
    return Order("last rung that each came to", [wanted[key] for key in keys], [means[key] for key in keys])


def at_own_best(
    runs: Sequence[Point], losses: Sequence[float], seeds: Sequence[int], tuned: Sequence[Mapping[str, float]]
) -> Order:
    """The variants by the least loss of their own curve against the learning rate, at the best of the other fields.

    `tuned` are each run's levels of the tuned fields; every variant ran at all. See raytrain.analysis.response.
    """
    wanted = {_key(live(run)): live(run) for run in runs}
    others = [{field: level for field, level in own.items() if field != RATE} for own in tuned]
    names = [(_key(live(run)), _key(other)) for run, other in zip(runs, others, strict=True)]
    numbered = {name: number for number, name in enumerate(dict.fromkeys(names))}
    setting_of = dict(zip(names, others, strict=True))
    variant, x = np.array([numbered[name] for name in names]), np.log([own.get(RATE, 1.0) for own in tuned])
    y = np.asarray(losses, float)
    fitted = fit_curves(variant, x, y, ~np.isfinite(y), np.unique(seeds, return_inverse=True)[1])
    best: dict[str, tuple[float, dict[str, float]]] = {}
    for (key, other), number in numbered.items():
        if number not in fitted.curves:
            continue
        curve = fitted.curves[number]
        setting = dict(setting_of[key, other])
        if RATE in tuned[0]:
            setting[RATE] = float(f"{math.exp(curve.x):.4g}")
        if key not in best or curve.least.value < best[key][0]:
            best[key] = curve.least.value, setting
    return _by_best("least loss of each at its own best " + ", ".join(tuned[0]), wanted, best)


def on_surface(table: pd.DataFrame, axes: Sequence[str], baseline: Point, candidates: Sequence[Point]) -> Order:
    """The variants by the least loss of their curves on the fitted response surface, among all candidates that the runs
    of `table` determine.

    For designs that spread runs over variants and learning rates: a variant ran once or twice, and the least of those
    losses is the luckiest. No variants where the runs leave no residual.
    """
    surface = fit_surface(table, axes, baseline, candidates or None)
    best: dict[str, tuple[float, dict[str, float]]] = {}
    variants = {_key(point): point for point in (_variant(point) for point in surface.full.points)}
    for key, point in variants.items() if surface.fit.df else ():
        if (curve := surface.curve([point], point)) is not None:
            best[key] = curve.least.value, {RATE: float(f"{math.exp(curve.x):.4g}")}
    return _by_best(f"fitted surface, each at its own best {RATE}", variants, best)


def _variant(point: Point) -> dict[str, Any]:
    return {axis: level for axis, level in live(point).items() if axis != RATE}


def _by_best(basis: str, wanted: Mapping[str, Point], best: Mapping[str, tuple[float, dict[str, float]]]) -> Order:
    keys = _by_loss({key: loss for key, (loss, _) in best.items()})
    return Order(basis, [wanted[key] for key in keys], [best[key][0] for key in keys], [best[key][1] for key in keys])


def _by_model(
    runs: Sequence[Point], losses: Sequence[float], baseline: Point, candidates: Sequence[Point]
) -> dict[str, float]:
    """The expected loss of each candidate that the runs determine; empty where they do not determine the baseline's."""
    space = population(runs, candidates)
    full = Model(space, baseline)
    if not full.effects or live(baseline) not in space:
        return {}
    model, fit = fit_model(full, runs)
    if not fit.df:
        return {}
    contrasts = model.matrix(space) - model.matrix([baseline])
    is_seen = [not row.any() for row in fit.unseen(contrasts)]
    centred = np.asarray(losses, float) - np.mean(losses)
    expected = fit.weights(contrasts) @ centred
    return {_key(point): float(value) for point, value, seen in zip(space, expected, is_seen, strict=True) if seen}


def _sorted(basis: str, wanted: Mapping[str, Point], losses: Mapping[str, float]) -> Order:
    keys = _by_loss(losses)
    return Order(basis, [wanted[key] for key in keys], [losses[key] for key in keys])


def _by_loss(losses: Mapping[str, float]) -> list[str]:
    return sorted(losses, key=lambda key: (round(losses[key], 12), key))  # equal but for the last bits is equal


def _key(point: Point) -> str:
    return json.dumps(point, sort_keys=True, default=str)


def confirm(
    study: Mapping[str, Any], table: pd.DataFrame, candidates: Sequence[Point] | None, seeds: int
) -> Stage | None:
    """The stage that runs the leader, the runner-up and the baseline with `seeds` fresh seeds each, the same for all.

    `table` is that of `ranking.read_study`. None where there is nothing to compare: fewer than two variants have a
    loss.
    """
    axes, baseline = axes_of(study)
    rows = table[table["role"].isin(OWN_ROLES)]
    if not axes:
        return None
    by_id = {trial.id: trial for trial in trials_of(study)}
    planned: dict[str, AssignedTrial] = {}
    for row, name in zip(points(rows, axes), rows["trial"], strict=True):
        planned.setdefault(_key(live(row)), by_id[name])
    base = _key(live(baseline))
    # A variant that did not run is made from the baseline's trial.
    tuned = {name: trial.tuned for name, trial in by_id.items() if trial.tuned}
    tuning = study["plan"].get("tuning")
    wanted = candidates or [] if base in planned else []
    order = _order(rows, axes, baseline, wanted, tuned, bool(tuning and tuning["spreads"]))
    if order is None or len(order.points) < 2:
        return None
    chosen = {_key(point): (place, point) for place, point in zip(PLACES, order.points[:2], strict=False)}
    if base in planned:
        chosen.setdefault(base, ("baseline", live(baseline)))
    best = dict(zip(map(_key, order.points), order.tuned, strict=False))
    own_seeds = fresh_seeds(by_id.values(), seeds)
    added: list[AssignedTrial] = []
    facts: list[dict[str, Any]] = []
    for key, (place, point) in chosen.items():
        template = planned[key] if key in planned else changed(planned[base], point)
        setting = best.get(key)
        again = [run_again(template, seed, stage="confirm", role="confirm", tuned=setting) for seed in own_seeds]
        added += again
        what = {"place": place, "label": again[0].label, "hash": again[0].hash, "levels": dict(point)}
        what |= {"tuned": setting} if setting else {}
        facts.append(what | {"is_baseline": key == base, "trials": [trial.id for trial in again]})
    names = "; ".join(f"{fact['place'].replace('_', '-')}: {fact['label']}" for fact in facts)
    reason = f"{names}. By the {order.basis}; each runs again with {seeds} fresh seed{'s' * (seeds > 1)}."
    return Stage("confirm", added, reason, {"seeds": seeds, "basis": order.basis, "chosen": facts})


def _order(
    rows: pd.DataFrame,
    axes: list[str],
    baseline: Point,
    candidates: Sequence[Point],
    tuned: Mapping[str, Mapping[str, float]],
    spreads: bool,
) -> Order | None:
    """The variants of `rows`, ordered by the estimator that covers most of them; None where there is no loss.

    `tuned` are the levels of the tuned fields of each trial, by its name; `spreads`: whether a design spread the runs
    over them.
    """
    stopped = (rows["status"] == "stopped") & numbers(rows, "val_loss").notna()
    used = rows[stopped | (at_budget(rows) & (rows["status"] == "complete"))]
    if used.empty:
        return None
    runs, losses = points(used, axes), used["val_loss"].tolist()
    if stopped.any():
        return after_halving(runs, losses, used["train_flops"].tolist())
    settings = [tuned.get(name, {}) for name in used["trial"]]
    if spreads:
        failed = rows["status"].isin(FAILED)
        order = on_surface(rows[failed | rows.index.isin(used.index)], axes, baseline, candidates)
        if order.points:
            return order
    if all(settings):
        order = at_own_best(runs, losses, used["seed"].tolist(), settings)
        if order.points:
            return order
    return in_order(runs, losses, baseline, candidates)
