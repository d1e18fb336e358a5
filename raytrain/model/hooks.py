"""What an axis may add to a model without a change to it: methods at named places, each of which changes nothing here.

A level of an axis names a `LayerHook` (made for each layer), a `ModelHook` (made once), or both. Its parameters are
those of any module, so a hook needs `reset_parameters` too.

Letters in names: B batch, T sequence, D n_embd, H heads, K kv heads, N any number of heads, E head width.
"""

from torch import Tensor, nn

from raytrain.architecture import Architecture

# What blocks hand on beside the residual stream, by name. Each block has its own copy, so a hook may set an entry;
# later layers see it. `AUXILIARY_LOSS` is added to what is trained on.
Carry = dict[str, Tensor]
AUXILIARY_LOSS = "auxiliary_loss"


def add_loss(carry: Carry, loss: Tensor) -> None:
    """Add a scalar, in nats per token, to what is trained on. It is no part of any loss that is reported."""
    carry[AUXILIARY_LOSS] = carry[AUXILIARY_LOSS] + loss if AUXILIARY_LOSS in carry else loss


class LayerHook(nn.Module):
    """An axis's part in layer `layer` (the first is 0). Every method returns the shape that it is given.

    Keep what depends on the layer as a bool or a tensor, set in the constructor: a compiled block serves all layers,
    and is compiled anew for each value of a plain number that it reads.
    """

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__()

    def stream(self, x_BTD: Tensor, carry: Carry) -> Tensor:
        """The residual stream as it comes into the block."""
        return x_BTD

    def queries(self, q_BTHE: Tensor) -> Tensor:
        """The queries, before their positions are known."""
        return q_BTHE

    def keys(self, k_BTKE: Tensor) -> Tensor:
        """The keys, likewise."""
        return k_BTKE

    def values(self, v_BTKE: Tensor, carry: Carry) -> Tensor:
        """The values that are attended to."""
        return v_BTKE

    def attended(self, y_BTHE: Tensor, x_BTD: Tensor) -> Tensor:
        """What each head brings, before the output projection; `x_BTD` is what came into attention."""
        return y_BTHE


class ModelHook(nn.Module):
    """An axis's part in the whole model."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()

    def embedded(self, x_BTD: Tensor, tokens_BT: Tensor, carry: Carry) -> Tensor:
        """The embedded tokens, positions included."""
        return x_BTD

    def loss(self, hidden_BTD: Tensor, targets_BT: Tensor, head: nn.Linear) -> Tensor | None:
        """A term to train on beside the cross-entropy, a scalar in nats per token; it is no part of what is reported.

        `hidden_BTD` is what the head gets.
        """
        return None
