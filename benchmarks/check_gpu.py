"""What only a GPU can show: that its fast paths compute what the plain ones do. Exits 1 if one does not.

    python benchmarks/check_gpu.py

Errors are ||ours - exact|| / ||exact||, the exact one in float64. "plain" is the same in PyTorch's own operations under
the same autocast: what bf16 costs anyway.
"""

import sys

import step as steps
import torch
import torch.nn.functional as F

from raytrain.architecture import AXES, PRESETS, Architecture
from raytrain.config.resolve import resolve
from raytrain.config.run import TrainConfig
from raytrain.kernels.linear_cross_entropy import PADDING, linear_cross_entropy
from raytrain.model import activations, build
from raytrain.training import fp8, graphs
from raytrain.training.loop import train
from raytrain.training.objective import NextTokenLoss

failures = []


def main() -> int:
    steps.heading()
    print("what                                                     ours     plain")
    check_head()
    check_activations()
    check_fp8()
    check_models()
    check_graphs()
    print(f"\n{len(failures)} failed" + "".join(f"\n  {name}" for name in failures))
    return int(bool(failures))


def show(name: str, ours: float, plain: float, *, allowed: float) -> None:
    is_ok = ours <= allowed
    print(f"{name:52}{ours:10.2e}{plain:10.2e}{'' if is_ok else '   FAILED'}", flush=True)
    if not is_ok:
        failures.append(name)


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def check_head() -> None:
    """The fused head, also where the vocabulary or the tokens are no multiple of anything, and with padding."""
    for tokens, width, vocabulary in ((4096, 768, 50304), (1000, 96, 257), (8192, 256, 5000)):
        hidden = torch.randn(tokens, width, device="cuda", requires_grad=True)
        weight = torch.randn(vocabulary, width, device="cuda").mul_(width**-0.5).requires_grad_()
        targets = torch.randint(vocabulary, (tokens,), device="cuda")
        targets[::5] = PADDING

        def cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits = (hidden @ weight.t()).to(torch.promote_types(hidden.dtype, torch.float32))
            return F.cross_entropy(logits, targets, ignore_index=PADDING, reduction="sum")

        inputs = (hidden, weight)
        loss = cross_entropy(hidden.double(), weight.double(), targets)
        exact = (loss, *torch.autograd.grad(loss, inputs))
        found = []
        for work in (linear_cross_entropy, cross_entropy):
            with torch.autocast("cuda", torch.bfloat16):
                loss = work(hidden, weight, targets)
            found.append((loss, *torch.autograd.grad(loss, inputs)))
        for name, ours, plain, true in zip(("loss", "d hidden", "d weight"), *found, exact, strict=True):
            plain_error = error(plain, true)
            show(f"head {tokens}x{width}x{vocabulary}: {name}", error(ours, true), plain_error, allowed=0.008)


def check_activations() -> None:
    """Those with forms of their own on a GPU, also where the width is no multiple of anything."""
    for name, width, work, plain in (
        ("gelu", 3072, activations.gelu, F.gelu),
        ("silu product", 2 * 6144, activations.silu_product, steps.plain_silu_product),
        ("silu product", 2 * 333, activations.silu_product, steps.plain_silu_product),
    ):
        x = torch.randn(3, 512, width, device="cuda", dtype=torch.bfloat16).mul_(3).requires_grad_()
        wide = x.detach().double().requires_grad_()
        exact = plain(wide)
        outer = torch.randn_like(exact).bfloat16()
        (true,) = torch.autograd.grad(exact, wide, outer.double())
        theirs = plain(x)
        (their_gradient,) = torch.autograd.grad(theirs, x, outer)
        for compiled in (False, True):
            found = (torch.compile(work, dynamic=False) if compiled else work)(x)
            (gradient,) = torch.autograd.grad(found, x, outer)
            title = f"{name} {width} {'compiled' if compiled else 'eager'}"
            show(title, error(found, exact), error(theirs, exact), allowed=0.004)
            show(f"{title}: gradient", error(gradient, true), error(their_gradient, true), allowed=0.004)


def check_fp8() -> None:
    for compiled in (False, True):
        x = torch.randn(2048, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(3072, 768, device="cuda").mul_(0.02).requires_grad_()
        gradient = torch.randn(2048, 3072, device="cuda", dtype=torch.bfloat16)
        with torch.autocast("cuda", torch.bfloat16):
            found = (torch.compile(fp8.linear) if compiled else fp8.linear)(x, weight)
            plain = F.linear(x, weight)
        exact = F.linear(x.double(), weight.double())
        ours = (found, *torch.autograd.grad(found, (x, weight), gradient))
        plains = (plain, *torch.autograd.grad(plain, (x, weight), gradient))
        exacts = (exact, *torch.autograd.grad(exact, (x, weight), gradient.double()))
        for name, mine, theirs, true in zip(("forward", "d x", "d weight"), ours, plains, exacts, strict=True):
            title = f"fp8 {'compiled' if compiled else 'eager'}: {name}"
            show(title, error(mine, true), error(theirs, true), allowed=0.065)


def check_models() -> None:
    """The gradient of each level of each axis, compiled and not, in bf16 against float32."""
    small = {"n_layer": 2, "n_head": 4, "n_embd": 128, "block_size": 256, "vocab_size": 512}
    levels = [{axis: value} for axis, facts in AXES.items() if facts.kind is str for value in facts.levels]
    tokens = torch.randint(512, (8, 257), device="cuda")
    for level in [{}, *levels, {"bias": True}, {"weight_tying": True}]:
        axes = PRESETS["llama"] | ({"ffn_type": "standard"} if "activation" in level else {}) | level
        arch = Architecture(**axes, **small)
        gradients = []
        for compiled, dtype in ((True, torch.bfloat16), (False, torch.bfloat16), (False, torch.float32)):
            run = TrainConfig(architecture=arch, max_iters=1, global_batch=256, compile=compiled, parallel="single")
            torch.manual_seed(0)
            world = steps.parallel.World(0, 1, torch.device("cuda"), "single", dtype)
            model = steps.parallel.parallelize(NextTokenLoss(build(arch)).cuda(), run, world)
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            loss.backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        ours, plain, exact = gradients
        name = ", ".join(f"{axis} {value}" for axis, value in level.items()) or "llama"
        show(f"gradient, {name}", error(ours, exact), error(plain, exact), allowed=1.1 * error(plain, exact))
        torch._dynamo.reset()


def check_graphs() -> None:
    """A run in CUDA graphs and the same without: every loss, with dropout and without, through a rung's branch too."""
    for changes in (
        {"preset": "llama"},
        {"preset": "gpt2", "dropout": "0.1"},
        {"preset": "llama", "rung": True},
        {"preset": "llama", "precision": "fp8"},
        {"preset": "gpt2", "activation_checkpointing": "selective"},
    ):
        values = {"scale": "tiny", "max_iters": 60, "log_interval": 1, "compile": True, "checkpoint_interval": "none"}
        values |= {"stats_interval": 25, "eval_tokens": 4096, "global_batch": 4096, "micro_batch": 8}
        shown = dict(changes)
        if changes.pop("rung", False):
            values |= {"schedule": "wsd", "rungs": "2.5e11", "rung_decay": 0.1}
        config, _ = resolve([("check", values | changes)], data_vocab_size=256)
        losses = []
        for most in (0.0, graphs.MOST_FLOPS):
            before, graphs.MOST_FLOPS = graphs.MOST_FLOPS, most
            reports: list[dict] = []
            result = train(config, lambda report, reports=reports: reports.append(report) and False)
            graphs.MOST_FLOPS = before
            torch._dynamo.reset()
            losses.append([r["loss"] for r in reports if r["event"] == "step"] + [result["val_loss"]])
        worst = max(abs(a - b) for a, b in zip(*losses, strict=True))
        show(f"graphs {shown}: worst loss, nats", worst, 0.0, allowed=0.0)


if __name__ == "__main__":
    sys.exit(main())
