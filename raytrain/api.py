"""Sweeps from Python: `raytrain.run`, `resume` and `load`, and the `Study` that each returns."""

from pathlib import Path
from typing import Any

import pandas as pd

from raytrain.analysis.answer import Answer, answer
from raytrain.analysis.ranking import UNFINISHED, by_variant, rank, read_study
from raytrain.engine.limit import read_time_limit
from raytrain.errors import UserError
from raytrain.interrupts import TIMED_OUT, held
from raytrain.report.plots import Picture, effects_picture
from raytrain.report.sections import write_report
from raytrain.rundir.folders import find_study, read_study_json
from raytrain.sweep.plan import Plan


def run(
    plan: Plan,
    *,
    name: str | None = None,
    runs: str | Path = "runs",
    tracking_uri: str | None = None,
    storage: str | None = None,
    keep_models: str = "best",
    experiment: str | None = None,
    time_limit: str | float | None = None,
) -> "Study":
    """Run `plan` to its end on this machine, or on the Ray cluster of RAY_ADDRESS, and return the study.

    It prints progress and the ranking, as `python -m raytrain.tune` does. A trial that fails does not raise: its row of
    `Study.trials` has its status and the reason.

    Args:
        plan: as `raytrain.plan` makes it.
        name: of the study's folder in `runs`; None: the space and the time.
        runs: where studies are kept; in a Ray job, from the home folder of the head node.
        tracking_uri: MLflow's; None: $MLFLOW_TRACKING_URI, or mlflow.db in `runs`.
        storage: folder or URI (s3://...) for checkpoints, which all nodes reach; None: the study's folder.
        keep_models: final weights to keep: none, best (of rank 1 and the baseline) or all.
        experiment: MLflow's, for studies of one question; None: the space's name.
        time_limit: seconds, or text such as "90m" or "4h", after which the study ends in good order, with a report on
            what there is, for `resume` to go on; None: no limit.

    Raises UserError, one line, if the name is taken or no trial fits on the cluster; and KeyboardInterrupt once an
    interrupted study is in order, which `resume` continues.
    """
    with held():
        from raytrain.engine.place import home, study_name  # Ray takes seconds to import
        from raytrain.engine.study import run_study

    name = name or study_name(plan)
    code = run_study(
        plan,
        name=name,
        runs=Path(runs),
        tracking_uri=tracking_uri,
        storage=storage,
        keep_models=keep_models,
        experiment=experiment,
        time_limit=read_time_limit(time_limit),
    )
    return _ended(code, home(Path(runs)) / name)


def resume(
    study: "str | Path | Study",
    *,
    runs: str | Path = "runs",
    tracking_uri: str | None = None,
    concurrent: int | None = None,
    follow_up: bool = False,
    time_limit: str | float | None = None,
) -> "Study":
    """Continue a study as it was planned, whatever ended it. Trials that have ended are not run again.

    `study` is its name in `runs`, its folder, or a `Study`; `concurrent` the most trials at a time here; the rest is as
    for `run`. With `follow_up` a study that is over runs what settles whether the three axes that it suspects act
    together. Raises UserError if there is no such study, nothing to follow up, or another process runs it; and
    KeyboardInterrupt as `run`.
    """
    with held():
        from raytrain.engine.place import home
        from raytrain.engine.study import resume_study

    folder = study.folder if isinstance(study, Study) else find_study(study, home(Path(runs)), "study")
    place = str(folder.absolute())
    code = resume_study(
        place,
        runs=Path(runs),
        tracking_uri=tracking_uri,
        concurrent=concurrent,
        follow_up=follow_up,
        time_limit=read_time_limit(time_limit),
    )
    return _ended(code, folder)


def load(study: str | Path, *, runs: str | Path = "runs") -> "Study":
    """The study of that name in `runs`, or in that folder. Raises UserError if there is none."""
    return Study(find_study(study, Path(runs)))


def _ended(code: int, folder: Path) -> "Study":
    if code not in (0, 1, TIMED_OUT):  # 1: no trial has a loss; others are of signals
        raise KeyboardInterrupt
    return Study(folder)


class Study:
    """A study in its folder, whether its trials run, have ended, or wait to be resumed.

    Every attribute and method reads the folder anew, so a study that still runs can be looked at from another process.
    Each raises UserError, one line, for a file that cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        """`folder` is the study's own; `raytrain.load` finds one by its name."""
        self.folder = Path(folder).absolute()
        read_study_json(self.folder)

    @property
    def name(self) -> str:
        """The name of its folder, which `resume` takes."""
        return self.folder.name

    @property
    def record(self) -> dict[str, Any]:
        """study.json: the plan and its trials, the command, the commit and the versions."""
        return read_study_json(self.folder)

    @property
    def is_over(self) -> bool:
        """Whether every trial has ended."""
        return not self._table["status"].isin(UNFINISHED).any()

    @property
    def trials(self) -> pd.DataFrame:
        """A row a trial, best first; those without a rank follow, and those without a loss come last.

        - `trial` (its id and its folder's name), `label`, `short_name`, `name` (the architecture's), `hash`, `seed`
        - `status`: waiting, running, interrupted, complete, stopped (at a rung), diverged, failed, oom, lost; `reason`
        - `role`: "frontier" for the base's runs at other budgets, else ""
        - a column for each axis, size and field of the run's recipe, by its name in `Architecture` and `TrainConfig`
        - `val_loss` (nats per token), `val_bpb` (bits per byte), `train_flops` and `budget_flops` (model FLOPs),
          `hardware_flops`, `mfu` (0 to 1), `tokens_per_second`, `train_seconds`, `memory_peak_gb` (1e9 bytes)
        - `loss_per_flop` and `loss_per_hardware_flop` (nats per EFLOP), `budget_ok`, `rank`, `hardware_rank`,
          `rank_note`: see `raytrain.analysis.ranking`

        A metric that no trial has yet has no column.
        """
        return self._table

    @property
    def _table(self) -> pd.DataFrame:
        return rank(read_study(self.folder))

    def answer(self) -> Answer:
        """The whole answer: `sentences` in words, and the parts that they rest on, with a reason for each that is
        missing (`reasons`)."""
        return answer(self.folder)

    def ranking(self) -> pd.DataFrame:
        """A row a variant (a distinct model with one recipe), best first: the mean of its ranked seeds. The scales of a
        ladder, in the column `scale`, follow one another, with ranks of their own.

        - `rank` by model FLOPs and `hardware_rank` by hardware FLOPs, shared within the noise; `rank_note`
        - `label`, `short_name`, `hash`, `is_ranked`, `outcomes` (such as "2 complete, 1 diverged")
        - `losses`: the val_loss of each seed; `val_loss`, `loss_per_flop` and the other metrics: their mean
        - `compute_gain` and `hardware_gain` (1.0 is the baseline), each with `_low` and `_high` (95%), NaN where there
          is none, and then a `_reason`
        """
        table = answer(self.folder).table
        return pd.DataFrame(by_variant(table[table["role"] != "frontier"]))

    def effects(self) -> pd.DataFrame:
        """A row for each effect of a level on val_loss against the baseline's level, and for each interaction.

        - `effect` (its name), `axis`, `level`, `reference`; of an interaction also `other_axis`, `other_level`,
          `other_reference`
        - `estimate` (nats per token: below zero is better), `standard_error`, `low` and `high` (95%)
        - `p`, and `p_holm`, adjusted for all effects together; NaN where no variant has two seeds
        - `aliased_with`: what the effect is confounded with, and then it has no estimate

        Those of a ladder are for each `scale`, a column of theirs. Raises UserError with the reason if the study has
        none yet, such as fewer than two trials with a loss.
        """
        answered = answer(self.folder)
        if not answered.scales:
            return self._effects(answered)
        by_scale = [self._effects(own).assign(scale=own.study["scale"]) for own in answered.scales]
        return pd.concat(by_scale, ignore_index=True)

    def plot_effects(self) -> Picture:
        """The main effects with their 95% intervals: a forest plot, which a notebook shows; `.save(path)` writes it as
        SVG and PNG; of a ladder at its largest scale. Raises UserError as `effects` does."""
        answered = answer(self.folder)
        return effects_picture(self._effects(answered), answered.noise)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report, as `python -m raytrain.report` does, and return its index.html. `out` is its folder, by
        default `report` in the study's. Raises UserError if that cannot be written."""
        return write_report(self.folder, out)[0]

    def __repr__(self) -> str:
        counts = self._table["status"].value_counts()
        states = ", ".join(f"{count} {status}" for status, count in counts.items())
        return f"Study({str(self.folder)!r}: {counts.sum()} trials, {states})"

    @staticmethod
    def _effects(answered: Answer) -> pd.DataFrame:
        if answered.effects is None:
            raise UserError(answered.reasons["effects"])
        return answered.effects.claims
