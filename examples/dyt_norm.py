"""Dynamic Tanh in the place of a norm (Zhu et al., "Transformers without Normalization", arXiv 2503.10622).

python -m raytrain.tune --space examples/dyt_norm.yaml --plugin examples/dyt_norm.py --seeds 2
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from raytrain import plugins
from raytrain.architecture import Architecture
from raytrain.axes import Part, Shape, Span
from raytrain.model.hooks import Carry, ModelHook
from raytrain.model.linear import STD


class ScaledEmbedding(ModelHook):
    """A learned scale after the embedding, which language models with DyT need (section 7 of the paper).

    The paper begins at the square root of the width, about the inverse of the embedding's standard deviation at its
    sizes; that inverse is taken here, as it suits any width.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.scale = nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, 1 / STD)

    def embedded(self, x_BTD: Tensor, tokens_BT: Tensor, carry: Carry) -> Tensor:
        return x_BTD * self.scale


def one_scale(arch: Shape, span: Span) -> Iterator[Part]:
    yield Part(group="embedding", name="embedding_scale", parameters=1)


@plugins.norm(
    "dyt", part="DyT", parameters=lambda width: 2 * width + 1, model_hook=ScaledEmbedding, per_model=one_scale
)
class DynamicTanh(nn.Module):
    """weight * tanh(alpha x) + bias: no statistic of x is taken."""

    def __init__(self, width: int, arch: Architecture) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1))
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.alpha)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(self.alpha * x) + self.bias
