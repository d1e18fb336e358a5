"""A lane: a Ray Train `TorchTrainer` whose worker group stays up and trains job after job.

Starting a worker group costs tens of seconds, most of it imports; a job on a group that is up starts in hundredths of
a second. So `fit()` runs on a thread for as long as the lane lives, and each rank's training function waits for jobs:

    owner                         mailbox                     ranks
    submit(job)          ->       the job             ->      next_job(), then train(config, on_report)
    take()               <-       reports             <-      report(), by rank 0; its answer says whether to stop
    close()              ->       closed              ->      return, and so does fit()

With one rank all three are in one process (Train's in-process mode); with more, the mailbox is an actor.

A failed job is an outcome that is reported, and a lane of one rank goes on to the next job. With more ranks, the others
may wait in a collective for the one that failed, so the group is torn down: the lane is broken, as it is when a worker
dies, hangs, or is poisoned by a CUDA error.

When Ray is told that a node will go, the job is interrupted, which saves a checkpoint, and is lost: it goes on in a
lane elsewhere, however often that happens.

What torch.compile made is kept below the user's cache folder on the node (`raytrain.rundir.cache`), which all lanes
there share and which outlives them.
"""

import contextlib
import ctypes
import dataclasses
import gc
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.torch import TorchTrainer

from raytrain.config.run import TrainConfig
from raytrain.engine.hosts import missing
from raytrain.engine.job import HANG_TIMEOUT, OWNER_CPUS, Job, LaneShape, Report, one_line
from raytrain.engine.mailbox import Mailbox, RemoteMailbox
from raytrain.engine.nodes import Notice, Ranks, going, meet
from raytrain.errors import HostError
from raytrain.plugins.loader import line_in_plugin, load_source
from raytrain.uris import is_uri, without_secrets

_POLL_SECONDS = 20.0  # a rank without a job asks again after this, so no call hangs for ever
_LAST_WORDS_SECONDS = 2.0  # what the owner gets to take the report of a rank that ends itself
_CLOSE_SECONDS = 3.0  # what a lane may take to end its job when it is closed
# Of errors that torch raises as plain RuntimeErrors, what is in their text.
_NO_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_DEVICE = ("CUDA error", "CUDA driver error", "cuDNN error", "NCCL error")
_PEER = ("gloo/", "Connection closed by peer", "Connection reset by peer")


class JobFailed(Exception):
    """A job failed and took its rank with it; carries what `describe` says, which survives pickling."""

    def __init__(self, outcome: Report) -> None:
        super().__init__(outcome)
        self.outcome = outcome

    def __str__(self) -> str:
        return str(self.outcome["reason"])


class Lane:
    """Holds a worker group of `shape`, to train one job at a time with `train` (None: training.loop.train).

    `storage` is a folder for Train's own files, nothing of value. A lane that breaks stays broken: make another. A job
    that says nothing for `hang_timeout` seconds hangs, and breaks its lane.
    """

    def __init__(
        self,
        shape: LaneShape,
        storage: str,
        train: Callable[..., Report] | None = None,
        hang_timeout: float = HANG_TIMEOUT,
    ) -> None:
        self._mailbox = RemoteMailbox(shape.workers) if shape.workers > 1 else Mailbox()
        self._trainer = TorchTrainer(
            _serve,
            train_loop_config={
                "mailbox": self._mailbox,
                "train": train,
                "threads": shape.cpus,
                "hang_timeout": hang_timeout,
                "owner": ray.get_runtime_context().get_node_id(),
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=shape.workers if shape.workers > 1 else 0,
                use_gpu=shape.gpus > 0,
                resources_per_worker={"CPU": shape.cpus - OWNER_CPUS} | ({"GPU": shape.gpus} if shape.gpus else {}),
            ),
            run_config=ray.train.RunConfig(
                name="lane",
                storage_path=storage,
                # Train's own retries would multiply with Tune's, and run a job that always fails again and again.
                failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
            ),
        )
        self._end: Report | None = None
        self._thread = threading.Thread(target=self._fit, name="lane", daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
            self._end = {"status": "lost", "reason": "the lane's worker group ended"}
        except BaseException as error:
            ranks: Ranks = {}
            with contextlib.suppress(ray.exceptions.RayError):
                ranks = self._mailbox.told()
            self._end = explain(error, ranks)

    @property
    def is_broken(self) -> bool:
        """Whether the worker group has gone, so that no job can run any more."""
        return not self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Start `job`; one that still runs ends at its next report."""
        self._mailbox.submit(job)

    def take(self, seconds: float) -> list[Report]:
        """The job's reports since the last call; waits up to `seconds` for one.

        The last is the job's "end". That of a job that failed has the status `oom`, `failed` or `lost` (with a lane
        that broke under it), a one-line `reason`, and perhaps a `traceback`.
        """
        reports: list[Report] = []
        # In this order: what the job reported before its lane broke is still in the mailbox.
        is_broken = self.is_broken
        with contextlib.suppress(ray.exceptions.RayError):
            reports = self._mailbox.take(0 if is_broken else seconds)
        if is_broken and not any(report["event"] == "end" for report in reports):
            assert self._end is not None
            reports.append({"event": "end", "time": time.time(), **self._end})
        return reports

    def close(self) -> None:
        """End the lane, cancelling a job that runs. A job that does not end soon is left to die with the process."""
        with contextlib.suppress(ray.exceptions.RayError):
            self._mailbox.close()
        self._thread.join(_CLOSE_SECONDS)


def _serve(settings: dict[str, Any]) -> None:
    """What each rank of a lane does: train job after job until the mailbox is closed."""
    mailbox, train = settings["mailbox"], settings["train"]
    if train is None:
        from raytrain.training.loop import train
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(settings["threads"])
    floor = _TorchState.read()
    watch = Watchdog(settings["hang_timeout"], mailbox)
    here = {"host": socket.gethostname(), "node": ray.get_runtime_context().get_node_id()}
    mailbox.tell(rank, here | {"state": "has not begun"})
    gc.freeze()  # what is here stays, so collecting after each job need not look at it
    number, has_met = 0, size == 1
    with Notice({here["node"], settings["owner"]}) as notice:
        while number >= 0:
            number, job = mailbox.next_job(number, _POLL_SECONDS)
            if job is None:
                continue
            with watch.over(number):
                outcome = None if has_met else meet(rank, size, mailbox, here, ray.train.torch.get_device())
                has_met = True
                outcome = outcome or _run(job, number, train, mailbox, watch, notice)
            floor.restore()
            if outcome is not None:
                if size > 1 or outcome.pop("needs_restart"):
                    raise JobFailed(outcome)
                mailbox.report(number, {"event": "end", "time": time.time(), **outcome})


def _run(
    job: Job, number: int, train: Callable[..., Report], mailbox: Mailbox, watch: "Watchdog", notice: Notice
) -> Report | None:
    """Train one job. Returns what went wrong, in plain values: the exception would keep the job's tensors alive."""
    stop = False

    def on_report(report: Report) -> bool:
        nonlocal stop
        watch.note()
        if report["event"] == "step" and "memory_peak_gb" not in report:
            report = report | _resident_memory()
        if report.get("status") == "interrupted" and not stop:
            report = report | _preempted(mailbox, job)
        stop = mailbox.report(number, {**report, "time": time.time()}) or stop
        return stop or (report["event"] == "rung" and report["rung"] == job.rung)

    def interrupted() -> bool:
        watch.note()
        return stop or notice.has_come

    config = None
    try:
        for name, source in job.plugins.items():
            load_source(name, source)
        config = TrainConfig.from_dict(job.config)
        train(config, on_report, job.folder, interrupted, **_weights(job))
    except Exception as error:
        outcome = describe(error)
        if outcome["status"] == "failed" and config and (lacks := missing(config, job.folder)):
            outcome |= {"status": "lost", "reason": f"node {socket.gethostname()}: {lacks}"}
        for name in ("reason", "traceback"):  # a library's words may have the storage's address in them
            outcome[name] = without_secrets(outcome[name], job.folder)
        return outcome
    return None


def _weights(job: Job) -> dict[str, str]:
    """Where the run's final weights go, if they are kept: not on a node that does not share the study's folder, where
    nobody would find them."""
    place = job.weights
    return {"weights": place} if place and (is_uri(place) or Path(place).parent.is_dir()) else {}


def _preempted(mailbox: Mailbox, job: Job) -> Report:
    """What the end of a job is that a notice alone interrupted: no fault of the trial's, so it spends no retry."""
    kept = "no checkpoint is kept" if job.folder is None else "a checkpoint was saved"
    reason = f"{going(mailbox.told())} is to go, as Ray was told; {kept}"
    return {"status": "lost", "reason": reason, "preempted": True}


class Watchdog:
    """Ends this process if its job hangs: a collective or a CUDA call that never returns cannot be interrupted."""

    def __init__(self, hang_timeout: float, mailbox: Mailbox) -> None:
        self._hang_timeout, self._mailbox = hang_timeout, mailbox
        self._changed = threading.Condition()
        self._number: int | None = None
        self._last = 0.0
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def note(self) -> None:
        """The job lives."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def over(self, number: int) -> Iterator[None]:
        """Watch over job `number`."""
        self.note()
        self._set(number)
        try:
            yield
        finally:
            self._set(None)

    def _set(self, number: int | None) -> None:
        with self._changed:
            self._number = number
            self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._number is not None)
                left = self._last + self._hang_timeout - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
        reason = f"the lane hung: no message from a rank for {self._hang_timeout:g} s"
        end = {"event": "end", "status": "lost", "reason": reason, "time": time.time()}
        with contextlib.suppress(ray.exceptions.RayError):
            self._mailbox.report(self._number or 0, end)
        time.sleep(_LAST_WORDS_SECONDS)
        os._exit(1)


def _resident_memory() -> Report:
    """Memory of this process in GB (1e9 bytes), where the system tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return {}
    return {"memory_resident_gb": pages * os.sysconf("SC_PAGE_SIZE") / 1e9}


def describe(error: Exception) -> Report:
    """What an exception in training means: a status, a one-line reason, the traceback; and whether it poisons its
    process: after an error of the device, except for want of memory, every later call to it fails too.

    The status is `oom`; `lost`, if the device, the machine or the ranks' connection failed, as they need not elsewhere;
    or `failed`.
    """
    text = str(error)
    is_oom = isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in _NO_MEMORY)
    is_device = isinstance(error, torch.AcceleratorError) or any(words in text for words in _DEVICE)
    is_peer = isinstance(error, torch.distributed.DistError | ray.exceptions.RayError)
    is_peer = is_peer or any(words in text for words in _PEER)
    is_host = isinstance(error, HostError | OSError)  # a disk that is full, a folder that is gone
    return {
        "status": "oom" if is_oom else "lost" if is_device or is_peer or is_host else "failed",
        "reason": one_line(error) + (f" (in {place})" if (place := line_in_plugin(error)) else ""),
        "traceback": "".join(traceback.format_exception(error)),
        "needs_restart": is_device,
    }


def explain(error: BaseException, ranks: Ranks = MappingProxyType({})) -> Report:
    """The outcome of the job that ran when `fit()` raised `error`, on nodes that its `ranks` told of.

    A worker that died outweighs what the other ranks say, who only lost their peer; then memory, then a failure of the
    trial's own, then the first rank.
    """
    if isinstance(error, JobFailed):
        return error.outcome
    if not isinstance(error, ray.train.WorkerGroupError):
        cause = getattr(error, "controller_failure", error)
        return {"status": "lost", "reason": f"the lane broke: {one_line(cause)}"}
    outcomes = []
    for rank, failure in sorted(error.worker_failures.items()):
        if not isinstance(failure, JobFailed):
            cause = getattr(failure, "health_check_failure", failure)
            place = f" on node {ranks[rank]['host']}" if rank in ranks else ""
            return {"status": "lost", "reason": f"the lane lost rank {rank}{place}: {one_line(cause)}"}
        outcomes.append(failure.outcome | {"rank": rank})
    return min(outcomes, key=lambda outcome: ("oom", "failed", "lost").index(outcome["status"]))


@dataclasses.dataclass(frozen=True)
class _TorchState:
    """The global state of torch that a job may change and the next must not inherit. (Training sets all seeds.)"""

    threads: int
    dtype: torch.dtype
    matmul_precision: str
    deterministic: bool
    cudnn: tuple[bool, bool]

    @classmethod
    def read(cls) -> "_TorchState":
        return cls(
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        )

    def restore(self) -> None:
        """Back to this state, with the memory of the last job given back."""
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        # Setting what is set already changes the key of what is compiled: from "none" to "ieee", which is the same.
        if torch.get_float32_matmul_precision() != self.matmul_precision:
            torch.set_float32_matmul_precision(self.matmul_precision)
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:  # the setter imports for seconds
            torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = self.cudnn
        torch.set_grad_enabled(True)
        if "torch._dynamo" in sys.modules:
            # Compiled code is kept by function: without this, the ninth model through one class is no longer compiled.
            torch._dynamo.reset()
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):  # glibc keeps what was freed, unless it is told
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
