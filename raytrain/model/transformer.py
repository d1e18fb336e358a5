"""The whole model, in the order in which data flows through it. Read this file first.

    tokens -> embedding (+ position) -> dropout -> n_layer x Block -> norm (pre-norm only) -> head -> logits
    Block: the residual stream through attention, then through the feed-forward network

Its configuration is `raytrain.architecture.Architecture`; every axis of it is looked up in one dict here:

    position_encoding      position.POSITION_ENCODINGS
    normalization          norm.NORMALIZATIONS
    norm_position          norm.NORM_POSITIONS
    attention_backend      attention.ATTENTION_BACKENDS
    ffn_type, activation   feed_forward.FFN_TYPES, activations.ACTIVATIONS
    bias, weight_tying, dropout   arguments of the modules

Letters in names: B batch, T sequence, D n_embd, V vocab_size.
"""

from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.model.attention import Attention
from raytrain.model.feed_forward import FFN_TYPES
from raytrain.model.norm import NORM_POSITIONS, NORMALIZATIONS
from raytrain.model.position import POSITION_ENCODINGS, Position
from raytrain.model.precision import autocast


class Transformer(nn.Module):
    """A GPT-style decoder. `build.build` makes one with initialised weights."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.embedding = nn.Embedding(arch.vocab_size, arch.n_embd)
        self.position = POSITION_ENCODINGS[arch.position_encoding](arch)
        self.dropout = dropout(arch)
        self.blocks = nn.ModuleList(Block(arch, self.position) for _ in range(arch.n_layer))
        # A post-norm block ends in a norm, so nothing is left to normalise.
        self.norm = nn.Identity() if arch.norm_position == "post" else NORMALIZATIONS[arch.normalization](arch.n_embd)
        self.head = nn.Linear(arch.n_embd, arch.vocab_size, bias=False)
        self.tie_weights()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of the next token at every place. Raises ValueError if T is above block_size."""
        return self.head(self.hidden(tokens_BT))

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Everything before the head: (B, T, D). Raises ValueError if T is above block_size."""
        if tokens_BT.size(1) > self.arch.block_size:
            raise ValueError(f"the sequence length ({tokens_BT.size(1)}) is above block_size ({self.arch.block_size})")
        # The residual stream is in autocast's dtype; norms are still taken in float32.
        x_BTD = autocast(self.dropout(self.position.embed(self.embedding(tokens_BT))))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.finish(x_BTD)

    def finish(self, x_BTD: Tensor) -> Tensor:
        """What follows the last block, apart so that it can be compiled: the norm, in the residual stream's dtype."""
        return autocast(self.norm(x_BTD))

    def tie_weights(self) -> None:
        """Under weight_tying, let the head use the embedding's weight. `to_empty` undoes it."""
        if self.arch.weight_tying:
            self.head.weight = self.embedding.weight


class Block(nn.Module):
    """One layer: two sublayers, each joined to the residual stream as `norm_position` says. (B, T, D) to (B, T, D)."""

    def __init__(self, arch: Architecture, position: Position) -> None:
        super().__init__()
        self.join = NORM_POSITIONS[arch.norm_position]
        self.attention_norm = NORMALIZATIONS[arch.normalization](arch.n_embd)
        self.attention = Attention(arch, position)
        self.feed_forward_norm = NORMALIZATIONS[arch.normalization](arch.n_embd)
        self.feed_forward = FFN_TYPES[arch.ffn_type](arch)
        self.dropout = dropout(arch)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.join(x_BTD, self.attention_norm, self.attention, self.dropout)
        return self.join(x_BTD, self.feed_forward_norm, self.feed_forward, self.dropout)


def dropout(arch: Architecture) -> nn.Module:
    """Dropout where there is any. Without, training and evaluation are one program, compiled once."""
    return nn.Dropout(arch.dropout) if arch.dropout else nn.Identity()
