"""Feed-forward networks. (B, T, D) to (B, T, D).

Letters in names: B batch, T sequence, D n_embd, F FFN width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.axes import AXES, load
from raytrain.model.activations import make_activation, silu_product
from raytrain.model.hooks import Carry
from raytrain.model.linear import Linear, residual_std
from raytrain.model.precision import autocast


class Standard(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.up = Linear(arch.n_embd, arch.ffn_width, bias=arch.bias)
        self.activation = make_activation(arch)
        self.down = Linear(arch.ffn_width, arch.n_embd, bias=arch.bias, std=residual_std(arch))

    def forward(self, x_BTD: Tensor, carry: Carry) -> Tensor:
        out: Tensor = self.down(self.activation(self.up(x_BTD)))
        return out


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202).

    Gate and up are one matrix product, so that x is read once. `width` and `bias` are the architecture's, if not given.
    """

    def __init__(self, arch: Architecture, *, width: int | None = None, bias: bool | None = None) -> None:
        super().__init__()
        inner, bias = width or arch.ffn_width, arch.bias if bias is None else bias
        self.gate = Linear(arch.n_embd, inner, bias=bias)
        self.up = Linear(arch.n_embd, inner, bias=bias)
        self.down = Linear(inner, arch.n_embd, bias=bias, std=residual_std(arch))
        self.linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = F.linear

    def forward(self, x_BTD: Tensor, carry: Carry) -> Tensor:
        weight = torch.cat((autocast(self.gate.weight), autocast(self.up.weight)))
        bias = None if self.gate.bias is None else torch.cat((self.gate.bias, self.up.bias))
        out: Tensor = self.down(silu_product(self.linear(x_BTD, weight, bias)))
        return out


def make_feed_forward(arch: Architecture) -> nn.Module:
    """The feed-forward network of one layer, of the architecture's type."""
    feed_forward: nn.Module = load(AXES["ffn_type"].level(arch.ffn_type).make)(arch)
    return feed_forward
