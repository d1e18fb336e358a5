"""How many sequences a rank takes at a time: the run's own number, a usual one, or the fastest, by trying.

The global batch stays what it is: a larger micro-batch means fewer of them. The result is kept, by all that speed
follows from, so that a sweep tries once for each architecture; and in a run's checkpoints, since sums depend on it.
"""

import time
from typing import Any

import torch
from torch import nn

from raytrain.axes import plugin
from raytrain.config.run import AUTO, DEFAULT_TOKENS, TrainConfig
from raytrain.rundir.cache import kept
from raytrain.training import parallel
from raytrain.training.monitor import device_name
from raytrain.training.parallel import World, local
from raytrain.version import __version__

_LEAST_TOKENS = 4096  # of a micro-batch that is tried: below, launches dominate on any GPU
_MOST_MEMORY = 0.9  # of what the device has for this process, that a micro-batch is expected to take before it is tried
_WORTH = 1.01  # times the speed, that makes a larger one worth its memory
_PASSES = 4  # timed, after one that compiles


def micro_batch(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, world: World, *, before: int
) -> int:
    """Sequences of a micro-batch of one rank; the same on every rank. A collective, if it has to try.

    `model` is the run's NextTokenLoss, spread; trying leaves its parameters as they were and no gradients. `before` is
    what the run had in an earlier process, or 0: where it still divides the batch, it is taken again.
    """
    if isinstance(config.micro_batch, int):
        return config.micro_batch
    per_rank = config.batch_sequences // world.size
    sizes = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
    block_size = config.architecture.block_size
    if config.micro_batch != AUTO:
        most = max(1, DEFAULT_TOKENS[world.device.type] // block_size)
        return max(size for size in sizes if size <= most or size == 1)
    if before in sizes:
        return before
    fastest = kept("micro_batch", _key(config, world)) if world.is_main else None
    if not world.agree(fastest is not None):
        sizes = [size for size in sizes if size * block_size >= _LEAST_TOKENS] or sizes
        fastest = _fastest(model, optimizer, config, world, sizes)
        if world.is_main:
            kept("micro_batch", _key(config, world), fastest)
    return int(world.sum(torch.tensor(fastest or 0 if world.is_main else 0, device=world.device)).item())


def _key(config: TrainConfig, world: World) -> dict[str, Any]:
    """All that the fastest micro-batch follows from."""
    names = ("precision", "compile", "global_batch", "activation_checkpointing", "fsdp_shard_size")
    key = {name: getattr(config, name) for name in names} | plugin.digests(config.plugins)
    key |= {"program": config.architecture.program().to_dict()}
    place = {"device": device_name(world.device), "strategy": world.strategy, "ranks": world.size}
    return key | place | {"torch": torch.__version__, "raytrain": __version__}


def _fastest(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, world: World, sizes: list[int]
) -> int:
    """The smallest of `sizes` than which none tried is faster by a hundredth. Each is twice the one before, or more."""
    room = _room(optimizer, world)
    best, best_speed = 0, 0.0
    peaks: list[tuple[int, float]] = []  # sequences, and bytes at the peak
    while wanted := [size for size in sizes if size >= 2 * best]:
        if peaks and not world.agree(_fits(peaks, wanted[0], room)):
            break
        speed, peak = _try(model, config, world, wanted[0])
        if speed < _WORTH * best_speed:
            break
        peaks.append((wanted[0], peak))
        best, best_speed = wanted[0], speed
    if parallel.uses_compile(config, world):
        torch._dynamo.reset()  # it compiles so many shapes of one function, and then no more
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(world.device)  # the run's peak is to be its own
    return best


def _room(optimizer: torch.optim.Optimizer, world: World) -> float:
    """Bytes that this process may take at its peak: without what others have there, and AdamW's moments to come."""
    if world.device.type != "cuda":
        return float("inf")  # a CPU is not faster with more than fits
    optimizer = getattr(optimizer, "optim", optimizer)  # ZeRO's own, of this rank's share
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    to_come = sum(8 * local(p).numel() for p in parameters if not optimizer.state.get(p))
    free, _ = torch.cuda.mem_get_info(world.device)
    return _MOST_MEMORY * (free + torch.cuda.memory_reserved(world.device)) - to_come


def _fits(peaks: list[tuple[int, float]], size: int, room: float) -> bool:
    """Whether `size` sequences are likely to fit: memory grows with them by a straight line."""
    last, last_peak = peaks[-1]
    slope = last_peak / last
    if len(peaks) > 1:
        slope = (last_peak - peaks[-2][1]) / (last - peaks[-2][0])
    return last_peak + slope * (size - last) <= room


def _try(model: nn.Module, config: TrainConfig, world: World, size: int) -> tuple[float, float]:
    """Sequences/s of forward and backward passes, and the bytes at their peak."""
    arch = config.architecture
    tokens = torch.randint(arch.vocab_size, (size, arch.block_size + 1), device=world.device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)

    def passes() -> None:
        with parallel.accumulate(model, last=False):  # a step averages its gradients once
            with torch.autocast(world.device.type, world.dtype, enabled=world.dtype != torch.float32):
                loss = model(inputs, targets)
            loss.backward()

    passes()
    world.synchronize()
    clock = time.perf_counter()
    for _ in range(_PASSES):
        passes()
    world.synchronize()
    seconds = torch.tensor(time.perf_counter() - clock, dtype=torch.float64, device=world.device)
    model.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated(world.device) if world.device.type == "cuda" else 0.0
    return _PASSES * size * world.size / world.sum(seconds).item(), peak
