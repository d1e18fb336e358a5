"""The whole model, in the order in which data flows through it. Read this file first.

    tokens -> embedding (+ position) -> dropout -> n_layer x Block -> norm (pre-norm only) -> head -> logits
    Block: the residual stream through attention, then through the feed-forward network

Its configuration is `raytrain.architecture.Architecture`. What each level of an axis is built of is in its declaration
(`raytrain.axes.builtin`); the function that makes it of an architecture stands in the module of its kind:

    position_encoding                      position.make_position
    normalization, norm_position           norm.make_norm, norm.Join
    attention, attention_backend           attention.make_attention
    ffn_type, activation                   feed_forward.make_feed_forward, activations.make_activation
    bias, weight_tying, dropout            arguments of the modules
    logit_softcap                          forward, and the loss (kernels.linear_cross_entropy)
    any other axis                         hooks: a LayerHook in each layer, a ModelHook in the whole

Letters in names: B batch, T sequence, D n_embd, V vocab_size.
"""

import functools

from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.axes import AXES, load
from raytrain.model.attention import make_attention
from raytrain.model.feed_forward import make_feed_forward
from raytrain.model.hooks import AUXILIARY_LOSS, Carry, add_loss
from raytrain.model.linear import Embedding, Linear
from raytrain.model.norm import Join, Sublayer, make_norm
from raytrain.model.position import Position, make_position
from raytrain.model.precision import autocast


class Transformer(nn.Module):
    """A GPT-style decoder. `build.build` makes one with initialised weights."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.embedding = Embedding(arch.vocab_size, arch.n_embd)
        self.position = make_position(arch)
        self.hooks = nn.ModuleList(
            load(level.model_hook)(arch) for _, level in arch.levels() if level.model_hook is not None
        )
        self.dropout = dropout(arch)
        self.blocks = nn.ModuleList(Block(arch, self.position, layer) for layer in range(arch.n_layer))
        join: type[Join] = load(AXES["norm_position"].level(arch.norm_position).make)
        self.norm = nn.Identity() if join.ends_in_norm else make_norm(arch)
        self.head = Linear(arch.n_embd, arch.vocab_size, bias=False)
        self.tie_weights()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of the next token at every place. Raises ValueError if T is above block_size."""
        logits_BTV: Tensor = self.head(self.hidden(tokens_BT))
        cap = self.arch.logit_softcap
        return cap * (logits_BTV / cap).tanh() if cap else logits_BTV

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Everything before the head: (B, T, D). Raises ValueError if T is above block_size."""
        return self.states(tokens_BT)[0]

    def states(self, tokens_BT: Tensor) -> tuple[Tensor, Carry]:
        """`hidden`, and what the blocks handed on beside it. Raises ValueError if T is above block_size."""
        if tokens_BT.size(1) > self.arch.block_size:
            raise ValueError(f"the sequence length ({tokens_BT.size(1)}) is above block_size ({self.arch.block_size})")
        carry: Carry = {}
        x_BTD = self.position.embed(self.embedding(tokens_BT))
        for hook in self.hooks:
            x_BTD = hook.embedded(x_BTD, tokens_BT, carry)  # type: ignore[operator]
        # The residual stream is in autocast's dtype; norms are still taken in float32.
        x_BTD = autocast(self.dropout(x_BTD))
        for block in self.blocks:
            x_BTD, carry = block(x_BTD, carry)
        return self.finish(x_BTD), carry

    def finish(self, x_BTD: Tensor) -> Tensor:
        """What follows the last block, apart so that it can be compiled: the norm, in the residual stream's dtype."""
        return autocast(self.norm(x_BTD))

    def auxiliary_loss(self, hidden_BTD: Tensor, targets_BT: Tensor, carry: Carry) -> Tensor | None:
        """What is trained on beside the cross-entropy, a scalar in nats per token; None if nothing is."""
        carry = dict(carry)
        for hook in self.hooks:
            term = hook.loss(hidden_BTD, targets_BT, self.head)  # type: ignore[operator]
            if term is not None:
                add_loss(carry, term)
        return carry.get(AUXILIARY_LOSS)

    def tie_weights(self) -> None:
        """Under weight_tying, let the head use the embedding's weight. `to_empty` undoes it."""
        if self.arch.weight_tying:
            self.head.weight = self.embedding.weight


class Block(nn.Module):
    """One layer: two sublayers, each joined to the residual stream by `norm_position`. (B, T, D) to (B, T, D).

    Takes and returns what blocks hand on, too: see `hooks.Carry`.
    """

    def __init__(self, arch: Architecture, position: Position, layer: int) -> None:
        super().__init__()
        self.hooks = nn.ModuleList(
            load(level.layer_hook)(arch, layer) for _, level in arch.levels() if level.layer_hook is not None
        )
        join: type[Join] = load(AXES["norm_position"].level(arch.norm_position).make)
        self.is_parallel = arch.parallel_block
        self.join_attention = join(arch)
        self.attention_norm = make_norm(arch)
        self.attention = make_attention(arch, position, self.hooks, layer)
        if not self.is_parallel:
            self.join_feed_forward = join(arch)
            self.feed_forward_norm = make_norm(arch)
        self.feed_forward = make_feed_forward(arch)
        self.dropout = dropout(arch)

    def forward(self, x_BTD: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        carry = dict(carry)  # this block's own: what is computed again must find it as it was
        for hook in self.hooks:
            x_BTD = hook.stream(x_BTD, carry)  # type: ignore[operator]
        attention = functools.partial(self.attention, carry=carry)
        feed_forward = functools.partial(self.feed_forward, carry=carry)
        if self.is_parallel:  # as in GPT-J and PaLM (arXiv 2204.02311)
            both = functools.partial(_side_by_side, attention, feed_forward)
            return self.join_attention(x_BTD, self.attention_norm, both, self.dropout), carry
        x_BTD = self.join_attention(x_BTD, self.attention_norm, attention, self.dropout)
        return self.join_feed_forward(x_BTD, self.feed_forward_norm, feed_forward, self.dropout), carry


def _side_by_side(attention: Sublayer, feed_forward: Sublayer, x_BTD: Tensor) -> Tensor:
    return attention(x_BTD) + feed_forward(x_BTD)


def dropout(arch: Architecture) -> nn.Module:
    """Dropout where there is any. Without, training and evaluation are one program, compiled once."""
    return nn.Dropout(arch.dropout) if arch.dropout else nn.Identity()
