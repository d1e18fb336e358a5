"""How many sequences a rank takes at a time: what the run says, a usual number, or the fastest, found by trying.

The global batch stays what it is: a larger micro-batch means fewer of them. What was found is kept, by all that speed
follows from, so that a sweep tries once for each architecture.
"""

import time
from typing import Any

import torch
from torch import nn

from raytrain.files import kept
from raytrain.training.config import AUTO, DEFAULT_TOKENS, TrainConfig
from raytrain.training.monitor import device_name
from raytrain.training.parallel import World

_LEAST_TOKENS = 4096  # of a micro-batch that is tried: below, launches dominate on any GPU
_MOST_MEMORY = 0.9  # of the device's, that a micro-batch is expected to take before it is tried
_WORTH = 1.01  # times the speed, that makes a larger one worth its memory
_PASSES = 4  # timed, after one that compiles


def micro_batch(model: nn.Module, config: TrainConfig, world: World) -> int:
    """Sequences of a micro-batch of one rank; the same on every rank. A collective, if it has to try.

    `model` is the run's NextTokenLoss, spread; trying leaves its parameters and gradients as they were, all none.
    """
    if isinstance(config.micro_batch, int):
        return config.micro_batch
    per_rank = config.batch_sequences // world.size
    sizes = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
    block_size = config.architecture.block_size
    if config.micro_batch != AUTO:
        most = max(1, DEFAULT_TOKENS[world.device.type] // block_size)
        return max(size for size in sizes if size <= most or size == 1)
    found = None
    if world.is_main:
        found = kept("micro_batch", _key(config, world))
    if not world.agree(found is not None):
        found = _fastest(model, config, world, [size for size in sizes if size * block_size >= _LEAST_TOKENS] or sizes)
        if world.is_main:
            kept("micro_batch", _key(config, world), found)
    return int(world.sum(torch.tensor(found or 0 if world.is_main else 0, device=world.device)).item())


def _key(config: TrainConfig, world: World) -> dict[str, Any]:
    """All that the fastest micro-batch follows from."""
    names = ("precision", "compile", "global_batch", "activation_checkpointing", "fsdp_shard_size")
    key = {name: getattr(config, name) for name in names} | {"program": config.architecture.program().to_dict()}
    place = {"device": device_name(world.device), "strategy": world.strategy, "ranks": world.size}
    return key | place | {"torch": torch.__version__}


def _fastest(model: nn.Module, config: TrainConfig, world: World, sizes: list[int]) -> int:
    """The smallest of `sizes` than which none tried is faster by a hundredth. Each is twice the one before, or more."""
    best, best_speed = sizes[0], 0.0
    peaks: list[tuple[int, float]] = []  # sequences, and bytes at the peak
    size = sizes[0]
    while True:
        speed, peak = _try(model, config, world, size)
        peaks.append((size, peak))
        if speed < _WORTH * best_speed:
            return best
        best, best_speed = size, speed
        larger = [other for other in sizes if other >= 2 * size]
        if not larger or not world.agree(_fits(peaks, larger[0], world)):
            return best
        size = larger[0]


def _fits(peaks: list[tuple[int, float]], size: int, world: World) -> bool:
    """Whether `size` sequences are likely to fit: memory grows with them by a straight line."""
    if world.device.type != "cuda":
        return True  # a CPU is not faster with more than fits
    (last, last_peak), slope = peaks[-1], peaks[-1][1] / peaks[-1][0]
    if len(peaks) > 1:
        slope = (last_peak - peaks[-2][1]) / (last - peaks[-2][0])
    return (
        last_peak + slope * (size - last) <= _MOST_MEMORY * torch.cuda.get_device_properties(world.device).total_memory
    )


def _try(model: nn.Module, config: TrainConfig, world: World, size: int) -> tuple[float, float]:
    """Sequences/s of forward and backward passes, and the bytes at their peak."""
    arch = config.architecture
    tokens = torch.randint(arch.vocab_size, (size, arch.block_size + 1), device=world.device)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)

    def passes() -> None:
        with torch.autocast(world.device.type, world.dtype, enabled=world.dtype != torch.float32):
            loss = model(tokens[:, :-1], tokens[:, 1:])
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
