"""Feed-forward networks and their activations. (B, T, D) to (B, T, D).

Letters in names: B batch, T sequence, D n_embd, F FFN width.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.model.precision import autocast

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact, by erf (Hendrycks and Gimpel, arXiv 1606.08415)
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

    Gate and up are one matrix product, so that x is read once. (Whether two are faster is open: docs/log.md.)
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
