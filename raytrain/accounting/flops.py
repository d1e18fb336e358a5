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

from raytrain.architecture import Architecture
from raytrain.errors import UserError, unknown_value

ATTENTION_SPANS = ("full", "causal")


@dataclasses.dataclass(frozen=True)
class FlopsPerToken:
    """Forward FLOPs per token of each component, summed over the layers; and what follows from them."""

    seq_len: int
    q: int
    k: int
    v: int
    o: int
    scores: int
    values: int
    ffn_up: int
    ffn_gate: int
    ffn_down: int
    head: int

    def components(self) -> dict[str, int]:
        """Forward FLOPs per token by component, in data-flow order."""
        names = ("q", "k", "v", "scores", "values", "o", "ffn_gate", "ffn_up", "ffn_down", "head")
        return {name: getattr(self, name) for name in names}

    @property
    def forward(self) -> int:
        """Forward FLOPs per token."""
        return sum(self.components().values())

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
        return self.q + self.k + self.v + self.o + self.scores + self.values

    @property
    def ffn(self) -> int:
        """Forward FLOPs per token of the feed-forward networks."""
        return self.ffn_up + self.ffn_gate + self.ffn_down

    @property
    def attention_ffn_ratio(self) -> float:
        """`attention` / `ffn`."""
        return self.attention / self.ffn


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
    layers, width = arch.n_layer, arch.n_embd
    queries, keys = arch.n_head * arch.head_dim, arch.kv_heads * arch.head_dim
    twice_span = 2 * tokens if attention == "full" else tokens + 1
    matrix = 2 * width * arch.ffn_width
    return FlopsPerToken(
        seq_len=tokens,
        q=layers * 2 * width * queries,
        k=layers * 2 * width * keys,
        v=layers * 2 * width * keys,
        o=layers * 2 * queries * width,
        scores=layers * queries * twice_span,
        values=layers * queries * twice_span,
        ffn_up=layers * matrix,
        ffn_gate=layers * matrix if arch.ffn_type == "swiglu" else 0,
        ffn_down=layers * matrix,
        head=2 * width * arch.vocab_size,
    )


def parameter_count(arch: Architecture) -> dict[str, int]:
    """Parameters by group: embedding, position, attention, ffn, norm, head (0 when tied), and their total."""
    layers, width = arch.n_layer, arch.n_embd
    bias = 1 if arch.bias else 0
    qkv = width + 2 * arch.kv_heads * arch.head_dim
    inner = (2 if arch.ffn_type == "swiglu" else 1) * arch.ffn_width
    norms = 2 * layers + (1 if arch.norm_position == "pre" else 0)
    groups = {
        "embedding": arch.vocab_size * width,
        "position": arch.block_size * width if arch.position_encoding == "learned_absolute" else 0,
        "attention": layers * ((width + bias) * qkv + (width + bias) * width),
        "ffn": layers * ((width + bias) * inner + (arch.ffn_width + bias) * width),
        "norm": norms * width * (2 if arch.normalization == "layernorm" else 1),
        "head": 0 if arch.weight_tying else width * arch.vocab_size,
    }
    return groups | {"total": sum(groups.values())}
