"""The models of a study: where the final weights of its trials go, and which are kept (`--keep_models`).

A trial that completes writes its weights, and the driver deletes those that are not wanted:

    none   no trial writes any
    best   while the study runs, the best seed of each of a few leading variants and of the baseline stays, since seeds
           and stages to come may change the order; at its end the best of rank 1, and of the baseline
    all    all stay

What is kept follows from results and from what is there, so a driver that takes the study up needs no record of it.
Trials that keep checkpoints have their final weights among those, and write none.
"""

import contextlib
import dataclasses
import math
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import rich.console

from raytrain.analysis.trials import axes_of
from raytrain.config.run import flat
from raytrain.engine.job import Report
from raytrain.errors import UserError
from raytrain.rundir.folders import read_study_json, write_json
from raytrain.rundir.run import RunFolder
from raytrain.sweep.factorial import live
from raytrain.sweep.ladder import by_scale
from raytrain.sweep.trial import AssignedTrial, without_seed
from raytrain.sweep.tuning import suffix
from raytrain.training.storage import WEIGHTS, open_storage
from raytrain.uris import is_uri, joined, reopened, shown, stored

KEEP = ("none", "best", "all")
_SHOWN = 4  # lines at a study's end
LEADING = 4  # of each scale, settings whose best seed stays while the study runs


@dataclasses.dataclass(frozen=True)
class Model:
    """A completed trial with weights: its scale, its variant, whether that is the baseline, and its val_loss.

    Trials of one `setting` differ in their seed alone; those of a variant also in what is tuned.
    """

    scale: str
    variant: str
    setting: str
    is_base: bool
    loss: float

    @property
    def key(self) -> tuple[str, str]:
        return self.scale, self.variant


def leading(models: Mapping[str, Model], held: Iterable[str]) -> set[str]:
    """Of the trials whose weights are `held`, those that may turn out to be the best of rank 1 or of the baseline.

    `models` are all that ever were: the mean of a setting is taken over its seeds without weights too.
    """
    kept = set()
    for scale in {model.scale for model in models.values()}:
        losses: dict[str, list[float]] = {}
        for model in models.values():
            if model.scale == scale:
                losses.setdefault(model.setting, []).append(model.loss)
        by_mean = sorted(losses, key=lambda setting: (statistics.fmean(losses[setting]), setting))
        for setting in losses:
            there = [trial for trial in held if models[trial].setting == setting and models[trial].scale == scale]
            if there and (setting in by_mean[:LEADING] or models[there[0]].is_base):
                kept.add(min(there, key=lambda trial: (models[trial].loss, trial)))
    return kept


class Models:
    """The models of `study` (study.json), which is in `folder`. `storage` is the study's own, with its secrets."""

    def __init__(self, folder: Path, study: Mapping[str, Any], storage: str | None = None) -> None:
        settings = study.get("models") or {"keep": "none"}
        self._keep: str = settings["keep"]
        self._place = settings.get("storage") or str(folder / "trials")
        self._folder, self._storage = folder, storage
        self._found: dict[str, Model] = {}  # all completed trials that wrote weights: means are theirs
        self._held: set[str] = set()  # those whose weights are there
        self._baselines: dict[str, tuple[Sequence[str], dict[str, object]]] = {}
        if self._keep != "none":
            self._baselines = {own["scale"]: _baseline(own) for own in by_scale(dict(study))}
            for trial in study["trials"]:
                self._find(AssignedTrial.from_dict(trial), folder)

    def _find(self, trial: AssignedTrial, folder: Path) -> None:
        """Take up the weights of `trial`, if it wrote some and they are there."""
        run = RunFolder(folder / "trials" / trial.id)
        if run.has_ended and run.result.get("weights"):
            self._note(trial, run.result)
            with contextlib.suppress(OSError, UserError):
                if open_storage(self._opened(trial.id), WEIGHTS).names():
                    self._held.add(trial.id)

    def place(self, trial: AssignedTrial) -> str | None:
        """Where `trial` writes its final weights: a path, or an address without secrets; None if it writes none."""
        wanted = self._keep == "all" or (self._keep == "best" and trial.role != "frontier")
        return joined(self._place, trial.id) if wanted and trial.config.checkpoint_interval is None else None

    def ended(self, trial: AssignedTrial, result: Report) -> None:
        """Take in that `trial` has ended, and delete the weights that are certain not to be wanted."""
        if result.get("weights"):
            self._note(trial, result)
            self._held.add(trial.id)
            if self._keep == "best":
                self._delete(self._held - leading(self._found, self._held))

    def settle(self, table: pd.DataFrame, trials: Mapping[str, AssignedTrial], console: rich.console.Console) -> None:
        """The study is over, with this `table` of all its `trials`, best first: keep what is to be kept.

        study.json gets it, and `console` how to use it.
        """
        if self._keep == "none":
            return
        kept = self._keep_best(_ranks(table, trials))
        study = read_study_json(self._folder)
        write_json(self._folder / "study.json", study | {"models": study["models"] | {"kept": kept}})
        for trial, what in list(kept.items())[:_SHOWN]:
            path = shlex.quote(str(self._folder / "trials" / trial))
            console.print(f"model       {what}: python -m raytrain.generate {path}", markup=False)
        for reason in self._reasons(table, trials):
            console.print(f"model       not kept: {reason}", markup=False)

    def _keep_best(self, ranks: Mapping[tuple[str, str], str]) -> dict[str, str]:
        """What each model that stays is, by trial, such as "rank 1, baseline"; of `ranks`, best first, by variant."""
        places = {variant: place for place, variant in enumerate(ranks)}  # those without a rank go by their loss
        models = [(trial, self._found[trial]) for trial in self._held]
        models.sort(key=lambda item: (places.get(item[1].key, len(places)), item[1].loss, item[0]))
        if self._keep == "best":
            chosen: dict[tuple[str, bool], str] = {}
            for trial, model in models:
                chosen.setdefault((model.scale, False), trial)
                if model.is_base:
                    chosen.setdefault((model.scale, True), trial)
            self._delete(self._held - set(chosen.values()))
        several = len({model.scale for _, model in models}) > 1
        words = {
            trial: (several * model.scale, ranks.get(model.key, "no rank"), model.is_base * "baseline")
            for trial, model in models
            if trial in self._held
        }
        return {trial: ", ".join(filter(None, parts)) for trial, parts in words.items()}

    def _reasons(self, table: pd.DataFrame, trials: Mapping[str, AssignedTrial]) -> list[str]:
        """Why trials that completed have left no weights, if any."""
        reasons, unseen = [], 0
        for row in table[table["status"] == "complete"].to_dict("records"):
            if self.place(trials[row["trial"]]) is None or isinstance(row.get("weights"), str):
                continue
            if isinstance(row.get("weights_lost"), str):
                reasons.append(row["weights_lost"])
            else:
                unseen += 1
        if unseen:
            nodes = f"{unseen} trials ran where {shown(self._place)} is not reached; --storage takes a place that is"
            reasons.append(nodes)
        return list(dict.fromkeys(reasons))[:_SHOWN]

    def _note(self, trial: AssignedTrial, result: Report) -> None:
        levels, loss = flat(trial.config.to_dict()), result.get("val_loss")
        axes, baseline = self._baselines.get(trial.config.scale, ((), None))
        is_base = baseline is not None and live({axis: levels.get(axis) for axis in axes}) == baseline
        loss = math.inf if loss is None or not math.isfinite(loss) else loss
        self._found[trial.id] = Model(trial.config.scale, _variant(trial), without_seed(trial.id), is_base, loss)

    def _opened(self, trial: str) -> str:
        return reopened(joined(self._place, trial), self._storage)

    def _delete(self, trials: Iterable[str]) -> None:
        for trial in list(trials):
            self._held.discard(trial)
            with contextlib.suppress(OSError, UserError):  # what is left takes space, and does no harm
                open_storage(self._opened(trial), WEIGHTS).clear()


def _ranks(table: pd.DataFrame, trials: Mapping[str, AssignedTrial]) -> dict[tuple[str, str], str]:
    """The rank of each variant of each scale that has one, in words, best first."""
    ranks: dict[tuple[str, str], str] = {}
    for row in table[table["rank"].notna()].to_dict("records"):
        trial = trials[row["trial"]]
        ranks.setdefault((trial.config.scale, _variant(trial)), f"rank {row['rank']}")
    return ranks


def _variant(trial: AssignedTrial) -> str:
    return without_seed(trial.id).removesuffix(suffix(trial.tuned))


def settings(keep: str, storage: str | None) -> dict[str, str]:
    """What study.json holds of `--keep_models` and `--storage`. A folder to keep models in is made.

    Lanes write nothing to a place that their node does not see. Raises UserError if the folder cannot be made.
    """
    if storage and keep != "none" and not is_uri(storage):
        try:
            Path(storage).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"storage ({storage}) cannot be written: {error.strerror}") from None
    return {"keep": keep} | ({"storage": stored(storage)} if storage and keep != "none" else {})


def _baseline(study: Mapping[str, Any]) -> tuple[Sequence[str], dict[str, object]]:
    """The axes that the trials of one scale differ in, and the baseline's live levels."""
    axes, baseline = axes_of(study)
    return axes, live(baseline)
