"""What only a GPU can show: that its fast paths compute what the plain ones do. Exits 1 if one does not.

    python benchmarks/check_gpu.py [--axes] [--smoke]

--axes: instead the optional axes, compiled in bf16 and in fp8, and in CUDA graphs. --smoke: what of it runs without a
GPU, not compiled: does it run?

Errors are ||ours - exact|| / ||exact||, the exact one in float64. "plain" is the same in PyTorch's own operations under
the same autocast: what bf16 costs anyway.
"""

import argparse
import sys
from typing import Any

import step as steps
import torch
import torch.nn.functional as F
from axes import optional, split

from raytrain import plugins
from raytrain.architecture import AXES, PRESETS, Architecture
from raytrain.config.resolve import resolve
from raytrain.config.run import TrainConfig
from raytrain.kernels.linear_cross_entropy import PADDING, linear_cross_entropy, softmax_gradient_
from raytrain.model import activations, build
from raytrain.training import fp8, graphs
from raytrain.training.loop import train
from raytrain.training.objective import NextTokenLoss
from raytrain.training.optimizer import OptimizerChoice, Parameters

failures = []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", action="store_true", help="instead: the optional axes")
    parser.add_argument("--smoke", action="store_true", help="what runs without a GPU")
    flags = parser.parse_args()
    steps.heading()
    print("what                                                     ours     plain")
    if flags.axes:
        check_gradients(list(optional(256).values()), ("bf16", "fp8"), smoke=flags.smoke)
        check_losses(smoke=flags.smoke)
        if not flags.smoke:
            check_graphs(OPTIONAL_GRAPHS)
    else:
        check_losses(smoke=flags.smoke)
        if not flags.smoke:
            check_head()
            check_activations()
            check_fp8()
        check_gradients(named_levels(), ("bf16",), smoke=flags.smoke)
        if not flags.smoke:
            check_graphs(GRAPHS)
    print(f"\n{len(failures)} failed" + "".join(f"\n  {name}" for name in failures))
    return int(bool(failures))


def show(name: str, ours: float, plain: float, *, allowed: float) -> None:
    is_ok = ours <= allowed
    print(f"{name:52}{ours:10.2e}{plain:10.2e}{'' if is_ok else '   FAILED'}", flush=True)
    if not is_ok:
        failures.append(name)


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.detach().double() - exact.detach().double()).norm() / exact.detach().double().norm())


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


def check_losses(*, smoke: bool) -> None:
    """The softmax with a cap and a z-loss, where rows are longer than a block, shorter, and of an odd length."""
    device = "cpu" if smoke else "cuda"
    for columns in (257, 5000, 50304):
        for softcap, z_loss in ((0.0, 0.0), (0.0, 1e-2), (15.0, 0.0), (30.0, 1e-3)):
            torch.manual_seed(0)
            logits = torch.randn(64 if smoke else 1000, columns, device=device).mul_(8).bfloat16()
            targets = torch.randint(columns, (len(logits),), device=device)
            targets[::5] = PADDING
            wide = logits.double().requires_grad_()
            capped = softcap * (wide / softcap).tanh() if softcap else wide
            loss = F.cross_entropy(capped, targets, ignore_index=PADDING, reduction="sum")
            extra = (capped.logsumexp(-1).square() * (targets != PADDING)).sum()
            (true,) = torch.autograd.grad(loss + z_loss * extra, wide)
            alone = softmax_gradient_(logits.clone(), targets, False, softcap, z_loss)
            found = softmax_gradient_(logits, targets, True, softcap, z_loss)
            title = f"softmax {columns}, cap {softcap:g}, z-loss {z_loss:g}"
            show(title, max(error(found, loss), error(alone, loss)), 0.0, allowed=1e-5)
            show(f"{title}: gradient", error(logits, true), error(true.bfloat16(), true), allowed=0.004)


def named_levels() -> list[dict[str, Any]]:
    """Each level of each axis of text; activations with the standard FFN."""
    levels = [
        {axis: value} | ({"ffn_type": "standard"} if axis == "activation" else {})
        for axis, facts in AXES.items()
        if facts.kind is str
        for value in facts.levels
    ]
    return [{}, *levels, {"bias": True}, {"weight_tying": True}]


def check_gradients(levels: list[dict[str, Any]], precisions: tuple[str, ...], *, smoke: bool) -> None:
    """The gradient of models with each of `levels`, compiled and not, at each precision, against float32."""
    small = {"n_layer": 2, "n_head": 4, "n_embd": 128, "block_size": 256, "vocab_size": 512}
    device = torch.device("cpu" if smoke else "cuda")
    tokens = torch.randint(512, (8, 257), device=device)
    for level in levels:
        axes, rest = split(level)
        arch = Architecture(**(PRESETS["llama"] | small | axes))
        for precision in precisions:
            if precision == "fp8" and arch.ffn_type == "moe":  # which a run refuses
                continue
            gradients = []
            for compiled, dtype in ((not smoke, precision), (False, precision), (False, "fp32")):
                run = TrainConfig(
                    architecture=arch,
                    max_iters=1,
                    global_batch=256,
                    compile=compiled,
                    parallel="single",
                    precision=dtype,
                    **rest,
                )
                gradients.append(gradient(run, tokens, device))
            ours, plain, exact = gradients
            name = ", ".join(f"{axis} {value}" for axis, value in level.items()) or "llama"
            title = f"gradient, {precision if len(precisions) > 1 else ''} {name}".replace("  ", " ")
            show(title, error(ours, exact), error(plain, exact), allowed=1.1 * error(plain, exact))
            torch._dynamo.reset()


def gradient(run: TrainConfig, tokens: torch.Tensor, device: torch.device) -> torch.Tensor:
    """All gradients of a new model of `run`, one after the other."""
    torch.manual_seed(0)
    dtype = torch.float32 if run.precision == "fp32" else torch.bfloat16
    world = steps.parallel.World(0, 1, device, "single", dtype)
    model = steps.parallel.parallelize(NextTokenLoss(build(run.architecture), run.z_loss).to(device), run, world)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


GRAPHS: tuple[dict[str, Any], ...] = (
    {"preset": "llama"},
    {"preset": "gpt2", "dropout": "0.1"},
    {"preset": "llama", "rung": True},
    {"preset": "llama", "precision": "fp8"},
    {"preset": "gpt2", "activation_checkpointing": "selective"},
)
OPTIONAL_GRAPHS: tuple[dict[str, Any], ...] = (
    {"preset": "modern", "optimizer": "muon", "z_loss": 1e-3, "attention_window": [32, "nope"]},
    {"preset": "modern", "optimizer": "muon", "logit_softcap": 15.0, "precision": "fp8"},
    {"preset": "llama", "value_embeddings": True, "attention_gate": "head", "norm_position": "sandwich"},
    {"preset": "llama", "ffn_type": "moe", "n_shared_expert": 1, "optimizer": "muon"},
    {"preset": "llama", "optimizer": "plain_sgd"},
)


@plugins.optimizer("plain_sgd")
def plain_sgd(parameters: Parameters, config: TrainConfig) -> OptimizerChoice:
    """One that no graph can hold."""
    return OptimizerChoice(PlainSGD, [{"params": [p for _, p in parameters]}], {"lr": config.learning_rate})


class PlainSGD(torch.optim.SGD):
    def initial_state(self, parameter: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {}


def check_graphs(runs: tuple[dict[str, Any], ...]) -> None:
    """A run in CUDA graphs and the same without: every loss, with dropout and without, through a rung's branch too.

    By deterministic kernels: with others, which add in any order, two runs without graphs differ by up to 1e-3 nats.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    for changes in map(dict, runs):
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
    torch.use_deterministic_algorithms(False)


if __name__ == "__main__":
    sys.exit(main())
