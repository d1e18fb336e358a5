"""The fused head and loss against autograd's, in double precision."""

import pytest
import torch
import torch.nn.functional as F

from raytrain.accounting import memory
from raytrain.kernels.linear_cross_entropy import PADDING, linear_cross_entropy


def plain(hidden, weight, targets):
    return F.cross_entropy((hidden @ weight.t()).float(), targets, ignore_index=PADDING, reduction="sum")


def draw(tokens, dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(tokens, 24, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 24, dtype=dtype, requires_grad=True)
    targets = torch.randint(50, (tokens,))
    targets[::7] = PADDING
    return hidden, weight, targets


@pytest.mark.parametrize(("tokens", "chunk_bytes"), [(300, 1 << 30), (300, 128 * 50 * 4), (128, 1)])
def test_loss_and_gradients_equal_those_of_autograd(monkeypatch, tokens, chunk_bytes):
    """Catches a chunk that is left out or counted twice, padding that has a gradient, and a factor that is dropped."""
    monkeypatch.setattr(memory, "HEAD_CHUNK_BYTES", chunk_bytes)
    hidden, weight, targets = draw(tokens)
    found = linear_cross_entropy(hidden, weight, targets)
    gradients = torch.autograd.grad(found * 0.3, (hidden, weight))
    expected = plain(hidden, weight, targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected * 0.3, (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_under_autocast_it_is_as_exact_as_autograd(monkeypatch):
    """Catches a gradient that is summed over chunks in bf16, or a softmax that is taken in it."""
    monkeypatch.setattr(memory, "HEAD_CHUNK_BYTES", 128 * 50 * 2)  # five chunks
    hidden, weight, targets = draw(640)
    exact = torch.autograd.grad(
        F.cross_entropy(hidden.double() @ weight.double().t(), targets, ignore_index=PADDING, reduction="sum"),
        (hidden, weight),
    )

    def error(loss):
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.autograd.grad(loss(hidden, weight, targets), (hidden, weight))
        return [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]

    for ours, theirs in zip(error(linear_cross_entropy), error(plain), strict=True):
        assert ours < 1.2 * theirs < 0.02


def test_without_gradients_it_computes_the_loss_alone():
    """Catches an evaluation that pays for gradients, or differs from training's loss."""
    hidden, weight, targets = draw(300)
    with torch.no_grad():
        found = linear_cross_entropy(hidden, weight, targets)
    assert not found.requires_grad
    assert found.item() == pytest.approx(plain(hidden, weight, targets).item(), rel=1e-6)


@pytest.mark.parametrize(("softcap", "z_loss"), [(5.0, 0.0), (0.0, 0.1), (3.0, 0.01)])
def test_softcap_and_z_loss_equal_autograds(softcap, z_loss):
    """Catches a cap that the gradient does not pass through, or an evaluation leaves out, and a z-loss in the loss that
    is reported."""
    hidden, weight, targets = draw(300)
    found = linear_cross_entropy(hidden, weight, targets, softcap=softcap, z_loss=z_loss)
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets, softcap=softcap, z_loss=z_loss).equal(found)
    logits = hidden @ weight.t()
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    expected = F.cross_entropy(logits, targets, ignore_index=PADDING, reduction="sum")
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    extra = (logits.logsumexp(-1).square() * (targets != PADDING)).sum()
    gradients = torch.autograd.grad(found * 0.3, (hidden, weight))
    for ours, theirs in zip(
        gradients, torch.autograd.grad((expected + z_loss * extra) * 0.3, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
