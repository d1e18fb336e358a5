"""A study: a plan run by Ray Tune on warm lanes, recorded in its folder, uploaded from there, and ranked at the end."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import rich.console
from ray import tune

import raytrain
from raytrain.analysis.ranking import UNFINISHED, rank, read_study
from raytrain.engine.lane import LaneShape, Report
from raytrain.engine.record import LOST_RETRIES, Recorder, Sync
from raytrain.engine.show import Progress, ranking_table, short_name
from raytrain.engine.timing import overhead
from raytrain.engine.trial import trainable
from raytrain.errors import UserError
from raytrain.files import check_name, read_json, write_json
from raytrain.plan import Plan

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set where `ray job submit` runs the driver
_FILE_WIDTH = 160  # of tables that do not go to a terminal
_OBJECT_STORE_BYTES = 200 * 2**20  # configurations and reports; tensors never go through it
# Settings that Ray reads from the driver's environment (Tune hands those of Train on to the lanes), unless the user has
# set them.
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning on every machine without a GPU
    "RAY_AIR_NEW_OUTPUT": "0",  # the other output engine takes no columns
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # nodes of a cluster that grows take minutes
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study's folder has it all
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's own snapshots, which nothing reads
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


def run_study(
    plan: Plan,
    *,
    runs: Path,
    name: str | None = None,
    tracking_uri: str | None = None,
    gpus_per_trial: int | None = None,
    workers_per_trial: int | None = None,
    concurrent: int | None = None,
    storage: str | None = None,
    command: str = "",
    as_json: bool = False,
    train: Callable[..., Report] | None = None,
) -> int:
    """Run `plan` to its end in the folder `runs`/`name`, print the ranking and return an exit code.

    `storage` (a path or a URI) is where checkpoints go, if not into the study's folder.

    0 if all trials have ended and one of them has a loss; 1 if none has; 130 if the sweep was interrupted. `train`
    takes the place of `training.loop.train`, in tests. With `as_json` stdout gets one JSON object, and stderr the rest.

    Raises UserError if the name is taken, or the trials can never fit on the cluster.
    """
    started = time.time()
    stream = sys.stderr if as_json else sys.stdout
    width = None if stream.isatty() else _FILE_WIDTH
    console = rich.console.Console(file=stream, width=width, highlight=False, soft_wrap=True)
    if _JOB in os.environ:  # Ray deletes a job's working directory
        runs = Path.home() / runs
    folder = _free_folder(runs, name or f"{plan.space}-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    trials = [trial.to_dict() for trial in plan.trials]
    console.print(str(plan), markup=False)
    with _ray_started() as is_local:
        shape, lanes = _lanes(plan, gpus_per_trial, workers_per_trial, concurrent, is_local=is_local)
        if not shape.gpus:  # else a rank without a GPU of its own would take the node's first
            trials = [trial | {"config": trial["config"] | {"device": "cpu"}} for trial in trials]
        folder.mkdir(parents=True)
        console.print(f"lanes       {lanes}, each of {shape}\nfolder      {folder}", markup=False)
        about = {
            "name": folder.name,
            "space": plan.space,
            "base": plan.base,
            "scale": plan.scale,
            "created": datetime.datetime.now(datetime.UTC).isoformat(),
            "command": command,
            "git_commit": _git_commit(),
            "budget_flops": plan.budget_flops,
            "counts": plan.counts,
            "versions": _versions(),
        }
        write_json(folder / "study.json", about | {"trials": trials})
        for trial in trials:
            if trial["config"]["checkpoint_interval"] is not None:  # on a cluster, in a place that all nodes reach
                trial["folder"] = f"{storage or folder / 'trials'}/{trial['id']}"
        recorder = Recorder(folder)
        with Sync(folder, tracking_uri, console) as sync:
            _tune(folder, trials, shape, lanes, recorder, train, to_stderr=as_json)
            table = rank(read_study(folder))
            unfinished = int(table["status"].isin(UNFINISHED).sum())
            if unfinished:  # MLflow is to know, at the last sync, that nobody works on them any more
                write_json(folder / "study.json", read_json(folder / "study.json") | {"interrupted": True})

    spent = overhead(recorder.timings.values(), started, lanes)
    if unfinished < len(trials):
        console.print(ranking_table(table))
    for line in (spent, sync.ui and f"compare     {sync.ui}"):
        if line:
            console.print(str(line), markup=False)
    if as_json:
        result = {"study": folder.name, "folder": str(folder), "unfinished": unfinished, "tracking_uri": sync.uri}
        result |= {"ui": sync.ui, "overhead": spent and dataclasses.asdict(spent)}
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        print(json.dumps(result | {"trials": rows}))
    if unfinished:
        console.print(f"interrupted: {unfinished} of {len(trials)} trials have not ended; what there is is in {folder}")
        return 130
    return 0 if table["rank"].notna().any() else 1


def _tune(
    folder: Path,
    trials: list[dict[str, Any]],
    shape: LaneShape,
    lanes: int,
    recorder: Recorder,
    train: Callable[..., Report] | None,
    *,
    to_stderr: bool,
) -> None:
    """Have Tune run every trial once. A Ctrl-C makes it stop and return."""
    tuner = tune.Tuner(
        trainable(shape, train),
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=lanes,
            trial_name_creator=lambda trial: short_name(trial.config["trial"]),
            trial_dirname_creator=lambda trial: str(trial.config["trial"]["id"]),
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(folder),
            callbacks=[recorder],
            progress_reporter=Progress(to_stderr=to_stderr),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the default for a class Trainable is to
            # To Tune a trial has failed only if its lane broke; Recorder forbids a retry where it would fail again.
            failure_config=tune.FailureConfig(max_failures=LOST_RETRIES),
            verbose=1,
        ),
    )
    tuner.fit()


@contextlib.contextmanager
def _ray_started() -> Iterator[bool]:
    """Join the cluster that RAY_ADDRESS or a job names, else start Ray here; yields whether it is here alone.

    A Ray that this process has started already is used, and left running.
    """
    for variable, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it says of failed trials is in the table
    if ray.is_initialized():
        yield "RAY_ADDRESS" not in os.environ
        return
    is_local = "RAY_ADDRESS" not in os.environ
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if is_local:
        ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
    else:
        try:
            # A job has its code in its working directory; elsewhere ours travels, so that all nodes run the same.
            code = {} if _JOB in os.environ else {"py_modules": [str(Path(raytrain.__file__).parent)]}
            ray.init(runtime_env=code, **quiet)
        except ConnectionError:
            address = os.environ["RAY_ADDRESS"]
            raise UserError(
                f"RAY_ADDRESS ({address}): no cluster answers. If it wants a token, export RAY_AUTH_MODE=token here too"
            ) from None
    try:
        yield is_local
    finally:
        ray.shutdown()


def _lanes(
    plan: Plan, gpus_per_trial: int | None, workers_per_trial: int | None, concurrent: int | None, *, is_local: bool
) -> tuple[LaneShape, int]:
    """What a lane takes, and how many fit on the cluster."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    device = plan.trials[0].config.device
    if gpus_per_trial is None:
        gpus_per_trial = 1 if device == "cuda" or (gpus and device == "auto") else 0
    most = concurrent or len(plan.trials)
    if gpus_per_trial == 0:
        workers = workers_per_trial or 1
        if workers > cpus and is_local:
            raise UserError(f"workers_per_trial ({workers}) must be at most the {cpus} CPUs that Ray finds")
        lanes = max(1, min(most, cpus // workers, len(plan.trials)))
        largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        return LaneShape(workers=workers, cpus=max(1, min(cpus // (lanes * workers), largest))), lanes
    if workers_per_trial not in (None, gpus_per_trial):
        raise UserError(
            f"workers_per_trial ({workers_per_trial}) must be gpus_per_trial ({gpus_per_trial}): one GPU each"
        )
    fit = gpus // gpus_per_trial
    if fit == 0 and (is_local or concurrent is None):
        hint = "" if is_local else "; for a cluster that grows when it is asked to, give --concurrent too"
        raise UserError(f"gpus_per_trial ({gpus_per_trial}) must be at most the {gpus} GPUs that Ray finds{hint}")
    return LaneShape(workers=gpus_per_trial, gpus=1), min(most, fit or most, len(plan.trials))


def _free_folder(runs: Path, name: str) -> Path:
    """Where the study goes. Raises UserError if the name is taken or unfit, or the place cannot be written."""
    if (runs / check_name(name)).exists():
        raise UserError(f"name ({name}) is taken in {runs}; choose another")
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs ({runs}) cannot be written: {error.strerror}") from None
    return (runs / name).absolute()


def _git_commit() -> str | None:
    """The commit that this code is checked out at; None for an installed package."""
    package = Path(raytrain.__file__)
    git = ["git", "-C", str(package.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", package.name], check=True, capture_output=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str | None]:
    try:
        own = importlib.metadata.version("raytrain")
    except importlib.metadata.PackageNotFoundError:  # run from a working tree
        own = None
    torch = importlib.metadata.version("torch")
    return {"python": platform.python_version(), "torch": torch, "ray": ray.__version__, "raytrain": own}
