"""What a model is: its axes, a size, presets, a name, and a canonical form. Pure: no torch.

What the axes are, and what each level means, is in `raytrain.axes`. Two configurations that are the same variant have
one canonical form and one hash, so a sweep trains them once.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from raytrain.axes import AXES, Level, dead
from raytrain.axes.optional import check_combination, effective_windows
from raytrain.errors import UserError, shown, unknown_value
from raytrain.rundir.parse import parse_yaml

__all__ = [
    "AXES",
    "PRESETS",
    "SCALES",
    "SIZES",
    "Architecture",
    "from_dict",
    "from_json",
    "from_yaml",
    "preset",
    "preset_axes",
    "preset_of",
]

SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "n_kv_head", "d_ff")
# The axes in an architecture's name, in its order; those that are not here follow, where they are not at their default.
_NAMED = ("position_encoding", "normalization", "ffn_type", "activation", "norm_position")
_LARGEST = 2**31 - 1  # of a size: kernels count rows and columns in 32 bits
_MOST_LAYERS = 10_000  # each is listed in patterns of layers, and is a module of its own
_TRIED_DIVISORS = 100_000  # for a hint in a message
_FFN_MULTIPLE = 64  # FFN widths are rounded to this: whole 128-byte rows in bf16, which tensor-core tiles want


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A GPT-style decoder: its axes and its size. Immutable and valid once made.

    The first nine axes must be given. A further one that is built in is a field with its default; those of plugins are
    pairs of name and value in `extra`, without those at their default. `value` reads any of them.

    `n_kv_head` (K) below `n_head` gives grouped-query attention; None means `n_head`. `d_ff` (F) None means the
    type's usual width: 4 x n_embd, or 8/3 x n_embd for swiglu (whose three matrices then cost what two cost at 4x),
    rounded to the nearest multiple of 64; of one expert of a moe, that over the number that a token uses.

    Raises UserError, one line, for an unknown or inconsistent value.
    """

    normalization: str
    activation: str
    attention_backend: str
    position_encoding: str
    norm_position: str
    ffn_type: str
    bias: bool
    weight_tying: bool
    dropout: float
    attention: str = AXES["attention"].default
    qk_norm: bool = AXES["qk_norm"].default
    attention_window: tuple[int | str, ...] = AXES["attention_window"].default
    attention_gate: str = AXES["attention_gate"].default
    value_embeddings: bool = AXES["value_embeddings"].default
    parallel_block: bool = AXES["parallel_block"].default
    logit_softcap: float = AXES["logit_softcap"].default
    rope_fraction: float = AXES["rope_fraction"].default
    rope_theta: float = AXES["rope_theta"].default
    rms_norm_eps: float = AXES["rms_norm_eps"].default
    n_expert: int = AXES["n_expert"].default
    n_expert_active: int = AXES["n_expert_active"].default
    n_shared_expert: int = AXES["n_shared_expert"].default
    moe_balance: float = AXES["moe_balance"].default
    extra: tuple[tuple[str, Any], ...] = ()
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    block_size: int = 1024
    vocab_size: int = 50304
    n_kv_head: int | None = None
    d_ff: int | None = None

    def __post_init__(self) -> None:
        self._check_axes()
        for size in SIZES:
            value = getattr(self, size)
            optional = size in ("n_kv_head", "d_ff")
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{size} ({shown(value)}) must be a whole number of 1 or more")
            if value > _LARGEST:
                raise UserError(f"{size} ({shown(value)}) must be below 2^31")
        if self.n_layer > _MOST_LAYERS:
            raise UserError(f"n_layer ({self.n_layer}) must be {_MOST_LAYERS:,} or less")
        if self.n_embd % self.n_head:
            near = [str(h) for h in divisors_near(self.n_embd, self.n_head)]
            raise UserError(
                f"n_embd ({self.n_embd}) must be divisible by n_head ({self.n_head}); try {' or '.join(near)}"
            )
        if self.n_head % self.kv_heads:
            near = [str(k) for k in divisors_near(self.n_head, self.kv_heads)]
            raise UserError(
                f"n_head ({self.n_head}) must be divisible by n_kv_head ({self.n_kv_head}); try {' or '.join(near)}"
            )
        if self.position_encoding == "rope" and self.head_dim % 2:
            raise UserError(
                f"position_encoding 'rope' needs an even head width, but n_embd / n_head is "
                f"{self.n_embd} / {self.n_head} = {self.head_dim}"
            )
        check_combination(self)

    def _check_axes(self) -> None:
        """Every axis as its declaration reads it. Raises UserError for a value that an axis does not have."""
        extra = dict(self.extra)
        for name, axis in AXES.items():
            if name in _FIELDS:
                object.__setattr__(self, name, axis.read(getattr(self, name)))
            elif name in extra:
                extra[name] = axis.read(extra[name])
        for name in extra:
            if name in _FIELDS or name not in AXES:
                raise unknown_value("architecture field", name, (*AXES, *SIZES))
        kept = ((name, value) for name, value in extra.items() if value != AXES[name].default)
        object.__setattr__(self, "extra", tuple(sorted(kept)))

    def value(self, axis: str) -> Any:
        """The level of any axis, built in or a plugin's."""
        if axis in _FIELDS:
            return getattr(self, axis)
        return dict(self.extra).get(axis, AXES[axis].default)

    def levels(self) -> Iterator[tuple[str, Level]]:
        """The axes that the architecture's function or speed depends on, each with the facts about its level."""
        dead_axes = self.dead
        for name, axis in AXES.items():
            if name not in dead_axes:
                yield name, axis.level(self.value(name))

    @property
    def dead(self) -> dict[str, Any]:
        """The fields without effect here -> the value that stands in their place in the canonical form."""
        return dead({axis: self.value(axis) for axis in AXES})

    @property
    def head_dim(self) -> int:
        """E, the width of one head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """K, the number of key/value heads in use."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def ffn_width(self) -> int:
        """F, the FFN width in use."""
        if self.d_ff is not None:
            return self.d_ff
        if self.ffn_type == "standard":
            return 4 * self.n_embd
        used = self.n_expert_active + self.n_shared_expert if self.ffn_type == "moe" else 1
        return max(1, round(8 * self.n_embd / 3 / used / _FFN_MULTIPLE)) * _FFN_MULTIPLE

    @property
    def name(self) -> str:
        """Such as `12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm`; bias, tying, dropout and backend are not in it."""
        parts = {axis: level.part for axis, level in self.levels()}
        order = (*_NAMED, *(axis for axis in parts if axis not in _NAMED and axis not in _required()))
        words = [parts[axis] for axis in order if parts.get(axis)]
        return "-".join([f"{self.n_layer}L-{self.n_head}H-{self.n_embd}D", *words])

    def program(self) -> "Architecture":
        """The form that is one for all spellings of one program: dead values fixed, widths explicit."""
        explicit = {"n_kv_head": self.kv_heads, "d_ff": self.ffn_width, "attention_window": effective_windows(self)}
        return self.replace(**self.dead | explicit)

    def canonical(self) -> "Architecture":
        """The form that is one for all programs of one variant: of levels that differ in speed alone, the first."""
        program = self.program()
        return program.replace(**{axis: level.same_as for axis, level in program.levels() if level.same_as is not None})

    @functools.cached_property
    def hash(self) -> str:
        """12 hex digits of the canonical form: equal if and only if the architectures are one variant.

        Axes at their default are not in it, so an architecture keeps its hash when raytrain gets a new axis.
        """
        text = json.dumps(self.canonical().to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def replace(self, **changes: Any) -> "Architecture":
        """A copy with `changes`, validated anew."""
        return from_dict(self.to_dict() | changes)

    def values(self) -> dict[str, Any]:
        """Every axis and every size, flat."""
        return {axis: self.value(axis) for axis in AXES} | {size: getattr(self, size) for size in SIZES}

    def to_dict(self) -> dict[str, Any]:
        """What it takes to make this again, flat: `values` without the axes at their default."""
        return {k: v for k, v in self.values().items() if k in SIZES or v != AXES[k].default}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    def to_yaml(self) -> str:
        return yaml.safe_dump(json.loads(self.to_json()), sort_keys=False)  # a tuple becomes a list


_FIELDS = frozenset(field.name for field in dataclasses.fields(Architecture)) - {"extra"}


def _required() -> list[str]:
    return [name for name, axis in AXES.items() if axis.is_required]


def from_dict(values: Mapping[str, Any]) -> Architecture:
    """The architecture of flat `values`. Axes with a default may be absent, as in what an earlier version wrote.

    Raises UserError for an unknown key, a missing axis, or a bad value.
    """
    for key in values:
        if key not in AXES and key not in SIZES:
            raise unknown_value("architecture field", key, (*AXES, *SIZES))
    missing = [axis for axis in _required() if axis not in values]
    if missing:
        raise UserError(f"An architecture needs all nine axes; missing: {', '.join(missing)}")
    fields = {key: value for key, value in values.items() if key in _FIELDS}
    return Architecture(**fields, extra=tuple((k, v) for k, v in values.items() if k not in _FIELDS))


def from_json(text: str) -> Architecture:
    """Raises UserError for what is not a valid architecture in JSON. (JSON is YAML.)"""
    return from_yaml(text)


def from_yaml(text: str) -> Architecture:
    """Raises UserError for what is not a valid architecture in YAML."""
    try:
        values = parse_yaml(text)
    except UserError as error:
        raise UserError(f"An architecture cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"An architecture is a mapping of field to value, not {shown(values)}")
    return from_dict(values)


def _axes(
    normalization: str,
    activation: str,
    position_encoding: str,
    norm_position: str,
    ffn_type: str,
    *,
    bias: bool,
    weight_tying: bool,
    dropout: float = 0.0,
) -> dict[str, Any]:
    return locals() | {"attention_backend": "sdpa"}


PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": _axes("layernorm_nobias", "gelu", "learned_absolute", "post", "standard", bias=False, weight_tying=True),
    "llama": _axes("rmsnorm", "silu", "rope", "pre", "swiglu", bias=False, weight_tying=False),
    "team": _axes("rmsnorm", "silu", "rope", "pre", "swiglu", bias=False, weight_tying=False),
    "hybrid": _axes("layernorm_nobias", "gelu", "rope", "pre", "standard", bias=False, weight_tying=True),
    "openai_gpt2": _axes("layernorm", "gelu_tanh", "learned_absolute", "pre", "standard", bias=True, weight_tying=True),
    "modern": _axes("rmsnorm", "silu", "rope", "pre", "swiglu", bias=False, weight_tying=False) | {"qk_norm": True},
    "custom": {},
}
PRESET_NOTES = {
    "gpt2": "the predecessor's GPT-2: post-norm, no biases, exact GELU (OpenAI's is openai_gpt2)",
    "llama": "as Llama: RoPE, RMSNorm, SwiGLU, untied",
    "team": "model_v1: the same axes as llama",
    "hybrid": "GPT-2's FFN and norm with RoPE and pre-norm",
    "openai_gpt2": "the real GPT-2: pre-norm, biases everywhere, tanh-GELU",
    "modern": "a baseline of 2026: as llama, with normed queries and keys (Qwen3)",
    "custom": "nothing preset: give all nine axes",
}

# Sizes by name. `vocab_size` is absent where the data decides it.
SCALES: dict[str, dict[str, int]] = {
    "tiny": {"n_layer": 4, "n_head": 3, "n_embd": 96, "block_size": 128},
    "small": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256},
    "124m": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50304},
    "350m": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "block_size": 1024, "vocab_size": 50304},
    "1.3b": {"n_layer": 18, "n_head": 18, "n_embd": 2304, "block_size": 2048, "vocab_size": 32000},
}


def preset_axes(name: str) -> dict[str, Any]:
    """The level of each axis of preset `name`; of `custom`, which gives none, those that have a default."""
    return {axis: facts.default for axis, facts in AXES.items() if not facts.is_required} | PRESETS[name]


def preset(name: str, **changes: Any) -> Architecture:
    """The preset `name` with any axis or size changed, such as `preset("gpt2", normalization="rmsnorm")`.

    Raises UserError for an unknown name, field or value, and for `custom` unless all nine axes are given.
    """
    if str(name) not in PRESETS:
        raise unknown_value("preset", name, PRESETS)
    return from_dict(PRESETS[name] | changes)


def preset_of(arch: Architecture) -> str | None:
    """The first preset whose axes `arch` has, as a variant; None if there is none."""
    size = {name: getattr(arch, name) for name in SIZES if name != "d_ff"}
    made = ((name, preset(name, **size)) for name, axes in PRESETS.items() if axes)
    return next((name for name, other in made if other.replace(d_ff=arch.d_ff).hash == arch.hash), None)


def divisors_near(whole: int, wanted: int) -> list[int]:
    """The divisors of `whole` next below and next above `wanted`; of a very large one, those within reach."""
    low = [d for d in range(1, min(math.isqrt(whole), _TRIED_DIVISORS) + 1) if whole % d == 0]
    divisors = sorted({*low, *(whole // d for d in low)})
    below = [d for d in divisors if d < wanted][-1:]
    above = [d for d in divisors if d > wanted][:1]
    return below + above
