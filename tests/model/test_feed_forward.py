"""Feed-forward networks and activations by their formulas."""

import math

import pytest
import torch
from torch import nn

from raytrain.architecture import preset
from raytrain.model import activations
from raytrain.model.activations import ShortGELU
from raytrain.model.feed_forward import SwiGLU

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 8, "d_ff": 12, "block_size": 4, "vocab_size": 5}


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("relu", lambda x: max(x, 0.0)),
        ("leaky_relu", lambda x: x if x > 0 else 0.01 * x),
    ],
)
def test_activation(name: str, formula):
    """Catches: the tanh GELU for the exact one or the reverse, and another leak."""
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    expected = torch.tensor([formula(value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(getattr(activations, name)(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_swiglu(bias: bool):
    """Catches: gate and up swapped, which trains as well and is not what other tools load."""
    ffn = SwiGLU(preset("llama", **SMALL, bias=bias))
    for parameter in ffn.parameters():
        nn.init.normal_(parameter)
    assert sorted(name.split(".")[1] for name, _ in ffn.named_parameters()) == ["bias"] * 3 * bias + ["weight"] * 3
    x = torch.randn(3, 4, 8)
    gate, up = ffn.gate(x), ffn.up(x)
    torch.testing.assert_close(ffn(x, {}), ffn.down(gate * torch.sigmoid(gate) * up))


def test_short_gelu_errs_by_the_rounding_of_bf16_alone():
    """Catches: a wrong coefficient or slope of the short formula."""
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64).bfloat16().requires_grad_()
    wide = x.detach().double().requires_grad_()
    ours, true = ShortGELU.apply(x), nn.functional.gelu(wide)
    torch.testing.assert_close(ours.double(), true, rtol=2**-8, atol=1e-6)
    slopes = [torch.autograd.grad(y.sum(), leaf)[0].double() for y, leaf in ((ours, x), (true, wide))]
    torch.testing.assert_close(*slopes, rtol=2**-8, atol=1e-6)
