"""Where a run runs: its ranks, its device, and how the model is spread over them. The model knows nothing of this.

Whatever the strategy, it is the same training: the same sequences in the same global batch, gradients summed in fp32.

    single   one process
    ddp      a replica a rank; gradients averaged once an optimizer step, over the last micro-batch's backward pass
    zero1    as ddp, and each rank keeps AdamW's moments of its own share of the parameters (ZeRO, arXiv 1910.02054)
    fsdp     parameters, gradients and moments sharded (FSDP2, arXiv 2304.11277)
"""

import contextlib
import copyreg
import dataclasses
import datetime
import functools
import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
import torch.compiler.config
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from raytrain import kernels
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError
from raytrain.rundir.cache import use_private_compile_cache
from raytrain.training import fp8
from raytrain.training.launch import Launch, launched
from raytrain.training.objective import NextTokenLoss

# torch 2.13 has another name for it, which 2.10 does not know.
warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
_TIMEOUT = datetime.timedelta(minutes=10)
_MEETING = datetime.timedelta(minutes=1)  # that the ranks of a launcher may take to come together


@dataclasses.dataclass(frozen=True)
class World:
    """The ranks of one run, as this rank sees them."""

    rank: int
    size: int
    device: torch.device
    strategy: str  # single, ddp, zero1 or fsdp
    dtype: torch.dtype  # of compute
    replicas: int = 1  # ranks that hold the same shard of a parameter, under fsdp

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of `value` over all ranks, on every rank. In place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def agree(self, decision: bool | None) -> bool:
        """Rank 0's `decision`, on every rank."""
        if self.size == 1:
            return bool(decision)
        flag = torch.tensor(int(bool(decision)), device=self.device)
        dist.broadcast(flag, src=0)
        return bool(flag.item())

    def synchronize(self) -> None:
        """Wait for the device's queue to end, so that a clock read next is right."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextlib.contextmanager
def join_world(config: TrainConfig) -> Iterator[World]:
    """The run's ranks: a process group that exists (Ray makes one); else torchrun's; else this process alone.

    Tears down only what it made. Raises UserError where the strategy and the number of ranks don't go together.
    """
    device = _device(config.device)
    launch = Launch() if dist.is_initialized() else launched()
    mine = launch.size > 1
    size = dist.get_world_size() if dist.is_initialized() else launch.size
    strategy = config.parallel if config.parallel != "auto" else ("ddp" if size > 1 else "single")
    config.check_ranks(size)
    _private_cache(config, device)  # now: building a model imports torch's compiler, which looks for its cache
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if mine:
        _meet(launch, "nccl" if device.type == "cuda" else "gloo")
    elif size == 1 and strategy != "single" and not dist.is_initialized():
        store = dist.HashStore()  # a world of one, so that every strategy also runs, and resumes, on one rank
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
        mine = True
    try:
        rank = dist.get_rank() if dist.is_initialized() else 0
        replicas = size // (config.fsdp_shard_size or size)
        yield World(rank, size, device, strategy, compute_dtype(config.precision, device), replicas)
    finally:
        if mine:
            dist.destroy_process_group()


def _meet(launch: Launch, backend: str) -> None:
    """Make the process group of the ranks that a launcher started. Raises UserError if they do not come together."""
    try:
        if launch.has_agent or launch.address is None:
            dist.init_process_group(backend, timeout=_TIMEOUT)
            return
        host, port = launch.address
        store = dist.TCPStore(host, port, launch.size, launch.rank == 0, timeout=_MEETING)
        store.set_timeout(_TIMEOUT)
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=_TIMEOUT)
    except (dist.DistError, ValueError) as error:
        raise launch.unreachable(error) from None


def _device(wanted: str) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device 'cuda' was asked for, but torch sees no GPU here; try cpu or auto")
    # A launcher shows a rank either all GPUs of the node, and its LOCAL_RANK picks one, or that rank's GPU alone.
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local_rank if local_rank < torch.cuda.device_count() else 0)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that matrix products run in (under fp8, those outside of the blocks); parameters stay fp32.

    Raises UserError where the device has no fp8.
    """
    if precision == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        has = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise UserError(f"precision ('fp8') needs compute capability 8.9 or more, and this GPU has {has}; try bf16")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp32": torch.float32}[precision]


def parallelize(loss_model: NextTokenLoss, config: TrainConfig, world: World) -> nn.Module:
    """Make `loss_model` ready to train on `world`: checkpointing, then compile, then the strategy.

    The order matters: a compiled block then holds its own recomputation, and the strategy's hooks stay outside of
    compiled code. One block is compiled and serves every layer, so compile time does not grow with depth.
    """
    model = loss_model.model
    blocks = model.blocks
    if config.activation_checkpointing == "full":
        for index, block in enumerate(blocks):
            blocks[index] = checkpoint_wrapper(block)
    elif config.activation_checkpointing == "selective" and not uses_compile(config, world):
        raise UserError("activation_checkpointing ('selective') is the compiler's doing: it goes with --compile True")
    folder = _private_cache(config, world.device)
    if config.precision == "fp8":
        fp8.convert(blocks)
    if uses_compile(config, world):
        from torch._inductor import codecache  # here: it takes seconds, which what is compiled spends anyway

        # The folder of precompiled headers is the one that ignores the compiler's setting.
        codecache._HEADER_DIR = f"{folder}/precompiled_headers"
        codecache._HEADER_LOCK_DIR = f"{folder}/precompiled_headers/locks"
        # The key of what is compiled holds the pickle of a memory format. Left alone that names whichever module first
        # imported torch, so that a process which imports in another order, as a lane does, finds nothing.
        copyreg.pickle(torch.memory_format, _reduced)
        # What is compiled computes anew what costs nothing more to read. Under "selective" that is also what a matrix
        # product of the backward pass then needs in memory, for one write more of each: activations and norms.
        settings = torch._functorch.config
        keeps_all = config.activation_checkpointing != "selective"
        if settings.ban_recompute_materialized_backward != keeps_all:
            torch._dynamo.reset()  # what this process compiled so far does not know of the change
        settings.ban_recompute_materialized_backward = keeps_all
        # Else blocks with a gradient of our own (`model.activations`) would be compiled anew by every process. What the
        # cache does not see of it is how `kernels.silu` calls its kernel, so that is in the tag.
        settings.autograd_cache_allow_custom_autograd_functions = True
        tag = hashlib.sha256(Path(kernels.__file__).with_name("silu.py").read_bytes()).hexdigest()
        torch.compiler.config.cache_key_tag = os.environ.get("TORCH_COMPILE_CACHE_KEY_TAG", "") + tag
        # Kernels that are alike then have one name, and so one file, whichever program they are of: those of another
        # variant are not compiled again.
        if "TORCHINDUCTOR_UNIQUE_KERNEL_NAMES" not in os.environ:
            torch._inductor.config.triton.unique_kernel_names = False
        # Else what "full" recomputes draws its dropout from generators of its own, which no seed of a step reaches.
        settings.graphsafe_rng_functionalization = False
        for block in blocks:
            block.compile(dynamic=False)
        model.finish = torch.compile(model.finish, dynamic=False)  # type: ignore[method-assign]
        # Dropout is another program at evaluation anyway; and FSDP must not see a forward pass without its backward.
        dropout = config.architecture.dropout > 0
        loss_model.evaluates_as_it_trains = not dropout and world.strategy != "fsdp"
    if world.strategy == "fsdp":
        return _shard(loss_model, blocks, world)
    if world.strategy in ("ddp", "zero1"):
        device_ids = [world.device.index] if world.device.type == "cuda" else None
        return DistributedDataParallel(
            loss_model, device_ids=device_ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )
    return loss_model


def _memory_format(name: str) -> torch.memory_format:
    found: torch.memory_format = getattr(torch, name)
    return found


def _reduced(layout: torch.memory_format) -> tuple[Any, tuple[str]]:
    return _memory_format, (str(layout).removeprefix("torch."),)


def uses_compile(config: TrainConfig, world: World) -> bool:
    """Whether the blocks are compiled: on GPUs, unless `config` decides otherwise."""
    return _compiles(config, world.device)


def _compiles(config: TrainConfig, device: torch.device) -> bool:
    return device.type == "cuda" if config.compile is None else config.compile


def _private_cache(config: TrainConfig, device: torch.device) -> Path | None:
    """Where this process keeps compiled code, if it compiles any: on a GPU Triton does in any case."""
    return use_private_compile_cache() if device.type == "cuda" or _compiles(config, device) else None


def _shard(loss_model: nn.Module, blocks: nn.ModuleList, world: World) -> nn.Module:
    """FSDP2, a group a block and one for the rest (embedding, head, final norm).

    A block's parameters are freed after its forward pass and gathered again for its backward pass; the root's stay,
    since its backward pass comes first. Parameters are gathered and gradients reduced in fp32, and autocast casts what
    it casts elsewhere: so a run computes what it would under another strategy.
    """
    mesh = _mesh(world.device.type, world.replicas, world.size // world.replicas, dist.group.WORLD)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(loss_model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return loss_model


@functools.lru_cache(maxsize=4)
def _mesh(device_type: str, replicas: int, shards: int, group: dist.ProcessGroup) -> DeviceMesh:
    """The mesh of `group`'s ranks, made once: each mesh of two dimensions makes process groups that stay."""
    if replicas == 1:
        return init_device_mesh(device_type, (shards,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (replicas, shards), mesh_dim_names=("replicate", "shard"))


@contextlib.contextmanager
def accumulate(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Around one micro-batch's forward and backward pass: replicas average their gradients on the last one alone.

    FSDP reduces every time instead, since unsharded gradients are the memory that it is there to save.
    """
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip_gradients(parameters: list[nn.Parameter], limit: float, world: World) -> torch.Tensor:
    """Scale all gradients so that their global norm is at most `limit`; returns the norm before. A collective.

    As torch.nn.utils.clip_grad_norm_, but on each rank's own shards: that one's norm of sharded gradients runs hundreds
    of small DTensor operations, which takes longer than the arithmetic.
    """
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
    if world.strategy == "fsdp":
        world.sum(squares).div_(world.replicas)
    norm = squares.sqrt()
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
