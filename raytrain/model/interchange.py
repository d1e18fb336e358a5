"""Our weights as Hugging Face's GPT-2 or Llama, and back: pure functions on state dicts, without `transformers`.

    hf_config, hf_state = to_hf(arch, model.state_dict())
    GPT2LMHeadModel(GPT2Config.from_dict(hf_config)).load_state_dict(hf_state)

A model and its counterpart compute the same logits. Dropout, which acts in training alone, is carried as a number:
Hugging Face's Llama applies it to the attention probabilities only.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from raytrain.architecture import Architecture
from raytrain.axes import AXES
from raytrain.axes.optional import RMS_NORM_EPS, ROPE_THETA
from raytrain.errors import UserError, unknown_value

# What each family fixes. GPT-2's biases do not bar a model without: a zero bias computes the same.
_NEEDS: dict[str, dict[str, tuple[object, ...]]] = {
    "gpt2": {
        "position_encoding": ("learned_absolute",),
        "normalization": ("layernorm", "layernorm_nobias"),
        "norm_position": ("pre",),
        "ffn_type": ("standard",),
    },
    "llama": {
        "position_encoding": ("rope",),
        "normalization": ("rmsnorm",),
        "norm_position": ("pre",),
        "ffn_type": ("swiglu",),
    },
    "qwen3": {
        "position_encoding": ("rope",),
        "normalization": ("rmsnorm",),
        "norm_position": ("pre",),
        "ffn_type": ("swiglu",),
        "bias": (False,),
        "qk_norm": (True,),
    },
}
# Of the axes that need not be given, those that a family has; a model is to be at the default of all others.
_OPTIONAL = {"gpt2": (), "llama": ("rope_theta", "rms_norm_eps"), "qwen3": ("rope_theta", "rms_norm_eps", "qk_norm")}
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu", "relu": "relu", "leaky_relu": "leaky_relu"}
_ACTIVATIONS_BACK = {theirs: ours for ours, theirs in _ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}

# Settings that change the function and that our model has at these values alone, which are also the defaults there.
_FIXED: dict[str, dict[str, object]] = {
    "gpt2": {
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "llama": {"hidden_act": "silu"},
    "qwen3": {"hidden_act": "silu", "use_sliding_window": False},
}


def to_hf(arch: Architecture, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration (as `config.json` has it) and the state dict of the Hugging Face model equal to ours.

    The tensors are contiguous copies. A bias that ours lacks and GPT-2 needs is zero.

    Raises UserError naming the axes that prevent it where `arch` is neither a GPT-2 nor a Llama, or the missing weight.
    """
    family = _family(arch)
    hf_state: dict[str, Tensor] = {}
    for match in _matches(family, arch):
        if match.ours in state:
            ours = state[match.ours]
        elif match.absent:
            ours = torch.zeros(sum(match.rows)).to(state["embedding.weight"])
        else:
            raise UserError(f"The weights have no {match.ours!r}, which the architecture {arch.name} needs")
        for name, piece in zip(match.theirs, ours.split(match.rows), strict=True):
            hf_state[name] = (piece.t() if match.transposed else piece).clone(memory_format=torch.contiguous_format)
    if arch.weight_tying:
        hf_state["lm_head.weight"] = hf_state[_EMBEDDING[family]]
    return _config(family, arch), hf_state


def from_hf(hf_config: Mapping[str, Any], hf_state: Mapping[str, Tensor]) -> tuple[Architecture, dict[str, Tensor]]:
    """Our architecture and state dict for a `GPT2LMHeadModel`'s, a `LlamaForCausalLM`'s or a `Qwen3ForCausalLM`'s.

    Also for those of the model without a head (`GPT2Model`), whose keys lack the first part, as the published GPT-2's.

    Raises UserError for another model type, a setting that our model does not have, and a weight that is missing, of
    another shape than the settings say, or one that our model does not have.
    """
    arch = _architecture(hf_config)
    family = hf_config["model_type"]
    hf_state = _with_prefix(family, hf_state)
    _require_known(family, arch, hf_state)
    state: dict[str, Tensor] = {}
    for match in _matches(family, arch):
        state[match.ours] = _joined(match, hf_state)
    if arch.weight_tying:
        state["head.weight"] = state["embedding.weight"]
    return arch, state


def _joined(match: "_Match", hf_state: Mapping[str, Tensor]) -> Tensor:
    missing = [name for name in match.theirs if name not in hf_state]
    if missing:
        raise UserError(f"The Hugging Face weights have no {missing[0]!r}")
    pieces = [hf_state[name].transpose(0, -1) if match.transposed else hf_state[name] for name in match.theirs]
    for name, piece, rows in zip(match.theirs, pieces, match.rows, strict=True):
        if piece.shape[:1] != (rows,) or piece.shape[1:] != pieces[0].shape[1:]:
            shape = tuple(hf_state[name].shape)
            raise UserError(
                f"The Hugging Face weights have {name!r} of shape {shape}, which is not that of their config"
            )
    return torch.cat(pieces)


def _with_prefix(family: str, hf_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    prefix = _EMBEDDING[family].partition(".")[0] + "."
    if any(name.startswith(prefix) for name in hf_state):
        return hf_state
    return {name if name.startswith("lm_head.") else prefix + name: tensor for name, tensor in hf_state.items()}


def _require_known(family: str, arch: Architecture, hf_state: Mapping[str, Tensor]) -> None:
    known = {name for match in _matches(family, arch) for name in match.theirs} | {"lm_head.weight"}
    unknown = [name for name in hf_state if name not in known and not name.endswith(_BUFFERS)]
    if unknown:
        raise UserError(f"The Hugging Face weights have {unknown[0]!r}, for which their config's model has no place")


@dataclasses.dataclass(frozen=True)
class _Match:
    """Our tensor `ours` is the tensors `theirs` one above another, each of `rows` rows (transposed there, maybe)."""

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...]
    transposed: bool = False
    absent: bool = False  # our model has no such weight: it is zero there


_EMBEDDING = {"gpt2": "transformer.wte.weight", "llama": "model.embed_tokens.weight"}
_EMBEDDING["qwen3"] = _EMBEDDING["llama"]
# Not weights: the causal mask and RoPE's frequencies, which files of older versions hold.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def _matches(family: str, arch: Architecture) -> Iterator[_Match]:
    yield _Match("embedding.weight", (_EMBEDDING[family],), (arch.vocab_size,))
    yield from _gpt2_matches(arch) if family == "gpt2" else _llama_matches(arch)
    if not arch.weight_tying:
        yield _Match("head.weight", ("lm_head.weight",), (arch.vocab_size,))


def _gpt2_matches(arch: Architecture) -> Iterator[_Match]:
    width = arch.n_embd

    def norm(ours: str, theirs: str) -> Iterator[_Match]:
        yield _Match(f"{ours}.weight", (f"{theirs}.weight",), (width,))
        yield _Match(f"{ours}.bias", (f"{theirs}.bias",), (width,), absent=arch.normalization != "layernorm")

    def linear(ours: str, theirs: str, rows: int) -> Iterator[_Match]:  # Conv1D there, which keeps (in, out)
        yield _Match(f"{ours}.weight", (f"{theirs}.weight",), (rows,), transposed=True)
        yield _Match(f"{ours}.bias", (f"{theirs}.bias",), (rows,), absent=not arch.bias)

    yield _Match("position.embedding.weight", ("transformer.wpe.weight",), (arch.block_size,))
    for i in range(arch.n_layer):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        yield from norm(f"{ours}.attention_norm", f"{theirs}.ln_1")
        yield from linear(f"{ours}.attention.qkv", f"{theirs}.attn.c_attn", 3 * width)
        yield from linear(f"{ours}.attention.output", f"{theirs}.attn.c_proj", width)
        yield from norm(f"{ours}.feed_forward_norm", f"{theirs}.ln_2")
        yield from linear(f"{ours}.feed_forward.up", f"{theirs}.mlp.c_fc", arch.ffn_width)
        yield from linear(f"{ours}.feed_forward.down", f"{theirs}.mlp.c_proj", width)
    yield from norm("norm", "transformer.ln_f")


def _llama_matches(arch: Architecture) -> Iterator[_Match]:
    width = arch.n_embd

    def norm(ours: str, theirs: str) -> _Match:
        return _Match(f"{ours}.weight", (f"{theirs}.weight",), (width,))

    def linear(ours: str, theirs: str, rows: Mapping[str, int]) -> Iterator[_Match]:
        for kind in ("weight", "bias") if arch.bias else ("weight",):
            names = tuple(f"{theirs}.{name}.{kind}" for name in rows)
            yield _Match(f"{ours}.{kind}", names, tuple(rows.values()))

    queries, keys = width, arch.kv_heads * arch.head_dim
    for i in range(arch.n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield norm(f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        qkv = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        yield from linear(f"{ours}.attention.qkv", f"{theirs}.self_attn", qkv)
        yield from linear(f"{ours}.attention.output", f"{theirs}.self_attn", {"o_proj": width})
        if arch.qk_norm:
            for kind, name in (("query", "q_norm"), ("key", "k_norm")):
                hook = f"{ours}.hooks.0.{kind}_norm.weight"
                yield _Match(hook, (f"{theirs}.self_attn.{name}.weight",), (arch.head_dim,))
        yield norm(f"{ours}.feed_forward_norm", f"{theirs}.post_attention_layernorm")
        yield from linear(f"{ours}.feed_forward.gate", f"{theirs}.mlp", {"gate_proj": arch.ffn_width})
        yield from linear(f"{ours}.feed_forward.up", f"{theirs}.mlp", {"up_proj": arch.ffn_width})
        yield from linear(f"{ours}.feed_forward.down", f"{theirs}.mlp", {"down_proj": width})
    yield norm("norm", "model.norm")


def _family(arch: Architecture) -> str:
    barred: dict[str, list[str]] = {}
    for family, needs in _NEEDS.items():
        barred[family] = [
            f"{axis} {' or '.join(map(str, allowed))} (not {getattr(arch, axis)})"
            for axis, allowed in needs.items()
            if getattr(arch, axis) not in allowed
        ]
        barred[family] += [
            f"{axis} {AXES[axis].default} (not {arch.value(axis)})"
            for axis in arch.to_dict()
            if axis in AXES and not AXES[axis].is_required and axis not in _OPTIONAL[family]
        ]
        if family == "gpt2" and arch.kv_heads != arch.n_head:
            barred[family].append(f"n_kv_head {arch.n_head} (not {arch.kv_heads})")
        if not barred[family]:
            return family
    reasons = "; ".join(f"{family} there needs {', '.join(why)}" for family, why in barred.items())
    raise UserError(f"{arch.name} has no counterpart in Hugging Face: {reasons}")


def _config(family: str, arch: Architecture) -> dict[str, Any]:
    shared = {
        "model_type": family,
        "vocab_size": arch.vocab_size,
        "tie_word_embeddings": arch.weight_tying,
        "bos_token_id": None,
        "eos_token_id": None,
        **_FIXED[family],
    }
    if family == "gpt2":
        return shared | {
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": arch.block_size,
            "n_embd": arch.n_embd,
            "n_layer": arch.n_layer,
            "n_head": arch.n_head,
            "n_inner": arch.ffn_width,
            "activation_function": _ACTIVATIONS[arch.activation],
            "resid_pdrop": arch.dropout,
            "embd_pdrop": arch.dropout,
            "attn_pdrop": arch.dropout,
        }
    biases = {"attention_bias": arch.bias} | ({"mlp_bias": arch.bias} if family == "llama" else {})
    return shared | {
        "architectures": ["LlamaForCausalLM" if family == "llama" else "Qwen3ForCausalLM"],
        "max_position_embeddings": arch.block_size,
        "hidden_size": arch.n_embd,
        "num_hidden_layers": arch.n_layer,
        "num_attention_heads": arch.n_head,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "intermediate_size": arch.ffn_width,
        "rope_theta": arch.rope_theta,
        "rms_norm_eps": arch.rms_norm_eps,
        **biases,
        "attention_dropout": arch.dropout,
    }


def _architecture(config: Mapping[str, Any]) -> Architecture:
    family = config.get("model_type")
    if family not in _NEEDS:
        raise unknown_value("model_type of a Hugging Face config", family, _NEEDS)
    for setting, value in _FIXED[family].items():
        _require(setting, config.get(setting, value), value)
    try:
        return _from_gpt2(config) if family == "gpt2" else _from_llama(config)
    except KeyError as missing:
        raise UserError(f"The Hugging Face config has no {missing}") from None


def _from_gpt2(config: Mapping[str, Any]) -> Architecture:
    activation = config.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS_BACK:
        raise unknown_value("activation_function", activation, _ACTIVATIONS_BACK)
    return Architecture(
        normalization="layernorm",
        activation=_ACTIVATIONS_BACK[activation],
        attention_backend="sdpa",
        position_encoding="learned_absolute",
        norm_position="pre",
        ffn_type="standard",
        bias=True,
        weight_tying=config.get("tie_word_embeddings", True),
        dropout=config.get("resid_pdrop", 0.1),
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        n_embd=config["n_embd"],
        block_size=config["n_positions"],
        vocab_size=config["vocab_size"],
        d_ff=config.get("n_inner"),
    )


def _from_llama(config: Mapping[str, Any]) -> Architecture:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}  # the second is the older spelling
    _require("rope_type", rope.get("rope_type", "default"), "default")
    bias = config.get("attention_bias", False)
    _require("mlp_bias", config.get("mlp_bias", False), bias)
    arch = Architecture(
        rope_theta=rope.get("rope_theta", config.get("rope_theta", ROPE_THETA)),
        rms_norm_eps=config.get("rms_norm_eps", RMS_NORM_EPS),
        qk_norm=config["model_type"] == "qwen3",
        normalization="rmsnorm",
        activation="silu",
        attention_backend="sdpa",
        position_encoding="rope",
        norm_position="pre",
        ffn_type="swiglu",
        bias=bias,
        weight_tying=config.get("tie_word_embeddings", False),
        dropout=config.get("attention_dropout", 0.0),
        n_layer=config["num_hidden_layers"],
        n_head=config["num_attention_heads"],
        n_embd=config["hidden_size"],
        block_size=config["max_position_embeddings"],
        vocab_size=config["vocab_size"],
        n_kv_head=config.get("num_key_value_heads"),
        d_ff=config["intermediate_size"],
    )
    _require("head_dim", config.get("head_dim") or arch.head_dim, arch.head_dim)
    return arch


def _require(setting: str, value: object, ours: object) -> None:
    if value != ours:
        raise UserError(f"The Hugging Face config has {setting} {value!r}; raytrain's model has {ours!r} there")
