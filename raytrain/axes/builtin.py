"""The axes that every architecture has, and what each level costs. The formulas are derived in `accounting`.

The first nine have no default: an architecture names them. Each further one has a default that leaves the model as it
is without, so that what was written before there was such an axis means what it meant.
"""

from collections.abc import Iterator
from typing import Any

from raytrain.axes.cost import Part, Shape, Span, linear
from raytrain.axes.optional import attention_products, dead_without, declare
from raytrain.axes.registry import AXES, RUN_AXES, Axis, Level, add_axis
from raytrain.errors import UserError, shown

_MODEL = "raytrain.model"


def norm(arch: Shape, name: str, count: int = 1, kept: int = 0) -> Part:
    """`count` norms of width D, of the architecture's own kind."""
    level = AXES["normalization"].level(arch.value("normalization"))
    parameters = count * level.parameters(arch.n_embd)
    return Part(group="norm", name=name, parameters=parameters, kept=kept, recomputed=kept)


def _sublayer_norms(arch: Shape, span: Span) -> Iterator[Part]:
    norms = 1 if arch.value("parallel_block") else 2
    yield norm(arch, "norms", count=norms, kept=norms * arch.n_embd)


def _final_norm(arch: Shape, span: Span) -> Iterator[Part]:
    yield norm(arch, "final_norm")


def _attention(arch: Shape, span: Span) -> Iterator[Part]:
    width, queries, keys = arch.n_embd, arch.n_head * arch.head_dim, arch.kv_heads * arch.head_dim
    yield linear("attention", "q", width, queries, bias=arch.bias, kept=queries)
    yield linear("attention", "k", width, keys, bias=arch.bias, kept=keys)
    yield linear("attention", "v", width, keys, bias=arch.bias, kept=keys)
    yield Part(group="attention", name="attended", kept=width)
    yield linear("attention", "o", queries, width, bias=arch.bias)


def _kept_scores(arch: Shape, span: Span) -> Iterator[Part]:
    yield Part(group="attention", name="kept_scores", kept=2 * arch.n_head * span.tokens)


def _standard_ffn(arch: Shape, span: Span) -> Iterator[Part]:
    width, inner = arch.n_embd, arch.ffn_width
    yield linear("ffn", "ffn_up", width, inner, bias=arch.bias, kept=inner)
    yield Part(group="ffn", name="ffn_activation", kept=inner, recomputed=inner)
    yield linear("ffn", "ffn_down", inner, width, bias=arch.bias)


def _swiglu(arch: Shape, span: Span) -> Iterator[Part]:
    width, inner = arch.n_embd, arch.ffn_width
    yield linear("ffn", "ffn_gate", width, inner, bias=arch.bias, kept=inner)
    yield from _standard_ffn(arch, span)


def _place_vectors(arch: Shape, span: Span) -> Iterator[Part]:
    yield Part(group="position", name="position", parameters=arch.block_size * arch.n_embd)


def _before_rotation(arch: Shape, span: Span) -> Iterator[Part]:
    yield Part(group="position", name="rotated", kept=arch.head_dim * (arch.n_head + arch.kv_heads))


def _own_head(arch: Shape, span: Span) -> Iterator[Part]:
    yield linear("head", "head", arch.n_embd, arch.vocab_size)


def _shared_head(arch: Shape, span: Span) -> Iterator[Part]:
    yield Part(group="head", name="head", flops=2 * arch.n_embd * arch.vocab_size)


def _check_dropout(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0.0 <= value <= 1.0):
        raise UserError(f"dropout ({shown(value)}) must be a number from 0.0 to 1.0")
    return float(value) + 0.0  # -0.0 is 0.0


def _named(name: str, spoken: str, *levels: Level, **facts: Any) -> Axis:
    return Axis(name=name, kind=str, spoken=spoken, levels={level.value: level for level in levels}, **facts)


_NORM, _ACTIVATION = f"{_MODEL}.norm", f"{_MODEL}.activations"
_DECLARED = (
    _named(
        "normalization",
        "norm type",
        Level(
            value="layernorm",
            part="LN",
            make=f"{_NORM}:LayerNorm",
            parameters=lambda width: 2 * width,
            dead=dead_without("rmsnorm"),
        ),
        Level(
            value="layernorm_nobias",
            part="LN-NB",
            make=f"{_NORM}:PlainLayerNorm",
            parameters=lambda width: width,
            dead=dead_without("rmsnorm"),
        ),
        Level(value="rmsnorm", part="RMS", make=f"{_NORM}:RMSNorm", parameters=lambda width: width),
    ),
    _named(
        "activation",
        "activation",
        Level(value="gelu", part="GELU", make=f"{_ACTIVATION}:gelu"),
        Level(value="silu", part="SILU", make=f"{_ACTIVATION}:silu"),
        Level(value="relu", part="RELU", make=f"{_ACTIVATION}:relu"),
        Level(value="leaky_relu", part="LEAKY_RELU", make=f"{_ACTIVATION}:leaky_relu"),
        # the tanh approximation of OpenAI's GPT-2; not in the search space
        Level(value="gelu_tanh", part="GELU_TANH", make=f"{_ACTIVATION}:gelu_tanh"),
    ),
    _named(
        "attention_backend",
        "attention backend",
        Level(value="sdpa", make=f"{_MODEL}.attention:sdpa"),
        Level(value="manual", make=f"{_MODEL}.attention:manual", same_as="sdpa", per_layer=_kept_scores),
    ),
    _named(
        "position_encoding",
        "position encoding",
        Level(
            value="learned_absolute",
            part="AbsPos",
            make=f"{_MODEL}.position:LearnedAbsolute",
            per_model=_place_vectors,
            dead=dead_without("rope"),
        ),
        Level(value="rope", part="RoPE", make=f"{_MODEL}.position:Rotary", per_layer=_before_rotation),
        Level(value="none", part="NoPos", make=f"{_MODEL}.position:Position", dead=dead_without("rope")),
    ),
    _named(
        "norm_position",
        "norm position",
        Level(
            value="pre",
            part="PreNorm",
            make=f"{_NORM}:PreNorm",
            per_layer=_sublayer_norms,
            per_model=_final_norm,
        ),
        Level(value="post", part="PostNorm", make=f"{_NORM}:PostNorm", per_layer=_sublayer_norms),
    ),
    _named(
        "ffn_type",
        "FFN type",
        Level(
            value="standard",
            make=f"{_MODEL}.feed_forward:Standard",
            per_layer=_standard_ffn,
            dead=dead_without("moe"),
        ),
        Level(
            value="swiglu",
            part="SwiGLU",
            make=f"{_MODEL}.feed_forward:SwiGLU",
            per_layer=_swiglu,
            dead={"activation": "silu"} | dead_without("moe"),  # the gate's own (Shazeer, arXiv 2002.05202)
        ),
    ),
    Axis(name="bias", kind=bool, levels={value: Level(value=value) for value in (True, False)}),
    Axis(
        name="weight_tying",
        kind=bool,
        levels={True: Level(value=True, per_model=_shared_head), False: Level(value=False, per_model=_own_head)},
    ),
    Axis(name="dropout", kind=float, check=_check_dropout, help="a probability, from 0 to 1"),
    _named(
        "attention",
        "attention form",
        Level(
            value="softmax",
            make=f"{_MODEL}.attention:Attention",
            per_layer=_attention,
            per_model=attention_products,
        ),
        default="softmax",
        help="how tokens attend to one another",
    ),
)
for _axis in _DECLARED:
    add_axis(_axis)
declare(_final_norm)

_OPTIMIZER = "raytrain.training.optimizer"
for _axis in (
    _named(
        "schedule",
        "schedule",
        Level(value="cosine", make=f"{_OPTIMIZER}:cosine", dead={"decay_fraction": 0.2}),
        Level(value="wsd", make=f"{_OPTIMIZER}:wsd"),
    ),
    _named(
        "optimizer",
        "optimizer",
        Level(value="adamw", make=f"{_OPTIMIZER}:adamw"),
        Level(value="muon", make="raytrain.training.muon:muon"),
        default="adamw",
    ),
):
    add_axis(_axis, RUN_AXES)
