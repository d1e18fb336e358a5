"""A study whose variants run at several learning rates: each variant, and each level, at its own best one.

Where every variant runs at every rate, each has a curve of its own (raytrain.analysis.response), and effects are
contrasts of the curves' least values. Where a design spreads its runs over variants and rates, a response surface gives
each level a curve, averaged over the other axes (raytrain.analysis.surface), and an effect is the difference of the
least values of two levels' curves.

Other tuned fields, as weight_decay, have no curve: a variant counts at the best of their levels that were tried.

An optimum at the end of the tried rates is none: the least loss is then at most the one measured there, and an effect
is a bound, whose side `bound` gives.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from raytrain.analysis.curve import Curve, Estimate, Range, SumErrors, best_rate
from raytrain.analysis.effects import Effects
from raytrain.analysis.estimates import holm
from raytrain.analysis.noise import SIGNIFICANCE, Noise
from raytrain.analysis.response import fit_curves
from raytrain.analysis.surface import fit_surface
from raytrain.analysis.trials import FAILED, OWN_ROLES, RATE, points, rows
from raytrain.analysis.wording import Told
from raytrain.errors import UserError
from raytrain.sweep.factorial import Array, Effect, Model, Point, fit_model, population

TUNING = "tuning"  # the role of runs in the ranked table that do not stand for their variant: see `at_own_best`


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best learning rate of a variant or of a level of an axis, with its 95% interval; what half of it and twice it
    lose (nats, None where that was not tried), each with its standard error; `edge` as of a Curve."""

    rate: float
    interval: Range
    edge: str
    half: tuple[float, float] | None
    twice: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class VariantCurves:
    """The curves of the variants of a crossed study, by their number, each at the best of the other tuned fields'
    levels, which are in `settings`; `errors` gives the error of sums over the rows of the table."""

    curves: dict[int, Curve]
    settings: dict[int, dict[str, float]]
    errors: SumErrors

    def least(self, numbers: Sequence[int]) -> tuple[Array, Array]:
        """The least losses of variants, and (variants x rows) their weights."""
        optima = [self.curves[number].least for number in numbers]
        return np.array([one.value for one in optima]), np.array([one.weights for one in optima])


def variant_curves(table: pd.DataFrame, variant: pd.Series, tuned: Sequence[str]) -> VariantCurves:
    """The curves of `table`, a row a trial; `variant` numbers them, from 0, whatever their tuned fields."""
    others = [field for field in tuned if field != RATE]
    setting, names = pd.factorize(pd.Series(rows(table, others), index=table.index))
    unit = variant.to_numpy() * max(1, len(names)) + setting
    rates = table[RATE].to_numpy(float) if RATE in tuned else np.ones(len(table))
    losses = np.where(table["status"] == "complete", table["val_loss"].astype(float), np.nan)
    counted = np.isfinite(losses) | table["status"].isin(FAILED).to_numpy()
    failed = table["status"].isin(FAILED).to_numpy() & counted
    fitted = fit_curves(unit, np.log(rates), losses, failed, pd.factorize(table["seed"])[0])
    curves: dict[int, Curve] = {}
    settings: dict[int, dict[str, float]] = {}
    for number, curve in fitted.curves.items():
        own, place = divmod(number, max(1, len(names)))
        if own not in curves or curve.least.value < curves[own].least.value:
            curves[own], settings[own] = curve, dict(zip(others, names[place], strict=True))
    return VariantCurves(curves, settings, fitted.errors)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The effects and optima that a tuned study estimates.

    `effects` has a row for each effect at own best learning rates: the columns of `effects.Effects.table`; `bound`: "",
    "at most", "at least", or "unknown" where optima on both sides were not reached; and `is_clear`: whether its sign is
    known after Holm's adjustment, which a bound on the far side of zero leaves open. `shared` are the effects at the
    learning rate `rate` alone, without those that no run there can estimate, as of a variant that diverges. `levels`
    are the optima of levels, by (axis, level); `variants` those of variants, by their label, where each has a curve.
    """

    effects: pd.DataFrame
    shared: pd.DataFrame
    rate: float
    levels: dict[tuple[str, Any], Optimum]
    variants: dict[str, Optimum]
    curves: VariantCurves | None
    noise: Noise | None


def tuned_effects(
    table: pd.DataFrame,
    axes: Sequence[str],
    baseline: Point,
    variant: pd.Series,
    tuned: Sequence[str],
    *,
    candidates: Sequence[Point] | None = None,
    spreads: bool = False,
    shared: float | None = None,
) -> Tuned:
    """The effects of `axes` at own best learning rates, of `table`, a row a trial at the study's budget.

    `spreads`: whether a design spread the runs over the rates. `shared` is the rate that effects are given at too, by
    default the middle one. Raises UserError where there is nothing to compare.
    """
    rates = np.unique(table[RATE].astype(float)) if RATE in table else np.ones(1)
    rate = float(rates[len(rates) // 2]) if shared is None else float(rates[np.argmin(np.abs(np.log(rates / shared)))])
    if spreads:
        return _surface(table, list(axes), baseline, candidates, rate)
    own_curves = variant_curves(table, variant, tuned)
    numbers = sorted(own_curves.curves)
    if len(numbers) < 2:
        raise UserError(f"effects need two variants or more that train at some rate; this study has {len(numbers)}")
    first = table.assign(variant=variant).drop_duplicates("variant").set_index("variant").loc[numbers]
    runs = points(first.reset_index(), list(axes))
    full = Model(population(runs, candidates), baseline)
    if not full.effects:
        raise UserError("all trials with a loss are of one variant")
    model, fit = fit_model(full, runs)
    least, weights = own_curves.least(numbers)
    contrasts = fit.weights(model.contrasts)
    hidden = np.any(fit.unseen(model.contrasts), axis=1)
    at_edge = np.array([own_curves.curves[number].edge != "inside" for number in numbers])
    estimates = {
        effect: (Estimate(float(row @ least), row @ weights), _bound(row, at_edge))
        for effect, row, unseen in zip(model.effects, contrasts, hidden, strict=True)
        if not unseen
    }
    at_rate = [own_curves.curves[number].within(math.log(rate)) for number in numbers]
    values = np.array([one.value if one else math.nan for one in at_rate])
    rows = np.array([one.weights if one else np.zeros(len(table)) for one in at_rate])
    lacking = np.isnan(values)
    shared_estimates = {
        effect: (Estimate(float(row[~lacking] @ values[~lacking]), row @ rows), "")
        for effect, row in zip(model.effects, contrasts, strict=True)
        if effect in estimates and not (np.abs(row[lacking]) > 1e-9).any()
    }
    levels = {}
    for axis in axes:
        for level in dict.fromkeys(point[axis] for point in runs if axis in point):
            own = [own_curves.curves[n] for n, point in zip(numbers, runs, strict=True) if point.get(axis) == level]
            if (curve := average(own)) is not None:
                levels[axis, level] = _optimum(curve, own_curves.errors)
    names = first["label"] if "label" in first else pd.Series(map(str, numbers), index=first.index)
    variants = {str(names[number]): _optimum(own_curves.curves[number], own_curves.errors) for number in numbers}
    noise = None if math.isnan(own_curves.errors.sd) else Noise(own_curves.errors.sd, own_curves.errors.df, "seeds")
    own_best, alike = (_table(full.effects, one, own_curves.errors) for one in (estimates, shared_estimates))
    return Tuned(own_best, alike, rate, levels, variants, own_curves, noise)


def _surface(
    table: pd.DataFrame, axes: list[str], baseline: Point, candidates: Sequence[Point] | None, rate: float
) -> Tuned:
    """By a response surface. An effect is averaged over the candidates that have its axis, at each level's own best."""
    surface = fit_surface(table, axes, baseline, candidates)
    mains = [effect for effect in surface.full.effects if len(effect.axes) == 1]
    if not mains:
        raise UserError("all trials with a loss are of one variant")
    sd = float(surface.fit.residual_sd(surface.losses - surface.losses.mean()))
    noise = Noise(sd, surface.fit.df, "residuals") if surface.fit.df else None
    errors = _Pooled(noise)

    def curve(axis: str, level: Any) -> Curve | None:
        return surface.curve([{**point, axis: level} for point in surface.model.points if axis in point], {axis: level})

    levels, estimates, shared_estimates = {}, {}, {}
    for effect in mains:
        axis, level, reference = effect.axes[0], effect.levels[0], effect.references[0]
        one, other = curve(axis, level), curve(axis, reference)
        for name, estimate in ((level, one), (reference, other)):
            if estimate is not None:
                levels[axis, name] = _optimum(estimate, errors)
        if one is not None and other is not None:
            at_edge = np.array([one.edge != "inside", other.edge != "inside"])
            estimates[effect] = (one.least - other.least, _bound(np.array([1.0, -1.0]), at_edge))
            at_rate = (one.within(math.log(rate)), other.within(math.log(rate)))
            if at_rate[0] is not None and at_rate[1] is not None:
                shared_estimates[effect] = (at_rate[0] - at_rate[1], "")
    own_best, alike = (_table(mains, one, errors) for one in (estimates, shared_estimates))
    return Tuned(own_best, alike, rate, levels, {}, None, noise)


def at_own_best(table: pd.DataFrame, variant: pd.Series) -> pd.DataFrame:
    """A tuned study's `table` (of `ranking.read_study`), in which the runs nearest to each variant's best learning rate
    stand for it; `variant` numbers the variants.

    Their val_loss is moved along the variant's curve from their rate to its best one, and `trained_loss` is what it
    was. All other runs have the role "tuning", and so are no entries of a ranking or a frontier, and names
    with their rate. `best_learning_rate` is the variant's. Variants of the frontier have a curve at each budget.
    """
    fields = tuned_fields(table)
    if not fields:
        return table
    frontier = table["role"] == "frontier"
    budget = np.where(frontier, pd.factorize(table["label"])[0] + 1, 0)  # as in a frontier's label
    group = pd.Series(pd.factorize(pd.Series(list(zip(variant, budget, strict=True))))[0], index=table.index)
    counted = table["role"].isin([*OWN_ROLES, "frontier"]).to_numpy()
    own_curves = variant_curves(table.assign(status=table["status"].where(counted, "apart")), group, fields)
    loss = table["val_loss"].astype(float)
    out = table.assign(trained_loss=loss, val_loss=loss, best_learning_rate=np.nan)
    stands = np.zeros(len(table), bool)
    for number in group.unique():
        own = (group == number).to_numpy() & counted
        curve = own_curves.curves.get(number)
        for field, level in own_curves.settings.get(number, {}).items():
            own &= (table[field] == level).to_numpy()
        rates = np.log(table[RATE].to_numpy(float)) if RATE in fields else np.zeros(len(table))
        if curve is None:  # it trained at no rate: any stands for that
            own &= rates == rates[own].min()
        else:
            inside = own & (rates >= curve.low) & (rates <= curve.high)
            nearest = rates[inside][np.argmin(np.abs(rates[inside] - curve.x))]
            own &= rates == nearest
            out.loc[own, "val_loss"] += curve.least.value - curve.at(nearest).value
            if RATE in fields:
                out.loc[(group == number) & counted, "best_learning_rate"] = math.exp(curve.x)
        stands |= own
    settings = [", ".join(f"{field}={row[field]:g}" for field in fields) for row in table[fields].to_dict("records")]
    apart = ~stands & counted
    rates = " at " + pd.Series(settings, index=table.index)
    names = {name: np.where(apart, out[name] + rates, out[name]) for name in ("label", "short_name") if name in out}
    return out.assign(role=out["role"].where(~apart, TUNING), **names)


def tuned_fields(table: pd.DataFrame) -> list[str]:
    """The fields that the study of a table tuned with every variant at every level; none for other studies."""
    return str(table["tuned"].iloc[0]).split() if "tuned" in table and len(table) else []


class _Pooled:
    """One noise for all runs."""

    def __init__(self, noise: Noise | None) -> None:
        self._noise = noise
        self.sd, self.df = (noise.sd, noise.df) if noise else (math.nan, 0)

    def __call__(self, weights: Array) -> tuple[Array, Array]:
        norms = np.linalg.norm(weights, axis=1)
        if self._noise is None:
            return np.full_like(norms, np.nan), np.full_like(norms, np.nan)
        return norms * self._noise.sd, np.full_like(norms, self._noise.df)


def as_effects(tuned: Tuned, table: pd.DataFrame, rates: pd.DataFrame, told: Told) -> Effects:
    """`tuned` in the form of other studies' effects; an effect whose sign is open, as it is a bound, has no p-value."""
    safe = tuned.effects["is_clear"] | (tuned.effects["bound"] == "")
    return Effects(
        table=tuned.effects.assign(p_holm=tuned.effects["p_holm"].where(safe)),
        noise=tuned.noise,
        seed_noise=tuned.noise,
        blocks=0,
        unequal=None,
        within=pd.DataFrame(columns=["effect", "arm", "reference"]),
        lack_of_fit=None,
        statuses={str(status): int(count) for status, count in table["status"].value_counts().items()},
        rates=rates,
        best=None,
        told=told,
    )


def average(curves: Sequence[Curve]) -> Curve | None:
    """The mean of curves over the rates that all were fitted to; None if there are no two such rates."""
    low, high = max(curve.low for curve in curves), min(curve.high for curve in curves)
    if low >= high and len(curves) > 1:
        return None
    size = max(len(curve.coefficients) for curve in curves)
    weights = np.zeros((size, curves[0].weights.shape[1]))
    coefficients = np.zeros(size)
    for curve in curves:
        weights[: len(curve.weights)] += curve.weights / len(curves)
        coefficients[: len(curve.coefficients)] += curve.coefficients / len(curves)
    ends = [_beyond([curve.below for curve in curves if curve.low == low])]
    ends.append(_beyond([curve.above for curve in curves if curve.high == high]))
    return Curve(curves[0].centre, low, high, coefficients, weights, *ends)


def _beyond(words: Sequence[str]) -> str:
    return next((word for word in ("unstable", "waiting", "tried") if word in words), "")


def _bound(weights: Array, at_edge: npt.NDArray[np.bool_]) -> str:
    """Of a sum of least losses, some of which may be lower than measured."""
    counted = weights[at_edge & (np.abs(weights) > 1e-9)]
    if not len(counted):
        return ""
    return "at most" if (counted > 0).all() else "at least" if (counted < 0).all() else "unknown"


def _optimum(curve: Curve, errors: SumErrors) -> Optimum:
    lost: list[tuple[float, float] | None] = []
    for factor in (0.5, 2.0):
        one = curve.lost(factor)
        lost.append(None if one is None else (one.value, float(errors(one.weights[None])[0][0])))
    return Optimum(math.exp(curve.x), best_rate(curve, errors), curve.edge, *lost)


def _table(effects: Sequence[Effect], estimates: dict[Effect, tuple[Estimate, str]], errors: SumErrors) -> pd.DataFrame:
    """A row for each effect, as in `effects.Effects.table`."""
    known = [effect for effect in effects if effect in estimates]
    weights = np.array([estimates[effect][0].weights for effect in known])
    error, df = errors(weights) if known else (np.zeros(0), np.zeros(0))
    rows = []
    for effect in effects:
        row: dict[str, object] = {"effect": effect.name}
        for prefix, *values in zip(("", "other_"), effect.axes, effect.levels, effect.references, strict=False):
            row |= dict(zip((f"{prefix}axis", f"{prefix}level", f"{prefix}reference"), values, strict=True))
        if effect in estimates:
            place = known.index(effect)
            value = estimates[effect][0].value
            half = scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, df[place]) * error[place]
            row |= {"estimate": value, "standard_error": error[place], "df": df[place], "bound": estimates[effect][1]}
            row |= {"low": value - half, "high": value + half}
            with np.errstate(divide="ignore", invalid="ignore"):
                row |= {"p": 2 * scipy.stats.t.sf(abs(value) / error[place], df[place])}
        rows.append(row)
    names = ["effect", "axis", "level", "reference", "other_axis", "other_level", "other_reference"]
    out = pd.DataFrame(rows, columns=[*names, "estimate", "standard_error", "df", "low", "high", "p", "bound"])
    out = out.assign(
        p_holm=holm(out["p"].to_numpy(float)), aliased_with="", bound=out["bound"].astype(object).fillna("")
    )
    safe = (out["bound"] == "") | (out["bound"] == np.where(out["estimate"] < 0, "at most", "at least"))
    return out.assign(is_clear=(out["p_holm"] < SIGNIFICANCE) & safe)
