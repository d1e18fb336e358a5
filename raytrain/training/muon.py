"""Muon: momentum, made orthogonal before each step (Jordan et al., 2024; Liu et al., arXiv 2502.16982).

The matrices of the blocks take it. What is no matrix, or is embedding, position or head, falls back to AdamW, as there.
Its products are no model FLOPs; the time that they take is in hardware FLOPs.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from raytrain.config.run import TrainConfig
from raytrain.training.optimizer import OptimizerChoice, Parameters, adamw_state, decay_groups
from raytrain.training.parallel import local

MOMENTUM = 0.95  # with Nesterov's step, as published
_STEPS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)  # brings singular values of 0.001 to 1 into SINGULAR_VALUES in five steps
SINGULAR_VALUES = (0.65, 1.25)
STACKED = 2**25  # numbers in a stack of matrices: so many that GPUs are busy, and no more, for the memory that it takes
_RMS = 0.2  # of an update's entries, about AdamW's: one learning rate suits both (Liu et al., section 2.2)


def muon(parameters: Parameters, config: TrainConfig) -> OptimizerChoice:
    """Muon for the blocks' matrices, AdamW for the rest, at one learning rate and weight decay."""
    named = list(parameters)
    mine = [parameter for name, parameter in named if is_orthogonalized(name, parameter)]
    rest = [(name, parameter) for name, parameter in named if not is_orthogonalized(name, parameter)]
    groups = [group | {"orthogonal": False} for group in decay_groups(rest, config)]
    groups.append({"params": mine, "weight_decay": config.weight_decay, "orthogonal": True})
    options = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "fused": True}
    return OptimizerChoice(Muon, groups, options)


def is_orthogonalized(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes a parameter: a matrix (or a stack of experts' matrices) of a block."""
    return "blocks." in name and parameter.dim() >= 2


class Muon(torch.optim.AdamW):
    """Muon for groups with `orthogonal` True, else AdamW."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        every = self.param_groups
        self.param_groups = [group for group in every if not group["orthogonal"]]
        try:
            result = super().step(closure)
        finally:
            self.param_groups = every
        with torch.no_grad():
            for group in every:
                if group["orthogonal"]:
                    self._step_group(group)
        return result

    def initial_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """See `optimizer.initial_state`."""
        return {"momentum": torch.zeros_like(parameter)} if group["orthogonal"] else adamw_state(parameter)

    def _step_group(self, group: dict[str, Any]) -> None:
        rate, decay = group["lr"], group["weight_decay"]
        mine = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not mine:
            return
        for parameter in mine:
            if not self.state[parameter]:
                self.state[parameter].update(self.initial_state(parameter, group))
        momenta = [local(self.state[parameter]["momentum"]) for parameter in mine]
        gradients = [local(parameter.grad) for parameter in mine]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        steps = _steps(mine, list(torch._foreach_lerp(gradients, momenta, MOMENTUM)))
        torch._foreach_mul_(steps, rate)
        weights = [local(parameter) for parameter in mine]
        torch._foreach_mul_(weights, 1 - rate * decay)
        torch._foreach_sub_(weights, steps)


def _steps(parameters: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """The steps for a unit learning rate, of this rank's parts of the updates; those too are of this rank's parts.

    Matrices of one shape are stacked, as far as STACKED goes, since products of small ones take longer to launch than
    to compute.
    """
    steps: list[Tensor] = list(updates)
    for shape, indices in _by_shape(parameters).items():
        scale = _RMS * max(shape[-2:]) ** 0.5
        most = max(1, STACKED // math.prod(shape))
        for some in (indices[first : first + most] for first in range(0, len(indices), most)):
            whole = torch.stack([_whole(parameters[index], updates[index]) for index in some])
            made = orthogonalize(whole).type_as(whole) * scale
            for index, step in zip(some, made, strict=True):
                steps[index] = _part(parameters[index], step)
    return steps


def _by_shape(parameters: list[Tensor]) -> dict[tuple[int, ...], list[int]]:
    """The places of the parameters of each shape."""
    places: dict[tuple[int, ...], list[int]] = {}
    for index, parameter in enumerate(parameters):
        places.setdefault(tuple(parameter.shape), []).append(index)
    return places


def _whole(parameter: Tensor, part: Tensor) -> Tensor:
    """All of what this rank has a part of, laid out as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return part
    mesh, placements = parameter.device_mesh, parameter.placements
    spread = DTensor.from_local(part, mesh, placements, shape=parameter.shape, stride=parameter.stride())
    whole: Tensor = spread.full_tensor()
    return whole


def _part(parameter: Tensor, whole: Tensor) -> Tensor:
    """This rank's part of `whole`, which every rank has."""
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()


def orthogonalize(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """U V' of each matrix U S V' in `matrix` (..., rows, columns), about: all its singular values are brought into
    SINGULAR_VALUES (those above a thousandth of its norm, that is).

    By five steps of a quintic Newton-Schulz iteration in `dtype`: by default in bf16 on GPUs, where it is fast, and
    exact enough, as errors do not add up; elsewhere in fp32.
    """
    x: Tensor = matrix.to(dtype or (torch.bfloat16 if matrix.is_cuda else torch.float32)).reshape(
        -1, *matrix.shape[-2:]
    )
    is_tall = x.size(-2) > x.size(-1)
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).reshape(matrix.shape)
