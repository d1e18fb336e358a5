"""A study: a plan run by Ray Tune on warm lanes, recorded in its folder, uploaded from there, and ranked at the end."""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import rich.console
from ray import tune

from raytrain.analysis.answer import answer
from raytrain.analysis.ranking import UNFINISHED, how_it_stopped, rank, read_study, short_name
from raytrain.axes.plugin import LOADED, check_loaded
from raytrain.engine.ahead import ahead_of
from raytrain.engine.cluster import Lanes, plan_lanes, ray_started, watching_ray
from raytrain.engine.ending import listening
from raytrain.engine.hosts import check_hosts, fingerprints, moved, recorded_fingerprints, to_run
from raytrain.engine.job import Report, one_line
from raytrain.engine.journal import StudyJournal, Sync
from raytrain.engine.limit import TimeLimit
from raytrain.engine.lock import study_lock
from raytrain.engine.models import KEEP, Models, settings
from raytrain.engine.place import free_folder, home, make_folder, study_name
from raytrain.engine.progress import Progress, ranking_table
from raytrain.engine.provenance import git_commit, versions
from raytrain.engine.secrets import hand_over
from raytrain.engine.session import InterruptNotice, Session, mark_interrupted, tune_heeds_sigterm
from raytrain.engine.stages import grow, with_follow_up
from raytrain.engine.timing import by_driver
from raytrain.engine.trial import trainable
from raytrain.engine.tune_adapter import LimitStopper, SegmentScheduler, SegmentSearcher
from raytrain.errors import UserError, short, unknown_value, unwritable
from raytrain.plugins.loader import sources
from raytrain.rundir.folders import find_study, read_study_json, tracking_address, write_json
from raytrain.rundir.log import read_events
from raytrain.sweep.estimate import ResourceRequest
from raytrain.sweep.plan import Plan
from raytrain.sweep.trial import AssignedTrial, assign, trials_of
from raytrain.tables import facts, told
from raytrain.uris import is_uri, joined, reopened, shown, stored

_EXPERIMENT_LENGTH = 500  # characters, that MLflow takes
_FILE_WIDTH = 160  # of tables that do not go to a terminal


def run_study(
    plan: Plan,
    *,
    runs: Path,
    name: str | None = None,
    tracking_uri: str | None = None,
    storage: str | None = None,
    keep_models: str = "none",
    experiment: str | None = None,
    command: str = "",
    time_limit: float | None = None,
    as_json: bool = False,
    train: Callable[..., Report] | None = None,
) -> int:
    """Run `plan` to its end in the folder `runs`/`name`, print the ranking and return an exit code.

    `storage` (a path or a URI) is where checkpoints go, if not into the study's folder. No secret in it, nor in
    `tracking_uri`, is printed or written to a file; to go on with the study takes it again. `keep_models` says of which
    trials the final weights are kept: see `engine.models`. `experiment` is MLflow's, by default named as the space.
    After `time_limit` seconds the study ends in good order, with a report on what there is.

    0 if all trials have ended and one of them has a loss; 1 if none has; 124 if the time limit ended the study; 130 if
    it was interrupted. `train` takes the place of `training.loop.train`, in tests. With `as_json` stdout gets one JSON
    object, and stderr the rest.

    Raises UserError if the name is taken, or the trials can never fit on the cluster.
    """
    started, limit = time.time(), TimeLimit(time_limit)
    console = _console(as_json=as_json)
    if keep_models not in KEEP:
        raise unknown_value("keep_models", keep_models, KEEP)
    if experiment is not None and not 0 < len(experiment.strip()) <= _EXPERIMENT_LENGTH:
        raise UserError(f"experiment ({short(experiment)!r}) must have 1 to {_EXPERIMENT_LENGTH} characters")
    tracking_address(home(runs), tracking_uri)  # raises now what would be found out at the end
    folder = free_folder(home(runs), name or study_name(plan))
    console.print(facts(str(plan), console.width), markup=False)
    storage = storage if storage is None or is_uri(storage) else os.path.abspath(storage)
    request = plan.request
    plugins = {name: source for trial in plan.trials for name, source in sources(trial.config.to_dict()).items()}

    def begin(session: Session, sync: Sync, *, is_local: bool) -> int:
        lanes = plan_lanes(plan.trials, request, is_local=is_local)
        on_gpus = any(shape.gpus for shape in lanes.counts)
        wanted = request
        if request.gpus_per_trial is None:  # whatever Ray finds when the study is taken up again
            wanted = dataclasses.replace(request, gpus_per_trial=int(on_gpus))
        described = plan.to_dict()
        trials = [assign(trial, on_gpus=on_gpus, storage=storage or str(folder / "trials")) for trial in plan.trials]
        data = fingerprints(trials)
        study = {
            "name": folder.name,
            "space": plan.space,
            "experiment": experiment or plan.space,
            "base": plan.base,
            "scale": plan.scale,
            "created": datetime.datetime.now(datetime.UTC).isoformat(),
            "command": command,
            "git_commit": git_commit(),
            "plugins": {name: LOADED[name].sha256 for name in plugins},
            "budget_flops": plan.budget_flops,
            "counts": plan.counts,
            "versions": versions(),
            "scheduler": plan.scheduler,
            "axes": described["axes"],
            "baseline": described["baseline"],
            "factors": described["factors"],
            "plan": described,
            "lanes": dataclasses.asdict(wanted),
            "data_fingerprints": data,
            "grows": plan.grows,
            "models": settings(keep_models, storage),
            "trials": [trial.to_dict() for trial in trials],
        }
        check_hosts(trials, data, storage, is_local=is_local)
        make_folder(folder, study, plugins)
        return _run(session, study, trials, lanes, sync, started, train, as_json=as_json)

    return _with_ray(Session(folder, console, storage, tracking_uri, limit), begin, request)


def resume_study(
    name: str,
    *,
    runs: Path,
    tracking_uri: str | None = None,
    storage: str | None = None,
    data: str | None = None,
    concurrent: int | None = None,
    follow_up: bool = False,
    time_limit: float | None = None,
    as_json: bool = False,
    train: Callable[..., Report] | None = None,
) -> int:
    """Continue the study `name`, one in `runs` or a path, whatever ended it; otherwise as `run_study`.

    `storage` is the study's own, only needed for the secrets in it, which are not stored. `data` is where the study's
    data is now, if it was moved: its fingerprint has to be the same. With `follow_up` a study that is over grows by the
    runs of raytrain.analysis.follow_up.

    Trials that have ended are not run again, but those lost are (`Schedule.retried`). Those that fit in no lane here
    wait for a resume elsewhere. Raises UserError if there is no such study, or another process holds it.
    """
    started, limit = time.time(), TimeLimit(time_limit)
    folder = find_study(name, home(runs), "follow_up" if follow_up else "resume").absolute()
    tracking_address(folder.parent, tracking_uri)
    study = read_study_json(folder, "lanes", "scheduler", "plan")
    for trial in study["trials"]:
        check_loaded(trial["config"].get("plugins", ()))
    study.setdefault("data_fingerprints", recorded_fingerprints(folder, study))
    if data is not None:
        study = moved(study, data) | {"interrupted": True}  # so that it is written once this process has its lock
    study = with_follow_up(folder, study) if follow_up else study
    trials = trials_of(study)
    if storage is not None:
        _check_storage(trials, storage)
    changed = {} if concurrent is None else {"concurrent": concurrent}
    request = ResourceRequest(**study["lanes"] | changed)

    def go_on(session: Session, sync: Sync, *, is_local: bool) -> int:
        lanes = plan_lanes(trials, request, is_local=is_local)
        try:
            check_hosts(to_run(folder, trials), study["data_fingerprints"], storage, is_local=is_local)
        except UserError as error:
            then = "nothing was changed: resume once it is there, or with --data if it was moved"
            raise UserError(f"{error}; {then}") from None
        return _run(session, study, trials, lanes, sync, started, train, as_json=as_json)

    return _with_ray(Session(folder, _console(as_json=as_json), storage, tracking_uri, limit), go_on, request)


def _check_storage(trials: Iterable[AssignedTrial], storage: str) -> None:
    """Raises UserError if the checkpoints of `trials` are not in `storage`."""
    for trial in trials:
        kept = trial.folder
        if kept is not None and stored(reopened(stored(kept), storage)) != stored(joined(storage, trial.id)):
            raise UserError(
                f"storage ({shown(storage)}) is not where the study keeps its checkpoints; "
                f"that of trial {trial.id} is {shown(kept)}"
            )


def _with_ray(session: Session, work: Callable[..., int], request: ResourceRequest) -> int:
    """Do `work` with a Ray, and MLflow getting ready meanwhile; after a signal at any time, print how to resume."""
    with listening() as session.ending:
        session.ending.on_force = session.interrupted
        try:
            sync = Sync(session.folder, session.tracking_uri, session.console)
            with ray_started(session.ending, shares_gpus=(request.trials_per_gpu or 1) > 1) as is_local:
                return work(session, sync, is_local=is_local)
        except KeyboardInterrupt:
            return session.interrupted()
        except OSError as error:
            if not (reason := unwritable(error, session.folder)):
                raise
            session.interrupted(reason)
            return 1


def _run(
    session: Session,
    study: dict[str, Any],
    trials: Sequence[AssignedTrial],
    lanes: Lanes,
    sync: Sync,
    started: float,
    train: Callable[..., Report] | None,
    *,
    as_json: bool,
) -> int:
    folder, console = session.folder, session.console
    hand_over(session.storage)
    with contextlib.ExitStack() as at_end:
        at_end.enter_context(study_lock(folder, session.give_up))
        if study.pop("interrupted", False):
            study.pop("time_limit", None)
            write_json(folder / "study.json", study)
        next_stage = functools.partial(grow, folder, lanes, console)
        driver = {"started": started, "lanes": lanes.most}
        models = Models(folder, study, session.storage)
        record = StudyJournal(folder, trials, study["scheduler"], next_stage, session.storage, driver, models)
        at_end.enter_context(session.heeding_signals(sync, record))
        console.print(f"lanes       {lanes}\nfolder      {folder}", markup=False)
        for trial, reason in lanes.infeasible.items():
            if not record.schedule.has_ended(trial):
                if record.is_new:
                    record.fail(trial, reason)
                else:  # it fitted where the study began, and may where it goes on next
                    console.print(f"waits       {short_name(record.trials[trial].to_dict())}: {reason}", markup=False)
        with sync:
            if record.schedule.is_over:
                console.print("nothing is left to run", markup=False)
            elif record.schedule.next(lanes.shapes.__contains__) is not None:
                with contextlib.suppress(KeyboardInterrupt):  # a second one, or one before Tune listens
                    _tune(session, record, lanes, study["budget_flops"], train, to_stderr=as_json)
                session.ending.is_interrupted = session.ending.has_come
            is_over = record.schedule.is_over
            is_timed_out = session.limit.is_over and not is_over and not session.ending.has_come
            if not is_over:  # all are to know that nobody works on the rest any more, MLflow at the last sync
                mark_interrupted(folder, session.limit.seconds if is_timed_out else None)
            found = answer(folder) if is_over or is_timed_out else None
            table = found.table if found else rank(read_study(folder))
            unfinished = int(table["status"].isin(UNFINISHED).sum())
            if found:
                console.print(f"\n{told(found.sentences, console.width)}\n", markup=False)
            if unfinished < len(table):
                console.print(ranking_table(table, console))
            if found:
                _report(folder, console)
            if is_over:
                models.settle(table, record.trials, console)

    spent = by_driver(read_events(folder / "events.jsonl"))[-1]
    planned = _against_estimate(study, table, lanes) if is_over and record.is_new else None
    for line in filter(None, (spent, planned)):
        console.print(facts(str(line), console.width), markup=False)
    for command in filter(None, (sync.ui and f"compare     {sync.ui}", sync.link and f"then open   {sync.link}")):
        console.print(command, markup=False)  # whole, to be copied
    if as_json:
        result = {"study": folder.name, "folder": str(folder), "unfinished": unfinished}
        result |= {
            "tracking_uri": sync.uri and shown(sync.uri),
            "ui": sync.ui,
            "lane_seconds": spent and dataclasses.asdict(spent),
        }
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        print(json.dumps(result | {"trials": rows}))
    if is_timed_out:
        return session.timed_out(how_it_stopped(read_study_json(folder), table))
    if not is_over:
        return session.interrupted(f"{unfinished} of {len(table)} trials have not ended")
    return 0 if table["val_loss"].notna().any() else 1


def _tune(
    session: Session,
    record: StudyJournal,
    lanes: Lanes,
    budget: float,
    train: Callable[..., Report] | None,
    *,
    to_stderr: bool,
) -> None:
    """Have Tune run segments until none is left that fits. A Ctrl-C, or a SIGTERM, makes it stop and return."""
    waiting = [trial for name, trial in record.trials.items() if not record.schedule.has_ended(name)]
    ahead = ahead_of([trial for trial in waiting if trial.id in lanes.shapes], lanes)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(lanes.most)  # else lanes start one after another
    tuner = tune.Tuner(
        trainable(train),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until SegmentSearcher reports that it is over
            search_alg=SegmentSearcher(record, lanes.shapes, lanes.counts, ahead.programs),
            scheduler=SegmentScheduler(record),
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"]["name"],
            trial_dirname_creator=lambda trial: f"{trial.config['trial']['id']}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="ray",
            stop=LimitStopper(session.limit),
            storage_path=str(session.folder),
            progress_reporter=Progress(record.schedule, budget, to_stderr=to_stderr),
            callbacks=[InterruptNotice()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the default for a class Trainable is to
            failure_config=tune.FailureConfig(max_failures=0),  # what is to be tried again, the schedule says
            verbose=1,
        ),
    )

    def on_death() -> None:
        with contextlib.suppress(OSError, UserError):  # this process is to end even if its disk is full
            mark_interrupted(session.folder)
        session.give_up("Ray died on this machine")

    with tune_heeds_sigterm(), watching_ray(on_death), ahead:
        tuner.fit()


def _report(folder: Path, console: rich.console.Console) -> None:
    """Write the study's report, which the last sync brings to MLflow. It can be written again at any time."""
    try:
        from raytrain.report.sections import write_report  # here: drawing is of no use before

        index, *_ = write_report(folder)
        console.print(f"report      {index}", markup=False)
    except Exception as error:  # all that the study found is in its folder, whatever becomes of its report
        console.print(f"report      was not written: {one_line(error)}", markup=False)


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
