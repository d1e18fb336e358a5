"""Matrices with GPT-2's initialisation (Radford et al., 2019, section 2.3)."""

from torch import nn

from raytrain.architecture import Architecture

STD = 0.02


def residual_std(arch: Architecture) -> float:
    """That of a matrix that writes to the residual stream: narrower by the square root of how many there are."""
    return float(STD / (2 * arch.n_layer) ** 0.5)


class Linear(nn.Linear):
    """nn.Linear, whose weights are drawn from normal(0, `std`); biases begin at 0."""

    std = STD  # a class attribute too: nn.Linear draws in its constructor

    def __init__(self, inputs: int, outputs: int, *, bias: bool, std: float = STD) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.std = std

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding, whose vectors are drawn from normal(0, 0.02)."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=STD)
