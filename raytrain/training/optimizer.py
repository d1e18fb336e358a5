"""Optimizers and learning-rate schedules: the levels of the axes `optimizer` and `schedule`."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from raytrain.axes import RUN_AXES, load
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError, shown
from raytrain.training.parallel import World

Parameters = Iterable[tuple[str, nn.Parameter]]


@dataclasses.dataclass(frozen=True)
class OptimizerChoice:
    """What an optimizer is made of: its class, its groups of parameters, and its options, `lr` among them.

    Every group's learning rate is set before each step. ZeRO-1 shares the groups out over ranks.
    """

    kind: type[torch.optim.Optimizer]
    groups: list[dict[str, Any]]
    options: dict[str, Any]


def make_optimizer(model: nn.Module, config: TrainConfig, world: World) -> torch.optim.Optimizer:
    """The run's optimizer over all parameters that train."""
    choice = chosen([(n, p) for n, p in model.named_parameters() if p.requires_grad], config)
    if world.strategy == "zero1":
        return ZeroRedundancyOptimizer(choice.groups, optimizer_class=choice.kind, **choice.options)
    return choice.kind(choice.groups, **choice.options)


def chosen(parameters: Parameters, config: TrainConfig) -> OptimizerChoice:
    """What the run's optimizer is made of."""
    choice: OptimizerChoice = load(RUN_AXES["optimizer"].level(config.optimizer).make)(list(parameters), config)
    return choice


def initial_state(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor, group: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The state of `parameter`, of parameter group `group`, before the first step: AdamW's, or what the optimizer's own
    `initial_state(parameter, group)` returns. "step" counts steps; every other tensor is kept in checkpoints.

    Raises UserError for an optimizer of another kind without such a method.
    """
    make = getattr(optimizer, "initial_state", None)
    if make is not None:
        state: dict[str, torch.Tensor] = make(parameter, group)
        return state
    if not isinstance(optimizer, torch.optim.AdamW):
        kind = type(optimizer).__name__
        raise UserError(f"optimizer {kind} cannot be kept in checkpoints: it needs initial_state(parameter, group)")
    return adamw_state(parameter)


def adamw_state(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """AdamW's state before the first step."""
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def adamw(parameters: Parameters, config: TrainConfig) -> OptimizerChoice:
    """AdamW (arXiv 1711.05101), fused."""
    options = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "fused": True}
    return OptimizerChoice(torch.optim.AdamW, decay_groups(parameters, config), options)


def decay_groups(parameters: Parameters, config: TrainConfig) -> list[dict[str, Any]]:
    """Matrices and embeddings decay; biases and norm weights do not."""
    every = [parameter for _, parameter in parameters]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in every if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in every if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of optimizer step `step` (the first is 0) of `config.total_steps`: a linear warm-up, then as
    the run's schedule gives.

    Raises UserError if that is no number, 0 or above.
    """
    warmup = round(config.warmup_fraction * config.total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    schedule = load(RUN_AXES["schedule"].level(config.schedule).make)
    fraction = schedule(config, step, warmup)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < math.inf:
        raise UserError(
            f"at step {step} of {config.total_steps} the schedule returns {shown(fraction)}: "
            "it must be a finite number, 0 or above"
        )
    return config.learning_rate * fraction


def cosine(config: TrainConfig, step: int, warmup: int) -> float:
    """Of the peak: a cosine from 1 to `min_lr_fraction` (arXiv 1608.03983)."""
    floor = config.min_lr_fraction
    progress = (step - warmup) / max(1, config.total_steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(config: TrainConfig, step: int, warmup: int) -> float:
    """Of the peak: 1, then linear to `min_lr_fraction` over the last `decay_fraction` of steps (arXiv 2405.18392)."""
    floor = config.min_lr_fraction
    decay = max(1, round(config.decay_fraction * config.total_steps))
    return floor + (1 - floor) * min(1.0, (config.total_steps - step) / decay)
