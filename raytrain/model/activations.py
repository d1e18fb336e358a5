"""Activations, and the product that gates a SwiGLU. On GPUs, in 16 bits, the two that are slow there have fast forms.

Letters in names: F FFN width.
"""

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raytrain.architecture import Architecture
from raytrain.axes import AXES, load

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # it comes with PyTorch, but not everywhere


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), exact, by erf (Hendrycks and Gimpel, arXiv 1606.08415)."""
    # Where one kernel is made of it, a GPU's erf takes longer than reading and writing 16 bits a number.
    is_fused = x.is_cuda and torch.compiler.is_compiling()
    return ShortGELU.apply(x) if is_fused and x.itemsize == 2 else F.gelu(x)  # type: ignore[no-untyped-call]


class ShortGELU(torch.autograd.Function):
    """The same, with erf by formula 7.1.26 of Abramowitz and Stegun (1964): within 1.5e-7, from one exponential.

    That is below the rounding of 16 bits, and the derivative has the same exponential in it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        wide = x.float()
        return (wide * _normal(wide)[0]).type_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        wide = x.float()
        cumulative, exponential = _normal(wide)
        slope = cumulative + wide * exponential * (2 * math.pi) ** -0.5
        out: Tensor = (gradients[0].float() * slope).type_as(x)
        return out


def _normal(x: Tensor) -> tuple[Tensor, Tensor]:
    """The cumulative normal distribution at x, and exp(-x^2 / 2)."""
    exponential = torch.exp(-0.5 * x * x)
    t = 1 / (1 + 0.3275911 * 0.5**0.5 * x.abs())
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * exponential  # of the far side: 1 - Phi(|x|)
    return torch.where(x < 0, tail, 1 - tail), exponential


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al., arXiv 2109.08668)."""
    return F.relu(x).square()


def silu_product(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where `gate_up` (..., 2F) has the two side by side; (..., F)."""
    if gate_up.is_cuda and gate_up.itemsize == 2 and _HAS_TRITON:
        out: Tensor = _SiluProduct.apply(gate_up)  # type: ignore[no-untyped-call]
        return out
    return _silu_product(gate_up)


def _silu_product(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _SiluProduct(torch.autograd.Function):
    """With a backward kernel of our own: the compiler's would compute both halves of the gradient for each of them."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _silu_product(gate_up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        from raytrain.kernels.silu import silu_product_gradient

        out: Tensor = silu_product_gradient(*ctx.saved_tensors, gradients[0])
        return out


silu, relu, leaky_relu = F.silu, F.relu, F.leaky_relu  # the last of slope 0.01 below zero
gelu_tanh = functools.partial(F.gelu, approximate="tanh")


def make_activation(arch: Architecture) -> Callable[[Tensor], Tensor]:
    """The architecture's activation, of F features: a function, or a module if it has parameters of its own."""
    made = load(AXES["activation"].level(arch.activation).make)
    activation: Callable[[Tensor], Tensor] = made(arch.ffn_width, arch) if isinstance(made, type) else made
    return activation
