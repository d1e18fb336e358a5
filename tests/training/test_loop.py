"""The training loop against plain PyTorch, the budget and the arithmetic of its reports."""

import math

import pytest
import torch
import torch.nn.functional as F

from raytrain.accounting.flops import flops_per_token
from raytrain.data import Loader, open_dataset
from raytrain.model import build
from raytrain.training import monitor, parallel
from raytrain.training.loop import train
from raytrain.training.objective import NextTokenLoss


def reports_of(config, **kwargs):
    reports = []
    result = train(config, reports.append, **kwargs)
    return result, reports


def test_three_steps_equal_plain_pytorch(tiny_run):
    """Catches any error of the loop in data order, loss, decay groups, clipping or schedule: the same by hand."""
    config = tiny_run(preset="openai_gpt2", max_iters=3, warmup_fraction=0, min_lr_fraction=1.0)
    _, reports = reports_of(config)

    torch.manual_seed(config.seed)
    model = build(config.architecture)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
    loader = Loader(open_dataset("stdlib").train, 32, config.seed, 256)
    expected = []
    for step in range(3):
        sequences = torch.from_numpy(loader.sequences(torch.arange(step * 16, (step + 1) * 16).numpy()))
        loss = F.cross_entropy(model(sequences[:, :-1]).flatten(0, 1), sequences[:, 1:].flatten())
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        expected.append(loss.item())
    assert [r["loss"] for r in reports if r["event"] == "step"] == pytest.approx(expected, rel=1e-5)


def test_the_same_seed_gives_the_same_losses_to_the_last_digit(tiny_run):
    """Catches hidden state between runs in one process, and dropout that does not follow from the seed."""
    config = tiny_run(preset="gpt2", dropout=0.1)
    first, second = reports_of(config)[1], reports_of(config)[1]
    assert [r["loss"] for r in first if r["event"] == "step"] == [r["loss"] for r in second if r["event"] == "step"]
    other = reports_of(config.replace(seed=1))[1]
    assert first[1]["loss"] != other[1]["loss"]


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_a_flop_budget_is_met_within_half_a_sequence(tiny_run, preset):
    """Catches a budget rounded to whole steps: 10.3 steps' worth must not become 10 or 11."""
    per_sequence = flops_per_token(tiny_run(preset=preset).architecture).per_sequence
    config = tiny_run(preset=preset, flops=10.3 * 16 * per_sequence)
    result, _ = reports_of(config)
    assert result["steps"] == 11
    assert abs(result["train_flops"] - config.flops) <= per_sequence / 2
    assert result["train_flops"] == result["tokens"] * result["flops_per_token"]


def test_validation_loss_is_the_mean_over_its_windows(tiny_run):
    """Catches padded or dropped windows: 1,000 tokens at T=32 are 31 windows, which no batch of 16 divides."""
    config = tiny_run(eval_tokens=1000)
    result, _ = reports_of(config.replace(max_iters=1))
    torch.manual_seed(config.seed)
    fresh = NextTokenLoss(build(config.architecture))
    dataset = open_dataset("stdlib")
    windows = (len(dataset.val) - 1) // 32
    starts = torch.arange(31) * windows // 31 * 32
    sequences = torch.from_numpy(dataset.val.read(starts.numpy(), 33))
    from raytrain.training.evaluate import Evaluator
    from raytrain.training.parallel import World

    world = World(0, 1, torch.device("cpu"), "single", torch.float32)
    with torch.no_grad():
        expected = F.cross_entropy(fresh.model(sequences[:, :-1]).flatten(0, 1), sequences[:, 1:].flatten()).item()
    assert Evaluator(dataset.val, config, world, 16).loss(fresh) == pytest.approx(expected, rel=1e-6)
    assert result["val_bpb"] == pytest.approx(result["val_loss"] / math.log(2) / dataset.val_bytes_per_token)
    assert dataset.val_bytes_per_token == pytest.approx(1, abs=1e-3)  # bytes, and a separator a file


@pytest.mark.parametrize("log_interval", [1, 10])
def test_a_non_finite_loss_ends_the_run_at_its_step(tiny_run, tmp_path, monkeypatch, log_interval):
    """Catches a NaN that is read a step late and so blamed on another step, kept in a checkpoint, or logged."""
    forward = NextTokenLoss.forward
    calls = []

    def diverge(self, tokens, targets):
        calls.append(1)
        return forward(self, tokens, targets) * (math.nan if len(calls) > 4 else 1.0)

    monkeypatch.setattr(NextTokenLoss, "forward", diverge)
    config = tiny_run(eval_interval=100, log_interval=log_interval, checkpoint_interval=3)
    result, reports = reports_of(config, folder=tmp_path)
    assert (result["status"], result["steps"]) == ("diverged", 4)
    assert result["tokens"] == 4 * config.global_batch
    assert result["reason"] == "loss nan, gradient norm nan at step 5"
    assert "val_loss" not in result
    assert all(math.isfinite(v) for r in reports for v in r.values() if isinstance(v, float))
    assert len(calls) <= 6
    assert [path.name for path in tmp_path.glob("**/step-*")] == ["step-00000003"]


def test_a_report_that_says_stop_ends_the_run_there(tiny_run):
    """Catches a scheduler's stop that is ignored or comes late."""
    result = train(tiny_run(eval_interval=5), lambda r: r["event"] == "eval" and r["step"] == 10)
    assert (result["status"], result["steps"]) == ("stopped", 10)
    assert result["val_loss"] > 0


def test_mfu_is_flops_over_time_and_peak(tiny_run):
    """Catches MFU from the wrong FLOPs or clock: it follows from the report's own tokens/s, and is never above 1."""
    result, reports = reports_of(tiny_run(peak_tflops=100.0))
    step = [r for r in reports if r["event"] == "step"][-1]
    assert step["mfu"] == pytest.approx(step["tokens_per_second"] * result["flops_per_token"] / 100e12)
    assert step["mfu_causal"] == pytest.approx(
        step["mfu"] * result["flops_per_token_causal"] / result["flops_per_token"]
    )
    assert result["hardware_flops"] == pytest.approx(result["train_flops"] / result["mfu"])
    assert "mfu" not in reports_of(tiny_run())[0]  # the CPU's peak is unknown
    wrong = reports_of(tiny_run(peak_tflops=1e-9))[0]
    assert "mfu" not in wrong
    assert wrong["wrong_peak_tflops"] == pytest.approx(1e-9)


def test_gradient_statistics_are_those_of_all_gradients(tiny_run, monkeypatch):
    """Catches statistics taken after clipping, or of one layer: compared with the gradients concatenated."""
    seen = []
    clip = parallel.clip_gradients

    def spy(parameters, *args):
        seen.append(torch.cat([p.grad.flatten().clone() for p in parameters]))
        return clip(parameters, *args)

    monkeypatch.setattr(parallel, "clip_gradients", spy)
    _, reports = reports_of(tiny_run(max_iters=2, stats_interval=1, grad_clip=0.01))
    first = next(r for r in reports if r["event"] == "gradients")
    assert first["grad_mean"] == pytest.approx(seen[0].mean().item(), abs=1e-9)
    assert first["grad_std"] == pytest.approx(seen[0].std(correction=0).item(), rel=1e-5)
    assert first["layer_grad_norm_min"] <= first["layer_grad_norm_mean"] <= first["layer_grad_norm_max"]


def test_a_compiled_run_gives_the_same_losses(tiny_run):
    """Catches a compiled block that computes something else."""
    plain, compiled = (reports_of(tiny_run(preset="llama", max_iters=3, compile=c))[1] for c in (False, True))
    losses = [[r["loss"] for r in reports if r["event"] == "step"] for reports in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_data_with_a_token_outside_the_vocabulary_is_named(tiny_run, tmp_path):
    """Catches an index error deep in the model, or on a GPU a poisoned device, for nanoGPT's files."""
    import numpy as np

    from raytrain.errors import UserError

    for split in ("train", "val"):
        np.full(4096, 300, "<u2").tofile(tmp_path / f"{split}.bin")
    with pytest.raises(UserError, match=r"token 300, outside vocab_size \(256\)"):
        train(tiny_run(data=str(tmp_path)))


def test_diverging_gradient_statistics_are_not_logged(tiny_run, monkeypatch):
    """Catches NaN in the log, which is not JSON: statistics are taken before the run is seen to diverge."""
    forward = NextTokenLoss.forward
    monkeypatch.setattr(NextTokenLoss, "forward", lambda *args: forward(*args) * math.nan)
    result, reports = reports_of(tiny_run(stats_interval=1))
    assert result["status"] == "diverged"
    assert [report["event"] for report in reports] == ["start", "end"]


@pytest.mark.parametrize(("precision", "peak"), [("fp32", 67e12), ("bf16", 989e12), ("fp8", 1979e12)])
def test_hardware_flops_are_time_whatever_a_run_computes_in(tiny_run, monkeypatch, precision, peak):
    """Catches a peak of another dtype, and a slow run in fp32 that is charged less than a fast one in fp8."""
    monkeypatch.setattr(monitor, "device_name", lambda device: "NVIDIA H200")
    result, _ = reports_of(tiny_run(precision=precision, max_iters=12))
    assert result["mfu"] == pytest.approx(result["tflops"] * 1e12 / peak)
    assert result["hardware_flops"] == pytest.approx(result["train_flops"] / (result["tflops"] * 1e12) * 989e12)
    assert ("mfu_of_bf16_peak" in result) == (precision == "fp8")
    if precision == "fp8":
        assert result["mfu_of_bf16_peak"] == pytest.approx(result["tflops"] / 989)
