"""GPT-2's initialisation: its statistics, its determinism, and that nothing is left out."""

import pytest
import torch

from raytrain.architecture import preset
from raytrain.model import build, init_weights

PRESETS = ["gpt2", "llama", "hybrid", "openai_gpt2"]
SIZE = {"n_layer": 8, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab_size": 500}


@pytest.mark.parametrize("name", PRESETS)
def test_statistics(name: str):
    """Catches: residual projections that are not narrowed, or by another depth; torch's default somewhere."""
    torch.manual_seed(0)
    for weight, values in build(preset(name, **SIZE, bias=True)).named_parameters():
        if weight.endswith("bias"):
            assert values.eq(0).all(), weight
        elif "norm" in weight:
            assert values.eq(1).all(), weight
        else:
            narrow = "output" in weight or "down" in weight
            std = 0.02 / 4 if narrow else 0.02  # sqrt(2 x 8 layers) = 4
            assert values.std().item() == pytest.approx(std, rel=0.03), weight
            assert abs(values.mean().item()) < 4 * std / values.numel() ** 0.5, weight


@pytest.mark.parametrize("name", PRESETS)
def test_every_tensor_is_set(name: str):
    """Catches: a parameter or a buffer that keeps the garbage of `to_empty`."""
    torch.manual_seed(0)
    model = build(preset(name, **SIZE))
    expected = {key: value.clone() for key, value in [*model.named_parameters(), *model.named_buffers()]}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(float("nan"))
    torch.manual_seed(0)
    init_weights(model)
    now = dict([*model.named_parameters(), *model.named_buffers()])
    assert now.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(now[key], value), key


def test_the_seed_alone_decides():
    """Catches: draws that depend on the attention backend, on tying, or on how often a model was built before."""
    states = []
    for changes in ({}, {"attention_backend": "manual"}, {"weight_tying": True}):
        torch.manual_seed(7)
        states.append(build(preset("llama", **SIZE, **changes)).state_dict())
    first, manual, tied = states
    for key, value in first.items():
        assert torch.equal(manual[key], value), key
        assert key == "head.weight" or torch.equal(tied[key], value), key
    assert not torch.equal(build(preset("llama", **SIZE)).state_dict()["embedding.weight"], first["embedding.weight"])
