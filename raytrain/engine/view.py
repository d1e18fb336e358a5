"""How far a study is: a short line now and then; on a terminal a view with a line for each lane, drawn in place.

The driver feeds it from what Tune has of its trials (`raytrain.engine.progress`), and `raytrain.watch` from a study's
folder (`raytrain.engine.watching`). No ray.
"""

import dataclasses
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from raytrain.analysis.ranking import short_name
from raytrain.sweep.schedule import Schedule
from raytrain.sweep.trial import AssignedTrial

VIEW_SECONDS = 1.0  # between two views on a terminal
# Between two lines: at least this, and this part of the time so far, so that a long sweep does not fill its log.
_LINE_SECONDS, _LINE_PART = 15.0, 0.05
_LEAST_PART = 0.02  # of the study, before the time left is estimated

# What the view shows of a trial that runs.
_LANE = (("train_loss", "loss {:.4f}"), ("tokens_per_second", "{:,.0f} tokens/s"), ("mfu", "MFU {:.1%}"))


@dataclasses.dataclass(frozen=True)
class Running:
    """A trial on a lane. `newest` are its metrics as `engine.job.newest` names them; empty before its first report."""

    name: str
    seed: int
    newest: Mapping[str, Any]


def shown_name(trial: AssignedTrial, rung: int | None) -> str:
    """What a trial is called while it trains for `rung`, or to its end (None)."""
    return short_name(trial.to_dict()) + (f"-rung{rung}" if rung is not None else "")


class View:
    """Draws on stdout, or stderr: it names the stream, since Tune pickles it and a stream cannot be.

    `budget` is the model FLOPs of a trial. All times are seconds since the driver began.
    """

    def __init__(self, budget: float, *, to_stderr: bool = False) -> None:
        self._budget, self._to_stderr = budget, to_stderr
        self._shown = 0.0
        self._best: tuple[float, str] | None = None
        self._drawn = 0  # lines of the view on the screen

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self._to_stderr else sys.stdout

    def is_due(self, spent: float) -> bool:
        """Whether the time has come to draw again, as the caller then does."""
        every = VIEW_SECONDS if self._stream.isatty() else max(_LINE_SECONDS, _LINE_PART * spent)
        is_due = spent - self._shown >= every
        if is_due:
            self._shown = spent
        return is_due

    def note_complete(self, name: str, loss: float) -> None:
        """A trial that is ranked has completed, with this val_loss."""
        self._best = min(self._best or (math.inf, ""), (loss, name))

    def lines(self, schedule: Schedule, running: Sequence[Running], spent: float) -> list[str]:
        """The state of the study, then a line for each trial that runs."""
        return [self._summary(schedule, running, spent), *map(self._lane, running)]

    def draw(self, lines: Sequence[str], *, done: bool) -> None:
        """Show `lines` in the place of those before; the first alone, below them, where there is no terminal."""
        if not self._stream.isatty():
            print(lines[0], file=self._stream, flush=True)
            return
        width = shutil.get_terminal_size().columns - 1
        back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        print(back + "\n".join(line[:width] for line in lines), file=self._stream, flush=True)
        self._drawn = 0 if done else len(lines)

    def _summary(self, schedule: Schedule, running: Sequence[Running], spent: float) -> str:
        done = schedule.part_ended + sum(map(self._part, running)) / len(schedule)
        left = f"; about {clock(spent * (1 - done) / done)} left" if done >= _LEAST_PART and running else ""
        best = f"; best val_loss {self._best[0]:.4f} ({self._best[1]})" if self._best else ""
        return f"{clock(spent)}  {schedule.progress}{left}{best}"

    def _part(self, trial: Running) -> float:
        """Of the budget, what the trial has spent."""
        return min(1.0, float(trial.newest.get("train_flops", 0)) / self._budget)

    def _lane(self, trial: Running) -> str:
        known = [(name, form) for name, form in _LANE if trial.newest.get(name) is not None]
        figures = "  ".join(form.format(trial.newest[name]) for name, form in known)
        return f"  {self._part(trial):4.0%}  {figures}  {trial.name} seed {trial.seed}"


def clock(seconds: float) -> str:
    """`seconds` as 1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
