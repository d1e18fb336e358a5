"""Feed-forward networks. (B, T, D) to (B, T, D).

Letters in names: B batch, T sequence, D n_embd, F FFN width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.model.activations import ACTIVATIONS, silu_product
from raytrain.model.precision import autocast


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

    Gate and up are one matrix product, so that x is read once.
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
        return self.down(silu_product(self.linear(x_BTD, weight, bias)))


FFN_TYPES: dict[str, type[Standard] | type[SwiGLU]] = {"standard": Standard, "swiglu": SwiGLU}
