"""Normalizations, and where in the residual stream they stand.

Letters in names: B batch, T sequence, D n_embd.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

Sublayer = Callable[[Tensor], Tensor]


class RMSNorm(nn.RMSNorm):
    """torch's, in the wider of its two dtypes: it has no fast kernel for the two that autocast gives it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.promote_types(x.dtype, self.weight.dtype)))


# The epsilons are those of GPT-2 (1e-5) and of Llama (1e-6), as in Hugging Face's configurations.
NORMALIZATIONS: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": functools.partial(nn.LayerNorm, eps=1e-5),  # Ba et al., arXiv 1607.06450
    "layernorm_nobias": functools.partial(nn.LayerNorm, eps=1e-5, bias=False),
    "rmsnorm": functools.partial(RMSNorm, eps=1e-6),  # Zhang and Sennrich, arXiv 1910.07467
}


def pre_norm(x_BTD: Tensor, norm: Sublayer, sublayer: Sublayer, dropout: Sublayer) -> Tensor:
    """The norm inside the branch; the residual stream itself is never normalised (GPT-2, Llama)."""
    return x_BTD + dropout(sublayer(norm(x_BTD)))


def post_norm(x_BTD: Tensor, norm: Sublayer, sublayer: Sublayer, dropout: Sublayer) -> Tensor:
    """The norm after the sum (Vaswani et al., arXiv 1706.03762), in the residual stream's dtype."""
    return norm(x_BTD + dropout(sublayer(x_BTD))).type_as(x_BTD)  # autocast gives float32 here


NORM_POSITIONS: dict[str, Callable[[Tensor, Sublayer, Sublayer, Sublayer], Tensor]] = {
    "pre": pre_norm,
    "post": post_norm,
}
