"""The answer of a study: ranking, effects, frontier and gains, and sentences, from its folder alone."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from raytrain import architecture
from raytrain.accounting.flops import flops_per_token
from raytrain.analysis.confirmed import Confirmation, confirmation, shrunken
from raytrain.analysis.effects import WITHOUT_LOSS, Effects, effects, failure_rates
from raytrain.analysis.enough import late_sentences, rates_about, shortfall, training_of
from raytrain.analysis.eval_sets import by_eval_set
from raytrain.analysis.follow_up import settled
from raytrain.analysis.gain import Estimate, Frontier, compute_gains, fit_frontier, gain_trend
from raytrain.analysis.ladder import Ladder, Mean, Scale, ladder
from raytrain.analysis.learning import learning_curves
from raytrain.analysis.noise import SIGNIFICANCE, Noise, group_means, pooled
from raytrain.analysis.plateau import mark_plateaus, plateau_sentences
from raytrain.analysis.ranking import (
    UNFINISHED,
    at_budget,
    budget_noise,
    numbers,
    programs,
    rank,
    read_trials,
    unlike_devices,
)
from raytrain.analysis.trials import FRESH_ROLES, OWN_ROLES, axes_of, budgets, common_rung, curves, points, rung_table
from raytrain.analysis.tuned import TUNING, Tuned, as_effects, tuned_effects
from raytrain.analysis.tuned_text import tuned_sentences
from raytrain.analysis.wording import Told
from raytrain.config.run import flat
from raytrain.errors import UserError
from raytrain.rundir.folders import read_study_json
from raytrain.sweep.factorial import Array, Point, live
from raytrain.sweep.factors import level_text
from raytrain.sweep.ladder import by_scale

_NO_WINNER = "No winner:"
_TRENDS = ["label", "hash", "slope", "low", "high", "reason"]
_LISTED = 3  # of the gains, and of the trials whose two ranks differ


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer of the study in `study` (study.json).

    `table` is that of `ranking.rank`, with compute_gain and hardware_gain, each with `_low` and `_high` (95%; an end
    that would be infinite is NaN) and, where there is none, a `_reason`. `noise` is the spread of val_loss over seeds
    at the study's budget, `paired` what variants on the same seeds do not share of it (`noise.Means`). `effects` are
    those of `axes` against `baseline`, at `effects_flops`: the study's budget, or the last rung that every trial
    reached if some were stopped. `trends` has a row for each variant but the baseline that ran at several budgets:
    `label`, `hash`, the `slope` of ln gain against ln FLOPs with `low` and `high`, or the `reason` that there is none.
    `rung_frontier` is the one that they follow from where budgets are rungs. `told` is the answer in words, with
    `winner` the sentence on rank 1 and `scope` the one on the learning rate that it holds at.
    `reasons` gives, for each part that is None or empty, the reason.
    """

    study: dict[str, Any]
    axes: list[str]
    baseline: dict[str, Any]
    table: pd.DataFrame
    noise: Noise | None
    paired: Noise | None
    effects: Effects | None
    effects_flops: float
    frontier: Frontier | None
    hardware_frontier: Frontier | None
    trends: pd.DataFrame
    rung_frontier: Frontier | None
    told: Told
    reasons: dict[str, str]
    winner: str = ""
    scope: str = ""
    tuned: Tuned | None = None
    late: Sequence[str] = ()  # how much runs still change late
    learning: pd.DataFrame | None = None  # see `learning.learning_curves`
    confirmed: Confirmation | None = None  # where the leader ran anew with fresh seeds: the winner is theirs
    scales: Sequence["Answer"] = ()  # of a ladder, from the smallest up: all but `table` and `sentences` is the last's
    ladder: Ladder | None = None

    @property
    def sentences(self) -> list[str]:
        """The answer in words: the findings, then what limits them, then how they are known."""
        return self.told.sentences


def answer(folder: str | Path) -> Answer:
    """Read the study in `folder`, ended or not, and answer its question. Raises UserError if it holds none."""
    folder = Path(folder)
    study = read_study_json(folder)
    scales = [_answer(folder, own) for own in by_scale(study)]
    return scales[0] if len(scales) == 1 else _over_scales(study, scales)


def _over_scales(study: dict[str, Any], scales: Sequence[Answer]) -> Answer:
    """The answer of a ladder, of those of its scales."""
    over_sizes, reasons, target = None, dict(scales[-1].reasons), study["plan"]["ladder"]["project_to"]
    try:
        over_sizes = ladder([_scale(own) for own in scales], target["scale"], target["flops_per_token"])
        sentences = over_sizes.describe()
    except UserError as error:
        reasons["ladder"] = str(error)
        sentences = [f"No gains by size: {error}."]
    sentences += [f"At {own.study['scale']}: {own.winner}" for own in scales]
    sentences += dict.fromkeys(own.scope for own in scales if own.scope)
    table = pd.concat([own.table for own in scales], ignore_index=True)
    return dataclasses.replace(
        scales[-1], study=study, table=table, told=Told(sentences), reasons=reasons, scales=scales, ladder=over_sizes
    )


def _scale(own: Answer) -> Scale:
    """What a ladder needs of one scale. Raises UserError if its noise is not known."""
    table, name = own.table, own.study["scale"]
    groups, is_base = _groups(table), _is_baseline(table, own.axes, own.baseline)
    done = groups >= 0
    noise = pooled(table.loc[done, "val_loss"], groups[done])
    if noise is None:
        raise UserError(f"no variant was completed with two seeds at scale {name}")
    flops = {
        trial["id"]: flops_per_token(architecture.from_dict(trial["config"]["architecture"])).total
        for trial in own.study["trials"]
    }
    table = table.assign(size=table["trial"].map(flops).astype(float))
    baseline = [_mean(runs) for _, runs in table[done & is_base].groupby(groups[done & is_base])]
    others = table[done & at_budget(table) & ~is_base]
    return Scale(
        name, baseline, {str(label): _mean(runs) for label, runs in others.groupby("label", sort=False)}, noise
    )


def _mean(runs: pd.DataFrame) -> Mean:
    size = float(runs["size"].iloc[0])
    return Mean(size, float(runs["train_flops"].mean()) / size, float(runs["val_loss"].mean()), len(runs))


def _answer(folder: Path, study: dict[str, Any]) -> Answer:
    """The answer of `study`, the one in `folder` or one scale of it."""
    table = read_trials(folder, study)
    table["val_loss"] = numbers(table, "val_loss")
    trained = mark_plateaus(table, programs(table))
    table = rank(trained)
    axes, baseline = axes_of(study)
    noise, done = budget_noise(table), table[at_budget(table) & (table["status"] == "complete")]
    paired = group_means(done["val_loss"], programs(done), done["seed"]).noise if len(done) else None
    reasons: dict[str, str] = {}
    if noise is None:
        reasons["noise"] = "no variant was completed at the study's budget with two seeds"
    ranked = table["rank"].notna() & numbers(table, "hardware_flops").notna()
    if unlike := unlike_devices(table[ranked]):
        reasons["hardware_rank"] = unlike

    estimated, tuned, effects_flops = None, None, float(study["budget_flops"])
    try:
        if _tuning(study):
            estimated, tuned = _tuned_effects(study, trained, axes, baseline)
        else:
            estimated, effects_flops = _effects(folder, study, table, axes, baseline)
    except UserError as error:
        reasons["effects"] = str(error)

    groups = _groups(table)
    is_base = _is_baseline(table, axes, baseline)
    frontiers: dict[str, Frontier | None] = {}
    for part, column in (("frontier", "train_flops"), ("hardware_frontier", "hardware_flops")):
        try:
            frontiers[part] = _frontier(table, groups, is_base, column)
        except UserError as error:
            frontiers[part], reasons[part] = None, str(error)
    for gain, part, column in (
        ("compute_gain", "frontier", "train_flops"),
        ("hardware_gain", "hardware_frontier", "hardware_flops"),
    ):
        gains = _gains(table, groups, is_base, column, frontiers[part], reasons.get(part, ""))
        table[gain] = np.array([estimate.value for estimate in gains], float)
        table[f"{gain}_low"] = np.array([estimate.low for estimate in gains], float)
        table[f"{gain}_high"] = np.array([estimate.high for estimate in gains], float)
        table[f"{gain}_reason"] = [estimate.reason for estimate in gains]

    trends, rungs = _trends(table[~is_base], groups[~is_base], frontiers["frontier"]), None
    if trends.empty:
        reasons["trends"] = reasons.get("frontier", "no variant but the baseline ran at two budgets or more")
        try:
            trends, rungs = _rung_trends(rung_table(folder, study), table, is_base)
        except UserError as error:
            reasons["trends"] = str(error)
    out = Answer(
        study=study,
        axes=axes,
        baseline=baseline,
        table=table,
        noise=noise,
        paired=paired,
        effects=estimated,
        effects_flops=effects_flops,
        frontier=frontiers["frontier"],
        hardware_frontier=frontiers["hardware_frontier"],
        trends=trends,
        rung_frontier=rungs,
        told=Told(),
        reasons=reasons,
        tuned=tuned,
        confirmed=_confirmed(study, table),
        late=_late(folder, table),
        learning=learning_curves(folder, table, is_base),
    )
    out = dataclasses.replace(out, winner=_winner(out), scope=_scope(out))
    return dataclasses.replace(out, told=_told(out))


def _effects(
    folder: Path, study: dict[str, Any], table: pd.DataFrame, axes: list[str], baseline: Point
) -> tuple[Effects, float]:
    """The effects, and the FLOPs that they hold at."""
    if not axes:
        raise UserError("no axis varies: all trials are one variant")
    flops = float(study["budget_flops"])
    table = table[table["role"].isin(OWN_ROLES)]
    if (table["status"] == "stopped").any():
        table = common_rung(rung_table(folder, study), axes)
        flops = float(table.loc[table["status"] == "complete", "train_flops"].median())
    space, runs = candidates(study, axes), [flat(trial["config"]) for trial in study["trials"]]
    text = functools.partial(level_text, rows=runs)
    estimated = effects(table, axes, baseline, candidates=space, text=text)
    further = Told(by_eval_set(table, axes, baseline, estimated, space))
    return dataclasses.replace(estimated, told=estimated.told + further), flops


def _tuning(study: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the study tunes, as its plan has it; empty if it does not."""
    return (study.get("plan") or {}).get("tuning") or {}


def _tuned_effects(
    study: dict[str, Any], table: pd.DataFrame, axes: list[str], baseline: Point
) -> tuple[Effects, Tuned]:
    """The effects at own best learning rates, in both forms. `table` is that of all trials, not ranked."""
    if not axes:
        raise UserError("no axis varies: all trials are one variant")
    tuning = _tuning(study)
    table = table[table["role"].isin(OWN_ROLES)].reset_index(drop=True)
    fields = list(tuning["levels"])
    tuned = tuned_effects(
        table,
        axes,
        baseline,
        pd.Series(pd.factorize(programs(table, without=fields))[0]),
        fields,
        candidates=candidates(study, axes),
        spreads=tuning["spreads"],
        shared=tuning["recipe"].get("learning_rate"),
    )
    rates = failure_rates(table, axes)
    told = Told(warnings=plateau_sentences(table, [*axes, *fields])) + tuned_sentences(tuned)
    return as_effects(tuned, table, rates, told), tuned


def candidates(study: dict[str, Any], axes: list[str]) -> list[dict[str, Any]] | None:
    """The points of the space, where they are all combinations of the levels that study.json has; else not known."""
    levels = study.get("axes") or {}
    if not set(axes) <= levels.keys():
        return None
    spelled = (live(dict(zip(axes, point, strict=True))) for point in itertools.product(*(levels[a] for a in axes)))
    points = list({json.dumps(point, sort_keys=True): point for point in spelled}.values())
    return points if len(points) == study["counts"]["variants"] else None


def _groups(table: pd.DataFrame) -> pd.Series:
    """A number for each row's program at its budget, its runs with fresh seeds apart; -1 for what did not complete, or
    counts for no variant."""
    done = (table["status"] == "complete") & table["val_loss"].notna() & (table["role"] != TUNING)
    out = pd.Series(-1, index=table.index)
    if done.any():
        budget = budgets(numbers(table[done], "train_flops").to_numpy())
        program = 2 * programs(table)[done] + table.loc[done, "role"].isin(FRESH_ROLES)  # fresh seeds stand alone
        out[done] = program * (budget.max() + 1) + budget
    return out


def _is_baseline(table: pd.DataFrame, axes: list[str], baseline: Point) -> pd.Series:
    """Whether each row is a run of the baseline: one for the frontier, or one at the study's budget."""
    is_there = [point == live(baseline) for point in points(table, axes)]
    return pd.Series(is_there, index=table.index) | (table["role"] == "frontier")


def _late(folder: Path, table: pd.DataFrame) -> list[str]:
    """How much the completed runs at the study's budget still changed late."""
    done = table[at_budget(table) & (table["status"] == "complete")]
    return late_sentences(curves(folder, done["trial"]), pd.Series(programs(done).to_numpy(), index=done["trial"]))


def _confirmed(study: dict[str, Any], table: pd.DataFrame) -> Confirmation | None:
    """The results of the runs with fresh seeds, in the order in which the study planned them: the leader's first."""
    again = table[(table["role"] == "confirm") & (table["status"] == "complete") & table["val_loss"].notna()]
    order = {trial["id"]: place for place, trial in enumerate(study["trials"])}
    again = again.loc[again["trial"].map(order).sort_values().index] if len(again) else again
    names = again["short_name"].groupby(programs(again)).transform("first")
    return confirmation(again.assign(variant=names.str.removesuffix(" (confirm)")))


def _frontier(table: pd.DataFrame, groups: pd.Series, is_base: pd.Series, column: str) -> Frontier:
    """That in the FLOPs of `column`."""
    done = groups >= 0
    runs = table[done & is_base]
    budget = budgets(numbers(runs, "train_flops").to_numpy())
    count = len(np.unique(budget))
    if count < 3:
        raise UserError(
            f"a frontier needs the baseline at three budgets or more, and it has completed {count} (--frontier_budgets)"
        )
    noise = pooled(table.loc[done, "val_loss"], groups[done])
    if noise is None:
        raise UserError("the frontier needs the noise: no variant was completed with two seeds at one budget")
    flops = numbers(runs, column)
    if column == "train_flops":
        return fit_frontier(flops.to_numpy(), runs["val_loss"].to_numpy(), noise)
    if flops.isna().any():
        raise UserError("hardware FLOPs are not known, as the device's peak is not: give --peak_tflops")
    known = done & numbers(table, column).notna()
    if unlike := unlike_devices(table[known]):
        raise UserError(f"hardware FLOPs cannot be compared: {unlike}")
    clock = pooled(np.log(numbers(table, column)[known]), groups[known])
    return fit_frontier(flops.to_numpy(), runs["val_loss"].to_numpy(), noise, clock=clock, budget=budget)


def _gains(
    table: pd.DataFrame, groups: pd.Series, is_base: pd.Series, column: str, frontier: Frontier | None, reason: str
) -> list[Estimate]:
    """The gain of each row: that of its program at its budget, from the mean over its seeds.

    Intervals are simultaneous over the variants at the study's budget, and single for the baseline and other budgets.
    """
    if frontier is None:
        return [Estimate(None, reason=reason)] * len(table)
    done = table[groups >= 0].assign(spent=np.log(numbers(table, column)), group=groups, is_base=is_base)
    done = done.assign(is_one=at_budget(done) & ~done["is_base"])
    means = done.groupby("group").agg(
        loss=("val_loss", "mean"), spent=("spent", lambda spent: spent.mean(skipna=False)), is_one=("is_one", "any")
    )
    runs = done.groupby("group").size().to_numpy(float)
    wider = _own_noise(done, frontier.noise)
    unknown = means["spent"].isna().to_numpy()
    families = [~unknown & means["is_one"].to_numpy()]
    families += list(np.diag(~unknown & ~families[0]))
    by_group = dict.fromkeys(means.index, Estimate(None, reason="its hardware FLOPs are not known"))
    for family in families:
        own = means[family]
        if len(own):
            gains = compute_gains(
                own["loss"].to_numpy(), np.exp(own["spent"].to_numpy()), frontier, runs[family], wider=wider[family]
            )
            by_group |= dict(zip(own.index, gains, strict=True))
    return [
        by_group[group] if group >= 0 else Estimate(None, reason=_no_gain(status, role))
        for group, status, role in zip(groups, table["status"], table["role"], strict=True)
    ]


def _own_noise(done: pd.DataFrame, noise: Noise) -> Array:
    """By how much the noise of each group of `done` exceeds the pooled one: 1 where noise is not clearly unequal.

    The ratio of the 95% margins of a mean, by the group's own spread and by the pooled noise.
    """
    own = group_means(done["val_loss"], done["group"], pd.Series(range(len(done)), index=done.index))
    spreads = done.groupby("group")["val_loss"].agg(["std", "size"])
    if not own.is_unequal:
        return np.ones(len(spreads))
    t = scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, np.maximum(spreads["size"] - 1, 1))
    ratio: Array = t * spreads["std"].fillna(0).to_numpy(float) / (noise.t * noise.sd)
    return np.maximum(1, ratio)


def _no_gain(status: str, role: str) -> str:
    if role == TUNING:
        return "the runs of its variant that are nearest to the best learning rate have one"
    if status == "stopped":
        return "stopped at a rung: its loss is not that of a run planned for so few FLOPs"
    return "it has not ended" if status in UNFINISHED else f"{status}: it has no loss"


def _trends(table: pd.DataFrame, groups: pd.Series, frontier: Frontier | None) -> pd.DataFrame:
    """A row for each of the variants that ran at several budgets."""
    done = table[groups >= 0].assign(program=programs(table), budget=groups, flops=numbers(table, "train_flops"))
    return _slopes(done, "budget", frontier) if frontier else pd.DataFrame(columns=_TRENDS)


def _slopes(runs: pd.DataFrame, budget: str, frontier: Frontier) -> pd.DataFrame:
    """The trend of each program of `runs`, whose budgets the column `budget` numbers."""
    rows = []
    for _, own in runs.groupby("program", sort=False):
        groups = own.groupby(budget)
        if groups.ngroups > 1:
            losses, flops = (groups[column].mean().to_numpy(float) for column in ("val_loss", "flops"))
            trend = gain_trend(losses, flops, frontier, np.array(groups.size(), float))
            row = {"label": own["short_name"].iloc[0], "hash": own["hash"].iloc[0], "slope": trend.value}
            rows.append(row | {"low": trend.low, "high": trend.high, "reason": trend.reason})
    return pd.DataFrame(rows, columns=_TRENDS)


def _rung_trends(rungs: pd.DataFrame, table: pd.DataFrame, is_base: pd.Series) -> tuple[pd.DataFrame, Frontier | None]:
    """As `_trends`, over the rungs that trials were scored at after a decay, which are as good as runs of so few FLOPs.

    The frontier is then the baseline's over the same rungs and its end. Raises UserError if it was not at three.
    """
    facts = table[["trial", "short_name", "hash"]].assign(program=programs(table), is_base=is_base)
    scored = rungs.merge(facts[numbers(table, "rung_decay") > 0], on="trial").sort_values(["trial", "rung"])
    scored = scored[scored["val_loss"].notna()]
    branch = scored.groupby("trial")["decay_flops"].diff().fillna(scored["decay_flops"]).clip(lower=0)
    scored = scored.assign(flops=scored["train_flops"] + branch)
    if scored.empty:
        return pd.DataFrame(columns=_TRENDS), None
    noise = pooled(scored["val_loss"], scored["program"] * (scored["rung"].max() + 1) + scored["rung"])
    base = scored[scored["is_base"]]
    frontier = fit_frontier(base["flops"].to_numpy(), base["val_loss"].to_numpy(), noise)
    return _slopes(scored[~scored["is_base"]], "rung", frontier), frontier


def _told(answer: Answer) -> Told:
    """What is clear comes first: a winner, or else the effects that are clear of zero."""
    table, found = answer.table, answer.effects
    own = table[table["role"].isin(OWN_ROLES)]
    out = shortfall(own, found, training_of(own), answer.study.get("command") or "")
    stopped = int((table["status"] == "stopped").sum())
    if found is None:
        out += Told([answer.winner], [f"No effects: {answer.reasons['effects']}."])
    else:
        claims = [told for told in found.told.findings if not (answer.confirmed and told == found.expected)]
        is_decided = answer.confirmed is not None or not answer.winner.startswith(_NO_WINNER)
        if stopped or is_decided or not found.has_claims:
            claims = [answer.winner, *([_at_rung(answer, stopped)] if stopped else []), *claims]
        else:
            claims = [*claims, answer.winner]
        out += dataclasses.replace(found.told, findings=claims)
    out += Told([answer.scope] if answer.scope else [])
    out += Told([*map(str, settled(answer.study, table))], _outcomes(table) + _mixed_devices(answer))
    out += Told(notes=[*answer.late, *_unequal_spread(table)])
    return out + _gain_sentences(answer) + Told(_trend_sentences(answer)) + _hardware_rank_sentences(answer)


def _winner(answer: Answer) -> str:
    ranked = answer.table[answer.table["rank"].notna()]
    entries = programs(ranked)
    count = entries.nunique()
    if not count:
        return "No trial has ended at the study's budget, so there is no ranking."
    best = ranked.iloc[0]
    name, losses = best["short_name"], ranked.loc[entries == entries.iloc[0], "val_loss"]
    seeds = f"{len(losses)} seed{'s' * (len(losses) > 1)}"
    own = answer.table[answer.table["role"].isin(OWN_ROLES)]
    if rest := programs(own).nunique() - count:
        variants = f"{count} variants that came to the end of the budget ({rest} did not)"
    else:
        variants = f"{count} variants"
    variants += " at own best learning rates" * _is_crossed(answer.study)
    if count == 1 and rest:
        return (
            f"{_NO_WINNER} of {rest + 1} variants {name} alone came to the end of the budget, with val_loss "
            f"{losses.mean():.4f} over {seeds}, and there is none to compare it with."
        )
    if count == 1:
        noise = f"the noise: sd {answer.noise.describe()}" if answer.noise else "nothing"
        return f"No difference to find: all ranked trials are one variant, {name}. Their spread is {noise}."
    if answer.confirmed:
        return _confirmed_headline(answer, variants)
    if answer.noise is None:
        return (
            f"{name} came first of {variants} with val_loss {losses.mean():.4f}, but the noise is not known "
            f"({answer.reasons['noise']}): chance may have made this order, and nothing here is better or worse."
        )
    first = ranked["rank"] == 1
    shared = entries[first].nunique()
    if shared == 1:
        return (
            f"The winner of {variants} is {name}: val_loss {losses.mean():.4f} over {seeds}, better than every "
            "other beyond the noise. (The first of many flatters itself a little: a run anew will likely be less good.)"
        )
    least = f"the least mean val_loss is {losses.mean():.4f}, of {name} over {seeds}."
    if shared == count:
        return f"{_NO_WINNER} no difference between any two of {variants} stands out from the noise; {least}"
    return (
        f"{_NO_WINNER} {shared} of {variants} share rank 1{_listed(ranked[first])}, as the noise leaves open which is "
        f"best; {least}"
    )


def _listed(runs: pd.DataFrame) -> str:
    """The variants of `runs` in brackets, if they are few."""
    names = list(dict.fromkeys(runs["short_name"]))
    return f" ({'; '.join(names)})" if len(names) <= _LISTED else ""


def _confirmed_headline(answer: Answer, variants: str) -> str:
    confirmed = answer.confirmed
    assert confirmed is not None
    against = "; ".join(
        f"{one.estimate:+.4f} nats from {one.other} (95% {one.low:+.4f} to {one.high:+.4f})"
        for one in confirmed.differences
    )
    figures = f"val_loss {confirmed.loss:.4f} over {confirmed.seeds} fresh seeds, {against}"
    if confirmed.is_winner:
        out = f"The winner of {variants}, confirmed, is {confirmed.leader}: {figures}."
    else:
        out = f"{_NO_WINNER} {confirmed.leader} came first of {variants}, and fresh seeds do not confirm it: {figures}."
    return out + _first_runs(answer, confirmed)


def _first_runs(answer: Answer, confirmed: Confirmation) -> str:
    """The leader's difference from the baseline in its first runs, and the estimate that it shrinks to."""
    ranked = answer.table[answer.table["rank"].notna()]
    entry = programs(ranked)
    means = ranked["val_loss"].groupby(entry).mean()
    noise = answer.paired or answer.noise
    base = _is_baseline(ranked, answer.axes, answer.baseline)
    if noise is None or not base.any() or not (ranked["short_name"] == confirmed.leader).any() or len(means) < 3:
        return ""
    errors = noise.sd / np.sqrt(ranked.groupby(entry).size().to_numpy(float))
    drawn = pd.Series(shrunken(means.to_numpy(float), errors), index=means.index)
    leader, baseline = entry[ranked["short_name"] == confirmed.leader].iloc[0], entry[base].iloc[0]
    if leader == baseline:
        return ""
    return (
        f" Its first runs had {means[leader] - means[baseline]:+.4f} from the baseline, which as those of the first of "
        f"{len(means)} shrink to {drawn[leader] - drawn[baseline]:+.4f}."
    )


def _is_crossed(study: Mapping[str, Any]) -> bool:
    """Whether every variant ran at several learning rates, and is compared at its own best."""
    tuning = _tuning(study)
    return "learning_rate" in tuning.get("levels", ()) and not tuning["spreads"]


def _scope(answer: Answer) -> str:
    """The one learning rate that the comparison of variants holds at; empty where the study itself varies it."""
    ranked = answer.table[answer.table["rank"].notna()]
    rates = numbers(answer.table[answer.table["role"].isin(OWN_ROLES)], "learning_rate").dropna().unique()
    is_varied = _is_crossed(answer.study) or "learning_rate" in answer.axes or len(rates) != 1
    if is_varied or programs(ranked).nunique() < 2:
        return ""
    return (
        f"All of this holds at learning rate {rates[0]:g} alone: another can change the order, and the sign of a "
        f"difference (--tune {rates_about(rates[0])})."
    )


def _at_rung(answer: Answer, stopped: int) -> str:
    decay = (answer.study.get("scheduler") or {}).get("rung_decay", 0)
    when = "after a decay of the learning rate" if decay else "before the learning rate has come down"
    return (
        f"{stopped} trials were stopped at a rung. Effects are those at {answer.effects_flops:.4g} FLOPs, {when}: the "
        "last rung before any was stopped, so stopping the worse ones does not bias them. The full budget may differ."
    )


def _unequal_spread(table: pd.DataFrame) -> list[str]:
    """That the noise differs between variants, if it does."""
    done = table[at_budget(table) & (table["status"] == "complete")]
    if done.empty:
        return []
    means = group_means(done["val_loss"], programs(done), done["seed"])
    if not means.is_unequal:
        return []
    sds = done.groupby("short_name", sort=False)["val_loss"].std().dropna().sort_values()
    return [
        f"The noise differs between variants (p = {means.unequal:.2g}): over seeds the sd is {sds.iloc[0]:.5f} for "
        f"{sds.index[0]} and {sds.iloc[-1]:.5f} for {sds.index[-1]}. So ranks compare each two by their own noise."
    ]


def _mixed_devices(answer: Answer) -> list[str]:
    """What else than variants and seeds the ranked losses differ in: devices, and dtypes where they are no axis."""
    ranked = answer.table[answer.table["rank"].notna()]
    columns = {"device": "devices"} | ({} if "precision" in answer.axes else {"dtype": "compute dtypes"})
    out = []
    for column, what in columns.items():
        values = sorted({*ranked[column].dropna()}) if column in ranked else []
        if len(values) > 1:
            out.append(f"Trials had different {what} ({', '.join(values)}): what those do to a loss is in it too.")
    return out


def _gain_sentences(answer: Answer) -> Told:
    if answer.frontier is None:
        return Told(notes=[f"No compute gains: {answer.reasons['frontier']}."])
    out = []
    ranked = answer.table[answer.table["rank"].notna()]
    once = ranked[~programs(ranked).duplicated()]
    once = once[~_is_baseline(once, answer.axes, answer.baseline)]
    for gain, unit in (("compute_gain", "model FLOPs"), ("hardware_gain", "hardware FLOPs")):
        if gain == "hardware_gain" and answer.hardware_frontier is None:
            continue
        known = once[once[gain].notna()].sort_values(gain, ascending=False)
        if once.empty:
            continue
        if known.empty:
            out.append(f"No variant has a {gain.replace('_', ' ')}: {_reasons(once[f'{gain}_reason'])}.")
            continue
        high = known[f"{gain}_high"].fillna(np.inf)
        above, below = int((known[f"{gain}_low"] > 1).sum()), int((high < 1).sum())
        gains = ", ".join(_gain(row, gain) for row in known.head(_LISTED).to_dict("records"))
        lacking = once[once[gain].isna()]
        more = f" Without a gain: {len(lacking)} ({_reasons(lacking[f'{gain}_reason'], 1)})." if len(lacking) else ""
        out.append(
            f"Compute gain at this size, the {unit} that the baseline would need for the same loss over those used: "
            f"{gains}. Variants that save compute: {above} of {len(known)}; that waste it: {below}. These 95% "
            f"intervals hold for all variants together.{more}"
        )
    again = answer.table[(answer.table["role"] == "confirm") & answer.table["compute_gain"].notna()]
    again = again[~_is_baseline(again, answer.axes, answer.baseline)]
    again = again[~programs(again).duplicated()]
    if len(again):
        gains = ", ".join(_gain(row, "compute_gain") for row in again.to_dict("records"))
        out.append(f"Compute gain at this size by fresh seeds alone: {gains}.")
    if not answer.frontier.is_misfit:
        return Told(out)
    misfit = (
        "The baseline's losses are not on a curve of the shape E + A FLOPs^-alpha (p = "
        f"{answer.frontier.misfit:.2g}), so gains are interpolated between its budgets."
    )
    return Told(out, [misfit])


def _trend_sentences(answer: Answer) -> list[str]:
    known = answer.trends[answer.trends["slope"].notna()].astype({"slope": float, "low": float, "high": float})
    if known.empty:
        return []
    low, high = known["low"].fillna(-np.inf), known["high"].fillna(np.inf)
    clear = known[(low > 0) | (high < 0)]
    clear = clear.loc[clear["slope"].abs().sort_values(ascending=False, kind="stable").index]
    slopes = [
        f"the gain of {row['label']} {'shrinks' if row['slope'] < 0 else 'grows'} ({row['slope']:+.3f}, 95% "
        f"{row['low']:+.3f} to {row['high']:+.3f})"
        for row in clear.head(_LISTED).to_dict("records")
    ]
    rest = f"that of {len(known) - len(clear)} of {len(known)} variants does not clearly change"
    out = f"As budgets grow (ln gain for each factor e of FLOPs): {'; '.join([*slopes, rest])}."
    if (answer.table["status"] == "stopped").any():
        out += " Luck at a rung helps a trial on, and is gone at the next, so a gain seems to shrink a little."
    rungs = answer.rung_frontier
    if rungs is not None and rungs.is_misfit:
        out += (
            " The baseline's losses at rungs are not on a curve of the shape E + A FLOPs^-alpha (p = "
            f"{rungs.misfit:.2g}), so they are interpolated."
        )
    return [out]


def _gain(row: dict[Any, Any], gain: str) -> str:
    low, high = row[f"{gain}_low"], row[f"{gain}_high"]
    ends = f"{low:.3f} to {high:.3f}" if high == high else f"{low:.3f} or more"
    return f"{row['short_name']} x{row[gain]:.3f} (95% {ends})"


def _hardware_rank_sentences(answer: Answer) -> Told:
    table = answer.table
    if reason := answer.reasons.get("hardware_rank"):
        return Told(notes=[f"No rank by hardware FLOPs: {reason}."])
    if answer.table["hardware_rank"].isna().all():
        return Told()
    differs = table[table["rank_note"] != ""]
    differs = differs[~programs(differs).duplicated()]
    if differs.empty:
        return Told(notes=["By hardware FLOPs the order is the same."])
    moved = (differs["hardware_rank"] - differs["rank"]).abs().astype(float)
    rows = differs.loc[moved.sort_values(ascending=False, kind="stable").index[:_LISTED]]
    moves = "; ".join(f"{row['short_name']}: {row['rank_note']}" for row in rows.to_dict("records"))
    return Told([f"By hardware FLOPs, where MFU counts, {len(differs)} variants change places. {moves}."])


def _outcomes(table: pd.DataFrame) -> list[str]:
    out = []
    for status in (*WITHOUT_LOSS, "lost"):
        those = table[table["status"] == status]
        if len(those):
            reasons = _reasons(those["reason"]) if "reason" in those else ""
            names = ", ".join(dict.fromkeys(those["short_name"]))
            out.append(f"{len(those)} {status}: {names}{f' ({reasons})' if reasons else ''}.")
    program = programs(table)
    partly = table[at_budget(table) & program.isin(program[table["status"].isin(WITHOUT_LOSS)])]
    if len(partly):
        names = "; ".join(dict.fromkeys(partly["short_name"]))
        out.append(f"Ranked by the seeds that came through, as others did not: {names}.")
    if unfinished := int(table["status"].isin(UNFINISHED).sum()):
        out.append(f"{unfinished} of {len(table)} trials have not ended: all of this is so far.")
    return out


def _reasons(column: pd.Series, most: int = _LISTED) -> str:
    """The distinct reasons, most frequent first."""
    return "; ".join(str(reason).rstrip(".") for reason in column.dropna().value_counts().index[:most] if reason)
