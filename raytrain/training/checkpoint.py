"""Checkpoints that are whole or absent, and that any strategy and world size can continue from.

A checkpoint is a folder `step-00000100` of safetensors shards, written by torch.distributed.checkpoint, and a
`manifest.json` with the run's position and the sha256 of every shard. It becomes visible at once, on a disk or an
object store: see `storage`. Nothing in it is a pickle: reading one from an untrusted place runs no code.

Tensors go by the model's own names, whole or as DTensor shards, so a checkpoint of two FSDP ranks loads into one rank
of anything. The data position is the step, and dropout follows from (seed, step, rank): neither needs more.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.optim import ZeroRedundancyOptimizer

from raytrain.axes import plugin
from raytrain.config.run import TrainConfig, flat
from raytrain.errors import HostError, UserError
from raytrain.training.manifest import FORMAT, digest, newest, read_manifest, sha256, verify
from raytrain.training.optimizer import initial_state
from raytrain.training.parallel import World, local
from raytrain.training.storage import WEIGHTS, Storage, open_storage

T = TypeVar("T")

# Fields that change where or how fast a run trains, not what it computes: a resumed run may differ in them.
_FREE = {
    "device", "compile", "parallel", "fsdp_shard_size", "activation_checkpointing", "micro_batch", "peak_tflops",
    "eval_interval", "evaluations", "eval_data", "log_interval", "stats_interval", "checkpoint_interval",
    "keep_checkpoints", "scale", "data", "init_from", "rung_decay", "plugins",
}  # fmt: skip


@dataclasses.dataclass
class State:
    """The position of a run, beside its tensors."""

    step: int = 0  # optimizer steps done
    sequences: int = 0  # training sequences seen
    micro_batch: int = 0  # sequences of one rank at a time; 0 in checkpoints from before it was kept
    train_loss: float = float("nan")
    grad_norm: float = float("nan")
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)  # the last one
    evaluated_step: int = 0  # when that was
    score: dict[str, float] = dataclasses.field(default_factory=dict)  # the evaluation at the last rung
    scored_step: int = 0  # when that was
    decay_flops: int = 0  # of all branches that rungs were scored after
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    speed: dict[str, float] = dataclasses.field(default_factory=dict)  # what the meter has counted; see Meter.state


class Checkpointer:
    """Saves and restores one run. Every method but `close` is a collective over the run's ranks.

    Rank 0's `folder` and `weights` count: each a path, or a URI; None keeps nothing. Saving copies the tensors and
    returns; a thread writes them. What goes wrong on one rank is raised on all: UserError if the storage is at fault,
    else RuntimeError. `close` it, or use it in a `with` statement: a process that trains many runs would gather process
    groups.
    """

    def __init__(
        self,
        folder: Path | str | None,
        config: TrainConfig,
        data_fingerprint: str,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: Path | str | None = None,
    ) -> None:
        shared = [folder, weights]
        if world.size > 1:
            dist.broadcast_object_list(shared, src=0, device=world.device)
        self._storage = open_storage(shared[0]) if shared[0] is not None else None
        self._weights = open_storage(shared[1], WEIGHTS) if shared[1] is not None else None
        self._config, self._world, self._optimizer = config, world, optimizer
        # Taken now: after an evaluation FSDP's root shows its parameters whole until the next backward pass.
        self._parameters = _parameters(model)
        # No rungs are as none ever were, to the checkpoints of before there were any.
        self._trajectory = {k: v for k, v in config.identity().items() if k not in _FREE and v != []}
        self._trajectory |= plugin.digests(config.plugins)
        self._trajectory["architecture"] = config.architecture.canonical().to_dict()
        self._trajectory["data_fingerprint"] = data_fingerprint
        self._pending: concurrent.futures.Future[Any] | None = None
        # Writing has collectives of its own, on the CPU, apart from the training's.
        writes = self._storage is not None or self._weights is not None
        self._group = dist.new_group(backend="gloo") if writes and world.size > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_due(self, state: State, *, is_last: bool) -> bool:
        interval = self._config.checkpoint_interval
        if self._storage is None or interval is None:
            return False
        return is_last or (interval > 0 and state.step % interval == 0)

    def save(self, state: State) -> None:
        """Copy the run as it is now; a thread writes it. Waits for the previous one first; raises what that raised."""
        if self._storage is None:
            return
        self.finish()
        storage, stage, name, manifest = self._staged(self._storage, state)
        future = dcp.async_save(self._tensors(), **self._writer(stage))
        assert isinstance(future, concurrent.futures.Future)
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def publish(written: concurrent.futures.Future[Any]) -> None:
            try:
                self._publish(storage, name, stage, manifest, written.result)
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        self._pending = done
        future.add_done_callback(publish)

    def keep_weights(self, state: State) -> dict[str, str]:
        """Write the model alone to `weights`, if they are to be kept, as a checkpoint that no run continues from.

        Returns once it is there, with what to report: `weights`, the checkpoint's name; or `weights_lost`, why there is
        none. That is no failure of the run, whose result does not rest on them.
        """
        if self._weights is None:
            return {}
        try:
            storage, stage, name, manifest = self._staged(self._weights, state)
            write = functools.partial(dcp.save, self._model_tensors(), **self._writer(stage))
            self._publish(storage, name, stage, manifest, write)
        except (UserError, RuntimeError) as error:
            return {"weights_lost": str(error)}
        return {"weights": name}

    def _staged(self, storage: Storage, state: State) -> tuple[Storage, Path, str, dict[str, Any]]:
        """For a new checkpoint: `storage`, where this rank writes its files, its name and its manifest."""
        name = f"step-{state.step:08d}"
        stages = self._run_on_all_ranks(_task(storage, name), lambda: storage.stage(name, is_main=self._world.is_main))
        manifest = {"format": FORMAT, "state": dataclasses.asdict(state), "trajectory": self._trajectory}
        manifest |= {"config_hash": digest(self._trajectory), "world_size": self._world.size}
        manifest["rng"] = "dropout follows from (seed, step, rank, micro-batches); data order from (seed, sequence)"
        return storage, stages[self._world.rank], name, manifest

    def _writer(self, stage: Path) -> dict[str, Any]:
        writer = dcp.HuggingFaceStorageWriter(str(stage), save_distributed=True)
        return {"storage_writer": writer, "process_group": self._group, "no_dist": self._group is None}

    def finish(self) -> None:
        """Wait until what was saved is in its place. Raises what writing raised."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Let the writing thread end, and free the process group. Raises nothing."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending])
        for storage in (self._storage, self._weights):
            if storage is not None:
                storage.close()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def restore(self) -> tuple[State, dict[str, Any]]:
        """Load the newest whole checkpoint of this run, if there is one.

        Returns the position (step 0 without one), and what to report: the checkpoint's name, and any that are
        damaged, with the reason. Raises UserError where a checkpoint is of another run, naming what differs.
        """
        if self._storage is None:
            return State(), {}
        storage, task = self._storage, f"checkpoints in {self._storage} were not read"
        nothing: tuple[dict[str, Any] | None, list[str]] = (None, [])
        manifest, damaged = self._run_on_all_ranks(task, lambda: newest(storage) if self._world.is_main else nothing)[0]
        notes: dict[str, Any] = {"damaged_checkpoints": damaged} if damaged else {}
        if manifest is None:
            return State(), notes
        self._check_same_run(manifest)
        tensors = self._tensors()
        reader = dcp.HuggingFaceStorageReader(str(self._at_hand(storage, manifest["name"], task)))
        load = functools.partial(dcp.load, storage_reader=reader, process_group=self._group)
        self._run_on_all_ranks(task, lambda: load(tensors, no_dist=self._group is None))
        storage.close()
        state = State(**manifest["state"])
        self._set_step(state.step)
        return state, notes | {"checkpoint": manifest["name"]}

    def snapshot(self) -> dict[str, torch.Tensor]:
        """A copy of every tensor of the run that this rank holds, in CPU memory."""
        return {name: local(tensor).to("cpu", copy=True) for name, tensor in self._tensors().items()}

    def put_back(self, snapshot: dict[str, torch.Tensor], step: int) -> None:
        """Make the run what it was at `snapshot`, after `step` steps."""
        for name, tensor in self._tensors().items():
            local(tensor).copy_(snapshot[name])
        self._set_step(step)

    def _at_hand(self, storage: Storage, name: str, task: str) -> Path:
        """Where this rank reads a checkpoint. From afar, the first rank of each machine brings it there for all."""
        if storage.is_shared:
            return storage.local(name)
        machines = self._run_on_all_ranks(task, socket.gethostname)
        first = machines.index(machines[self._world.rank])

        def bring() -> Path:
            if self._world.rank == first > 0:  # rank 0 has verified it, so it has it
                _, problem = verify(storage, name)
                if problem:
                    raise OSError(f"{name}: {problem}")
            return storage.local(name)

        return self._run_on_all_ranks(task, bring)[first]

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor of the run by name. The dict holds the live tensors, so loading fills them."""
        tensors = self._model_tensors()
        for name, state in self._states().items():
            tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items() if key != "step"}
        return tensors

    def _model_tensors(self) -> dict[str, torch.Tensor]:
        return {f"model.{name}": parameter.detach() for name, parameter in self._parameters.items()}

    def _set_step(self, step: int) -> None:
        """Let the optimizer continue after `step` steps, where it counts them."""
        for state in self._states().values():
            if "step" in state:
                state["step"].fill_(step)

    def _states(self) -> dict[str, dict[str, torch.Tensor]]:
        """The optimizer's state on this rank by parameter name, made if no step has made it yet."""
        optimizer = self._optimizer
        if isinstance(optimizer, ZeroRedundancyOptimizer):
            optimizer = optimizer.optim
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        states = {}
        for name, parameter in self._parameters.items():
            if id(parameter) in groups:
                state = optimizer.state[parameter]
                if not state:
                    state.update(initial_state(optimizer, parameter.detach(), groups[id(parameter)]))
                states[name] = state
        return states

    def _publish(
        self,
        storage: Storage,
        name: str,
        stage: Path,
        manifest: dict[str, Any],
        write: Callable[[], object],
    ) -> None:
        """Make a checkpoint visible once `write` has put it in `stage`, and drop older ones."""
        is_mine = self._world.is_main or not storage.is_shared

        def put() -> dict[str, str]:
            write()
            digests = {file.name: sha256(file) for file in sorted(stage.iterdir())} if is_mine else {}
            storage.put(stage, name)
            return digests

        def commit(files: dict[str, str]) -> None:
            whole = {"name": name, **manifest, "files": files}
            whole["sha256"] = digest(whole)
            storage.commit(stage, name, json.dumps(whole, indent=1).encode())
            self._drop_older(storage, name)

        try:
            digests = self._run_on_all_ranks(_task(storage, name), put)
            files = {file: digest for part in digests for file, digest in part.items()}
            self._run_on_all_ranks(_task(storage, name), lambda: commit(files) if self._world.is_main else None)
        finally:
            if is_mine:
                shutil.rmtree(stage, ignore_errors=True)

    def _drop_older(self, storage: Storage, latest: str) -> None:
        """Delete what is no longer kept, now that `latest` is committed. Later ones, damaged, have been passed over."""
        # The next save reports a failing storage; not all may be deletable, and one of another format is not ours.
        with contextlib.suppress(OSError, UserError):
            names = [name for name in storage.names() if name <= latest]
            manifests = {name: m for name in names if (m := read_manifest(storage, name)) is not None}
            losses = {
                name: m["state"]["evaluation"]["val_loss"]
                for name, m in manifests.items()
                if m["state"]["evaluated_step"] == m["state"]["step"]  # else the loss is not of these weights
            }
            best = min((name for name in losses if losses[name] is not None), key=lambda n: losses[n], default=None)
            oldest = min(list(manifests)[-self._config.keep_checkpoints :], default="")
            for name in names:
                if name < oldest and name != best:
                    storage.delete(name)

    def _check_same_run(self, manifest: dict[str, Any]) -> None:
        mine, theirs = flat(json.loads(json.dumps(self._trajectory))), flat(manifest["trajectory"])
        unlike = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
        if unlike:
            differences = ", ".join(f"its {name} is {theirs.get(name)!r}, not {mine.get(name)!r}" for name in unlike)
            raise UserError(
                f"{self._storage} holds another run: {differences}; resume with the same, or train in another folder"
            )

    def _run_on_all_ranks(self, task: str, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each rank. If it raises on any, all raise an error that names `task` and why."""
        failure: BaseException | None = None
        outcome: tuple[T | None, type[Exception], str] = (None, RuntimeError, "")
        try:
            outcome = (work(), RuntimeError, "")
        except UserError as error:
            failure, outcome = error, (None, type(error), str(error))
        except (Exception, CheckpointException) as error:
            failure, outcome = error, (None, *_describe(error, task))
        outcomes: list[Any] = [outcome]
        if self._group is not None:
            outcomes = [None] * self._world.size
            dist.all_gather_object(outcomes, outcome, group=self._group)
        for _, kind, text in outcomes:
            if text:
                raise kind(text) from failure
        return [result for result, _, _ in outcomes]


def _task(storage: Storage, name: str) -> str:
    return f"checkpoint {name} in {storage} was not saved"


def _describe(error: BaseException, task: str) -> tuple[type[Exception], str]:
    """What to raise because `task` failed so: a kind of error and its one line."""
    while isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    reason = str(error).partition("\n")[0]
    if isinstance(error, OSError):
        return HostError, f"{task}: {reason}"
    return RuntimeError, f"{task}: {type(error).__name__}: {reason}"


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by the model's own names, without what checkpointing wrappers put in between."""
    return {name.replace("_checkpoint_wrapped_module.", ""): p for name, p in model.named_parameters()}
