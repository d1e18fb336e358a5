"""The built-in axes beyond the nine: each has a default that leaves a model as it is without the axis.

Sources are at the modules that build them. What a level costs is stated here; `accounting` derives the formulas.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from raytrain.axes.cost import Part, Shape, Span, linear
from raytrain.axes.registry import AXES, Axis, Level, add_axis, add_level
from raytrain.errors import UserError, shown

_MODEL = "raytrain.model"
FULL, NOPE = "full", "nope"  # in an attention_window: all tokens of the past; the same, without a position encoding
ROPE_THETA = 10_000.0  # Su et al., arXiv 2104.09864, section 3.3
RMS_NORM_EPS = 1e-6  # Llama's, as in Hugging Face's configuration; most published ones have 1e-5


def windows(pattern: tuple[int | str, ...], layers: int) -> list[int | str]:
    """The entry of each layer: the pattern, again and again."""
    return [pattern[layer % len(pattern)] for layer in range(layers)]


def attention_products(arch: Shape, span: Span) -> Iterator[Part]:
    """Scores and values of all layers, over the tokens that each layer's window lets a query attend to."""
    queries = arch.n_head * arch.head_dim
    pattern = windows(arch.value("attention_window"), arch.n_layer)
    flops = sum(queries * span.twice_within(None if isinstance(entry, str) else entry) for entry in pattern)
    yield Part(group="attention", name="scores", flops=flops)
    yield Part(group="attention", name="values", flops=flops)


def _check_window(value: Any) -> tuple[int | str, ...]:
    entries = tuple(value) if isinstance(value, list | tuple) else (value,)
    is_known = [entry in (FULL, NOPE) or (type(entry) is int and entry > 0) for entry in entries]
    if not entries or not all(is_known):
        raise UserError(
            f"attention_window ({shown(value)}) must be a list, a layer each and then again: tokens that a query "
            f"attends to, {FULL!r} for all, or {NOPE!r} for all without a position encoding; such as [256, 256, full]"
        )
    return entries


def _number(name: str, low: float, high: float = math.inf, *, whole: bool = False) -> Callable[[Any], Any]:
    """A check for numbers above `low` (or at it, where it is 0), up to `high`."""
    kind = int if whole else float

    def check(value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (whole and value != int(value)) or not low <= value <= high or math.isinf(value):
            most = f" to {high:g}" if math.isfinite(high) else " or more"
            raise UserError(f"{name} ({shown(value)}) must be a {'whole ' if whole else ''}number, {low:g}{most}")
        return kind(value) + kind(0)

    return check


def _qk_norms(arch: Shape, span: Span) -> Iterator[Part]:
    heads = arch.head_dim * (arch.n_head + arch.kv_heads)
    yield Part(group="norm", name="qk_norms", parameters=2 * arch.head_dim, kept=heads, recomputed=heads)


def _head_gate(arch: Shape, span: Span) -> Iterator[Part]:
    yield linear("attention", "gate", arch.n_embd, arch.n_head, kept=arch.n_head + arch.n_embd)


def _value_table(arch: Shape, span: Span) -> Iterator[Part]:
    yield Part(group="embedding", name="value_embedding", parameters=arch.vocab_size * arch.kv_heads * arch.head_dim)


def _value_weight(arch: Shape, span: Span) -> Iterator[Part]:
    yield Part(group="attention", name="value_weight", parameters=1, kept=arch.kv_heads * arch.head_dim)


def _sandwich(arch: Shape, span: Span) -> Iterator[Part]:
    level = AXES["normalization"].level(arch.value("normalization"))
    width = arch.n_embd
    pairs = 1 if arch.value("parallel_block") else 2
    parameters = 2 * pairs * level.parameters(width)
    yield Part(group="norm", name="norms", parameters=parameters, kept=2 * pairs * width, recomputed=pairs * width)


def _experts(arch: Shape, span: Span) -> Iterator[Part]:
    """Parameters of all experts; FLOPs of those that a token goes to, and of the router."""
    width, inner = arch.n_embd, arch.ffn_width
    experts, shared = arch.value("n_expert"), arch.value("n_shared_expert")
    active = arch.value("n_expert_active") + shared
    yield linear("ffn", "router", width, experts, kept=experts)
    for name, kept in (("ffn_gate", inner), ("ffn_up", 2 * inner), ("ffn_down", width)):
        product, total = width * inner, experts + shared
        yield Part(group="ffn", name=name, parameters=total * product, flops=2 * active * product, kept=active * kept)


_WITHOUT_ROPE = {"rope_fraction": 1.0, "rope_theta": ROPE_THETA}
_WITHOUT_EXPERTS = {"n_expert": 8, "n_expert_active": 2, "n_shared_expert": 0, "moe_balance": 0.01}


def _switch(name: str, help: str, on: Level) -> Axis:
    return Axis(name=name, kind=bool, levels={False: Level(value=False), True: on}, default=False, help=help)


def _open(
    name: str, kind: type, check: Callable[[Any], Any], default: Any, help: str, facts: Level | None = None
) -> Axis:
    return Axis(name=name, kind=kind, check=check, default=default, help=help, open=facts)


def declare(final_norm: Callable[[Shape, Span], Iterator[Part]]) -> None:
    """Register them. `final_norm` is what a model has after its last block."""
    add_level("activation", Level(value="relu_squared", part="RELU2", make=f"{_MODEL}.activations:relu_squared"))
    add_level(
        "norm_position",
        Level(
            value="sandwich",
            part="SandwichNorm",
            make=f"{_MODEL}.norm:SandwichNorm",
            per_layer=_sandwich,
            per_model=final_norm,
        ),
    )
    add_level(
        "ffn_type",
        Level(value="moe", part="MoE", make=f"{_MODEL}.moe:Experts", per_layer=_experts, dead={"activation": "silu"}),
    )
    hook = f"{_MODEL}.attention_hooks"
    for axis in (
        _switch(
            "qk_norm",
            "RMSNorm of each head's queries and keys",
            Level(value=True, part="QKNorm", layer_hook=f"{hook}:QKNorm", per_layer=_qk_norms),
        ),
        _open(
            "attention_window",
            tuple,
            _check_window,
            (FULL,),
            f"tokens that a query attends to, a layer each and then again: numbers, {FULL}, or {NOPE} (all, without "
            "position encoding), as [256, 256, full]",
            Level(value=None, part="Window"),
        ),
        Axis(
            name="attention_gate",
            kind=str,
            spoken="attention gate",
            levels={
                "none": Level(value="none"),
                "head": Level(value="head", part="Gate", layer_hook=f"{hook}:HeadGate", per_layer=_head_gate),
            },
            default="none",
            help="a sigmoid of the input that scales each head's output",
        ),
        _switch(
            "value_embeddings",
            "a second embedding of the tokens, added to the values of every layer",
            Level(
                value=True,
                part="ValueEmb",
                layer_hook=f"{hook}:ValueWeight",
                model_hook=f"{hook}:ValueEmbedding",
                per_layer=_value_weight,
                per_model=_value_table,
            ),
        ),
        _switch(
            "parallel_block",
            "attention and FFN side by side, on one norm",
            Level(value=True, part="Parallel"),
        ),
        _open(
            "logit_softcap",
            float,
            _number("logit_softcap", 0.0),
            0.0,
            "logits become cap x tanh(logits / cap); 0: none",
            Level(value=None, part="Softcap"),
        ),
        _open("rope_fraction", float, _number("rope_fraction", 0.0, 1.0), 1.0, "part of each head that RoPE turns"),
        _open("rope_theta", float, _number("rope_theta", 1.0), ROPE_THETA, "base of RoPE's frequencies"),
        _open("rms_norm_eps", float, _number("rms_norm_eps", 0.0, 1.0), RMS_NORM_EPS, "epsilon of RMSNorm"),
        _open("n_expert", int, _number("n_expert", 1, whole=True), 8, "moe: experts of a layer"),
        _open(
            "n_expert_active", int, _number("n_expert_active", 1, whole=True), 2, "moe: experts that a token goes to"
        ),
        _open("n_shared_expert", int, _number("n_shared_expert", 0, whole=True), 0, "moe: experts of every token"),
        _open("moe_balance", float, _number("moe_balance", 0.0), 0.01, "moe: weight of the load-balancing loss"),
    ):
        add_axis(axis)


def dead_without(level: str) -> dict[str, Any]:
    """What has no effect where RoPE (`rope`), experts (`moe`) or RMSNorm (`rmsnorm`) is not there."""
    return {"rope": _WITHOUT_ROPE, "moe": _WITHOUT_EXPERTS, "rmsnorm": {"rms_norm_eps": RMS_NORM_EPS}}[level]


def effective_windows(arch: Any) -> tuple[int | str, ...]:
    """The shortest pattern that means what the `attention_window` of `arch` (an Architecture) does."""

    def plain(entry: int | str) -> int | str:
        if entry == NOPE:
            return NOPE if arch.position_encoding == "rope" else FULL  # nothing else acts in a layer
        return FULL if isinstance(entry, int) and entry >= arch.block_size else entry

    entries = [plain(entry) for entry in windows(arch.attention_window, arch.n_layer)]
    lengths = (p for p in range(1, len(entries) + 1) if windows(tuple(entries[:p]), len(entries)) == entries)
    return tuple(entries[: next(lengths)])


def check_combination(arch: Any) -> None:
    """Raises UserError for levels of `arch` (an Architecture) that cannot go together."""
    for entry in arch.attention_window:
        if isinstance(entry, int) and entry > arch.block_size:
            raise UserError(f"attention_window ({entry}) must be at most block_size ({arch.block_size})")
    if arch.ffn_type == "moe" and arch.n_expert_active > arch.n_expert:
        raise UserError(f"n_expert_active ({arch.n_expert_active}) must be at most n_expert ({arch.n_expert})")
    if arch.position_encoding == "rope" and round(arch.rope_fraction * arch.head_dim) % 2:
        raise UserError(
            f"rope_fraction ({arch.rope_fraction:g}) must turn an even part of the head width ({arch.head_dim}); "
            f"try {2 * round(arch.rope_fraction * arch.head_dim / 2) / arch.head_dim:g}"
        )
