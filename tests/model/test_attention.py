"""Both attention backends against the formula and against each other."""

import math

import pytest
import torch

from raytrain.architecture import preset
from raytrain.axes import AXES, load
from raytrain.model import build
from raytrain.model.attention import manual, sdpa


def by_hand(q_BHTE: torch.Tensor, k_BKTE: torch.Tensor, v_BKTE: torch.Tensor) -> torch.Tensor:
    """Attention one query at a time in float64: no mask, no batched product, no repetition of heads."""
    out = torch.zeros_like(q_BHTE, dtype=torch.float64)
    batch, heads, length, width = q_BHTE.shape
    group = heads // k_BKTE.size(1)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                keys, values = (x[b, h // group, : t + 1].double() for x in (k_BKTE, v_BKTE))
                weights = torch.exp(keys @ q_BHTE[b, h, t].double() / math.sqrt(width))
                out[b, h, t] = (weights / weights.sum()) @ values
    return out


@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@pytest.mark.parametrize("backend", AXES["attention_backend"].levels)
def test_backend_equals_the_formula(backend: str, kv_heads: int):
    """Catches: a wrong scale, mask or softmax axis, and query heads that read another group's keys."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 9, 8), torch.randn(2, kv_heads, 9, 8), torch.randn(2, kv_heads, 9, 8)
    attended = load(AXES["attention_backend"].level(backend).make)(q, k, v, 0.0)
    torch.testing.assert_close(attended.double(), by_hand(q, k, v), rtol=0, atol=2e-6)


@pytest.mark.parametrize("n_kv_head", [6, 3, 1])
@pytest.mark.parametrize("position", ["learned_absolute", "rope", "none"])
def test_backends_agree_in_the_model(position: str, n_kv_head: int):
    """Catches: a backend that computes another function, in logits or in gradients, and so moves the loss."""
    size = {"n_layer": 2, "n_head": 6, "n_kv_head": n_kv_head, "n_embd": 48, "block_size": 32, "vocab_size": 31}
    tokens = torch.randint(31, (2, 32), generator=torch.Generator().manual_seed(0))
    logits, gradients = {}, {}
    for backend in AXES["attention_backend"].levels:
        torch.manual_seed(0)
        model = build(preset("llama", **size, position_encoding=position, attention_backend=backend))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.15)
        logits[backend] = model(tokens)
        logits[backend].square().mean().backward()
        gradients[backend] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert logits["sdpa"].std() > 0.5
    torch.testing.assert_close(logits["manual"], logits["sdpa"], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients["manual"], gradients["sdpa"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", AXES["attention_backend"].levels)
def test_fewer_kv_heads_are_repeated_ones(backend: str):
    """Catches: query heads grouped by stride instead of in blocks, through a full model whose k and v heads repeat."""
    size = {"n_layer": 1, "n_head": 4, "n_embd": 16, "block_size": 8, "vocab_size": 13, "attention_backend": backend}
    grouped, full = build(preset("llama", **size, n_kv_head=2)), build(preset("llama", **size))
    state = grouped.state_dict()
    q, k, v = state["blocks.0.attention.qkv.weight"].split((16, 8, 8))
    k, v = (x.view(2, 1, 4, 16).expand(2, 2, 4, 16).reshape(16, 16) for x in (k, v))
    full.load_state_dict(state | {"blocks.0.attention.qkv.weight": torch.cat((q, k, v))})
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(grouped(tokens), full(tokens))


def test_dropout_of_probabilities():
    """Catches: dropout that is not applied, not rescaled, or NaN where all is dropped; sdpa and manual alike."""
    torch.manual_seed(0)
    q, k = torch.zeros(64, 1, 4, 2), torch.zeros(64, 1, 4, 2)
    v = torch.ones(64, 1, 4, 2)
    for attend in (sdpa, manual):
        assert attend(q, k, v, 0.5).mean().item() == pytest.approx(1.0, abs=0.1)
        assert attend(q, k, v, 0.5)[:, 0, 0, 0].unique().tolist() == [0.0, 2.0]
        assert attend(q, k, v, 1.0).eq(0).all()


def test_total_dropout_does_not_reach_the_kernels(monkeypatch: pytest.MonkeyPatch):
    """Catches: a crash on GPUs alone, whose flash kernels want a dropout below 1."""

    def flash(*args: object, dropout_p: float, **kwargs: object) -> None:
        raise RuntimeError("p_dropout < 1.f")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", flash)
    assert sdpa(*torch.ones(3, 1, 2, 4, 8), 1.0).eq(0).all()


def test_manual_softmax_is_float32_under_autocast():
    """Catches: probabilities summed in bf16, whose 8 bits lose what many equal terms add up to."""
    q, k, v = (torch.zeros(1, 1, 1000, 4, dtype=torch.bfloat16) for _ in range(3))
    v += 1
    with torch.autocast("cpu", torch.bfloat16):
        mean = manual(q, k, v, 0.0)
    assert mean.dtype == torch.bfloat16
    torch.testing.assert_close(mean.float(), torch.ones(1, 1, 1000, 4), rtol=0, atol=0.005)
