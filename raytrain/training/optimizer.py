"""AdamW with decay groups, and the learning-rate schedules."""

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from raytrain.config.run import TrainConfig
from raytrain.training.parallel import World


def make_optimizer(model: nn.Module, config: TrainConfig, world: World) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), fused. Matrices and embeddings decay; biases and norm weights do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "fused": True}
    if world.strategy == "zero1":
        return ZeroRedundancyOptimizer(groups, optimizer_class=torch.optim.AdamW, **options)
    return torch.optim.AdamW(groups, **options)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of optimizer step `step` (the first is 0) of `config.total_steps`.

    Linear warm-up, then a cosine to `min_lr_fraction` of the peak (arXiv 1608.03983), or wsd: constant, then linear
    down to it over the last `decay_fraction` of the steps (arXiv 2405.18392).
    """
    total = config.total_steps
    warmup = round(config.warmup_fraction * total)
    floor = config.min_lr_fraction
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    decay = max(1, round(config.decay_fraction * total))
    return config.learning_rate * (floor + (1 - floor) * min(1.0, (total - step) / decay))
