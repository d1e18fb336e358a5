"""The fit behind a study's effects: least squares, the errors that its contrasts are judged by, and their table."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from raytrain.analysis.arms import Arms, Unequal, Wider, unequal
from raytrain.analysis.noise import SHARED, Noise
from raytrain.analysis.strata import Blocks, Contrasts, Errors, Pooled, find_blocks
from raytrain.analysis.trials import budgets
from raytrain.analysis.triples import Triple, suspect
from raytrain.sweep.factorial import Array, Effect, LeastSquares, Model, Point, fit_model, interaction_columns


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fit of runs, with `blocks` the number of seeds that all variants share, 0 if they share none."""

    estimates: "Estimates"
    offsets: Array  # runs x columns: those of budgets, and of seeds where they are blocks
    residuals: Noise | None
    unequal: Unequal | None
    triple: Triple | None
    blocks: int


def fit_runs(full: Model, runs: Sequence[Point], used: pd.DataFrame, noise: Noise | None) -> Fitted:
    """The fit of `used`, whose rows are the points `runs`, and the errors that its contrasts are judged by."""
    losses = used["val_loss"].to_numpy(float)
    losses = losses - losses.mean()  # a contrast has no mean in it; centred, it loses no digits
    budget = budgets(used["train_flops"].to_numpy(float))
    offsets = np.eye(budget.max() + 1)[budget][:, 1:]
    model, fit = fit_model(full, runs, offsets)
    source, blocks = "residuals", find_blocks(runs, used["seed"])
    if blocks is not None:
        shared = np.hstack([offsets, np.eye(blocks.codes.max() + 1)[blocks.codes][:, 1:]])
        shared_model, shared_fit = fit_model(full, runs, shared)
        if _seen(shared_model, shared_fit) == _seen(model, fit):
            model, fit, offsets, source = shared_model, shared_fit, shared, f"{source}{SHARED}"
        else:
            blocks = None
    residuals = Noise(float(fit.residual_sd(losses)), fit.df, source) if fit.df else None
    triple = suspect(runs, fit, losses) if model.pairs else None
    beside = np.hstack([offsets, interaction_columns(runs, triple.axes)]) if triple else offsets
    differs = unequal(runs, LeastSquares(model.matrix(runs), beside) if triple else fit, losses)
    errors: Errors = Pooled(fit, noise)
    count = 0
    if noise is None and blocks is not None:
        errors, count = Blocks(fit, blocks.codes), blocks.count
    elif noise is None and differs:
        scale = differs.sds[differs.codes]
        weighted = LeastSquares(model.matrix(runs) / scale[:, None], offsets / scale[:, None])
        if differs.is_sure:
            fit, losses, errors = weighted, losses / scale, Arms(weighted, differs)
            triple = suspect(runs, fit, losses, scale) if triple else None
        else:
            errors = Wider(errors, Arms(weighted, differs), scale)
    return Fitted(Estimates(model, fit, losses, errors), offsets, residuals, differs, triple, count)


def _seen(model: Model, fit: LeastSquares) -> set[str]:
    """The effects that the runs can estimate."""
    hidden = np.any(fit.unseen(model.contrasts), axis=1)
    return {effect.name for effect, is_hidden in zip(model.effects, hidden, strict=True) if not is_hidden}


class Estimates:
    """Contrasts of a fitted model with the errors that they are judged by."""

    def __init__(self, model: Model, fit: LeastSquares, losses: Array, errors: Errors) -> None:
        self.model, self.fit = model, fit
        self._losses, self._errors = losses, errors

    def expected(self, contrasts: Array) -> Array:
        return self.fit.weights(contrasts) @ self._losses

    def __call__(self, contrasts: Array) -> Contrasts:
        weights = self.fit.weights(contrasts)
        return Contrasts(weights @ self._losses, *self._errors(weights, self._losses))

    def row(self, contrast: Array) -> tuple[float, float, float, float]:
        """(estimate, standard error, low, high) of one."""
        return self(contrast[None]).rows[0]


def effect_table(full: Model, estimates: Estimates, aliases: dict[Effect, str]) -> pd.DataFrame:
    """A row for each effect of `full`, as `Effects.table` has it: what the fit hides has its alias and no estimate."""
    model = estimates.model
    hidden = np.any(estimates.fit.unseen(model.contrasts), axis=1)
    figures = estimates(model.contrasts)
    columns = dict(
        zip(_FIGURES, (figures.estimate, figures.standard_error, figures.df, *figures.ends, figures.p), strict=True)
    )
    seen = pd.DataFrame(columns, index=[effect.name for effect in model.effects])[~hidden]
    out = pd.DataFrame([_named(effect) for effect in full.effects], columns=_NAMES)
    out = out.join(seen, on="effect")
    out["aliased_with"] = ["" if effect.name in seen.index else aliases[effect] for effect in full.effects]
    out["p_holm"] = holm(out["p"].to_numpy())
    return out


_NAMES = ["effect", "axis", "level", "reference", "other_axis", "other_level", "other_reference"]
_FIGURES = ("estimate", "standard_error", "df", "low", "high", "p")


def _named(effect: Effect) -> dict[str, object]:
    row: dict[str, object] = {"effect": effect.name}
    for prefix, *values in zip(("", "other_"), effect.axes, effect.levels, effect.references, strict=False):
        row |= dict(zip((f"{prefix}axis", f"{prefix}level", f"{prefix}reference"), values, strict=True))
    return row


def within_arms(estimates: Estimates, differs: Unequal | None) -> pd.DataFrame:
    """The effect of each level of other axes within each level of the axis of unequal noise, where runs show it."""
    rows, contrasts = [], []
    for effect in estimates.model.effects:
        if differs is None or len(effect.axes) != 2 or differs.axis not in effect.axes:
            continue
        varied = 1 - effect.axes.index(differs.axis)
        for arm in (effect.references[1 - varied], effect.levels[1 - varied]):
            name = f"{effect.axes[varied]}={effect.levels[varied]}"
            rows.append({"effect": name, "arm": arm, "reference": effect.references[varied]})
            contrasts.append(estimates.model.contrast_within(effect, varied, arm))
    out = pd.DataFrame(rows, columns=["effect", "arm", "reference", *([] if rows else [*_FIGURES, "p_holm"])])
    if rows:
        figures = estimates(np.array(contrasts))
        hidden = np.any(estimates.fit.unseen(np.array(contrasts)), axis=1)
        columns = (figures.estimate, figures.standard_error, figures.df, *figures.ends, figures.p)
        out = out.assign(**dict(zip(_FIGURES, columns, strict=True)))[~hidden]
        out = out.drop_duplicates(["effect", "arm"]).reset_index(drop=True)
        out["p_holm"] = holm(out["p"].to_numpy())
    return out


def find_aliases(full: Model, runs: Sequence[Point], offsets: Array) -> dict[Effect, str]:
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


def holm(p: Array) -> Array:
    """Holm's adjustment: the i-th smallest of m p-values times m - i + 1, made monotone, at most 1. NaN stays NaN."""
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    out = np.full(len(p), np.nan)
    out[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return out
