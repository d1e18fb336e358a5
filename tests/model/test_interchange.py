"""Hugging Face's GPT-2 and Llama as the independent truth: the same weights give the same logits."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from raytrain.architecture import Architecture, preset
from raytrain.errors import UserError
from raytrain.model import Transformer, build
from raytrain.model.interchange import from_hf, to_hf

SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 48, "vocab_size": 97}
ARCHITECTURES = {
    "gpt2": preset("openai_gpt2", **SMALL),
    "gpt2-untied": preset("openai_gpt2", **SMALL, weight_tying=False),
    "gpt2-exact-gelu": preset("openai_gpt2", **SMALL, activation="gelu"),
    "gpt2-silu": preset("openai_gpt2", **SMALL, activation="silu"),
    "gpt2-leaky-relu": preset("openai_gpt2", **SMALL, activation="leaky_relu", d_ff=100),
    "gpt2-relu-no-biases": preset("openai_gpt2", **SMALL, activation="relu", bias=False),
    "gpt2-layernorm-nobias": preset("openai_gpt2", **SMALL, normalization="layernorm_nobias"),
    "llama": preset("llama", **SMALL),
    "llama-gqa": preset("llama", **SMALL, n_kv_head=2),
    "llama-mqa-tied": preset("llama", **SMALL, n_kv_head=1, weight_tying=True),
    "llama-biases": preset("llama", **SMALL, n_kv_head=2, bias=True, d_ff=100),
    "llama-3": preset("llama", **SMALL, n_kv_head=2, rope_theta=500_000.0, rms_norm_eps=1e-5),
    "qwen3": preset("llama", **SMALL, n_kv_head=2, qk_norm=True, rope_theta=1e6),
    "llama-manual": preset("llama", **SMALL, n_kv_head=2, attention_backend="manual"),
}
CLASSES = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
NATIVE = [name for name in ARCHITECTURES if "no" not in name]  # the others come back with biases, which are zero
EVERY = pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=ARCHITECTURES)
TOKENS = torch.randint(97, (2, 48), generator=torch.Generator().manual_seed(0))


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """The model in evaluation with weights, norms and biases far from their start, so that none of them is idle."""
    torch.manual_seed(1)
    for name, parameter in model.eval().named_parameters():
        is_norm = "norm" in name or "ln_" in name
        torch.nn.init.normal_(parameter, mean=1.0 if is_norm and name.endswith("weight") else 0.0, std=0.15)
    return model


def theirs(hf_config: dict, hf_state: dict[str, torch.Tensor]) -> torch.nn.Module:
    config, kind = CLASSES[hf_config["model_type"]]
    model = kind(config.from_dict(hf_config))
    model.load_state_dict(hf_state)
    return model.eval()


def ours(arch: Architecture, state: dict[str, torch.Tensor]) -> Transformer:
    model = build(arch)
    model.load_state_dict(state)
    return model.eval()


@EVERY
def test_logits_equal_hugging_faces(arch: Architecture):
    """Catches: any difference in function from GPT-2 or Llama as others run them."""
    model = randomised(build(arch))
    logits = model(TOKENS)
    difference = (logits - theirs(*to_hf(arch, model.state_dict()))(TOKENS).logits).abs().max()
    print(f"max abs difference {difference:.1e}, logits' standard deviation {logits.std():.2f}")
    assert logits.std() > 0.5
    assert difference < 1e-4


@pytest.mark.parametrize("name", NATIVE)
def test_there_and_back_is_bitwise(name: str):
    """Catches: a weight that is lost, transposed once, or put back in another order."""
    arch = ARCHITECTURES[name]
    state = randomised(build(arch)).state_dict()
    hf_config, hf_state = to_hf(arch, state)
    back, back_state = from_hf(hf_config, hf_state)
    assert back.hash == arch.hash
    assert back_state.keys() == state.keys()
    assert all(torch.equal(back_state[key], value) for key, value in state.items())
    assert all(tensor.is_contiguous() for tensor in (*hf_state.values(), *back_state.values()))
    assert to_hf(back, back_state)[0] == hf_config


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(n_embd=64, n_head=4, n_layer=2, n_positions=48, vocab_size=97, bos_token_id=0)),
        LlamaForCausalLM(
            LlamaConfig(
                hidden_size=64,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_hidden_layers=2,
                intermediate_size=80,
                max_position_embeddings=48,
                vocab_size=97,
            )
        ),
    ],
    ids=["gpt2", "llama"],
)
def test_their_models_load_here(model: torch.nn.Module):
    """Catches: an import that only understands our own exports, such as by the settings that we write."""
    hf_state = randomised(model).state_dict()
    arch, state = from_hf(model.config.to_dict(), hf_state)
    assert (ours(arch, state)(TOKENS) - model(TOKENS).logits).abs().max() < 1e-4
    _, again = to_hf(arch, state)
    assert again.keys() == hf_state.keys()
    assert all(torch.equal(again[key], value) for key, value in hf_state.items())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_layout_of_published_files(family: str):
    """Catches: a refusal of the published GPT-2, whose keys have no `transformer.` and which holds causal masks."""
    arch = ARCHITECTURES["gpt2" if family == "gpt2" else "llama-mqa-tied"]
    hf_config, hf_state = to_hf(arch, randomised(build(arch)).state_dict())
    model = theirs(hf_config, hf_state)
    files = dict(model.base_model.state_dict())
    assert "wte.weight" in files or "embed_tokens.weight" in files
    if family == "gpt2":
        del hf_config["tie_word_embeddings"]
        for i in range(arch.n_layer):
            files[f"h.{i}.attn.bias"] = torch.ones(1, 1, 48, 48).tril()
            files[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    assert (ours(*from_hf(hf_config, files))(TOKENS) - model(TOKENS).logits).abs().max() < 1e-4


def test_tied_files_leave_the_head_out():
    """Catches: a failure on published checkpoints, whose files do not hold a tied head."""
    arch = ARCHITECTURES["gpt2"]
    hf_config, hf_state = to_hf(arch, randomised(build(arch)).state_dict())
    del hf_state["lm_head.weight"]
    _, state = from_hf(hf_config, hf_state)
    assert state["head.weight"] is state["embedding.weight"]


@pytest.mark.parametrize(
    ("arch", "named"),
    [
        (preset("gpt2", **SMALL), r"gpt2 there needs norm_position pre \(not post\)"),
        (preset("hybrid", **SMALL), r"position_encoding learned_absolute \(not rope\); llama .* normalization rmsnorm"),
        (preset("llama", **SMALL, ffn_type="standard"), r"llama there needs ffn_type swiglu \(not standard\)"),
        (preset("openai_gpt2", **SMALL, n_kv_head=2), r"n_kv_head 4 \(not 2\)"),
    ],
    ids=["post-norm", "hybrid", "llama-standard", "gpt2-gqa"],
)
def test_what_has_no_counterpart_is_named(arch: Architecture, named: str):
    """Catches: an export that drops what the other side cannot express, and so computes something else."""
    with pytest.raises(UserError, match=named):
        to_hf(arch, build(arch).state_dict())


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("llama", {"model_type": "mistral"}, "Unknown model_type of a Hugging Face config: 'mistral'"),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "rope_type 'llama3'"),
        ("llama", {"mlp_bias": True}, "mlp_bias True"),
        ("llama", {"head_dim": 32}, "head_dim 32"),
        ("llama", {"hidden_size": None}, "n_embd"),
        ("gpt2", {"activation_function": "mish"}, "Unknown activation_function: 'mish'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    ],
    ids=str,
)
def test_a_config_that_is_not_ours_is_named(family: str, changes: dict, named: str):
    """Catches: an import that ignores a setting and so computes something else."""
    hf_config, hf_state = to_hf(ARCHITECTURES[family], build(ARCHITECTURES[family]).state_dict())
    with pytest.raises(UserError, match=named):
        from_hf(hf_config | changes, hf_state)


def test_missing_pieces_are_named():
    """Catches: a KeyError for a user who took the wrong file, and a larger model that is read in part."""
    arch = ARCHITECTURES["llama"]
    state = build(arch).state_dict()
    hf_config, hf_state = to_hf(arch, state)
    for name, tensor in (("model.layers.3.mlp.up_proj.weight", torch.ones(2)), ("model.norm.weight", torch.ones(63))):
        with pytest.raises(UserError, match=name):  # a fourth layer, and a norm of another width
            from_hf(hf_config, hf_state | {name: tensor})
    del hf_state["model.layers.1.self_attn.k_proj.weight"], state["blocks.2.attention.qkv.weight"]
    with pytest.raises(UserError, match=r"no 'model.layers.1.self_attn.k_proj.weight'"):
        from_hf(hf_config, hf_state)
    with pytest.raises(UserError, match=r"no 'blocks.2.attention.qkv.weight'"):
        to_hf(arch, state)
    del hf_config["hidden_size"]
    with pytest.raises(UserError, match="config has no 'hidden_size'"):
        from_hf(hf_config, hf_state)
