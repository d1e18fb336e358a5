"""Feed-forward networks and their activations. (B, T, D) to (B, T, D).

Letters in names: B batch, T sequence, D n_embd, F FFN width.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.model.precision import autocast


class _ShortGELU(torch.autograd.Function):
    """x Phi(x), with erf by formula 7.1.26 of Abramowitz and Stegun (1964): within 1.5e-7, from one exponential.

    That is below bf16's rounding, and its derivative has the same exponential in it. The device library's erf takes a
    GPU longer than reading and writing the numbers does.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        wide = x.float()
        return (wide * _phi(wide)[0]).type_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        wide = x.float()
        cumulative, exponential = _phi(wide)
        slope = cumulative + wide * exponential * (2 * math.pi) ** -0.5
        return (gradients[0].float() * slope).type_as(x)


def _phi(x: Tensor) -> tuple[Tensor, Tensor]:
    """The cumulative normal distribution at x, and exp(-x^2 / 2)."""
    exponential = torch.exp(-0.5 * x * x)
    t = 1 / (1 + 0.3275911 * 0.5**0.5 * x.abs())
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * exponential  # of the far side: 1 - Phi(|x|)
    return torch.where(x < 0, tail, 1 - tail), exponential


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) (Hendrycks and Gimpel, arXiv 1606.08415), not its tanh approximation."""
    return _ShortGELU.apply(x) if x.itemsize == 2 else F.gelu(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,  # slope 0.01 below zero
}


class Standard(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.up = nn.Linear(arch.n_embd, arch.ffn_width, bias=arch.bias)
        self.activation = ACTIVATIONS[arch.activation]
        self.down = nn.Linear(arch.ffn_width, arch.n_embd, bias=arch.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x_BTD)))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202).

    Gate and up are one matrix product: x is read once, and its gradient needs no sum of two.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.gate = nn.Linear(arch.n_embd, arch.ffn_width, bias=arch.bias)
        self.up = nn.Linear(arch.n_embd, arch.ffn_width, bias=arch.bias)
        self.down = nn.Linear(arch.ffn_width, arch.n_embd, bias=arch.bias)
        self.linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = F.linear

    def forward(self, x_BTD: Tensor) -> Tensor:
        weight = torch.cat((autocast(self.gate.weight), autocast(self.up.weight)))
        bias = None if self.gate.bias is None else torch.cat((self.gate.bias, self.up.bias))
        gate_BTF, up_BTF = self.linear(x_BTD, weight, bias).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)


FFN_TYPES: dict[str, type[Standard] | type[SwiGLU]] = {"standard": Standard, "swiglu": SwiGLU}
