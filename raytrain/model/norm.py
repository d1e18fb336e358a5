"""Normalizations, and where in the residual stream they stand.

Letters in names: B batch, T sequence, D n_embd.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.axes import AXES, load

Sublayer = Callable[[Tensor], Tensor]


def make_norm(arch: Architecture, width: int | None = None) -> nn.Module:
    """A norm of the architecture's kind over `width` features: n_embd, if not another."""
    make = load(AXES["normalization"].level(arch.normalization).make)
    norm: nn.Module = make(width or arch.n_embd, arch)
    return norm


# LayerNorm's epsilon is that of GPT-2 in Hugging Face's configuration. As torch's own, all
# weights begin at 1 and biases at 0.
class LayerNorm(nn.LayerNorm):
    """Ba et al., arXiv 1607.06450."""

    def __init__(self, width: int, arch: Architecture, *, bias: bool = True) -> None:
        super().__init__(width, eps=1e-5, bias=bias)


class PlainLayerNorm(LayerNorm):
    """LayerNorm without a bias."""

    def __init__(self, width: int, arch: Architecture) -> None:
        super().__init__(width, arch, bias=False)


class RMSNorm(nn.RMSNorm):
    """Zhang and Sennrich, arXiv 1910.07467.

    In the wider of its two dtypes: torch's has no fast kernel for the two that autocast gives it.
    """

    def __init__(self, width: int, arch: Architecture) -> None:
        super().__init__(width, eps=arch.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.promote_types(x.dtype, self.weight.dtype)))


class Join(nn.Module):
    """How a sublayer's output joins the residual stream. A block has two, made with its architecture.

    `ends_in_norm`: what comes out is normalised, so the model needs no norm after its last block.
    """

    ends_in_norm = False

    def __init__(self, arch: Architecture) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor, norm: Sublayer, sublayer: Sublayer, dropout: Sublayer) -> Tensor:
        raise NotImplementedError


class PreNorm(Join):
    """The norm inside the branch; the residual stream itself is never normalised (GPT-2, Llama)."""

    def forward(self, x_BTD: Tensor, norm: Sublayer, sublayer: Sublayer, dropout: Sublayer) -> Tensor:
        return x_BTD + dropout(sublayer(norm(x_BTD)))


class PostNorm(Join):
    """The norm after the sum (Vaswani et al., arXiv 1706.03762), in the residual stream's dtype."""

    ends_in_norm = True

    def forward(self, x_BTD: Tensor, norm: Sublayer, sublayer: Sublayer, dropout: Sublayer) -> Tensor:
        return norm(x_BTD + dropout(sublayer(x_BTD))).type_as(x_BTD)  # autocast gives float32 here


class SandwichNorm(Join):
    """A norm before the sublayer and one after it, both inside the branch (Ding et al., arXiv 2105.13290; Gemma 2)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.after = make_norm(arch)

    def forward(self, x_BTD: Tensor, norm: Sublayer, sublayer: Sublayer, dropout: Sublayer) -> Tensor:
        return x_BTD + dropout(self.after(sublayer(norm(x_BTD))).type_as(x_BTD))
