"""What optional axes add to attention: norms of queries and keys, gates of heads, embeddings among the values.

Letters in names: B batch, T sequence, D n_embd, H heads, K kv heads, E head width.
"""

import torch
from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.axes.optional import RMS_NORM_EPS
from raytrain.model.hooks import Carry, LayerHook, ModelHook
from raytrain.model.linear import Embedding, Linear

_VALUE_EMBEDDING = "value_embedding"


class QKNorm(LayerHook):
    """RMSNorm of every head's queries and keys (Dehghani et al., arXiv 2302.05442; with RMSNorm, as in Qwen3)."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__(arch, layer)
        eps = arch.rms_norm_eps if arch.normalization == "rmsnorm" else RMS_NORM_EPS
        self.query_norm, self.key_norm = (nn.RMSNorm(arch.head_dim, eps=eps) for _ in range(2))

    def queries(self, q_BTHE: Tensor) -> Tensor:
        return _normed(self.query_norm, q_BTHE)

    def keys(self, k_BTKE: Tensor) -> Tensor:
        return _normed(self.key_norm, k_BTKE)


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """In fp32, whatever autocast gives, and back in the dtype of `x`."""
    normed: Tensor = norm(x.to(torch.promote_types(x.dtype, norm.weight.dtype)))
    return normed.type_as(x)


class HeadGate(LayerHook):
    """Each head's output times a sigmoid of what came into attention (Qiu et al., arXiv 2505.06708, head-wise)."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__(arch, layer)
        self.gate = Linear(arch.n_embd, arch.n_head, bias=False)

    def attended(self, y_BTHE: Tensor, x_BTD: Tensor) -> Tensor:
        gate_BTH: Tensor = self.gate(x_BTD).sigmoid()
        return y_BTHE * gate_BTH.unsqueeze(-1)


class ValueEmbedding(ModelHook):
    """A second embedding of the tokens, which every layer adds to its values (the value embeddings of modded-nanogpt).

    One table (V, K E) for all layers, each of which has a weight of its own for it.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.kv_heads = arch.kv_heads
        self.table = Embedding(arch.vocab_size, arch.kv_heads * arch.head_dim)

    def embedded(self, x_BTD: Tensor, tokens_BT: Tensor, carry: Carry) -> Tensor:
        carry[_VALUE_EMBEDDING] = self.table(tokens_BT).unflatten(-1, (self.kv_heads, -1))
        return x_BTD


class ValueWeight(LayerHook):
    """A layer's weight for the value embeddings; it begins at 1/2."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__(arch, layer)
        self.weight = nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.5)

    def values(self, v_BTKE: Tensor, carry: Carry) -> Tensor:
        return v_BTKE + (self.weight * carry[_VALUE_EMBEDDING]).type_as(v_BTKE)
