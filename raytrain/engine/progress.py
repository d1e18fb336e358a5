"""What is shown of a study: how far it is while it runs, and the ranking at the end."""

import math
import time
from typing import Any

import pandas as pd
import rich.box
import rich.console
import rich.markup
import rich.table
from ray import tune

from raytrain.analysis.eval_sets import further_losses
from raytrain.analysis.noise import Noise
from raytrain.analysis.ranking import budget_noise, by_name
from raytrain.analysis.tuned import TUNING
from raytrain.engine.view import Running, View
from raytrain.sweep.schedule import Schedule
from raytrain.tables import fit

# Columns that a narrow terminal can do without, the first goes first.
_DISPENSABLE = (
    *(
        "GB",
        "s",
        "tokens/s",
        "hw EFLOP",
        "FLOPs",
        "MFU",
        "nats/EFLOP",
        "by hw",
        "outcome",
        "gain (95%)",
        "seeds",
        "+-95%",
    ),
)

# Columns of the ranking, those that any variant has: metric, heading, form.
_RANKING = (
    ("rank", "rank", "{:.0f}"),
    ("hardware_rank", "by hw", "{:.0f}"),
    ("short_name", "variant", "{}"),
    ("seeds", "seeds", "{:.0f}"),
    ("val_loss", "val_loss", "{:.4f}"),
    ("margin", "+-95%", "{:.4f}"),
    ("train_flops", "FLOPs", "{:.3g}"),
    ("loss_per_flop", "nats/EFLOP", "{:.4g}"),
    ("loss_per_hardware_flop", "hw EFLOP", "{:.4g}"),
    ("compute_gain", "gain (95%)", "{}"),
    ("mfu", "MFU", "{:.1%}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("memory_peak_gb", "GB", "{:.1f}"),
    ("train_seconds", "s", "{:.1f}"),
    ("outcomes", "outcome", "{}"),
)
_WORD = 40  # columns
_LOSSES = 6  # of these come before the losses on further validation sets


class Progress(tune.ProgressReporter):
    """Feeds the view of a study from Tune's trials, the segments; the `schedule` of the study knows how many of its
    trials have ended. `budget` is the model FLOPs of a trial."""

    def __init__(self, schedule: Schedule, budget: float, *, to_stderr: bool) -> None:
        self._schedule, self._view = schedule, View(budget, to_stderr=to_stderr)
        self._began = time.monotonic()

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Tune gives what its own tables need."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        return self._view.is_due(time.monotonic() - self._began) or done

    def report(self, trials: list[Any], done: bool, *sys_info: str) -> None:
        for trial in trials:
            loss, planned = trial.last_result.get("val_loss"), trial.config["trial"]
            if trial.last_result.get("outcome") == "complete" and planned["is_ranked"] and loss is not None:
                self._view.note_complete(planned["name"], loss)
        running = [
            Running(trial.config["trial"]["name"], trial.config["trial"]["seed"], trial.last_result)
            for trial in trials
            if trial.status == "RUNNING" and not trial.last_result.get("is_over")
        ]
        self._view.draw(self._view.lines(self._schedule, running, time.monotonic() - self._began), done=done)


def ranking_table(table: pd.DataFrame, console: rich.console.Console) -> rich.table.Table:
    """The variants of a study, as `analysis.ranking.rank` orders their trials, with the gains of `analysis.answer` if
    it has any, in as many columns as `console` has room for: means over seeds, with the 95% interval of val_loss.

    Variants that share a rank do not differ beyond the noise; without replicates, the title warns that chance may have
    made the order. One with another place by hardware FLOPs has a bold row and a star. The reasons of failed trials
    are below.
    """
    scale = table.get("scale", pd.Series("", index=table.index))
    noises = {name: budget_noise(own) for name, own in table.groupby(scale)}
    variants = by_name(table[table["role"] != TUNING])
    entries = pd.DataFrame([_shown(entry, noises[entry.get("scale", "")]) for entry in variants])
    moved = entries.get("rank_note", pd.Series("", index=entries.index)) != ""
    below = ["* by hardware FLOPs, where MFU counts, the order is another"] if moved.any() else []
    failed = table[table["reason"].notna()] if "reason" in table else table[:0]
    below += dict.fromkeys(f"{row['short_name']} {row['status']}: {row['reason']}" for row in failed.to_dict("records"))
    note = "a shared rank: no difference beyond the noise"
    if None in noises.values():
        note = "no variant has two seeds: chance may have made this order"
    shown = rich.table.Table(
        title=f"Loss bought per model FLOP, best first ({note})",
        caption=rich.markup.escape("\n".join(below)) or None,
        title_justify="left",
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    known = [*_RANKING[:_LOSSES], *((name, name, "{:.4f}") for name in further_losses(table)), *_RANKING[_LOSSES:]]
    columns = [column for column in known if column[0] in entries and entries[column[0]].notna().any()]
    if "scale" in table and table["scale"].nunique() > 1:  # each has ranks of its own
        columns.insert(0, ("scale", "scale", "{}"))
    for metric, heading, _ in columns:
        is_text = metric in ("short_name", "outcomes")
        words = " ".join(entries[metric]).split() if is_text else []
        longest = min(_WORD, max(map(len, words), default=0)) if is_text else None  # shorter words are not cut to fit
        shown.add_column(
            heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold", min_width=longest
        )
    for row, is_moved in zip(entries.to_dict("records"), moved, strict=True):
        texts = [_text(row, metric, form) for metric, _, form in columns]
        if is_moved:
            place = [metric for metric, _, _ in columns].index("hardware_rank")
            texts[place] = "*" + texts[place]
        shown.add_row(*map(rich.markup.escape, texts), style="bold yellow" if is_moved else None)
    return fit(shown, console, _DISPENSABLE)


def _shown(entry: dict[str, Any], noise: Noise | None) -> dict[str, Any]:
    """`entry` with its number of `seeds` and the 95% `margin` of its mean loss, where the `noise` is known."""
    count = len(entry["losses"])
    if noise is None or not count:
        return entry | {"seeds": None, "margin": None}
    return entry | {"seeds": count, "margin": noise.t * noise.sd / math.sqrt(count) if entry["is_ranked"] else None}


def _text(row: dict[Any, Any], metric: str, form: str) -> str:
    if pd.isna(row[metric]) or (metric.startswith("loss_per") and not row["budget_ok"]):
        return ""  # of another budget, a ratio shows only who stopped first
    if metric == "compute_gain":
        low, high = (row[f"compute_gain_{end}"] for end in ("low", "high"))
        return f"{row[metric]:.3f} ({low:.3f}-{'' if pd.isna(high) else f'{high:.3f}'})"
    return form.format(row[metric])
