"""Checkpoints that are whole or absent, and that any strategy and world size can go on from.

A checkpoint is a folder `step-00000100` of safetensors shards, written by torch.distributed.checkpoint, and a
`manifest.json` with the run's position and the sha256 of every shard. It is written under a temporary name and shown by
one atomic rename, manifest last. Nothing in it is a pickle: reading one from an untrusted place runs no code.

Tensors go by the model's own names, whole or as DTensor shards, so a checkpoint of two FSDP ranks loads into one rank
of anything. The data position is the step, and dropout follows from (seed, step, rank): neither needs more.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from raytrain.errors import UserError
from raytrain.training.config import TrainConfig
from raytrain.training.parallel import World

# A process alone saves as one process: no news.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

_FORMAT = 1
_MANIFEST = "manifest.json"

# Fields that change where or how fast a run trains, not what it computes: a resumed run may differ in them.
_FREE = {
    "device", "compile", "parallel", "fsdp_shard_size", "activation_checkpointing", "micro_batch", "peak_tflops",
    "eval_interval", "log_interval", "stats_interval", "checkpoint_interval", "keep_checkpoints", "scale", "data",
    "init_from",
}  # fmt: skip


@dataclasses.dataclass
class State:
    """The position of a run, beside its tensors."""

    step: int = 0  # optimizer steps done
    sequences: int = 0  # training sequences seen
    train_loss: float = float("nan")
    grad_norm: float = float("nan")
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)  # the last one
    best_val_loss: float = float("inf")
    train_seconds: float = 0.0
    eval_seconds: float = 0.0


class Checkpointer:
    """Saves and restores one run. Every method is a collective over the run's ranks.

    Rank 0's `folder` counts; None keeps nothing. Saving copies the tensors and returns; a thread writes them.
    """

    def __init__(
        self,
        folder: Path | None,
        config: TrainConfig,
        data_fingerprint: str,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        shared = [folder]
        if world.size > 1:
            dist.broadcast_object_list(shared, src=0, device=world.device)
        self._folder = shared[0] / "checkpoints" if shared[0] is not None else None
        self._config, self._world, self._optimizer = config, world, optimizer
        # Taken now: after an evaluation FSDP's root shows its parameters whole until the next backward pass.
        self._parameters = _parameters(model)
        self._trajectory = {k: v for k, v in config.to_dict().items() if k not in _FREE}
        self._trajectory["architecture"] = config.architecture.canonical().to_dict()
        self._trajectory["data_fingerprint"] = data_fingerprint
        self._pending: concurrent.futures.Future[Any] | None = None
        # Writing has collectives of its own, on the CPU, apart from the training's.
        self._group = dist.new_group(backend="gloo") if self._folder is not None and world.size > 1 else None

    def is_due(self, state: State, *, is_last: bool) -> bool:
        interval = self._config.checkpoint_interval
        if self._folder is None or interval is None:
            return False
        return is_last or (interval > 0 and state.step % interval == 0)

    def save(self, state: State) -> None:
        """Copy the run as it is now; a thread writes it. Waits for the previous one first."""
        if self._folder is None:
            return
        self.finish()
        name = f"step-{state.step:08d}"
        partial = self._folder / f".{name}.partial"
        if self._world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._barrier()
        writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
        future = dcp.async_save(
            self._tensors(), storage_writer=writer, process_group=self._group, no_dist=self._group is None
        )
        assert isinstance(future, concurrent.futures.Future)
        if not self._world.is_main:
            self._pending = future
            return
        manifest = {"format": _FORMAT, "state": dataclasses.asdict(state), "trajectory": self._trajectory}
        manifest |= {"config_hash": _hash(self._trajectory), "world_size": self._world.size}
        manifest["rng"] = "dropout is seeded by (seed, step, micro-step, rank); data order by (seed, sequence)"
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def commit(written: concurrent.futures.Future[Any]) -> None:
            try:
                written.result()
                self._commit(partial, name, manifest)
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        self._pending = done
        future.add_done_callback(commit)

    def finish(self) -> None:
        """Wait until what was saved is on disk. Raises what writing raised."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
        self._barrier()

    def restore(self) -> tuple[State, dict[str, Any]]:
        """Load the newest whole checkpoint of this run, if there is one.

        Returns the position (step 0 without one), and what to report: the checkpoint's name, and any that were found
        damaged, with the reason. Raises UserError where a checkpoint is of another run, naming what differs.
        """
        if self._folder is None:
            return State(), {}
        found: list[Any] = [None]
        if self._world.is_main:
            found = [newest(self._folder)]
        if self._world.size > 1:
            dist.broadcast_object_list(found, src=0, group=self._group)
        manifest, damaged = found[0]
        notes: dict[str, Any] = {"damaged_checkpoints": damaged} if damaged else {}
        if manifest is None:
            return State(), notes
        self._check_same_run(manifest)
        tensors = self._tensors()
        reader = dcp.HuggingFaceStorageReader(str(self._folder / manifest["name"]))
        dcp.load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        state = State(**manifest["state"])
        for moments in self._moments().values():
            moments["step"].fill_(state.step)
        return state, notes | {"checkpoint": manifest["name"]}

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor of the run by name. The dict holds the live tensors, so loading fills them."""
        tensors = {f"model.{name}": parameter.detach() for name, parameter in self._parameters.items()}
        for name, moments in self._moments().items():
            tensors |= {f"optimizer.{name}.{key}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        return tensors

    def _moments(self) -> dict[str, dict[str, torch.Tensor]]:
        """AdamW's state on this rank by parameter name, made if no step has made it yet."""
        optimizer = self._optimizer
        if isinstance(optimizer, ZeroRedundancyOptimizer):
            optimizer = optimizer.optim
        owned = {id(p): p for group in optimizer.param_groups for p in group["params"]}
        moments = {}
        for name, parameter in self._parameters.items():
            if id(parameter) in owned:
                state = optimizer.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter.detach())
                    state["exp_avg_sq"] = torch.zeros_like(parameter.detach())
                moments[name] = state
        return moments

    def _commit(self, partial: Path, name: str, manifest: dict[str, Any]) -> None:
        """Make a written checkpoint visible, then drop what is no longer kept. On rank 0, in the writing thread."""
        assert self._folder is not None
        manifest = {"name": name, **manifest, "files": {f.name: _sha256(f) for f in sorted(partial.iterdir())}}
        manifest["sha256"] = _hash(manifest)
        with (partial / _MANIFEST).open("w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(self._folder / name, ignore_errors=True)
        partial.rename(self._folder / name)
        checkpoints = {path: _read_manifest(path) for path in _checkpoints(self._folder)}
        losses = {p: m["state"]["evaluation"].get("val_loss") for p, m in checkpoints.items() if m is not None}
        best = min((p for p in losses if losses[p] is not None), key=lambda p: losses[p], default=None)
        for path in list(checkpoints)[: -self._config.keep_checkpoints]:
            if path != best:
                shutil.rmtree(path, ignore_errors=True)

    def _check_same_run(self, manifest: dict[str, Any]) -> None:
        mine, theirs = json.loads(json.dumps(self._trajectory)), manifest["trajectory"]
        for field in sorted(mine.keys() | theirs.keys()):
            if mine.get(field) != theirs.get(field):
                raise UserError(
                    f"{self._folder} holds another run: its {field} is {theirs.get(field)!r}, not {mine.get(field)!r}; "
                    "resume with the same, or train in another folder"
                )

    def _barrier(self) -> None:
        if self._group is not None:
            dist.barrier(self._group)


def newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The manifest of the newest whole checkpoint in `folder`, and of each newer one why it is not whole."""
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
        manifest, problem = verify(path)
        if manifest is not None:
            return manifest, damaged
        damaged.append(f"{path.name}: {problem}")
    return None, damaged


def verify(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The manifest of the checkpoint at `path` if every byte of it is as written; else None and what is wrong."""
    manifest = _read_manifest(path)
    if manifest is None:
        return None, f"{_MANIFEST} is missing or damaged"
    for name, digest in manifest["files"].items():
        if not (path / name).is_file():
            return None, f"{name} is missing"
        if _sha256(path / name) != digest:
            return None, f"{name} is damaged (sha256 differs)"
    return manifest, ""


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, oldest first, whole or not."""
    return sorted(folder.glob("step-*"))


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        digest = manifest.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return manifest if digest == _hash(manifest) else None


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by the model's own names, without what checkpointing wrappers put in between."""
    return {name.replace("_checkpoint_wrapped_module.", ""): p for name, p in model.named_parameters()}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
