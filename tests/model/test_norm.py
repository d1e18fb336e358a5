"""Normalizations by their formulas, and both norm positions against PyTorch's own encoder layer."""

import pytest
import torch
from torch import nn

from raytrain.architecture import preset
from raytrain.axes import AXES
from raytrain.model import build
from raytrain.model.norm import make_norm


@pytest.mark.parametrize("name", AXES["normalization"].levels)
def test_formula(name: str):
    """Catches: another epsilon, a missing weight or bias, a mean that is (not) subtracted."""
    torch.manual_seed(0)
    norm = make_norm(preset("llama", normalization=name), 6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = 1e-3 * torch.randn(4, 6) + 2e-3  # small, so that the epsilon matters
    centred, epsilon = (x, 1e-6) if name == "rmsnorm" else (x - x.mean(-1, keepdim=True), 1e-5)
    expected = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() * norm.weight
    if name == "layernorm":
        expected = expected + norm.bias
    assert (getattr(norm, "bias", None) is not None) == (name == "layernorm")
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_block_equals_pytorchs_encoder_layer(norm_position: str):
    """Catches: a norm on the wrong side of the sum, a branch that misses the residual stream, norms swapped."""
    torch.manual_seed(0)
    arch = preset("openai_gpt2", n_layer=1, n_head=4, n_embd=32, d_ff=48, block_size=8, vocab_size=7)
    block = build(arch.replace(norm_position=norm_position, activation="gelu", position_encoding="none")).blocks[0]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer = nn.TransformerEncoderLayer(
        32, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_position == "pre"
    )
    ours = {"in_proj_": "qkv.", "out_proj.": "output."}
    names = {
        **{f"self_attn.{theirs}": f"attention.{name}" for theirs, name in ours.items()},
        "linear1.": "feed_forward.up.",
        "linear2.": "feed_forward.down.",
        "norm1.": "attention_norm.",
        "norm2.": "feed_forward_norm.",
    }
    state = block.state_dict()
    layer.load_state_dict(
        {theirs + kind: state[name + kind] for theirs, name in names.items() for kind in ("weight", "bias")}
    )
    x = torch.randn(2, 8, 32)
    mask = nn.Transformer.generate_square_subsequent_mask(8)
    torch.testing.assert_close(block(x, {})[0], layer(x, src_mask=mask, is_causal=True), rtol=0, atol=1e-5)
