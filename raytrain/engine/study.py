"""A study: a plan run by Ray Tune on warm lanes, recorded in its folder, uploaded from there, and ranked at the end."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import ray
import rich.console
from ray import tune

from raytrain import version
from raytrain.analysis.answer import answer
from raytrain.analysis.ranking import UNFINISHED, rank, read_study
from raytrain.axes.plugin import LOADED, check_loaded
from raytrain.engine.cluster import Lanes, is_job, plan_lanes, ray_started, watching_ray
from raytrain.engine.job import Report, one_line
from raytrain.engine.journal import StudyJournal, Sync
from raytrain.engine.lock import study_lock
from raytrain.engine.progress import Progress, ranking_table, short_name
from raytrain.engine.stages import grow
from raytrain.engine.timing import overhead
from raytrain.engine.trial import trainable
from raytrain.engine.tune_adapter import SegmentScheduler, SegmentSearcher
from raytrain.errors import UserError
from raytrain.interrupts import INTERRUPTED
from raytrain.plugins.loader import sources, write_sources
from raytrain.rundir.folders import check_name, no_study, read_study_json, write_json
from raytrain.sweep.estimate import ResourceRequest
from raytrain.sweep.plan import Plan

_FILE_WIDTH = 160  # of tables that do not go to a terminal


def run_study(
    plan: Plan,
    *,
    runs: Path,
    name: str | None = None,
    tracking_uri: str | None = None,
    storage: str | None = None,
    command: str = "",
    as_json: bool = False,
    train: Callable[..., Report] | None = None,
) -> int:
    """Run `plan` to its end in the folder `runs`/`name`, print the ranking and return an exit code.

    `storage` (a path or a URI) is where checkpoints go, if not into the study's folder.

    0 if all trials have ended and one of them has a loss; 1 if none has; 130 if the study was interrupted. `train`
    takes the place of `training.loop.train`, in tests. With `as_json` stdout gets one JSON object, and stderr the rest.

    Raises UserError if the name is taken, or the trials can never fit on the cluster.
    """
    started = time.time()
    console = _console(as_json=as_json)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", plan.space)  # a space's file may be called anything
    folder = _free_folder(_home(runs), name or f"{plain}-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    console.print(str(plan), markup=False)
    trials, request = [trial.to_dict() for trial in plan.trials], plan.request
    plugins = {name: source for trial in trials for name, source in sources(trial["config"]).items()}
    sync = Sync(folder, tracking_uri, console)
    with ray_started() as is_local:
        lanes = plan_lanes(trials, request, is_local=is_local)
        on_gpus = any(shape.gpus for shape in lanes.counts)
        if request.gpus_per_trial is None:  # whatever Ray finds when the study is taken up again
            request = dataclasses.replace(request, gpus_per_trial=int(on_gpus))
        described = plan.to_dict()
        for trial in trials:
            if not on_gpus:
                # Else a rank without a GPU of its own would take the node's first.
                trial["config"] = trial["config"] | {"device": "cpu"}
            if trial["config"]["checkpoint_interval"] is not None or trial["config"].get("rungs"):
                trial["folder"] = f"{storage or folder / 'trials'}/{trial['id']}"
        study = {
            "name": folder.name,
            "space": plan.space,
            "base": plan.base,
            "scale": plan.scale,
            "created": datetime.datetime.now(datetime.UTC).isoformat(),
            "command": command,
            "git_commit": _git_commit(),
            "plugins": {name: LOADED[name].sha256 for name in plugins},
            "budget_flops": plan.budget_flops,
            "counts": plan.counts,
            "versions": _versions(),
            "scheduler": plan.scheduler,
            "axes": described["axes"],
            "baseline": described["baseline"],
            "plan": described,
            "lanes": dataclasses.asdict(request),
            "grows": plan.grows,
            "trials": trials,
        }
        _make(folder, study, plugins)
        return _drive(folder, study, lanes, sync, started, train, console, as_json=as_json)


def resume_study(
    name: str,
    *,
    runs: Path,
    tracking_uri: str | None = None,
    concurrent: int | None = None,
    as_json: bool = False,
    train: Callable[..., Report] | None = None,
) -> int:
    """Go on with the study `name` in `runs`, whatever ended it; otherwise as `run_study`.

    Trials that have ended are not run again, but those that were lost are (`Schedule.retried`). Those that fit in no
    lane here wait for a resume elsewhere. Raises UserError if there is no such study, or another process holds it.
    """
    started = time.time()
    folder = (_home(runs) / check_name(name)).absolute()
    if not (folder / "study.json").exists():
        raise no_study("resume", name, folder.parent)
    study = read_study_json(folder, "lanes", "scheduler", "plan")
    for trial in study["trials"]:
        check_loaded(trial["config"].get("plugins", ()))
    request = ResourceRequest(**study["lanes"])
    if concurrent is not None:
        request = dataclasses.replace(request, concurrent=concurrent)
    console = _console(as_json=as_json)
    sync = Sync(folder, tracking_uri, console)
    with ray_started() as is_local:
        lanes = plan_lanes(study["trials"], request, is_local=is_local)
        return _drive(folder, study, lanes, sync, started, train, console, as_json=as_json)


def _drive(
    folder: Path,
    study: dict[str, Any],
    lanes: Lanes,
    sync: Sync,
    started: float,
    train: Callable[..., Report] | None,
    console: rich.console.Console,
    *,
    as_json: bool,
) -> int:
    """Run what is left of the study in `folder`; after a Ctrl-C at any time, print how to resume."""
    try:
        return _run(folder, study, lanes, sync, started, train, console, as_json=as_json)
    except KeyboardInterrupt:
        console.print(f"interrupted\n{_how_to_resume(folder)}", markup=False)
        return INTERRUPTED


def _run(
    folder: Path,
    study: dict[str, Any],
    lanes: Lanes,
    sync: Sync,
    started: float,
    train: Callable[..., Report] | None,
    console: rich.console.Console,
    *,
    as_json: bool,
) -> int:
    with study_lock(folder, lambda reason: _give_up(folder, console, reason)):
        if study.pop("interrupted", False):
            write_json(folder / "study.json", study)
        console.print(f"lanes       {lanes}\nfolder      {folder}", markup=False)
        record = StudyJournal(folder, study["trials"], study["scheduler"], lambda: grow(folder, lanes, console))
        for trial, reason in lanes.infeasible.items():
            if not record.schedule.has_ended(trial):
                if record.is_new:
                    record.fail(trial, reason)
                else:  # it fitted where the study began, and may where it goes on next
                    console.print(f"waits       {short_name(record.trials[trial])}: {reason}", markup=False)
        with sync:
            if record.schedule.is_over:
                console.print("nothing is left to run", markup=False)
            elif record.schedule.next(lanes.shapes.__contains__) is not None:
                with contextlib.suppress(KeyboardInterrupt):  # a second one, or one before Tune listens
                    _tune(folder, record, lanes, train, console, to_stderr=as_json)
            is_over = record.schedule.is_over
            if not is_over:  # all are to know that nobody works on the rest any more, MLflow at the last sync
                _mark_interrupted(folder)
            found = answer(folder) if is_over else None
            table = found.table if found else rank(read_study(folder))
            unfinished = int(table["status"].isin(UNFINISHED).sum())
            if found:
                console.print(found.sentences[0], markup=False)
            if unfinished < len(table):
                console.print(ranking_table(table))
            if is_over:
                _report(folder, console)

    spent = overhead(record.timings.values(), started, lanes.most)
    planned = _against_estimate(study, table, lanes) if is_over and record.is_new else None
    for line in (spent, planned, sync.ui and f"compare     {sync.ui}"):
        if line:
            console.print(str(line), markup=False)
    if as_json:
        result = {"study": folder.name, "folder": str(folder), "unfinished": unfinished, "tracking_uri": sync.uri}
        result |= {"ui": sync.ui, "overhead": spent and dataclasses.asdict(spent)}
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        print(json.dumps(result | {"trials": rows}))
    if not is_over:
        console.print(f"interrupted: {unfinished} of {len(table)} trials have not ended", markup=False)
        console.print(_how_to_resume(folder), markup=False)
        return INTERRUPTED
    return 0 if table["rank"].notna().any() else 1


def _tune(
    folder: Path,
    record: StudyJournal,
    lanes: Lanes,
    train: Callable[..., Report] | None,
    console: rich.console.Console,
    *,
    to_stderr: bool,
) -> None:
    """Have Tune run segments until none is left that fits. A Ctrl-C, or a SIGTERM, makes it stop and return."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(lanes.most)  # else lanes start one after another
    tuner = tune.Tuner(
        trainable(train),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until SegmentSearcher reports that it is over
            search_alg=SegmentSearcher(record, lanes.shapes, lanes.counts),
            scheduler=SegmentScheduler(record),
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"]["name"],
            trial_dirname_creator=lambda trial: f"{trial.config['trial']['id']}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(folder),
            progress_reporter=Progress(record.schedule, to_stderr=to_stderr),
            callbacks=[InterruptNotice()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the default for a class Trainable is to
            failure_config=tune.FailureConfig(max_failures=0),  # what is to be tried again, the schedule says
            verbose=1,
        ),
    )

    def on_death() -> None:
        with contextlib.suppress(OSError, UserError):  # this process is to end even if its disk is full
            _mark_interrupted(folder)
        _give_up(folder, console, "Ray died on this machine")

    with _signals(), watching_ray(on_death):
        tuner.fit()


def _mark_interrupted(folder: Path) -> None:
    """What has not ended no longer runs. For the study's holder alone; whoever goes on with it takes this back."""
    write_json(folder / "study.json", read_study_json(folder) | {"interrupted": True})


def _give_up(folder: Path, console: rich.console.Console, reason: str) -> None:
    """End this process, whose main thread may wait for Ray for ever. The record is whole at any moment."""
    console.print(f"interrupted: {reason}\n{_how_to_resume(folder)}", markup=False)
    console.file.flush()
    os._exit(INTERRUPTED)


def _how_to_resume(folder: Path) -> str:
    again = ["python", "-m", "raytrain.tune", "--resume", folder.name, "--runs", str(folder.parent)]
    return f"resume with: {shlex.join(again)}"


def _report(folder: Path, console: rich.console.Console) -> None:
    """Write the study's report, which the last sync brings to MLflow. It can be written again at any time."""
    try:
        from raytrain.report.sections import write_report  # here: drawing is of no use before

        index, *_ = write_report(folder)
        console.print(f"report      {index}", markup=False)
    except Exception as error:  # all that the study found is in its folder, whatever becomes of its report
        console.print(f"report      was not written: {one_line(error)}", markup=False)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """`ray job stop` and batch systems end a driver by SIGTERM; Tune ends in good order on SIGINT alone, for good."""
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        sigterm = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    except ValueError:  # not in the main thread: signals go to others
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
        signal.signal(signal.SIGTERM, sigterm)


class InterruptNotice(tune.Callback):
    """Acknowledges a Ctrl-C: ending trials in good order takes seconds, and Tune is silent meanwhile."""

    def setup(self, *args: Any, **info: Any) -> None:
        """Tune calls this once its own handler is in place."""
        end = signal.getsignal(signal.SIGINT)
        if not callable(end) or threading.current_thread() is not threading.main_thread():
            return

        def notify(number: int, frame: FrameType | None) -> None:
            # Not by print, which may be what was interrupted.
            os.write(2, b"interrupted: ending the trials; once more ends them at once\n")
            end(number, frame)

        signal.signal(signal.SIGINT, notify)


def _against_estimate(study: dict[str, Any], table: pd.DataFrame, lanes: Lanes) -> str | None:
    """The device-hours of training that the plan estimated, beside those that all trials took on these `lanes`."""
    estimate = study["plan"].get("estimate")
    if estimate is None or "train_seconds" not in table:
        return None
    devices = {trial: shape.workers * (shape.gpus or shape.cpus) for trial, shape in lanes.shapes.items()}
    took = float((table["train_seconds"] * table["trial"].map(devices)).sum()) / 3600
    planned = f"{estimate['seconds'] * estimate['devices'] / 3600:.3g} {estimate['device']}-hours"
    unit = "GPU" if any(shape.gpus for shape in lanes.counts) else "core"
    return f"planned     about {planned} of training; it took {took:.3g} {unit}-hours"


def _console(*, as_json: bool) -> rich.console.Console:
    stream = sys.stderr if as_json else sys.stdout
    width = None if stream.isatty() else _FILE_WIDTH
    return rich.console.Console(file=stream, width=width, highlight=False, soft_wrap=True)


def _home(runs: Path) -> Path:
    """Where studies are: Ray deletes a job's working directory, so a job's are below the home folder."""
    return Path.home() / runs if is_job() else runs


def _free_folder(runs: Path, name: str) -> Path:
    """Where the study goes. Raises UserError if the name is taken or unfit, or the place cannot be written."""
    try:
        if (runs / check_name(name)).exists():
            raise _taken(runs / name)
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs ({runs}) cannot be written: {error.strerror}") from None
    return (runs / name).absolute()


def _make(folder: Path, study: dict[str, Any], plugins: Mapping[str, str]) -> None:
    """Make the study's folder, whole or not at all, with the sources of its plugins for the record.

    Raises UserError if the name was taken since, or it cannot be.
    """
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        partial.mkdir()
        write_json(partial / "study.json", study)
        write_sources(partial, plugins)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():
            raise _taken(folder) from None
        raise UserError(f"runs ({folder.parent}) cannot be written: {error.strerror}") from None


def _taken(folder: Path) -> UserError:
    name = folder.name
    return UserError(f"name ({name}) is taken in {folder.parent}; choose another, or continue it with --resume {name}")


def _git_commit() -> str | None:
    """The commit that this code is checked out at; None for an installed package."""
    package = Path(version.__file__)
    git = ["git", "-C", str(package.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", package.name], check=True, capture_output=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str]:
    own, torch = version.__version__, importlib.metadata.version("torch")
    return {"python": platform.python_version(), "torch": torch, "ray": ray.__version__, "raytrain": own}
