"""Model FLOPs and parameters of an architecture, counted from its numbers alone. Pure: no torch.

Symbols: L layers, D n_embd, H heads, K kv heads, E head width, F FFN width, V vocabulary, T sequence. A matmul of an
(a, b) by a (b, c) matrix is 2abc FLOPs: one multiplication and one addition a term. Per token, forward:

    q                     2 D H E a layer
    k, v                  2 D K E a layer, each
    scores (q k^T)        2 H E S a layer, where S is the attended span; grouped heads save memory here, not FLOPs
    values (weights v)    2 H E S a layer
    o                     2 H E D a layer
    ffn up, gate, down    2 D F a layer, each (no gate in the standard FFN)
    head                  2 D V, once, tied or not

The backward pass multiplies each matrix twice more, for the gradients of its two operands, so training = 3 x forward.
That holds while all weights train: a frozen one saves its own gradient's third.

Spans. "full" is S = T: what the matmuls compute when the mask hides half of the result, and the convention of PaLM
(arXiv 2204.02311, appendix B), nanoGPT and torchtitan; the headline MFU uses it. "causal" is the exact mean of the
spans 1, 2, ..., T, S = (T + 1) / 2, so that scores and values are H E (T + 1) each, still whole numbers. (Those who
halve, such as Megatron-LM since its core 0.12 and llm.c, use T / 2.)

Counted: the matmuls above. Not counted: the embedding lookup, norms, RoPE, softmax, activations, biases, dropout, the
loss, the optimizer, and whatever is computed again to save memory. Unlike the 6N + 12LHET of PaLM this gives no FLOPs
to parameters that are not matmuls. `torch.utils.flop_counter.FlopCounterMode` agrees to the integer under "full".
"""

import dataclasses
import functools
from collections.abc import Mapping

from raytrain.accounting.bill import parts
from raytrain.architecture import Architecture
from raytrain.axes import Span
from raytrain.errors import UserError, unknown_value

ATTENTION_SPANS = ("full", "causal")
# Those that every model has, in data-flow order; the gate's is 0 without one.
COMPONENTS = ("q", "k", "v", "scores", "values", "o", "ffn_gate", "ffn_up", "ffn_down", "head")
_GROUPS = ("embedding", "position", "attention", "ffn", "norm", "head")  # that every model has, if only with 0


@dataclasses.dataclass(frozen=True)
class FlopsPerToken:
    """Forward FLOPs per token of each component, summed over the layers; and what follows from them.

    `groups` are the same sums by group: attention, ffn, head, and whatever else a plugin's level has.
    """

    seq_len: int
    by_component: Mapping[str, int]
    groups: Mapping[str, int]

    def components(self) -> dict[str, int]:
        """Forward FLOPs per token by component: q, k, v, scores, values, o, ffn_gate, ffn_up, ffn_down, head, ..."""
        return dict(self.by_component)

    @property
    def forward(self) -> int:
        """Forward FLOPs per token."""
        return sum(self.by_component.values())

    @property
    def total(self) -> int:
        """Training FLOPs per token: forward and backward."""
        return 3 * self.forward

    @property
    def per_sequence(self) -> int:
        """Training FLOPs of one sequence of `seq_len` tokens."""
        return self.seq_len * self.total

    @property
    def attention(self) -> int:
        """Forward FLOPs per token of attention, its projections included."""
        return self.groups["attention"]

    @property
    def ffn(self) -> int:
        """Forward FLOPs per token of the feed-forward networks."""
        return self.groups["ffn"]

    @property
    def attention_ffn_ratio(self) -> float:
        """`attention` / `ffn`."""
        return self.attention / self.ffn


@functools.lru_cache(maxsize=4096)
def flops_per_token(arch: Architecture, seq_len: int | None = None, attention: str = "full") -> FlopsPerToken:
    """FLOPs per token in sequences of `seq_len` tokens (block_size by default; a longer one is only arithmetic).

    `attention` is the span that scores and values are counted with, "full" or "causal"; see the head of this file.

    Raises UserError for a `seq_len` below 1 or another `attention`.
    """
    tokens = arch.block_size if seq_len is None else seq_len
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise UserError(f"seq_len ({seq_len!r}) must be a whole number of 1 or more")
    if attention not in ATTENTION_SPANS:
        raise unknown_value("attention span", attention, ATTENTION_SPANS)
    by_component = dict.fromkeys(COMPONENTS, 0)
    groups = dict.fromkeys(_GROUPS, 0)
    for count, part in parts(arch, Span(tokens, is_causal=attention == "causal")):
        if part.flops:
            by_component[part.name] = by_component.get(part.name, 0) + count * part.flops
            groups[part.group] = groups.get(part.group, 0) + count * part.flops
    return FlopsPerToken(tokens, by_component, groups)


def parameter_count(arch: Architecture) -> dict[str, int]:
    """Parameters by group: embedding, position, attention, ffn, norm, head (0 when tied), and their total."""
    groups = dict.fromkeys(_GROUPS, 0)
    for count, part in parts(arch, Span(arch.block_size)):
        if part.parameters:
            groups[part.group] = groups.get(part.group, 0) + count * part.parameters
    return groups | {"total": sum(groups.values())}
