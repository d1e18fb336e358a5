"""Which choices matter: the effects of levels and pairs of levels on val_loss, with intervals, from any design."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from raytrain.analysis.arms import Unequal
from raytrain.analysis.estimates import Estimates, effect_table, find_aliases, fit_runs, within_arms
from raytrain.analysis.noise import SHARED, SIGNIFICANCE, Noise, seed_noise
from raytrain.analysis.plateau import PLATEAU, mark_plateaus, plateau_sentences, rates, variants_of
from raytrain.analysis.trials import points
from raytrain.analysis.triples import Triple
from raytrain.analysis.wording import LevelText, Told, plain_level, signed_with_interval, with_interval
from raytrain.errors import UserError
from raytrain.sweep.factorial import Effect, Model, Point, live, population

WITH_LOSS, WITHOUT_LOSS = ("complete", "stopped"), ("diverged", "oom", "failed", PLATEAU)
_UNDECIDED_LISTED = 6  # main effects
_INTERACTIONS_LISTED = 3


@dataclasses.dataclass(frozen=True)
class Effects:
    """The effects of a study's axes.

    `table` has a row for each effect: `effect` (its name), `axis`, `level`, `reference`; for an interaction
    `other_axis`, `other_level` and `other_reference`; `estimate` (nats: below zero is better), `standard_error`, its
    `df`, `low` and `high` (95%), `p`, `p_holm`; and `aliased_with`: empty, or what the effect is
    confounded with, which then has no estimate.
    """

    table: pd.DataFrame
    noise: Noise | None  # of the residuals: behind the intervals unless there are `blocks`, or it is `unequal`
    seed_noise: Noise | None
    blocks: int  # seeds that all variants share, by whose variation each effect is judged; 0 if they share none
    unequal: Unequal | None  # the axis whose levels differ in their noise
    within: pd.DataFrame  # where noise is unequal: the effects within each level (`arm`) of that axis, as in `table`
    lack_of_fit: float | None  # p-value of the residuals being no more than the spread over seeds
    statuses: dict[str, int]
    rates: pd.DataFrame
    best: tuple[Point, float, float, float] | None  # by the model: a point, its difference from the baseline, low, high
    told: Told
    triple: Triple | None = None  # three axes that seem to act together, which the model lacks
    expected: str = ""  # of the findings, the one on `best`, which fresh seeds replace

    @property
    def sentences(self) -> list[str]:
        return self.told.sentences

    @property
    def has_claims(self) -> bool:
        """Whether any effect is clear of zero."""
        return bool((self.claims["p_holm"] < SIGNIFICANCE).any())

    @property
    def claims(self) -> pd.DataFrame:
        """`table`; without p-values, and so without claims, if no point was replicated."""
        return self.table if self.is_replicated else self.table.assign(p=np.nan, p_holm=np.nan)

    @property
    def is_replicated(self) -> bool:
        """Whether the noise is known from points that were completed with several seeds, or given."""
        return self.noise is not None and (self.seed_noise is not None or self.noise.source == "seeds")


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
    unigram_loss: float | None = None,
    text: LevelText = plain_level,
) -> Effects:
    """Least squares for the main effects of `axes` against the levels of `baseline`, and their pairwise interactions.

    `table` has one row a trial (see raytrain.analysis.trials). Effects are averaged over `candidates`, the points of
    the space, by default the points run. What they are judged by:

    - where all variants ran on the same seeds, each effect's own variation over seeds (`strata.Blocks`); each seed has
      an offset of its own, which takes out what it does to all;
    - else the residuals, which hold the spread over seeds and whatever the model does not explain; with a variance for
      each level of the axis that it clearly differs between, if it does (`arms`);
    - or `noise`, if it is given.

    Trials that were stopped at a rung count with their loss there, and each budget has an offset of its own. As the
    worse trials are the ones stopped, the offset takes up part of their effects: 1 to 2% in simulations that stop three
    of four, where to leave them out would take 20 to 25%. A table of `trials.common_rung` is free of this bias (see
    benchmarks/coverage.py). Trials without a loss are counted, in `statuses` and `rates`, and so are those on the
    plateau of `unigram_loss`, by default the table's column (see raytrain.analysis.plateau). `text` is how sentences
    show a level.

    p-values are adjusted for all effects together (Holm, Scandinavian Journal of Statistics 6, 1979), so that a study
    makes any false claim with a chance of at most 5%. Raises UserError if fewer than two trials have a loss, or all
    that have one are of one variant.
    """
    axes = list(axes)
    table = mark_plateaus(table, variants_of(table, axes), unigram_loss)
    used = table[table["status"].isin(WITH_LOSS) & table["val_loss"].notna()]
    if len(used) < 2:
        raise UserError(f"effects need two trials or more with a loss; this study has {len(used)}")
    runs = points(used, axes)
    full = Model(population(runs, candidates), baseline, interactions=interactions)
    if not full.effects:
        raise UserError("all trials with a loss are of one variant")
    fitted = fit_runs(full, runs, used, noise)
    seeds, estimates = seed_noise(used, axes), fitted.estimates
    out = Effects(
        table=effect_table(full, estimates, find_aliases(full, runs, fitted.offsets)),
        noise=noise or fitted.residuals,
        seed_noise=seeds,
        blocks=fitted.blocks,
        unequal=fitted.unequal,
        within=within_arms(estimates, fitted.unequal),
        triple=fitted.triple,
        lack_of_fit=_lack_of_fit(fitted.residuals, seeds) if (used["status"] == "complete").all() else None,
        statuses={str(status): int(count) for status, count in table["status"].value_counts().items()},
        rates=failure_rates(table, axes),
        best=_best(estimates, baseline),
        told=Told(),
    )
    expected = _expected(out, baseline, len(full.points))
    told = Told(
        _findings(out, estimates, expected, text),
        [*plateau_sentences(table, axes), *_warnings(out, estimates, full)],
        _notes(out, _seed_sentences(out, used["seed"])),
    )
    return dataclasses.replace(out, told=told, expected=expected)


def _lack_of_fit(residuals: Noise | None, seeds: Noise | None) -> float | None:
    """p of the F test: residual mean square beyond the spread over seeds, against the mean square over seeds."""
    if residuals is None or seeds is None or residuals.df <= seeds.df or not seeds.sd:
        return None
    if (SHARED in residuals.source) != (SHARED in seeds.source):
        return None
    df = residuals.df - seeds.df
    extra = (residuals.sd**2 * residuals.df - seeds.sd**2 * seeds.df) / df
    return float(scipy.stats.f.sf(extra / seeds.sd**2, df, seeds.df))


def _best(estimates: Estimates, baseline: Point) -> tuple[Point, float, float, float] | None:
    """The point of least expected loss; None where the runs do not determine the expected loss of all points."""
    model = estimates.model
    seen = {item for point in model.points for item in point.items()}
    if not seen >= live(baseline).items():
        return None
    contrasts = model.matrix(model.points) - model.matrix([baseline])
    if estimates.fit.unseen(contrasts).any():
        return None
    place = int(np.argmin(estimates.expected(contrasts)))
    difference, _, low, high = estimates.row(contrasts[place])
    return model.points[place], difference, low, high


def failure_rates(table: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """For each level of each axis how many `trials` ended, `diverged`, `failed` (oom among them) and on the `plateau`.

    `rate` is that of the latter three together, `low` to `high` its exact 95% interval (`plateau.rates`).
    """
    ended = table[table["status"].isin([*WITH_LOSS, *WITHOUT_LOSS])]
    counts: dict[tuple[str, Any], Counter[str]] = {}
    for point, status in zip(points(ended, list(axes)), ended["status"], strict=True):
        for item in point.items():
            counts.setdefault(item, Counter())[status] += 1
    rows = [(*item, n.total(), n["diverged"], n["oom"] + n["failed"], n[PLATEAU]) for item, n in counts.items()]
    out = pd.DataFrame(rows, columns=["axis", "level", "trials", "diverged", "failed", PLATEAU])
    count = out["diverged"] + out["failed"] + out[PLATEAU]
    low, high = rates(count.to_numpy(), out["trials"].to_numpy())
    return out.assign(rate=count / out["trials"], low=low, high=high)


def _seed_sentences(estimated: Effects, seeds: pd.Series) -> list[str]:
    """What the seeds of the runs let their errors hold."""
    if estimated.blocks:
        more = " Two seeds leave one degree of freedom and wide intervals; a third narrows them threefold."
        return [
            f"Each effect is judged by its own variation over the {estimated.blocks} seeds that the variants share."
            + more * (estimated.blocks == 2)
        ]
    if len(seeds) > 2 and seeds.value_counts().iloc[0] > 0.9 * len(seeds):
        return [
            "Nearly all runs share one seed: what it does to a level is part of that level's effect, and no interval "
            "here holds it. Seeds of each run's own would."
        ]
    return []


def _within_sentences(estimated: Effects) -> list[str]:
    """The clear effects within one level of the axis of unequal noise."""
    if estimated.unequal is None:
        return []
    claims = estimated.within[estimated.within["p_holm"] < SIGNIFICANCE]
    return [
        f"With {estimated.unequal.axis}={row['arm']}, {row['effect']} "
        f"{_verdict(row['estimate'], row['low'], row['high'])} against {row['reference']}."
        for row in claims.sort_values("p").head(_INTERACTIONS_LISTED).to_dict("records")
    ]


def _findings(effects: Effects, estimates: Estimates, expected: str, text: LevelText) -> list[str]:
    """What is clear of zero, then what is not."""
    known = effects.claims[effects.claims["estimate"].notna()]
    if known["p_holm"].isna().all():
        return []
    claims = known[known["p_holm"] < SIGNIFICANCE].sort_values("estimate", key=lambda column: -column.abs())
    main = claims["other_axis"].isna()
    out = _paying(claims[main], ", averaged over the other axes" if estimates.model.pairs else "", text)
    by_name = {effect.name: effect for effect in estimates.model.effects}
    out += [
        _interaction_sentence(by_name[name], estimates) for name in claims.loc[~main, "effect"][:_INTERACTIONS_LISTED]
    ]
    out += _within_sentences(effects)
    if claims.empty:
        finest, coarsest = ((known["high"] - known["low"]) / 2).agg(["min", "max"])
        out.append(f"No difference stands out; effects are known to +-{span(finest, coarsest)} nats.")
    out += _undecided(known[known["other_axis"].isna() & (known["p_holm"] >= SIGNIFICANCE)], len(known), text)
    return out + [expected] * bool(expected and not claims.empty)


def _paying(claims: pd.DataFrame, scope: str, text: LevelText) -> list[str]:
    """Which level of an axis is better than which, and by how much: a sentence for each better level."""
    worse: dict[tuple[str, str], list[str]] = {}
    for row in claims.to_dict("records"):
        level, reference = (text(row["axis"], row[name]) for name in ("level", "reference"))
        better, other = (level, reference) if row["estimate"] < 0 else (reference, level)
        size = with_interval(row["estimate"], row["low"], row["high"])
        worse.setdefault((row["axis"], better), []).append(f"{size} against {other}")
    return [f"{axis}={better} pays: {', '.join(sizes)}{scope}." for (axis, better), sizes in worse.items()]


def _warnings(effects: Effects, estimates: Estimates, full: Model) -> list[str]:
    """What limits the findings."""
    out = []
    known = effects.table[effects.table["estimate"].notna()]
    if not effects.is_replicated:
        out.append("No point was completed with two seeds, so nothing here is called better or worse.")
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
    if effects.lack_of_fit is not None and effects.lack_of_fit < SIGNIFICANCE:
        out.append(
            f"The residuals are larger than the spread over seeds (p = {effects.lack_of_fit:.2g}): axes act together "
            "in ways that the model lacks; the intervals allow for it."
        )
    if effects.triple is not None:
        out.append(
            f"The residuals suggest that {effects.triple} act together (p = {effects.triple.p:.2g} after adjustment "
            f"for {effects.triple.tested} triples), which the model lacks, so it is not asked what it expects most of. "
            "Runs of all combinations of these three settle it (--follow_up with the study's name)."
        )
    if stopped := effects.statuses.get("stopped", 0):
        out.append(
            f"{stopped} trials were stopped at a rung and count with their loss there, less an offset for its budget. "
            "As the worse trials were stopped, this pulls effects towards zero."
        )
    lost = {status: n for status, n in effects.statuses.items() if status in WITHOUT_LOSS and status != PLATEAU}
    if lost:
        counts = ", ".join(f"{count} {status}" for status, count in lost.items())
        out.append(f"Trials without a loss, in no effect above: {counts}.")
    return out


def _notes(effects: Effects, seed_sentences: list[str]) -> list[str]:
    """What the errors rest on."""
    if effects.noise is None or not effects.is_replicated:
        return []
    out = [f"Noise: sd of val_loss {effects.noise.describe()}.", *seed_sentences]
    if effects.unequal is not None:
        is_weighted = effects.unequal.is_sure and not effects.blocks
        how = ", and runs are weighted by it" if is_weighted else ""
        out.append(f"The noise differs by {effects.unequal.describe()}; intervals allow for it{how}.")
    return out


def _undecided(rows: pd.DataFrame, tested: int, text: LevelText) -> list[str]:
    """The main effects in `rows`, of `tested` effects in all, that cannot be distinguished from 0."""
    texts = []
    for row in rows.head(_UNDECIDED_LISTED).to_dict("records"):
        alone = f"; alone it excludes 0, not after adjustment for {tested} effects"
        excludes = alone if row["low"] > 0 or row["high"] < 0 else ""
        level, reference = (text(row["axis"], row[name]) for name in ("level", "reference"))
        interval = signed_with_interval(row["estimate"], row["low"], row["high"])
        texts.append(f"{row['axis']}={level} against {reference} ({interval}{excludes})")
    more = f"; and {len(rows) - len(texts)} more" if len(rows) > len(texts) else ""
    return [f"Undecided: {'; '.join(texts)}{more}."] if texts else []


def _expected(effects: Effects, baseline: Point, count: int) -> str:
    """What the model expects of the best of `count` points; "" where that is not clearly better than the baseline."""
    if effects.best is None or not effects.best[3] < 0 or effects.triple is not None:
        return ""
    point, difference, low, high = effects.best
    changes = ", ".join(f"{axis}={level}" for axis, level in point.items() if live(baseline).get(axis) != level)
    return (
        f"The fitted model expects most of {changes}: {difference:+.4f} nats against the baseline (95% {low:+.4f} to "
        f"{high:+.4f}, which flatters the first of {count} points)."
    )


def _interaction_sentence(effect: Effect, estimates: Estimates) -> str:
    """An interaction as the effect of one axis at both levels of the other, in the way that shows it more clearly."""
    ways = []
    for varied in (0, 1):
        given = 1 - varied
        levels = (effect.levels[given], effect.references[given])
        rows = [estimates.row(estimates.model.contrast_within(effect, varied, level)) for level in levels]
        ways.append((min(abs(estimate) for estimate, *_ in rows), varied, levels, rows))
    _, varied, levels, rows = min(ways, key=lambda way: way[:2])
    (first, _, *first_ends), (second, _, *second_ends) = rows
    other = effect.axes[1 - varied]
    one, two = _verdict(first, *first_ends), _verdict(second, *second_ends)
    word = "and" if one.split()[0] == two.split()[0] else "but"
    return (
        f"{effect.axes[varied]}={effect.levels[varied]} (against {effect.references[varied]}) {one} with "
        f"{other}={levels[0]}, {word} {two} with {other}={levels[1]}."
    )


def _verdict(estimate: float, low: float, high: float) -> str:
    if low <= 0 <= high:
        return f"shows no clear difference ({signed_with_interval(estimate, low, high).replace(' nats', '')})"
    return f"{'costs' if estimate > 0 else 'saves'} {with_interval(estimate, low, high)}"
