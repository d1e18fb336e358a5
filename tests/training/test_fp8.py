"""Matrix products in fp8 against those in full precision."""

import pytest
import torch
import torch.nn.functional as F

from raytrain.errors import UserError
from raytrain.training import fp8, parallel
from raytrain.training.loop import train


def relative(ours, exact):
    return ((ours.double() - exact.double()).norm() / exact.double().norm()).item()


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_linear_and_its_gradients_are_near_the_exact_ones(scale):
    """Catches a scale that is applied twice or not at all, a transposed operand, and the wrong format for gradients.

    e4m3 keeps 3 bits after the leading one and e5m2 keeps 2: rounding errs by 2^-4 and 2^-3 of a value at most, a root
    mean square of about 0.027 and 0.054, so a product of two such by 0.04 and 0.06 at most.
    """
    torch.manual_seed(0)
    x, weight, bias = torch.randn(6, 16, 64) * scale, torch.randn(32, 64) / scale, torch.randn(32)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    gradient = torch.randn(6, 16, 32)
    found = fp8.linear(*leaves)
    exact = F.linear(*(leaf.double() for leaf in leaves))
    assert relative(found, exact) < 0.04
    ours = torch.autograd.grad(found, leaves, gradient)
    for mine, true in zip(ours, torch.autograd.grad(exact, leaves, gradient.double()), strict=True):
        assert relative(mine, true) < 0.065


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_a_run_in_fp8_converts_the_blocks_alone(tiny_run, preset, monkeypatch):
    """Catches an option that changes nothing, one that reaches the head, and an MFU over the wrong peak."""
    shapes = []
    multiply = fp8._multiply
    monkeypatch.setattr(fp8, "_multiply", lambda a, *rest: shapes.append(a.shape) or multiply(a, *rest))
    reports = []
    config = tiny_run(preset=preset, precision="fp8", max_iters=2, n_embd=64, d_ff=128)
    train(config, reports.append)
    # Of 2 layers, 4 each (SwiGLU's gate and up are one): thrice a step for 2 steps, and once each of 2 x 2 evaluations.
    assert len(shapes) == 2 * 4 * (3 * 2 + 2 * 2)
    assert reports[0]["dtype"] == "fp8"
    exact = []
    train(config.replace(precision="fp32"), exact.append)
    losses, exact_losses = ([r["loss"] for r in run if r["event"] == "step"] for run in (reports, exact))
    assert losses != exact_losses
    assert losses == pytest.approx(exact_losses, rel=0.01)


def test_a_gpu_without_fp8_is_refused(monkeypatch):
    """Catches an error from deep inside a kernel."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(
        UserError, match=r"precision \('fp8'\) needs compute capability 8.9 or more, .* has 8.0; try bf16"
    ):
        parallel.compute_dtype("fp8", torch.device("cuda"))
