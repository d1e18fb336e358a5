"""A study's report: one page of HTML that needs nothing else, a summary in Markdown, its pictures and its table.

The content is built once, as the sections of a document, which is then rendered in two formats.
"""

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from raytrain.analysis.answer import Answer
from raytrain.analysis.answer import answer as answer_of
from raytrain.analysis.effects import span
from raytrain.analysis.eval_sets import further_losses
from raytrain.analysis.noise import SHARED, SIGNIFICANCE, Noise, pooled
from raytrain.analysis.plateau import PLATEAU
from raytrain.analysis.ranking import UNFINISHED, by_variant, how_it_stopped, numbers, programs, unlike_devices
from raytrain.analysis.trials import BUDGET_TOLERANCE, OWN_ROLES, points
from raytrain.config.run import flat
from raytrain.errors import UserError, unwritable
from raytrain.report import plots
from raytrain.report.document import Block, Code, Folded, Image, Items, Missing, Section, Table, Text, page, summary
from raytrain.report.grid import chosen, grid
from raytrain.report.ladder import at_scale, sizes_section
from raytrain.report.rates import rates_section
from raytrain.rundir.folders import write_whole
from raytrain.sweep.estimate import duration
from raytrain.sweep.factorial import live
from raytrain.sweep.factors import held_fixed, level_text

PICTURES = ("effects", "curves", "interactions", "frontier", "hardware_frontier", "speed")
_DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_MOVED = "\N{NOT EQUAL TO}"
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_SEEDS = (1, 2, 3, 5, 10)
_SEEDS_LISTED = 5  # losses of a variant's seeds before the least and the most stand for them
_REMARKS_LISTED = 5  # of a list of remarks
_LEAST_FACTOR = 1.01  # less is no difference in speed
_GAINS = {"compute_gain": "compute gain", "hardware_gain": "hardware gain"}
_NO_PEAK = "the peak of the device is not known (see --peak_tflops)"


def write_report(folder: str | Path, out: str | Path | None = None, found: Answer | None = None) -> list[Path]:
    """Report on the study in `folder`, ended or not, in `out` (by default its folder `report`); the files written.
    `found` is its answer, if that is known already.

    index.html comes first, then summary.md, table.csv (a row a trial) and each picture as .svg and .png. Raises
    UserError for a folder that holds no study, and an `out` that cannot be written.
    """
    folder = Path(folder)
    answer = found or answer_of(folder)
    parts = sections(answer)
    out = Path(out) if out is not None else folder / "report"
    title = f"Study {answer.study['name']}"
    files = [out / "index.html", out / "summary.md", out / "table.csv"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        texts = page(title, parts), summary(title, parts), answer.table.to_csv(index=False)
        for file, text in zip(files, texts, strict=True):
            write_whole(file, text.encode())
        for image in (block for part in parts for block in part.blocks if isinstance(block, Image)):
            files += image.picture.save(out / image.name)
        before = {
            path for name in PICTURES for form in (".svg", ".png", "_*.svg", "_*.png") for path in out.glob(name + form)
        }
        for picture in before - {*files}:
            picture.unlink(missing_ok=True)  # of an earlier report on less of the study
    except OSError as error:
        raise UserError(unwritable(error, out) or f"out ({out}) cannot be written: {error.strerror}") from None
    return files


def sections(answer: Answer) -> list[Section]:
    """All sections of the report, in order; of a ladder, what compares trials once for each scale."""
    if answer.scales:
        of_scales = [part for own in answer.scales for part in at_scale(own.study["scale"], _of_scale(own))]
        compared = [sizes_section(answer), *of_scales]
    else:
        compared = _compared(answer)
    return [
        Section("answer", "The answer", _answer(answer)),
        Section("question", "The question", _question(answer)),
        *compared,
        Section("outcomes", "Outcomes", _outcomes(answer)),
        Section("cost", "Plan and cost", _cost(answer)),
        Section("reproduce", "Reproduce", _reproduce(answer)),
        Section("method", "How this was computed", _method(answer)),
    ]


def _of_scale(answer: Answer) -> list[Section]:
    return [Section("answer", "The answer", _answer(answer)), *_compared(answer)]


def _compared(answer: Answer) -> list[Section]:
    """The sections that compare trials with one another."""
    table = answer.table.assign(is_baseline=_is_baseline(answer))
    return [
        Section("effects", "Main effects", _main_effects(answer)),
        Section("ranking", "Ranking", _ranking(answer, table)),
        Section("curves", "Learning curves", _curves(answer)),
        Section("interactions", "Interactions", _interactions(answer)),
        *rates_section(answer),
        Section("frontier", "Loss against FLOPs", _frontier(answer, table)),
        Section("speed", "Loss against speed", _speed(table)),
        Section("noise", "Noise floor", _noise(answer)),
    ]


def _question(answer: Answer) -> list[Block]:
    study = answer.study
    counts, levels = study["counts"], study.get("axes") or {}
    budget = f"Each trial may spend {study['budget_flops']:.4g} model FLOPs."
    where = f"scale {study['scale']}? {'Each scale has a budget of its own.' if answer.scales else budget}"
    blocks: list[Block] = [
        Text(
            f"Which choices of the space {study['space']} pay for their compute, against the base {study['base']} at "
            f"{where}"
        )
    ]
    if answer.axes:
        runs = [flat(trial["config"]) for trial in study["trials"]]
        rows = []
        for axis in answer.axes:
            base, seen = answer.baseline[axis], dict.fromkeys(answer.table[axis])
            others = [level_text(axis, level, runs) for level in levels.get(axis, seen) if str(level) != str(base)]
            rows.append([axis, level_text(axis, base, runs), ", ".join(others)])
        blocks.append(Table(["axis", "baseline", "varied to"], rows, texts=(0, 1, 2)))
        fixed = held_fixed(runs, answer.axes)
        blocks.append(Text(f"Alike in all trials: {', '.join(f'{name} {value}' for name, value in fixed.items())}."))
    else:
        blocks.append(Missing("No axis varies: all trials are one variant, so any difference is noise (an A/A study)."))
    sizes = " -> ".join(f"{counts[name]:,}" for name in ("points", "programs", "variants"))
    blocks.append(Text(f"Points -> programs -> variants: {sizes}. {_design(study)} {_scheduler(study)}"))
    return blocks


def _design(study: dict[str, Any]) -> str:
    design = (study.get("plan") or {}).get("design")
    if design is None:
        return "No design chose among them: they were run in a shuffled order."
    efficiency = design.get("d_efficiency")
    more = f", D-efficiency {efficiency:.3f}" if efficiency is not None else ""
    return f"Design: {design['name']}, {design['residual_df']} residual degrees of freedom{more}."


def _scheduler(study: dict[str, Any]) -> str:
    scheduler = study.get("scheduler") or {"name": "none"}
    if scheduler["name"] == "none":
        return "Every trial was to run to its end."
    survivors = zip(scheduler["keep"], scheduler["rungs"], strict=False)
    rungs = ", ".join(f"{keep} after {flops:.3g} FLOPs" for keep, flops in survivors)
    return f"Scheduler: {scheduler['name']}, which continues the best: {rungs}."


def _answer(answer: Answer) -> list[Block]:
    stopped = how_it_stopped(answer.study, answer.table)
    notes: list[Block] = [Missing(stopped)] if stopped else []
    if answer.noise is None and not answer.scales:
        notes.append(Missing(f"No claim of better or worse: {answer.reasons['noise']}."))
    first, *others = answer.told.findings
    limits, known = answer.told.warnings, answer.told.notes
    return [
        *notes,
        Text(first),
        *([Items(others)] if others else []),
        *map(Missing, limits),
        *([Folded("How this is known", [Items(known)])] if known else []),
    ]


def _cost(answer: Answer) -> list[Block]:
    study, table = answer.study, answer.table
    plan = study.get("plan") or {}
    estimate = plan.get("estimate") or {}
    spent, ranks = numbers(table, "train_flops"), numbers(table, "world_size")
    frontier, unfinished = int((table["role"] == "frontier").sum()), int(table["status"].isin(UNFINISHED).sum())
    rows = [
        [
            "trials",
            f"{len(table)}" + f" ({frontier} for the frontier)" * bool(frontier),
            f"{len(table) - unfinished} ended",
        ],
        ["model FLOPs", _text("{:.4g}", plan.get("total_flops")), f"{spent.sum():.4g}"],
    ]
    devices = [str(device) for device in table.get("device", pd.Series(dtype=object)).dropna().unique()]
    kind = "hours of {}, over all ranks" if set(devices) <= {"cpu"} else "GPU-hours of {}"
    share = 3600 * ((study.get("lanes") or {}).get("trials_per_gpu") or 1)
    planned = None
    if "lanes" in estimate and ranks.notna().any():
        planned = estimate["seconds"] * estimate["lanes"] * ranks.mean() / share
    for column, what, guess in (("train_seconds", "training", planned), ("eval_seconds", "evaluation", None)):
        if (seconds := numbers(table, column)).notna().any():
            rows.append([kind.format(what), _text("{:.3g}", guess), f"{(seconds * ranks).sum() / share:.3g}"])
    blocks: list[Block] = [Table(["", "planned", "actual"], rows)]
    if estimate:
        blocks.append(Text(f"The plan's guess: about {duration(estimate['seconds'])} on {estimate['basis']}."))
    else:
        blocks.append(Missing("study.json has no estimate of the time."))
    if unknown := int((spent.isna() & ~table["status"].isin(UNFINISHED)).sum()):
        blocks.append(Missing(f"What {unknown} trials spent before they failed is not known, and not in the sums."))
    if unfinished:
        blocks.append(Missing(f"What {unfinished} trials that have not ended have spent so far is not in the sums."))
    return [*blocks, *([Text(f"Trained on: {', '.join(devices)}.")] if devices else [])]


def _ranking(answer: Answer, table: pd.DataFrame) -> list[Block]:
    table = table[table["role"].isin(OWN_ROLES)]
    entries = by_variant(table)
    ranked = sum(entry["is_ranked"] for entry in entries)
    if not ranked:
        return [Missing("There is no ranking: no trial has ended at the study's budget.")]
    gains = [gain for gain in _GAINS if any(entry[gain] == entry[gain] for entry in entries)]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "rank": lambda entry: _place(entry["rank"]),
        "by hardware FLOPs": lambda entry: _place(entry["hardware_rank"]) + f" {_MOVED}" * bool(entry["rank_note"]),
        "variant": lambda entry: entry["short_name"] + " (baseline)" * bool(entry["is_baseline"]),
        "val_loss": lambda entry: _mean_loss(entry["losses"], answer.noise),
    }
    if "best_learning_rate" in table and table["best_learning_rate"].notna().any():
        columns["best learning rate"] = lambda entry: _text("{:.3g}", entry["best_learning_rate"])
    for gain in gains:
        columns[f"{_GAINS[gain]} (95%)"] = functools.partial(_gain, gain=gain)
    spent = [entry["train_flops"] for entry in entries if entry["train_flops"] == entry["train_flops"]]
    hidden = {"tokens_per_second"} if any(entry["mfu"] == entry["mfu"] for entry in entries) else set()
    hidden |= {"train_flops"} if max(spent) <= min(spent) * (1 + BUDGET_TOLERANCE) else set()
    further = [name.removeprefix("val_loss_") for name in further_losses(table)]
    for name, heading, form in (
        ("val_bpb", "bits/byte", "{:.4f}"),
        *((f"val_loss_{name}", f"val_loss, {name}", "{:.4f}") for name in further),
        *((f"val_bpb_{name}", f"bits/byte, {name}", "{:.4f}") for name in further),
        ("mfu", "MFU", "{:.1%}"),
        ("tokens_per_second", "tokens/s", "{:,.0f}"),
        ("train_flops", "model FLOPs", "{:.4g}"),
    ):
        if name not in hidden and any(entry[name] == entry[name] for entry in entries):
            columns[heading] = functools.partial(
                lambda entry, name, form: _text(form, entry[name]), name=name, form=form
            )
    if any(len(entry["losses"]) > 1 for entry in entries):
        columns["each seed"] = lambda entry: _each(entry["losses"])
    columns["outcome"] = lambda entry: entry["outcomes"]
    rows = [[cell(entry) for cell in columns.values()] for entry in entries]
    kept = frozenset(number for number, entry in enumerate(entries) if entry["is_baseline"])
    marked = frozenset(number for number, entry in enumerate(entries) if entry["rank_note"])
    order = "A tie within the noise shares a rank." if answer.noise else "Without replicates chance may have made it."
    text = f"Variants ranked: {ranked}, best first, by the mean loss bought per model FLOP. {order}"
    if answer.noise:
        text += " Beside each mean is its own 95% interval."
    if answer.paired and SHARED in answer.paired.source:
        text += " Differences are known better than that, as the variants share their seeds."
    words = tuple(number for number, name in enumerate(columns) if name in ("variant", "each seed", "outcome"))
    whole = Table(list(columns), rows, words, kept, marked)
    blocks: list[Block] = [Text(text)]
    if answer.axes:
        first = chosen([entry for entry in entries if entry["is_ranked"]])
        shown = grid(answer, first, [_mean_loss(entry["losses"], answer.noise) for entry in first])
        more = f"The {len(first)} that matter of {ranked}: the best, the baseline and the last. " * (
            len(first) < ranked
        )
        blocks += [
            Text(f"{more}A mark stands where a variant differs from the baseline, whose levels are the headings."),
            shown,
        ]
        blocks.append(Folded(f"All {len(entries)} variants, with every column", [whole]))
    else:
        blocks.append(whole)
    if notes := [f"{entry['short_name']}: {entry['rank_note']}." for entry in entries if entry["rank_note"]]:
        blocks.append(
            Text(f"{_MOVED} marks a variant that changes places with others by hardware FLOPs, where MFU counts:")
        )
        blocks.append(_some(notes))
    elif table["hardware_rank"].isna().all():
        blocks.append(Missing(f"No rank by hardware FLOPs: {answer.reasons.get('hardware_rank', _NO_PEAK)}."))
    if "best learning rate" in columns:
        blocks.append(
            Text(
                "Each variant counts at its own best learning rate: by the runs at the rate nearest to it, with their "
                "losses moved along the variant's curve to that. The losses as trained are trained_loss in table.csv."
            )
        )
    blocks += _lacking(entries)
    blocks.append(Text("Every trial, with all its columns and the reason for each gain that is missing: table.csv."))
    return blocks


def _mean_loss(losses: list[float], noise: Noise | None) -> str:
    if not losses or noise is None:
        return _text("{:.4f}", float(np.mean(losses)) if losses else None)
    return f"{np.mean(losses):.4f} {_PLUS_MINUS}{noise.t * noise.sd / np.sqrt(len(losses)):.4f}"


def _each(losses: list[float]) -> str:
    if len(losses) > _SEEDS_LISTED:
        return f"{min(losses):.4f} to {max(losses):.4f} ({len(losses)} seeds)"
    return ", ".join(f"{loss:.4f}" for loss in losses) or _DASH


def _gain(entry: dict[str, Any], gain: str) -> str:
    if pd.isna(entry[gain]):
        return _DASH
    return f"{entry[gain]:.3f} ({_range(entry[f'{gain}_low'], entry[f'{gain}_high'], '.3f')})"


def _lacking(entries: list[dict[str, Any]]) -> list[Block]:
    """Which variants that came to a loss have no gain, and why: all of them at once, or the first."""
    entries = [entry for entry in entries if entry["losses"]]
    out: dict[str, list[str]] = {}  # by reason
    for gain, name in _GAINS.items():
        lacking = [entry for entry in entries if pd.isna(entry[gain])]
        reasons = [str(entry[f"{gain}_reason"]) for entry in lacking]
        if not lacking:
            continue
        if len(lacking) == len(entries) and len(set(reasons)) == 1:
            out.setdefault(reasons[0], []).append(name)
        else:
            which = f"{name} for {len(lacking)} of {len(entries)} variants, such as {lacking[0]['short_name']}"
            out.setdefault(reasons[0], []).append(which)
    return [Missing(f"No {' and no '.join(names)}: {why}.") for why, names in out.items()]


def _some(items: list[str]) -> Items:
    more = len(items) - _REMARKS_LISTED
    return Items(items if more <= 0 else [*items[:_REMARKS_LISTED], f"and {more} more"])


def _main_effects(answer: Answer) -> list[Block]:
    if answer.effects is None:
        return [Missing(f"No effects: {answer.reasons['effects']}.")]
    table = answer.effects.claims
    main, tested = table[table["other_axis"].isna()], int(table["p_holm"].notna().sum())
    if main["estimate"].isna().all():
        why = "No main effect can be estimated, because the runs differ in several axes at once"
        return [
            Missing(f"{why}; each is given with up to three others that it goes together with."),
            _effect_table(main, tested),
        ]
    caption = (
        "The effect of each level on val_loss against the baseline's level of its axis, averaged over the other axes"
        + ", at own best learning rates" * (answer.tuned is not None)
    )
    if answer.effects.noise is None:
        caption += f", at {answer.effects_flops:.4g} FLOPs. There are no intervals: nothing gives the noise."
    else:
        caption += f", with its 95% interval, at {answer.effects_flops:.4g} FLOPs."
    if main["p_holm"].notna().any():
        caption += " A filled mark is distinguishable from zero after Holm's adjustment."
    else:
        caption += " No claim is made of any, as no variant was completed with two seeds."
    return [Image("effects", caption, plots.effects_picture(table, answer.noise)), _effect_table(main, tested)]


def _effect_table(effects: pd.DataFrame, tested: int) -> Table:
    """`effects` of the `tested` ones that p-values are adjusted for."""
    rows = []
    for row in effects.to_dict("records"):
        is_pair = not pd.isna(row["other_axis"])
        against = f"{row['reference']}, {row['other_reference']}" if is_pair else row["reference"]
        estimate = row["estimate"]
        if np.isnan(estimate):
            alias = row["aliased_with"]
            why = alias if alias.startswith("no run") else f"confounded with {alias}" if alias else "not estimable"
            rows.append([row["effect"], str(against), _DASH, _DASH, _DASH, why])
            continue
        direction = ("better" if estimate < 0 else "worse") + (" together" if is_pair else "")
        doubt = "no claim" if np.isnan(row["p_holm"]) else "not distinguishable from zero"
        if row["p_holm"] >= SIGNIFICANCE and (row["low"] > 0 or row["high"] < 0):
            doubt += f" (adjusted for {tested} effects; alone p = {row['p']:.2g})"
        verdict = direction if row["p_holm"] < SIGNIFICANCE else doubt
        rows.append(
            [
                row["effect"],
                str(against),
                _signed(estimate),
                _range(row["low"], row["high"], "+.4f"),
                "<0.0001" if row["p_holm"] < 1e-4 else _text("{:.2g}", row["p_holm"]),
                verdict,
            ]
        )
    columns = ["effect", "against", "nats", "95% interval", "p (Holm)", "verdict"]
    return Table(columns, rows, texts=(0, 1, 5))


def _interactions(answer: Answer) -> list[Block]:
    if answer.effects is None:
        return [Missing(f"No interactions: {answer.reasons['effects']}.")]
    table = answer.effects.claims
    pairs, tested = table[table["other_axis"].notna()], int(table["p_holm"].notna().sum())
    if pairs.empty:
        return [Missing("No interactions: a single axis varies, or no pair of its levels was run together.")]
    if pairs["estimate"].isna().all():
        return [Missing("No interaction can be estimated: these runs do not vary two axes together in enough ways.")]
    caption = (
        "Interactions in mnats (thousandths of a nat): how much the effect of one level changes with the other, both "
        "against the baseline's."
    )
    if pairs["p_holm"].notna().any():
        caption += " A bold frame is distinguishable from zero after Holm's adjustment."
    order = (pairs["estimate"] / pairs["standard_error"]).abs().fillna(pairs["estimate"].abs())
    strongest = pairs.loc[order.sort_values(ascending=False, kind="stable").index]
    if len(pairs) == 1:
        return [
            Text("One pair of levels was run together: " + _one_interaction(pairs.iloc[0])),
            _effect_table(strongest, tested),
        ]
    return [Image("interactions", caption, plots.interactions_picture(table)), _effect_table(strongest, tested)]


def _one_interaction(row: pd.Series) -> str:
    """What a picture of one cell would show."""
    return (
        f"{row['axis']}={row['level']} changes by {_signed(row['estimate'])} nats with {row['other_axis']}="
        f"{row['other_level']}, against its effect with {row['other_reference']}."
    )


def _curves(answer: Answer) -> list[Block]:
    runs = answer.learning
    if runs is None or runs["loss"].notna().sum() < 2:
        return [Missing("No learning curves: the logs of the best, the baseline and the worst have no steps.")]
    caption = (
        "Training loss of the best variant, the baseline and the worst against the model FLOPs spent, the mean over "
        "their seeds, without the first fifth; crosses are val_loss."
    )
    return [Image("curves", caption, plots.curves_picture(runs))]


def _frontier(answer: Answer, table: pd.DataFrame) -> list[Block]:
    blocks: list[Block] = []
    missing: dict[str, list[str]] = {}  # by reason
    for part, column, unit, frontier in (
        ("frontier", "train_flops", "model FLOPs", answer.frontier),
        ("hardware_frontier", "hardware_flops", "hardware FLOPs", answer.hardware_frontier),
    ):
        shown = table.assign(**{column: numbers(table, column)})
        shown = shown[shown["val_loss"].notna() & shown[column].notna()]
        caption = f"val_loss against {unit}."
        if frontier is not None:
            ends = frontier.interval()
            fitted = {"E": frontier.floor, "A": frontier.scale * frontier.unit**frontier.alpha, "alpha": frontier.alpha}
            values = ", ".join(f"{name} {value:.4g} ({_range(*ends[name])})" for name, value in fitted.items())
            caption += f" The baseline's frontier is E + A FLOPs^-alpha with {values}; it is not extrapolated."
        else:
            missing.setdefault(answer.reasons[part], []).append(f"frontier in {unit}")
            if part == "hardware_frontier":
                continue
            if shown.empty or not shown[column].max() > shown[column].min() * (1 + BUDGET_TOLERANCE):
                missing.setdefault("all trials with a loss spent the same FLOPs", []).append("picture")
                continue
        blocks.append(Image(part, caption, plots.frontier_picture(shown, frontier, column)))
    blocks += [Missing(f"No {' and no '.join(names)}: {why}.") for why, names in missing.items()]
    if len(answer.trends):
        rows = [
            [row["label"], _signed(row["slope"]), _range(row["low"], row["high"], "+.4f"), row["reason"] or ""]
            if row["slope"] is not None and row["slope"] == row["slope"]
            else [row["label"], _DASH, _DASH, row["reason"]]
            for row in answer.trends.to_dict("records")
        ]
        blocks.append(Text("Slope of ln gain against ln FLOPs; below zero the gain shrinks as runs grow:"))
        blocks.append(Table(["variant", "slope", "95% interval", "note"], rows, texts=(0, 3)))
    elif answer.frontier is not None:
        blocks.append(Missing(f"No trend of the gains with the budget: {answer.reasons['trends']}."))
    return blocks


def _speed(table: pd.DataFrame) -> list[Block]:
    table = table[table["role"].isin(OWN_ROLES) & table["val_loss"].notna() & (table["status"] != PLATEAU)]
    entries = pd.DataFrame(by_variant(table))
    blocks: list[Block] = []
    name, what = "mfu", "MFU"
    if numbers(table, name).isna().all():
        name, what = "tokens_per_second", "tokens per second"
        blocks.append(Missing(f"No MFU: {_NO_PEAK}. Tokens per second instead."))
    if numbers(table, name).isna().all():
        return [*blocks, Missing("No picture: no trial with a loss has a speed.")]
    faster = _clear_factor(table, name)
    caption = f"val_loss against {what}, each variant's mean: down and to the right is better."
    if faster is not None:
        caption += (
            " A dashed line joins those that no other beats in both, if they differ in speed beyond the clock's noise."
        )
    if unlike := unlike_devices(table):
        caption += f" But {unlike}, and a speed is theirs as much as the variant's."
    if len(entries) < 2:
        return [*blocks, Missing("No picture: all trials with a loss are one variant.")]
    entries["val_loss"] = entries["losses"].map(np.mean)
    return [*blocks, Image("speed", caption, plots.speed_picture(entries, name, faster))]


def _clear_factor(table: pd.DataFrame, speed: str) -> float | None:
    """By which factor the mean speeds of two variants must differ to be told from the clock's noise (95%); None on CPUs
    without replicates, whose clocks are never quiet."""
    known = table[numbers(table, speed) > 0]
    clock = pooled(np.log(numbers(known, speed)), programs(known))
    if clock is None:
        return None if speed != "mfu" else _LEAST_FACTOR
    runs = float(programs(known).value_counts().median())
    return max(_LEAST_FACTOR, float(np.exp(clock.t * clock.sd * np.sqrt(2 / runs))))


def _noise(answer: Answer) -> list[Block]:
    if answer.noise is None:
        return [
            Missing(
                f"The noise floor is not known: {answer.reasons['noise']}. So no claim of better or worse is made."
            ),
            Text("Run at least the baseline with several seeds: --seeds 3."),
        ]
    noise = answer.paired or answer.noise
    rows = [[f"{seeds}", _text("{:.4f}", noise.t * noise.sd * np.sqrt(2 / seeds))] for seeds in _SEEDS]
    blocks: list[Block] = [Text(f"The sd of val_loss between runs of one variant is {answer.noise.describe()}.")]
    if SHARED in noise.source:
        blocks.append(
            Text(
                "The variants ran on the same seeds, and a part of this is what a seed does to all of them, which no "
                f"difference holds. The rest, on which ranks rest, has an sd of {noise.describe()}."
            )
        )
    blocks += [
        Text("Two variants, compared alone, differ beyond the noise (95%) if their means differ by more than:"),
        Table(["seeds of each", "nats"], rows, texts=()),
    ]
    if answer.effects is not None:
        table = answer.effects.table
        for kind, part in (
            ("Main effects", table[table["other_axis"].isna()]),
            ("Interactions", table[table["other_axis"].notna()]),
        ):
            widths = ((part["high"] - part["low"]) / 2).dropna()
            if len(widths):
                text = f"{kind} are known to {_PLUS_MINUS}{span(widths.min(), widths.max())} nats"
                blocks.append(Text(f"{text}{_promised(answer, part)}."))
        if answer.effects.noise is not None and answer.effects.noise.source != "seeds":
            blocks.append(Text(f"The intervals of effects rest on sd {answer.effects.noise.describe()}."))
    return blocks


def _promised(answer: Answer, effects: pd.DataFrame) -> str:
    """The half-widths of these effects that the plan promised, in nats."""
    design = (answer.study.get("plan") or {}).get("design") or {}
    promised = design.get("half_widths_in_noise_sd") or {}
    known = [promised[name] for name in effects["effect"] if promised.get(name) is not None]
    if not known or answer.effects is None or answer.effects.noise is None:
        return ""
    low, high = (end * answer.effects.noise.sd for end in (min(known), max(known)))
    return f" (the plan promised {low:.4f} to {high:.4f} at this noise)"


def _outcomes(answer: Answer) -> list[Block]:
    table = answer.table
    counts = table["status"].value_counts()
    blocks: list[Block] = [
        Table(["outcome", "trials"], [[str(status), str(count)] for status, count in counts.items()])
    ]
    bad = table[~table["status"].isin(("complete", *UNFINISHED))]
    if bad.empty:
        blocks.append(Text("No trial was stopped, diverged, ran out of memory, failed or was lost."))
    else:
        reasons = bad.get("reason", pd.Series(np.nan, index=bad.index))
        rows = [
            [row["short_name"], str(row["seed"]), row["status"], _reason(row["status"], reason)]
            for row, reason in zip(bad.to_dict("records"), reasons, strict=True)
        ]
        blocks.append(Table(["variant", "seed", "outcome", "reason"], rows, texts=(0, 2, 3)))
    if answer.effects is not None:
        rates = answer.effects.rates[answer.effects.rates["rate"] > 0]
        if len(rates):
            blocks.append(Text("Levels with trials that came to no loss, with the exact 95% interval of the rate:"))
            rows = [
                [
                    f"{row['axis']}={row['level']}",
                    *(str(row[name]) for name in ("diverged", "failed", PLATEAU, "trials")),
                    f"{row['rate']:.0%}",
                    f"{row['low']:.0%} to {row['high']:.0%}",
                ]
                for row in rates.to_dict("records")
            ]
            blocks.append(Table(["level", "diverged", "failed", PLATEAU, "of trials", "rate", "95% interval"], rows))
    return blocks


def _reason(status: str, reason: object) -> str:
    if isinstance(reason, str) and reason:
        return reason
    known = {"stopped": "by its scheduler, at a rung", PLATEAU: "it ended at the loss of the training unigram"}
    return known.get(status, "no reason was recorded")


def _reproduce(answer: Answer) -> list[Block]:
    study, table = answer.study, answer.table
    lines = [f"git checkout {study['git_commit']}"] if study.get("git_commit") else []
    lines += [study["command"]] if study.get("command") else []
    lines.append(shlex.join(["python", "-m", "raytrain.report", study["name"]]))
    blocks: list[Block] = [Code("\n".join(lines))]
    if not study.get("git_commit"):
        blocks.append(Missing("The git commit is not known: the code was not run from a checkout."))
    if not study.get("command"):
        blocks.append(Missing("The command is not known: the study was not started from the command line."))
    rows = [[name, str(version)] for name, version in study["versions"].items() if version is not None]
    rows += [["created", study["created"]]]
    for name, column in (
        ("data fingerprint", "data_fingerprint"),
        ("vocabulary", "vocab_size"),
        ("seeds", "seed"),
        ("device", "device"),
        ("compute dtype", "dtype"),
        ("peak, TFLOP/s", "peak_tflops"),
    ):
        values = sorted({_plain(value) for value in table.get(column, pd.Series(dtype=object)).dropna()})
        rows.append([name, ", ".join(values) or "not known"])
    blocks.append(Table(["", ""], rows, texts=(0, 1)))
    blocks.append(Text("Each trial's whole configuration is in study.json and in its folder's config.json."))
    return blocks


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _method(answer: Answer) -> list[Block]:
    items = [
        "loss per FLOP = (ln vocab_size - val_loss) / (FLOPs / 1e18), in nats per EFLOP. Trials share a budget, so by "
        "model FLOPs this is the order of the losses. Hardware FLOPs are model FLOPs / MFU: what the devices could "
        "have done in the time.",
        "Model FLOPs per token: 3 x the forward matrix products, from the configuration alone; attention not halved "
        "for its mask, the head counted, the embedding's lookup and recomputation not.",
        "Noise: sd^2 = sum over variants of the squared deviations from their mean / sum of (runs - 1), over "
        "variants completed with several seeds at one budget. It is taken to be equal for all; where Bartlett's test "
        "rejects that, the answer states it. Variants that run on the same seeds share a part of it, which each "
        "seed's own offset takes out of their differences, as blocks do in an experiment.",
        "Rank r: r - 1 variants or more are better beyond the noise, by Tukey's studentized range over all variants "
        "(in the form of Kramer), which separates any two equal ones in at most 5% of studies. A winner must beat "
        "every other by the t test of two, which finds one among equals in at most 5% of studies too.",
        "Effects: least squares on the axes and all their pairs. An effect is a difference of means over the space's "
        "points; an interaction is the change of one effect with the other axis's level.",
        "Intervals are 95%, from Student's t; p-values are adjusted by Holm for all effects together, so a study makes "
        "any false claim with a chance of at most 5%.",
        "Frontier: loss = E + A FLOPs^-alpha by variable projection, from the baseline's own runs at three budgets or "
        "more. compute gain = FLOPs at which the frontier reaches a trial's loss / FLOPs that the trial used; the "
        "baseline's is 1. Its interval is a parametric bootstrap over the seeds' noise and the fit, joined with what "
        "the budgets allow whatever the curve's shape, and simultaneous for all variants. Nothing is extrapolated, to "
        "other sizes least of all.",
    ]
    if answer.tuned is not None:
        items.append(
            "Learning rates: for each variant a polynomial in ln rate by least squares, of the least degree from 2 "
            "that the spread over seeds does not contradict, over the rates about the best one; rates at which half "
            "of the runs diverged or stayed on the plateau bound it. The error of a least loss is that of the curve "
            "at its best rate (delta method), with seeds as blocks; the interval of a best rate is Fieller's."
        )
    if answer.scales:
        items.append(
            "Gains by size: the baseline's losses at all scales and budgets are fitted by E + A N^-alpha + B D^-beta "
            "of the size N, in model FLOPs per token, and the tokens D. The gain of a variant of size N is N' / N, "
            "where the baseline needs N' for its loss with the same tokens. Intervals are a parametric bootstrap over "
            "each scale's noise and the fit, simultaneous over variants and scales (Bonferroni); the trend is the "
            "slope of ln gain against ln N."
        )
    if (answer.table["status"] == "stopped").any():
        items.append(
            "Trials stopped at a rung are not ranked with those that ran on. Effects are taken at the last rung that "
            "every trial reached."
        )
    return [Items(items)]


def _is_baseline(answer: Answer) -> pd.Series:
    table = answer.table
    at_base = [point == live(answer.baseline) for point in points(table, answer.axes)] if answer.axes else True
    return pd.Series(at_base, index=table.index) | (table["role"] == "frontier")


def _text(form: str, value: float | None) -> str:
    return _DASH if value is None or value != value else form.format(value)


def _place(value: Any) -> str:
    return _DASH if pd.isna(value) else f"{value:.0f}"


def _signed(value: float) -> str:
    """With a sign as wide as a digit, and no sign where there is nothing."""
    return f"{value:+.4f}".replace("-", _MINUS)


def _range(low: float | None, high: float | None, form: str = ".4g") -> str:
    ends = ["" if end is None or end != end else format(end, form).replace("-", _MINUS) for end in (low, high)]
    if not any(ends):
        return _DASH
    return f"{ends[0]} to {ends[1]}" if all(ends) else f"{ends[0]} or more" if ends[0] else f"{ends[1]} or less"
