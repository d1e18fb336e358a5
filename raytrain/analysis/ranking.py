"""A study as a table, and its ranking by loss per FLOP.

A table has a row a trial: trial (id), label, short_name, name, hash, seed; role (see `trials.OWN_ROLES`);
status (waiting, running, interrupted, complete, stopped, diverged, failed, oom, lost), reason; the nine
axes, the sizes and the recipe by their names in TrainConfig; budget_flops, the study's; and what the trial's
result.json holds, such as val_loss (nats per token), train_flops and hardware_flops.

`rank` adds:

    loss_per_flop            nats per EFLOP (1e18 model FLOPs): (ln vocab_size - val_loss) / train_flops
    loss_per_hardware_flop   the same over hardware_flops, where those are known
    budget_ok                1 if train_flops is within 0.5% of budget_flops, else 0
    rank                     place by loss among trials whose budget is ok, shared within the noise: see `rank`
    hardware_rank            the same by loss bought per hardware FLOP, where all ran on the same devices
    rank_note                where the two orders differ: both ranks, and the MFU that makes the difference
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from raytrain import architecture
from raytrain.analysis.noise import SIGNIFICANCE, Means, Noise, declare_winner, group_means, pooled
from raytrain.analysis.trials import BUDGET_TOLERANCE, FRESH_ROLES, OWN_ROLES
from raytrain.analysis.tuned import at_own_best, tuned_fields
from raytrain.config.run import STOPS, TrainConfig, flat
from raytrain.errors import readable
from raytrain.rundir.folders import read_study_json
from raytrain.rundir.run import RunFolder
from raytrain.sweep.estimate import duration
from raytrain.sweep.factorial import Array
from raytrain.sweep.ladder import by_scale
from raytrain.sweep.space import RECIPE

UNFINISHED = ("waiting", "running", "interrupted")
_EFLOP = 1e18
_NAME_LENGTH = 64
_MEANS = (
    *("val_loss", "val_bpb", "loss_per_flop", "loss_per_hardware_flop"),
    *("mfu", "tokens_per_second", "train_flops", "hardware_flops", "train_seconds", "memory_peak_gb"),
)

# The recipe of trials that were planned before a field was there, beside those that a later version adds.
_SINCE = {
    field.name: field.default
    for field in dataclasses.fields(TrainConfig)
    if field.name in RECIPE and field.metadata.get("newer")
}

Numbers = TypeVar("Numbers", float, pd.Series)


def loss_per_flop(loss: Numbers, vocab_size: Numbers, flops: Numbers) -> Numbers:
    """Loss bought per FLOP, from the loss of a uniform guess, ln `vocab_size`: nats per EFLOP."""
    per_flop: Numbers = (np.log(vocab_size) - loss) / (flops / _EFLOP)
    return per_flop


def short_name(trial: dict[str, Any]) -> str:
    """The name of a planned trial wherever one is shown: its labels, or its architecture without the size if those are
    too long.

    The architecture comes with the start of its hash, since its name leaves parts out, and with the label's part on
    other fields than its own.
    """
    label, role = ", ".join(trial["labels"]), trial.get("role", "")
    if role in FRESH_ROLES:
        return f"{short_name(trial | {'role': ''})} ({role.replace('_', '-')})"
    if len(label) <= _NAME_LENGTH or role == "frontier":
        return label
    arch = trial["config"]["architecture"]
    rest = [part for part in re.split(r" (?=\w+=)", label) if "=" in part and part.split("=")[0] not in arch]
    name = architecture.from_dict(arch).name.split("-", 3)[3]
    return min(label, " ".join([f"{name}-{trial['hash'][:6]}", *rest]), key=len)


def read_study(study_dir: str | Path) -> pd.DataFrame:
    """A row a trial, in the order of study.json. Raises UserError for a folder that holds no study."""
    folder = Path(study_dir)
    studies = by_scale(read_study_json(folder))
    return pd.concat([read_trials(folder, study) for study in studies], ignore_index=True)


def read_trials(folder: Path, study: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of `study`, the study.json in `folder` or one scale of it."""
    return pd.DataFrame([_row(trial, RunFolder(folder / "trials" / trial["id"]), study) for trial in study["trials"]])


def _row(trial: dict[str, Any], run: RunFolder, study: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field: value for field, value in flat(trial["config"]).items() if field not in STOPS}
    row = {"trial": trial["id"], "label": ", ".join(trial["labels"]), "short_name": short_name(trial)}
    row |= {"hash": trial["hash"], "seed": trial["seed"], "role": trial.get("role", "")}
    row |= {"budget_flops": study["budget_flops"]}
    tuning = (study.get("plan") or {}).get("tuning") or {"levels": (), "spreads": False}
    if tuning["spreads"]:  # each run is of one rate, and no variant has a curve
        rates = "".join(f" at {field}={trial['config'][field]:g}" for field in tuning["levels"])
        row |= {"label": row["label"] + rates, "short_name": row["short_name"] + rates}
    elif tuning["levels"]:
        row["tuned"] = " ".join(tuning["levels"])
    started = "interrupted" if study.get("interrupted") else "running"
    row |= {"status": started if run.has_begun else "waiting"} | fields
    return {name: readable(value) if isinstance(value, str) else value for name, value in (row | run.result).items()}


def how_it_stopped(study: Mapping[str, Any], table: pd.DataFrame) -> str:
    """A sentence on the trials in `table` that have not ended, and why `study` (study.json) has not run them; empty if
    all have."""
    unfinished = table["status"].isin(UNFINISHED)
    if not unfinished.any():
        return ""
    if not study.get("interrupted") or "time_limit" not in study:
        how = "was interrupted" if study.get("interrupted") else "is not over"
        return f"The study {how}: {int(unfinished.sum())} of {len(table)} trials have not ended."
    waiting = int((table["status"] == "waiting").sum())
    cut = int(unfinished.sum()) - waiting
    also = f", and {cut} {'was' if cut == 1 else 'were'} cut short" if cut else ""
    limit = duration(study["time_limit"])
    return f"The time limit of {limit} ended the study: {waiting} of {len(table)} trials did not run{also}."


def programs(table: pd.DataFrame, *, without: Sequence[str] = ()) -> pd.Series:
    """A number for each row's program: trials of one differ in their seed, and the noise, alone.

    A variant (its hash) and recipe, but for the fields `without`; and the attention backend, as two backends with one
    seed are no two draws of the noise. In a table without hashes every row is a program of its own.
    """
    if "hash" not in table:
        return pd.Series(range(len(table)), index=table.index)
    parts = [name for name in ("hash", "attention_backend", *RECIPE) if name in table and name not in without]
    return table[parts].fillna(_SINCE).astype(str).groupby(parts, sort=False, dropna=False).ngroup()


def by_variant(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The trials of each program in a table of `rank` as one row, in the table's order: the first's facts, and the
    means of the ranked ones, or of all if none is; with their `losses`, their `outcomes` in words and `is_ranked`."""
    return [_entry(runs) for _, runs in table.groupby(programs(table), sort=False)]


def by_name(table: pd.DataFrame) -> list[dict[str, Any]]:
    """As `by_variant`, but with a row for each name that trials are shown by: the runs of a variant at other budgets,
    or with fresh seeds, are apart."""
    keys = [programs(table), table["role"], table["short_name"]]
    return [_entry(runs) for _, runs in table.groupby(keys, sort=False, dropna=False)]


def _entry(runs: pd.DataFrame) -> dict[str, Any]:
    """A variant's trials as one: the first's facts, and the means of the ranked ones, or of all if none is."""
    is_ranked = bool(runs["rank"].notna().any())
    used = runs[runs["rank"].notna()] if is_ranked else runs
    names = [str(name) for name in runs if str(name).startswith(("val_loss_", "val_bpb_"))]
    means = {name: numbers(used, name).mean() for name in (*_MEANS, *names)}
    outcomes = ", ".join(f"{count} {status}" for status, count in runs["status"].value_counts().items())
    losses = [float(loss) for loss in used["val_loss"].dropna()]
    first = {str(name): value for name, value in used.iloc[0].items()}
    return first | means | {"is_ranked": is_ranked, "losses": losses, "outcomes": outcomes}


def at_budget(table: pd.DataFrame) -> pd.Series:
    """Whether each row is a trial with a loss at the study's budget: these alone are ranked."""
    flops, loss = numbers(table, "train_flops"), numbers(table, "val_loss")
    budget_ok = (flops / numbers(table, "budget_flops") - 1).abs() <= BUDGET_TOLERANCE
    ended = table["status"].isin(("complete", "stopped"))
    is_own = table.get("role", pd.Series("", index=table.index)).isin(OWN_ROLES)
    return budget_ok & ended & is_own & loss.notna()


def budget_noise(table: pd.DataFrame) -> Noise | None:
    """The spread of val_loss over the seeds of one program, at the study's budget; None without replicates."""
    done = table[at_budget(table) & (table["status"] == "complete")]
    return pooled(numbers(done, "val_loss"), programs(done))


def unlike_devices(runs: pd.DataFrame) -> str:
    """Why `runs` cannot be compared by hardware FLOPs: they had several kinds, or numbers, of devices. "" if one.

    Their MFU would reflect the device, as one kind is easier to keep busy than another, and one device than eight.
    """
    kinds = zip(numbers(runs, "world_size"), runs.get("device", pd.Series("", index=runs.index)), strict=True)
    names = sorted({f"{size:.0f} x {device}" for size, device in kinds})
    return f"trials had different devices ({', '.join(names)})" if len(names) > 1 else ""


def rank(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the columns above, best first; trials without a rank follow, those without a loss come last.

    A bare ratio of loss to FLOPs over runs of different budgets ranks them by budget: the loss falls ever more slowly,
    so the run that stopped first wins. So a trial whose budget is not ok has no rank, nor has a run for the frontier.
    Those that are ranked are so by their loss alone: budgets agree to within 0.5%, which a ratio would credit with 38
    millinats at a vocabulary of 50,304, where so many more FLOPs bring half of one.

    The seeds of one program are one entry, with their mean, and share a rank. A rank r means that r - 1 programs or
    more are better than it beyond the noise (`places`); two that share a rank are not ordered. The noise is that over
    seeds, less what a seed does to all (`noise.group_means`); without replicates none is known, and ranks are the order
    of the figures, which chance may have made. By hardware FLOPs the noise is that of the logarithm of
    loss_per_hardware_flop, which has the noise of the clock in it too; there are no ranks by them where trials had
    different devices (`unlike_devices`). The variants of a tuned study are ranked at their own best
    (`tuned.at_own_best`). The scales of a ladder are ranked each by itself, and follow one another.
    """
    scales = table.groupby("scale", sort=False) if "scale" in table else ()
    if len(scales) < 2:
        return _rank(table)
    return pd.concat([_rank(own.reset_index(drop=True)) for _, own in scales], ignore_index=True)


def _rank(table: pd.DataFrame) -> pd.DataFrame:
    table = at_own_best(table, programs(table, without=tuned_fields(table)))
    ranked = at_budget(table)
    ended = table["status"].isin(("complete", "stopped"))
    loss, flops = numbers(table, "val_loss").where(ended), numbers(table, "train_flops")
    vocab_size, hardware = numbers(table, "vocab_size"), numbers(table, "hardware_flops")
    budget = numbers(table, "budget_flops")
    trained = numbers(table, "trained_loss").where(ended) if "trained_loss" in table else loss
    merit = loss_per_flop(trained, vocab_size, flops)
    hardware_merit = loss_per_flop(trained, vocab_size, hardware)
    with np.errstate(divide="ignore"):  # a loss no better than the guess has bought nothing: the last place
        cost = -np.log(((np.log(vocab_size) - loss) / (hardware / flops * budget)).clip(lower=0))
    by_hardware = ranked & hardware.notna()
    by_hardware &= not unlike_devices(table[by_hardware])
    program = programs(table)
    own = loss.where(ranked)
    out = table.assign(
        loss_per_flop=merit,
        loss_per_hardware_flop=hardware_merit,
        budget_ok=((flops / budget - 1).abs() <= BUDGET_TOLERANCE).astype(int),
        rank=_ranks(own, program, table["seed"]),
        hardware_rank=_ranks(cost.where(by_hardware), program, table["seed"]),
    )
    out["rank_note"] = _notes(out)
    order = pd.DataFrame(
        {"rank": out["rank"], "mean": own.groupby(program).transform("mean"), "program": program, "loss": loss}
    )
    order.loc[~ranked, "program"] = 0
    order = order.sort_values(["rank", "mean", "program", "loss"], kind="stable")
    return out.loc[order.index].reset_index(drop=True)


def places(groups: Means) -> npt.NDArray[np.intp]:
    """The rank of each group by its mean, of which less is better.

    One is better than another beyond the noise if their means differ by more than q s sqrt(variance / 2), where q is
    the 95% quantile of the studentized range: of any number of equal groups, two differ so much in at most 5% of
    studies (Tukey's test, for unequal n as Kramer has it: Biometrics 12, 1956). "Better beyond the noise" is then a
    partial order: with the margin k sqrt(a_i^2 + a_j^2), a over b and b over c make a over c. Where the groups' noise
    is unequal (5%), each pair has its own error and degrees of freedom in place of the pooled noise (Games and Howell,
    Journal of Educational Statistics 1, 1976). Few seeds do not show that one group is noisier than the rest, which
    then comes last by its noise: so means must differ beyond the t margin of the pair's own error, too.

    A group's rank is 1 + the number of groups better than it beyond the noise; and no more than that of any group
    with a higher mean, which fewer runs may have left in doubt. So of two ranks the lower has the lower mean. One group
    is alone at rank 1 if, and only if, it is the winner by `declare_winner`: that asks less than Tukey's test, as it is
    one question, but asks it of the noise of the two alone too. If there is none, the next share rank 1. A winner among
    equals is wrong in at most 5% of studies too; one or the other test parts some equals in at most 6% (simulated: 5.7%
    of three with three runs each, the worst case). Without noise the order is strict, and equal values share a
    rank.
    """
    better = groups.means - groups.means[:, None]  # better[i, j]: how much i is below j
    margin: Array | float = 0.0
    if groups.noise is not None and len(groups.means) > 1:
        margin = _margins(groups)
    counts = np.sum(better > margin, axis=0)
    winner = declare_winner(groups)
    if winner is not None:
        counts[np.arange(len(counts)) != winner] = np.maximum(1, np.delete(counts, winner))
    order = np.lexsort((-counts, groups.means))
    out = np.empty(len(counts), dtype=np.intp)
    out[order] = 1 + np.minimum.accumulate(counts[order][::-1])[::-1]
    if groups.noise is not None and winner is None and np.count_nonzero(out == 1) == 1 < len(out):
        out[out == out[out > 1].min()] = 1
    return out


def _margins(groups: Means) -> Array:
    """By how much the means of two groups must differ (groups x groups) to be distinguishable."""
    assert groups.noise is not None
    count, dfs = len(groups.means), np.nan_to_num(np.maximum(groups.dfs, 1), nan=1.0)
    own = scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, dfs) * groups.errors
    if not groups.is_unequal:
        all_pairs = studentized_range(count, groups.noise.df) * groups.noise.sd * np.sqrt(groups.variances / 2)
    else:
        whole = np.floor(dfs).astype(int)
        quantiles = {df: studentized_range(count, df) for df in np.unique(whole).tolist()}
        all_pairs = np.vectorize(quantiles.__getitem__, otypes=[float])(whole) * groups.errors / np.sqrt(2)
    widest: Array = np.fmax(all_pairs, own)
    return widest


@functools.lru_cache(maxsize=256)
def studentized_range(entries: int, df: int) -> float:
    """The 95% quantile of the range of so many means over their standard error, known to `df` degrees of freedom."""
    return float(scipy.stats.studentized_range.ppf(1 - SIGNIFICANCE, entries, df))


def _ranks(values: pd.Series, program: pd.Series, seed: pd.Series) -> pd.Series:
    """The rank of each row's program by the mean of its `values`, of which less is better; none where it has none."""
    known = values.dropna()
    nothing = set(program[known.index][~np.isfinite(known)])  # what bought nothing comes last
    some = known[~program[known.index].isin(nothing)]
    groups = group_means(some, program[some.index], seed[some.index])
    ranks = dict(zip(groups.groups, places(groups), strict=True))
    ranks |= dict.fromkeys(nothing, len(ranks) + 1)
    return program.map(pd.Series(ranks, dtype="Int64")).astype("Int64").where(values.notna())


def _notes(table: pd.DataFrame) -> list[str]:
    """For each row that passes others, or is passed, from one order to the other: both ranks, and whose MFU it is.

    As hardware FLOPs are model FLOPs over the MFU, of two that change places the MFU of one is so much higher. A place
    that is shared in one order alone is no change of order.
    """
    own, other = (table[name].astype(float).to_numpy() for name in ("rank", "hardware_rank"))
    mfu = numbers(table, "mfu").to_numpy()
    passed = (own[:, None] < own) & (other[:, None] > other)  # [i, j]: i is before j, but by hardware FLOPs behind it
    out = []
    for row, (those, passes) in enumerate(zip(passed, passed.T, strict=True)):
        if not (those | passes).any():
            out.append("")
            continue
        whose, word = (those, "pass it") if those.sum() >= passes.sum() else (passes, "it passes")
        note = f"rank {own[row]:.0f}, by hardware FLOPs {other[row]:.0f}"
        known = np.isfinite(mfu[row]) and np.isfinite(mfu[whose]).any()
        if known:
            note += f": MFU {mfu[row]:.1%}, {np.nanmedian(mfu[whose]):.1%} of those that {word}"
        out.append(note)
    return out


def numbers(table: pd.DataFrame, column: str) -> pd.Series:
    """A column as floats, NaN where it has no value. FLOPs may be integers beyond 64 bits."""
    return table.get(column, pd.Series(np.nan, index=table.index)).astype(float)
