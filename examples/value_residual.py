"""Value residuals as an axis of their own: each layer's values are mixed with the first layer's (arXiv 2410.17897).

python -m raytrain.tune --space examples/value_residual.yaml --plugin examples/value_residual.py --seeds 2
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from raytrain import plugins
from raytrain.architecture import Architecture
from raytrain.axes import Part, Shape, Span
from raytrain.model.hooks import Carry, LayerHook


class ValueResidual(LayerHook):
    """v = a v_first + b v, with a and b learned in each layer but the first, both 0.5 to begin with."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__(arch, layer)
        self.is_first = layer == 0
        self.mix = None if self.is_first else nn.Parameter(torch.empty(2))

    def reset_parameters(self) -> None:
        if self.mix is not None:
            nn.init.constant_(self.mix, 0.5)

    def values(self, v_BTKE: Tensor, carry: Carry) -> Tensor:
        if self.mix is None:
            carry["first_values"] = v_BTKE
            return v_BTKE
        mixed = self.mix[0] * carry["first_values"] + self.mix[1] * v_BTKE
        return mixed.type_as(v_BTKE)


def mixes(arch: Shape, span: Span) -> Iterator[Part]:
    """Two numbers in each layer but the first, and no matrix product."""
    yield Part(group="attention", name="value_mix", parameters=2 * (arch.n_layer - 1))


plugins.axis(
    "value_residual",
    off=False,
    levels=[plugins.option("value_residual", True, part="VRes", layer_hook=ValueResidual, per_model=mixes)],
    help="mix each layer's values with the first layer's",
)
