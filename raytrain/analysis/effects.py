"""Which choices matter: the effects of levels and pairs of levels on val_loss, with intervals, from any design."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from raytrain.analysis.noise import SHARED, SIGNIFICANCE, Noise, seed_noise
from raytrain.analysis.trials import budgets, points
from raytrain.errors import UserError
from raytrain.sweep.factorial import Array, Effect, LeastSquares, Model, Point, fit_model, live, population

WITH_LOSS, WITHOUT_LOSS = ("complete", "stopped"), ("diverged", "oom", "failed")
_INTERACTIONS_LISTED = 3


@dataclasses.dataclass(frozen=True)
class Effects:
    """The effects of a study's axes.

    `table` has a row for each effect: `effect` (its name), `axis`, `level`, `reference`; for an interaction
    `other_axis`, `other_level` and `other_reference`; `estimate` (nats: below zero is better), `standard_error`, `low`
    and `high` (95%), `p`, `p_holm`; and `aliased_with`: empty, or what the effect is confounded with, which
    then has no estimate.
    """

    table: pd.DataFrame
    noise: Noise | None  # behind the intervals
    seed_noise: Noise | None
    lack_of_fit: float | None  # p-value of the residuals being no more than the spread over seeds
    statuses: dict[str, int]
    rates: pd.DataFrame
    best: tuple[Point, float, float, float] | None  # by the model: a point, its difference from the baseline, low, high
    sentences: list[str]


def span(low: float, high: float) -> str:
    """Such as `0.0019 to 0.0024`; one number where both look the same."""
    return " to ".join(dict.fromkeys((f"{low:.4f}", f"{high:.4f}")))


def effects(
    table: pd.DataFrame,
    axes: Sequence[str],
    baseline: Point,
    *,
    candidates: Sequence[Point] | None = None,
    interactions: bool = True,
    noise: Noise | None = None,
) -> Effects:
    """Least squares for the main effects of `axes` against the levels of `baseline`, and their pairwise interactions.

    `table` has one row a trial (see raytrain.analysis.trials). Effects are averaged over `candidates`, the points of
    the space, by default the points run. Intervals come from `noise`, by default from the residuals: these hold the
    spread over seeds, pooled with whatever the model does not explain. Each seed has an offset of its own, which takes
    out what it does to all variants (see `noise.Means`), unless that hides an effect, as where no two variants share
    a seed, or takes up more than half of the degrees of freedom.

    Trials that were stopped at a rung count with their loss there, and each budget has an offset of its own. As the
    worse trials are the ones stopped, the offset takes up part of their effects: 1 to 2% in simulations that stop three
    of four, where to leave them out would take 20 to 25%. A table of `trials.common_rung` is free of this bias (see
    benchmarks/coverage.py). Trials without a loss are counted, in `statuses` and `rates`.

    p-values are adjusted for all effects together (Holm, Scandinavian Journal of Statistics 6, 1979), so that a study
    makes any false claim with a chance of at most 5%. Raises UserError if fewer than two trials have a loss, or all
    that have one are of one variant.
    """
    axes = list(axes)
    used = table[table["status"].isin(WITH_LOSS) & table["val_loss"].notna()]
    if len(used) < 2:
        raise UserError(f"effects need two trials or more with a loss; this study has {len(used)}")
    runs, losses = points(used, axes), used["val_loss"].to_numpy(float)
    budget = budgets(used["train_flops"].to_numpy(float))
    offsets = np.eye(budget.max() + 1)[budget][:, 1:]
    full = Model(population(runs, candidates), baseline, interactions=interactions)
    if not full.effects:
        raise UserError("all trials with a loss are of one variant")
    model, fit = fit_model(full, runs, offsets)
    source = "residuals"
    shared = np.hstack([offsets, np.eye(used["seed"].nunique())[pd.factorize(used["seed"])[0]][:, 1:]])
    shared_model, shared_fit = fit_model(full, runs, shared)
    same_effects = _seen(shared_model, shared_fit) == _seen(model, fit)
    if shared.shape[1] > offsets.shape[1] and same_effects and shared_fit.df >= fit.df / 2:
        model, fit, offsets, source = shared_model, shared_fit, shared, f"{source}{SHARED}"

    seeds = seed_noise(used, axes)
    residuals = Noise(float(fit.residual_sd(losses)), fit.df, source) if fit.df else None
    estimates = _Estimates(model, fit, losses, noise or residuals)
    out = Effects(
        table=_table(full, estimates, _aliases(full, runs, offsets)),
        noise=noise or residuals,
        seed_noise=seeds,
        lack_of_fit=_lack_of_fit(residuals, seeds) if (used["status"] == "complete").all() else None,
        statuses={str(status): int(count) for status, count in table["status"].value_counts().items()},
        rates=failure_rates(table, axes),
        best=_best(model, estimates, baseline),
        sentences=[],
    )
    return dataclasses.replace(out, sentences=_sentences(out, estimates, full, baseline))


def _seen(model: Model, fit: LeastSquares) -> set[str]:
    """The effects that the runs can estimate."""
    hidden = np.any(fit.unseen(model.contrasts), axis=1)
    return {effect.name for effect, is_hidden in zip(model.effects, hidden, strict=True) if not is_hidden}


class _Estimates:
    """Contrasts of a fitted model as (estimate, standard error, low, high); NaN where there is no noise to go by."""

    def __init__(self, model: Model, fit: LeastSquares, losses: Array, noise: Noise | None) -> None:
        self.model, self.fit, self.noise = model, fit, noise
        self._losses = losses - losses.mean()  # a contrast has no mean in it; centred, it loses no digits

    def expected(self, contrasts: Array) -> Array:
        return self.fit.weights(contrasts) @ self._losses

    def __call__(self, contrast: Array) -> tuple[float, float, float, float]:
        weights = self.fit.weights(contrast)
        estimate = float(weights @ self._losses)
        if self.noise is None:
            return estimate, np.nan, np.nan, np.nan
        error = float(np.linalg.norm(weights)) * self.noise.sd
        return estimate, error, estimate - self.noise.t * error, estimate + self.noise.t * error


def _table(full: Model, estimates: _Estimates, aliases: dict[Effect, str]) -> pd.DataFrame:
    model = estimates.model
    hidden = np.any(estimates.fit.unseen(model.contrasts), axis=1)
    seen = {e: estimates(c) for e, c, h in zip(model.effects, model.contrasts, hidden, strict=True) if not h}
    rows = []
    for effect in full.effects:
        row: dict[str, object] = {"effect": effect.name}
        for prefix, *values in zip(("", "other_"), effect.axes, effect.levels, effect.references, strict=False):
            row |= dict(zip((f"{prefix}axis", f"{prefix}level", f"{prefix}reference"), values, strict=True))
        row |= dict(zip(("estimate", "standard_error", "low", "high"), seen.get(effect, [np.nan] * 4), strict=True))
        rows.append(row | {"aliased_with": "" if effect in seen else aliases[effect]})
    columns = ["effect", "axis", "level", "reference", "other_axis", "other_level", "other_reference"]
    out = pd.DataFrame(rows, columns=[*columns, "estimate", "standard_error", "low", "high", "aliased_with"])
    out["p"] = np.nan
    if estimates.noise:
        out["p"] = 2 * scipy.stats.t.sf(np.abs(out["estimate"] / out["standard_error"]), estimates.noise.df)
    out["p_holm"] = holm(out["p"].to_numpy())
    return out


def _aliases(full: Model, runs: Sequence[Point], offsets: Array) -> dict[Effect, str]:
    """For each effect up to three others, those that overlap most with the part of it that the runs do not see."""
    fit = LeastSquares(full.matrix(runs), offsets)
    unseen = fit.unseen(full.contrasts)
    norms = np.linalg.norm(unseen, axis=1)
    overlap = np.abs(unseen @ unseen.T) / np.maximum(np.outer(norms, norms), 1e-12)
    np.fill_diagonal(overlap, 0)
    out = {}
    for effect, row in zip(full.effects, overlap, strict=True):
        partners = [full.effects[place].name for place in np.argsort(-row, kind="stable")[:3] if row[place] > 0.1]
        together = any(all(run.get(axis) == level for axis, level in effect.settings) for run in runs)
        out[effect] = ", ".join(partners) if together else "no run has these levels together"
    return out


def _lack_of_fit(residuals: Noise | None, seeds: Noise | None) -> float | None:
    """p of the F test: residual mean square beyond the spread over seeds, against the mean square over seeds."""
    if residuals is None or seeds is None or residuals.df <= seeds.df or not seeds.sd:
        return None
    if (SHARED in residuals.source) != (SHARED in seeds.source):
        return None
    df = residuals.df - seeds.df
    extra = (residuals.sd**2 * residuals.df - seeds.sd**2 * seeds.df) / df
    return float(scipy.stats.f.sf(extra / seeds.sd**2, df, seeds.df))


def _best(model: Model, estimates: _Estimates, baseline: Point) -> tuple[Point, float, float, float] | None:
    """The point of least expected loss; None where the runs do not determine the expected loss of all points."""
    seen = {item for point in model.points for item in point.items()}
    if not seen >= live(baseline).items():
        return None
    contrasts = model.matrix(model.points) - model.matrix([baseline])
    if estimates.fit.unseen(contrasts).any():
        return None
    place = int(np.argmin(estimates.expected(contrasts)))
    difference, _, low, high = estimates(contrasts[place])
    return model.points[place], difference, low, high


def holm(p: Array) -> Array:
    """Holm's adjustment: the i-th smallest of m p-values times m - i + 1, made monotone, at most 1. NaN stays NaN."""
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    out = np.full(len(p), np.nan)
    out[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return out


def failure_rates(table: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """For each level of each axis how many `trials` ended, `diverged` and `failed` (oom among them).

    `rate` is that of the latter two together, `low` to `high` its exact 95% interval (Clopper and Pearson, Biometrika
    26, 1934).
    """
    ended = table[table["status"].isin([*WITH_LOSS, *WITHOUT_LOSS])]
    counts: dict[tuple[str, Any], Counter[str]] = {}
    for point, status in zip(points(ended, list(axes)), ended["status"], strict=True):
        for item in point.items():
            counts.setdefault(item, Counter())[status] += 1
    rows = [(*item, n.total(), n["diverged"], n["oom"] + n["failed"]) for item, n in counts.items()]
    out = pd.DataFrame(rows, columns=["axis", "level", "trials", "diverged", "failed"])
    n, k = out["trials"], out["diverged"] + out["failed"]
    low = scipy.stats.beta.ppf(SIGNIFICANCE / 2, k, n - k + 1)
    high = scipy.stats.beta.ppf(1 - SIGNIFICANCE / 2, k + 1, n - k)
    return out.assign(rate=k / n, low=np.where(k == 0, 0, low), high=np.where(k == n, 1, high))


def _sentences(effects: Effects, estimates: _Estimates, full: Model, baseline: Point) -> list[str]:
    out = []
    known = effects.table[effects.table["estimate"].notna()]
    replicated = effects.seed_noise or (effects.noise and effects.noise.source == "seeds")
    if not replicated or effects.noise is None:
        out.append("No point was completed with two seeds, so nothing here is called better or worse.")
    else:
        out.append(f"Noise: sd of val_loss {effects.noise.describe()}.")
    if effects.lack_of_fit is not None and effects.lack_of_fit < SIGNIFICANCE:
        out.append(
            f"The residuals are larger than the spread over seeds (p = {effects.lack_of_fit:.2g}): axes act together "
            "in ways that the model lacks; the intervals allow for it."
        )
    if known.empty:
        out.append("No main effect can be estimated, because the runs differ in several axes at once.")
    elif full.pairs and not estimates.model.pairs:
        out.append(
            "The runs cannot separate main effects from interactions: each effect holds where it was run, and "
            "elsewhere only if the axes do not interact."
        )
    elif len(known) < len(effects.table):
        names = effects.table.loc[effects.table["estimate"].isna(), "effect"]
        out.append(f"Not estimable from these runs: {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}.")
    if replicated and effects.noise and not known.empty:
        claims = known[known["p_holm"] < SIGNIFICANCE].sort_values("estimate", key=lambda column: -column.abs())
        main = claims["other_axis"].isna()
        scope = ", averaged over the other axes" if estimates.model.pairs else ""
        for row in claims[main].to_dict("records"):
            verdict = _verdict(row["estimate"], row["low"], row["high"])
            out.append(f"{row['effect']} {verdict} against {row['reference']}{scope}.")
        by_name = {effect.name: effect for effect in estimates.model.effects}
        out += [
            _interaction_sentence(by_name[name], estimates)
            for name in claims.loc[~main, "effect"][:_INTERACTIONS_LISTED]
        ]
        if effects.best and effects.best[2] < effects.best[3] < 0 and not claims.empty:
            point, difference, low, high = effects.best
            changes = ", ".join(f"{axis}={level}" for axis, level in point.items() if live(baseline).get(axis) != level)
            out.append(
                f"The fitted model expects most of {changes}: {difference:+.4f} nats against the baseline (95% "
                f"{low:+.4f} to {high:+.4f}, which flatters the first of {len(full.points)} points)."
            )
        if claims.empty:
            finest, coarsest = ((known["high"] - known["low"]) / 2).agg(["min", "max"])
            out.append(f"No difference stands out; effects are known to +-{span(finest, coarsest)} nats.")
    if stopped := effects.statuses.get("stopped", 0):
        out.append(
            f"{stopped} trials were stopped at a rung and count with their loss there, less an offset for its budget. "
            "As the worse trials were stopped, this pulls effects towards zero."
        )
    lost = {status: effects.statuses[status] for status in WITHOUT_LOSS if status in effects.statuses}
    if lost:
        counts = ", ".join(f"{count} {status}" for status, count in lost.items())
        out.append(f"Trials without a loss, in no effect above: {counts}.")
    return out


def _interaction_sentence(effect: Effect, estimates: _Estimates) -> str:
    """An interaction as the effect of one axis at both levels of the other, in the way that shows it more clearly."""
    ways = []
    for varied in (0, 1):
        given = 1 - varied
        levels = (effect.levels[given], effect.references[given])
        found = [estimates(estimates.model.contrast_within(effect, varied, level)) for level in levels]
        ways.append((min(abs(estimate) for estimate, *_ in found), varied, levels, found))
    _, varied, levels, found = min(ways, key=lambda way: way[:2])
    (first, _, *first_ends), (second, _, *second_ends) = found
    other = effect.axes[1 - varied]
    one, two = _verdict(first, *first_ends), _verdict(second, *second_ends)
    word = "and" if one.split()[0] == two.split()[0] else "but"
    return (
        f"{effect.axes[varied]}={effect.levels[varied]} (against {effect.references[varied]}) {one} with "
        f"{other}={levels[0]}, {word} {two} with {other}={levels[1]}."
    )


def _verdict(estimate: float, low: float, high: float) -> str:
    if low <= 0 <= high:
        return f"shows no clear difference ({estimate:+.4f}, 95% {low:+.4f} to {high:+.4f})"
    verb, ends = ("costs", (low, high)) if estimate > 0 else ("saves", (-high, -low))
    return f"{verb} {abs(estimate):.4f} nats (95% {ends[0]:.4f} to {ends[1]:.4f})"
