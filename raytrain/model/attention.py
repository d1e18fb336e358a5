"""Causal self-attention, with the architecture's number of key/value heads (Ainslie et al., arXiv 2305.13245).

Letters in names: B batch, T sequence, D n_embd, H heads, K kv heads, N any number of heads, E head width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.axes import AXES, load
from raytrain.axes.optional import NOPE, windows
from raytrain.model.hooks import Carry, LayerHook
from raytrain.model.linear import Linear, residual_std
from raytrain.model.position import Position
from raytrain.model.window import windowed, windowed_manual

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def sdpa(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, dropout: float) -> Tensor:
    """PyTorch's fused kernels: the T x T scores never reach memory."""
    if dropout == 1.0:  # flash kernels refuse it
        return manual(q_BHTE, k_BKTE, v_BKTE, dropout)
    grouped = q_BHTE.size(1) != k_BKTE.size(1)
    return F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, dropout_p=dropout, is_causal=True, enable_gqa=grouped)


def manual(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(E)) v as it is written (Vaswani et al., arXiv 1706.03762)."""
    k_BKTE, v_BKTE = _for_each_query_head(q_BHTE, k_BKTE, v_BKTE)
    scores_BHTT = (q_BHTE * q_BHTE.size(-1) ** -0.5) @ k_BKTE.transpose(-2, -1)
    future_TT = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool, device=scores_BHTT.device).triu(1)
    scores_BHTT = scores_BHTT.masked_fill(future_TT, float("-inf"))
    weights_BHTT = scores_BHTT.softmax(dim=-1).type_as(v_BKTE)  # autocast gives float32 here
    return F.dropout(weights_BHTT, dropout) @ v_BKTE


def _for_each_query_head(q_BHTE: Tensor, *kv_BKTE: Tensor) -> tuple[Tensor, ...]:
    """Keys and values with a head for each of the queries'."""
    group = q_BHTE.size(1) // kv_BKTE[0].size(1)
    return tuple(x.repeat_interleave(group, dim=1) for x in kv_BKTE) if group > 1 else kv_BKTE


def make_attention(arch: Architecture, position: Position, hooks: nn.ModuleList, layer: int) -> nn.Module:
    """The attention of layer number `layer`, in the architecture's form."""
    attention: nn.Module = load(AXES["attention"].level(arch.attention).make)(arch, position, hooks, layer)
    return attention


class Attention(nn.Module):
    """(B, T, D) to (B, T, D). Queries, keys and values come from one projection: one large matmul, not three.

    `hooks` are the layer's, which the block owns. The layer's entry of `attention_window` defines what a query attends
    to, and whether it is rotated by its position.
    """

    def __init__(self, arch: Architecture, position: Position, hooks: Sequence[LayerHook] = (), layer: int = 0) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = arch.n_head, arch.kv_heads, arch.head_dim
        self.dropout = arch.dropout
        self.qkv = Linear(arch.n_embd, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=arch.bias)
        self.output = Linear(arch.n_embd, arch.n_embd, bias=arch.bias, std=residual_std(arch))
        self.attend: Attend = load(AXES["attention_backend"].level(arch.attention_backend).make)
        # All layers share the position encoding. It is the Transformer's submodule; here is a reference to its method.
        entry = windows(arch.attention_window, arch.n_layer)[layer]
        self.rotate = Position.rotate.__get__(position) if entry == NOPE else position.rotate
        self.window = None if isinstance(entry, str) else entry
        self.attend_within = windowed_manual if arch.attention_backend == "manual" else windowed
        self.hooks = tuple(hooks)  # no submodules of this one, likewise

    def forward(self, x_BTD: Tensor, carry: Carry) -> Tensor:
        qkv_BTNE = self.qkv(x_BTD).unflatten(-1, (-1, self.head_dim))
        qk_BTNE, v_BTKE = qkv_BTNE.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.hooks:
            qk_BTNE, v_BTKE = self._hooked(qk_BTNE, v_BTKE, carry)
        q_BTHE, k_BTKE = self.rotate(qk_BTNE).split((self.heads, self.kv_heads), dim=2)
        dropout = self.dropout if self.dropout and self.training else 0.0
        y_BHTE = self._attended(q_BTHE.transpose(1, 2), k_BTKE.transpose(1, 2), v_BTKE.transpose(1, 2), dropout)
        y_BTHE = y_BHTE.transpose(1, 2)
        for hook in self.hooks:
            y_BTHE = hook.attended(y_BTHE, x_BTD)
        out: Tensor = self.output(y_BTHE.flatten(2))
        return out

    def _attended(self, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, dropout: float) -> Tensor:
        if self.window is None or self.window >= q_BHTE.size(2):
            return self.attend(q_BHTE, k_BKTE, v_BKTE, dropout)
        k_BHTE, v_BHTE = _for_each_query_head(q_BHTE, k_BKTE, v_BKTE)
        return self.attend_within(q_BHTE, k_BHTE, v_BHTE, self.window, dropout)

    def _hooked(self, qk_BTNE: Tensor, v_BTKE: Tensor, carry: Carry) -> tuple[Tensor, Tensor]:
        q_BTHE, k_BTKE = qk_BTNE.split((self.heads, self.kv_heads), dim=2)
        for hook in self.hooks:
            q_BTHE, k_BTKE = hook.queries(q_BTHE), hook.keys(k_BTKE)
            v_BTKE = hook.values(v_BTKE, carry)
        return torch.cat((q_BTHE, k_BTKE), dim=2), v_BTKE
