"""Where a study runs: the Ray it joins or starts, and the lanes that fit there."""

import contextlib
import dataclasses
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raytrain import version
from raytrain.engine import mps
from raytrain.engine.ending import Ending, adopting_orphans, descendants, kill_all_below
from raytrain.engine.job import LaneShape, one_line
from raytrain.errors import UserError
from raytrain.interrupts import held
from raytrain.rundir.folders import check_path
from raytrain.rundir.private import private_file, short_private_folder
from raytrain.sweep.estimate import ResourceRequest
from raytrain.sweep.trial import AssignedTrial, PlannedTrial

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set where `ray job submit` runs the driver
_WATCH_SECONDS = 2.0
_DEAF_WATCHES = 10  # in a row without an answer of Ray's, after which it is dead; its head may be busy for seconds
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
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


@dataclasses.dataclass(frozen=True)
class Lanes:
    """The shape of lane that each trial takes, how many there are of each, why some trials fit in none, and how many
    processes of a node compile ahead of them, if that was asked for."""

    shapes: dict[str, LaneShape]
    counts: dict[LaneShape, int]
    infeasible: dict[str, str]
    compile_ahead: int | None = None

    def take_in(self, trials: Iterable[AssignedTrial]) -> None:
        """Give further trials the shape of the one that each is `like`; none, and so no lane, if that fits in none."""
        for trial in trials:
            if trial.like in self.shapes:
                self.shapes[trial.id] = self.shapes[trial.like]

    @property
    def most(self) -> int:
        """Lanes at a time; those of different shapes take turns."""
        return max(self.counts.values())

    def __str__(self) -> str:
        lanes = "; ".join(f"{count}, each of {shape}" for shape, count in self.counts.items())
        return lanes + (", through CUDA MPS" if mps.is_on() and any(shape.gpus for shape in self.counts) else "")


def is_job() -> bool:
    """Whether `ray job submit` runs this process."""
    return _JOB in os.environ


@contextlib.contextmanager
def ray_started(ending: Ending, *, shares_gpus: bool = False) -> Iterator[bool]:
    """Join the cluster that RAY_ADDRESS or a job names, else start Ray here; yields whether it is here alone.

    A Ray that this process has started already is used, and left running. One that is started here keeps its sockets,
    logs and pickles in a folder of this user's alone, is reached by its token, and does not outlive this process,
    which `ending` may end. Raises UserError for an argument of the command that is not UTF-8: Ray takes no other.
    """
    for argument in sys.argv:  # all of which Ray notes as its job's
        check_path(argument, "argument")
    for variable, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it says of failed trials is in the table
    if ray.is_initialized():
        yield "RAY_ADDRESS" not in os.environ
        return
    is_local = "RAY_ADDRESS" not in os.environ
    _protect_token()
    # Ray opens its own folder to all users of the machine, so it gets one below a private one.
    place = short_private_folder("raytrain-") if is_local else contextlib.nullcontext()
    with contextlib.ExitStack() as around:
        ending.private = around.enter_context(place)
        if ending.private is not None:
            around.enter_context(adopting_orphans())
        others = descendants(os.getpid())
        if ending.private is not None and shares_gpus:
            around.enter_context(mps.sharing(ending.private / "mps"))
        try:
            try:
                with held():
                    _join_cluster() if ending.private is None else _start_ray(ending.private / "ray")
            except SystemExit:  # Ray's answer to a SIGTERM
                raise KeyboardInterrupt from None
            ending.handle_signals()
            ending.ray_is_up(_is_dead_here)
            yield is_local
        finally:
            ray.shutdown()
            if is_local and ending.has_come:  # a start cut short leaves what Ray has not yet noted as its own
                kill_all_below(os.getpid(), others)
            ending.private = None


def _is_dead_here() -> bool:
    """Whether a process of the Ray that was started here is gone, so that nothing is to be expected of it."""
    node = ray._private.worker._global_node
    processes: dict[str, list[Any]] = node.all_processes if node else {}
    return any(info.process.poll() is not None for kind in ("gcs_server", "raylet") for info in processes.get(kind, ()))


def _start_ray(folder: Path) -> None:
    """Start a Ray of this machine alone, whose files are in `folder`."""
    group = os.getpgrp()
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=str(folder),
        **_QUIET,
    )
    # Ray has made a process group of its own, and this process its leader. A signal to ours is to reach this process,
    # and spare Ray, so that lanes end in good order.
    with contextlib.suppress(OSError):
        os.setpgid(0, group)


def _join_cluster() -> None:
    """Join the cluster that RAY_ADDRESS names. Raises UserError if none answers there."""
    # A job has its code in its working directory; elsewhere ours travels, so that all nodes run the same.
    code = {} if is_job() else {"py_modules": [str(Path(version.__file__).parent)]}
    try:
        ray.init(runtime_env=code, **_QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:  # an address that is none; another version of Ray
        address = os.environ["RAY_ADDRESS"]
        raise UserError(
            f"RAY_ADDRESS ({address}): no cluster answers ({one_line(error)}). "
            "If it wants a token, export RAY_AUTH_MODE=token here too"
        ) from None


def _protect_token() -> None:
    """Make the token of local clusters, where there is none, readable by this user alone; likewise one that exists."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given or "~/.ray/auth_token").expanduser()
    is_wanted = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" and "RAY_AUTH_TOKEN" not in os.environ
    if is_wanted and given is None and "RAY_ADDRESS" not in os.environ:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
    private_file(path)


@contextlib.contextmanager
def watching_ray(on_death: Callable[[], None]) -> Iterator[None]:
    """Free what dead lanes hold, from a thread; and call `on_death` if this machine's part of Ray dies: nothing would
    run, or say so, any more."""
    is_over = threading.Event()
    here = ray.get_runtime_context().get_node_id()

    def watch() -> None:
        deaf = 0
        while not is_over.wait(_WATCH_SECONDS):
            try:
                is_alive, deaf = any(node["Alive"] for node in ray.nodes() if node["NodeID"] == here), 0
            except Exception:  # whatever Ray raises once, the next time it may answer
                deaf += 1
                is_alive = deaf < _DEAF_WATCHES
            if not is_alive:
                on_death()
                return
            with contextlib.suppress(Exception):  # the next time, again
                _free_orphans()

    thread = threading.Thread(target=watch, name="watch ray", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _free_orphans() -> None:
    """Free the placement groups of this job whose makers are dead: those of the ranks of a lane that was killed.

    Ray keeps such a group for as long as the job runs, and a new lane might wait for its GPUs for ever. Train leaves it
    to a cleaner that asks the dashboard, if there is one. Only Ray's own table says whose a group is.
    """
    table = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
    job = ray.get_runtime_context().get_job_id()
    for group in map(PlacementGroupTableData.FromString, table):
        is_ours = group.creator_job_id.hex() == job and group.creator_actor_id != ray.ActorID.nil().binary()
        if is_ours and group.creator_actor_dead and group.state != group.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def plan_lanes(trials: Sequence[PlannedTrial], request: ResourceRequest, *, is_local: bool) -> Lanes:
    """The lanes for `trials` on the Ray that this process has joined.

    Raises UserError if no trial fits.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    device = trials[0].config.device
    # A cluster that grows has what is asked for only once it is asked; --concurrent says that it does.
    grows = not is_local and request.concurrent is not None
    if grows and device == "auto" and not gpus and request.gpus_per_trial is None and not request.trials_per_gpu:
        raise UserError("gpus_per_trial (none) must be given with concurrent where there is no GPU yet; 0 for CPUs")
    on_gpus = request.gpus_per_trial != 0 and (
        bool(request.gpus_per_trial or request.trials_per_gpu) or device == "cuda" or (gpus > 0 and device == "auto")
    )
    if on_gpus and request.workers_per_trial not in (None, request.gpus_per_trial or 1):
        raise UserError(
            f"workers_per_trial ({request.workers_per_trial}) must be gpus_per_trial ({request.gpus_per_trial or 1}): "
            "one GPU each"
        )
    usual = (request.gpus_per_trial or 1) if on_gpus else (request.workers_per_trial or 1)
    workers = {trial.id: trial.workers or usual for trial in trials}
    have = gpus if on_gpus else cpus
    unit = "GPU" if on_gpus else "CPU"
    infeasible = {
        name: f"too large for the cluster: {ranks} ranks need a {unit} each, and Ray has {have} {unit}s"
        for name, ranks in workers.items()
        if ranks > have and not grows
    }
    if len(infeasible) == len(trials):
        hint = "" if is_local else "; for a cluster that grows when it is asked to, give --concurrent too"
        field = "gpus_per_trial" if on_gpus else "workers_per_trial"
        raise UserError(f"{field} ({min(workers.values())}) must be at most the {have} {unit}s that Ray finds{hint}")
    shapes: dict[str, LaneShape] = {}
    counts: dict[LaneShape, int] = {}
    for ranks in sorted(set(workers.values())):
        names = [name for name, wanted in workers.items() if wanted == ranks and name not in infeasible]
        if not names:
            continue
        most = min(len(names), request.concurrent or len(names))
        share = request.trials_per_gpu or 1 if on_gpus and ranks == 1 else 1
        fit = min(gpus * share, cpus) // ranks if on_gpus else cpus // ranks  # each rank takes a CPU too
        count = most if grows else max(1, min(most, fit))
        if on_gpus:
            shape = LaneShape(workers=ranks, gpus=1 / share)
        else:
            largest = max(int(node.get("CPU", 0)) for node in nodes)
            shape = LaneShape(workers=ranks, cpus=max(1, min(cpus // (count * ranks), largest)))
        shapes |= dict.fromkeys(names, shape)
        counts[shape] = count
    return Lanes(shapes, counts, infeasible, request.compile_ahead)
