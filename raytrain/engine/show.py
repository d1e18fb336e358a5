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

from raytrain import architecture as architectures

# Between two progress tables: at least this, and this part of the time so far, so a long sweep does not fill its log.
_TABLE_SECONDS, _TABLE_PART = 15.0, 0.05

# Columns of Tune's table that are not called as the metric is.
_SHORT = {"tokens_per_second": "tokens/s", "memory_gb": "GB"}

# Columns of the ranking, those that any trial has: metric, heading, form.
_RANKING = (
    ("rank", "rank", "{}"),
    ("label", "trial", "{}"),
    ("seed", "seed", "{}"),
    ("val_loss", "val_loss", "{:.4f}"),
    ("val_bpb", "val_bpb", "{:.4f}"),
    ("train_flops", "FLOPs", "{:.4g}"),
    ("loss_per_flop", "nats/EFLOP", "{:.4g}"),
    ("loss_per_hardware_flop", "nats/hardware EFLOP", "{:.4g}"),
    ("mfu", "MFU", "{:.1%}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("memory_peak_gb", "peak GB", "{:.2f}"),
    ("train_seconds", "seconds", "{:.1f}"),
    ("status", "status", "{}"),
    ("reason", "reason", "{}"),
)


class Progress(tune.CLIReporter):
    """Tune's progress table, on stdout or stderr. It names the stream, since Tune pickles it and a stream cannot be."""

    def __init__(self, *, to_stderr: bool) -> None:
        columns = ("train_loss", "val_loss", "train_flops", "mfu")
        super().__init__(
            metric_columns={"outcome": "outcome", **{name: name for name in columns}, **_SHORT},
            parameter_columns={"trial/seed": "seed"},
            print_intermediate_tables=True,
            max_progress_rows=16,
            max_column_length=40,
        )
        self._to_stderr = to_stderr
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
        lines = [line for line in text.splitlines() if line and not line.startswith("Result logdir")]  # a temporary one
        print(*lines, sep="\n", end="\n\n", file=sys.stderr if self._to_stderr else sys.stdout, flush=True)


def ranking_table(table: pd.DataFrame) -> rich.table.Table:
    """The trials of a study, as `analysis.ranking.rank` orders them."""
    shown = rich.table.Table(
        title="Loss bought per model FLOP, best first", title_justify="left", box=rich.box.SIMPLE_HEAD
    )
    columns = [column for column in _RANKING if column[0] in table and table[column[0]].notna().any()]
    for metric, heading, _ in columns:
        is_text = metric in ("label", "status", "reason")
        shown.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in table.to_dict("records"):
        texts = ("" if pd.isna(row[metric]) else form.format(row[metric]) for metric, _, form in columns)
        shown.add_row(*map(rich.markup.escape, texts))
    return shown


def short_name(planned: dict[str, Any]) -> str:
    """What a trial is called in a table: its label, or its architecture without the size if that is too long."""
    label, architecture = str(planned["label"]), architectures.from_dict(planned["config"]["architecture"])
    return label if len(label) <= 28 else f"{architecture.name.split('-', 3)[3]}-{planned['hash'][:6]}"
