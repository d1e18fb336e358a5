"""Position encodings: rotation against complex numbers, its dtype, and where each acts."""

import pytest
import torch

from raytrain.architecture import preset
from raytrain.model import build
from raytrain.model.position import LearnedAbsolute, Position, Rotary

ARCH = preset("llama", n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=7)


def test_rotation_is_a_complex_product():
    """Catches: a wrong angle, sign or pairing of features (i with i + E/2, not with i + 1)."""
    torch.manual_seed(0)
    qk = torch.randn(2, 64, 3, 8)
    i = torch.arange(4, dtype=torch.float64)
    angle = torch.arange(64, dtype=torch.float64)[:, None] * 10_000 ** (-2 * i / 8)
    turned = torch.complex(*qk.double().chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle), angle)[:, None]
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(Rotary(ARCH).rotate(qk).double(), expected, rtol=0, atol=1e-5)


def test_scores_depend_on_the_distance_alone():
    """Catches: queries and keys rotated differently."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8).expand(1, 64, 1, 8) for _ in range(2))
    q, k = Rotary(ARCH).rotate(q)[0, :, 0], Rotary(ARCH).rotate(k)[0, :, 0]
    for distance in (0, 1, 30):
        scores = (q[distance:] * k[: 64 - distance]).sum(-1)
        torch.testing.assert_close(scores, scores[:1].expand_as(scores), rtol=0, atol=1e-4)


def test_rotation_in_bf16_rounds_once():
    """Catches: tables or products in bf16, which at place 60 are off by whole degrees; another dtype out than in."""
    torch.manual_seed(0)
    rotary, qk = Rotary(ARCH), torch.randn(2, 64, 3, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        rotated = rotary.rotate(qk)
        rotary.reset_parameters()
    assert rotated.dtype == torch.bfloat16
    assert rotary.cos_TE.dtype == rotary.sin_TE.dtype == torch.float32
    assert torch.equal(rotated, rotary.rotate(qk.float()).bfloat16())


def test_only_what_is_learned_is_saved():
    """Catches: tables in checkpoints, or one table listed for every layer."""
    for position, saved in (("rope", []), ("none", []), ("learned_absolute", ["position.embedding.weight"])):
        state = build(ARCH.replace(position_encoding=position, n_layer=2)).state_dict()
        assert [name for name in state if "position" in name or "TE" in name] == saved


@pytest.mark.parametrize("kind", [Position, LearnedAbsolute, Rotary])
def test_each_acts_at_its_own_place(kind: type[Position]):
    """Catches: a learned table that is not added place by place, or an encoding that acts twice or not at all."""
    position = kind(ARCH)
    x, qk = torch.randn(2, 5, 16), torch.randn(2, 5, 3, 8)
    added = position.embed(x) - x
    if kind is LearnedAbsolute:
        torch.testing.assert_close(added, position.embedding(torch.arange(5)).expand(2, 5, 16), rtol=0, atol=1e-6)
    else:
        assert added.eq(0).all()
    assert torch.equal(position.rotate(qk), qk) == (kind is not Rotary)
