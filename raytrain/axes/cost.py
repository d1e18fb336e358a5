"""What a piece of a model costs, as numbers: each level of an axis lists its parts. Pure.

Parameters and FLOPs are whole numbers and exact: a part is a matrix product or a vector, so both follow from its sides.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol


class Shape(Protocol):
    """What a cost may ask of an architecture. Letters as in `accounting.flops`."""

    @property
    def n_layer(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_head(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def ffn_width(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def bias(self) -> bool: ...
    def value(self, axis: str) -> Any:
        """The level of any axis."""


@dataclasses.dataclass(frozen=True)
class Span:
    """What attention is counted over: sequences of `tokens`, each token attending to all of them, or to its past."""

    tokens: int
    is_causal: bool = False

    @property
    def twice(self) -> int:
        """Twice the mean number of keys a query attends to: 2 T, or T + 1 under the causal mask. A whole number."""
        return self.twice_within(None)

    def twice_within(self, window: int | None) -> int:
        """The same for queries that attend to `window` tokens at most, themselves among them.

        With w = min(window, T): 2 w, or under the causal mask 2 w - w (w - 1) / T, the mean of min(t, w) over the
        places t = 1 to T, rounded to a whole number.
        """
        width = self.tokens if window is None else min(window, self.tokens)
        return 2 * width - round(width * (width - 1) / self.tokens) if self.is_causal else 2 * width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of a model, once or in one layer.

    `group` is where its parameters and FLOPs are summed: embedding, position, attention, ffn, norm, head, or another.
    `flops` are those of the forward pass, a token. `kept` is how many numbers a token the backward pass reads from
    memory; selective checkpointing computes `recomputed` of them anew.
    """

    group: str
    name: str
    parameters: int = 0
    flops: int = 0
    kept: int = 0
    recomputed: int = 0


def linear(group: str, name: str, inputs: int, outputs: int, *, bias: bool = False, kept: int = 0) -> Part:
    """A matrix product of `inputs` by `outputs`: 2 x both FLOPs a token."""
    parameters = (inputs + bias) * outputs
    return Part(group=group, name=name, parameters=parameters, flops=2 * inputs * outputs, kept=kept)


def total(parts: Iterable[Part], field: str, *groups: str) -> int:
    """The sum of one `field` over `parts`, of some groups alone if they are given."""
    return sum(getattr(part, field) for part in parts if not groups or part.group in groups)
