"""What is shown of a study: Tune's progress table while it runs, and the ranking at the end."""

import contextlib
import io
import sys
import time
from typing import Any

import pandas as pd
import rich.box
import rich.markup
import rich.table
from ray import tune

from raytrain.analysis.eval_sets import further_losses
from raytrain.analysis.ranking import budget_noise
from raytrain.analysis.ranking import short_name as short_name  # what the ranking and Tune's table both call a trial
from raytrain.sweep.schedule import Schedule

# Between two progress tables: at least this, and this part of the time so far, so a long sweep does not fill its log.
_TABLE_SECONDS, _TABLE_PART = 15.0, 0.05

# Columns of Tune's table that are not called as the metric is.
_SHORT = {"tokens_per_second": "tokens/s", "memory_gb": "GB"}

# Columns of the ranking, those that any trial has: metric, heading, form.
_RANKING = (
    ("rank", "rank", "{}"),
    ("hardware_rank", "by hw", "{}"),
    ("short_name", "trial", "{}"),
    ("seed", "seed", "{}"),
    ("val_loss", "val_loss", "{:.4f}"),
    ("train_flops", "FLOPs", "{:.3g}"),
    ("loss_per_flop", "nats/EFLOP", "{:.4g}"),
    ("loss_per_hardware_flop", "hw EFLOP", "{:.4g}"),
    ("compute_gain", "gain (95%)", "{}"),
    ("mfu", "MFU", "{:.1%}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("memory_peak_gb", "GB", "{:.1f}"),
    ("train_seconds", "s", "{:.1f}"),
    ("status", "status", "{}"),
)


class Progress(tune.CLIReporter):
    """Tune's progress table, on stdout or stderr. It names the stream, since Tune pickles it and a stream cannot be.

    Tune counts its own trials, the segments; its `schedule` knows how many trials of the study have ended.
    """

    def __init__(self, schedule: Schedule, *, to_stderr: bool) -> None:
        columns = ("train_loss", "val_loss", "train_flops", "mfu")
        super().__init__(
            metric_columns={"outcome": "outcome", **{name: name for name in columns}, **_SHORT},
            parameter_columns={"trial/seed": "seed"},
            print_intermediate_tables=True,
            max_progress_rows=16,
            max_column_length=40,
        )
        self._schedule, self._to_stderr = schedule, to_stderr
        self._began = self._shown = time.monotonic()

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        now = time.monotonic()
        is_due = now - self._shown >= max(_TABLE_SECONDS, _TABLE_PART * (now - self._began))
        if is_due:
            self._shown = now
        return done or is_due

    def report(self, trials: list[Any], done: bool, *sys_info: str) -> None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            super().report(trials, done)
        text = printed.getvalue().partition("Number of errored trials")[0]  # reasons are in the ranking
        left_out = ("Number of trials", "Result logdir")
        lines = [line for line in text.splitlines() if line and not line.startswith(left_out)]
        lines.insert(2, self._schedule.progress)
        print(*lines, sep="\n", end="\n\n", file=sys.stderr if self._to_stderr else sys.stdout, flush=True)


def ranking_table(table: pd.DataFrame) -> rich.table.Table:
    """The trials of a study, as `analysis.ranking.rank` orders them, with the gains of `analysis.answer` if it has any.

    Trials that share a rank do not differ beyond the noise; without replicates, the title warns that chance may have
    made the order. A trial with another place by hardware FLOPs has a bold row and a star. The reasons of
    failed trials are below.
    """
    moved = table.get("rank_note", pd.Series("", index=table.index)) != ""
    below = ["* by hardware FLOPs, where MFU counts, the order is another"] if moved.any() else []
    failed = table[table["reason"].notna()] if "reason" in table else table[:0]
    below += [f"{row['short_name']} {row['status']}: {row['reason']}" for row in failed.to_dict("records")]
    note = "a shared rank: no difference beyond the noise"
    if budget_noise(table) is None:
        note = "no variant has two seeds: chance may have made this order"
    shown = rich.table.Table(
        title=f"Loss bought per model FLOP, best first ({note})",
        caption=rich.markup.escape("\n".join(below)) or None,
        title_justify="left",
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    known = [*_RANKING[:5], *((name, name, "{:.4f}") for name in further_losses(table)), *_RANKING[5:]]
    columns = [column for column in known if column[0] in table and table[column[0]].notna().any()]
    for metric, heading, _ in columns:
        shown.add_column(heading, justify="left" if metric in ("short_name", "status") else "right", no_wrap=True)
    for row, is_moved in zip(table.to_dict("records"), moved, strict=True):
        texts = [_text(row, metric, form) for metric, _, form in columns]
        if is_moved:
            place = [metric for metric, _, _ in columns].index("hardware_rank")
            texts[place] = "*" + texts[place]
        shown.add_row(*map(rich.markup.escape, texts), style="bold yellow" if is_moved else None)
    return shown


def _text(row: dict[Any, Any], metric: str, form: str) -> str:
    if pd.isna(row[metric]) or (metric.startswith("loss_per") and not row["budget_ok"]):
        return ""  # of another budget, a ratio shows only who stopped first
    if metric == "compute_gain":
        low, high = (row[f"compute_gain_{end}"] for end in ("low", "high"))
        return f"{row[metric]:.3f} ({low:.3f}-{'' if pd.isna(high) else f'{high:.3f}'})"
    return form.format(row[metric])
