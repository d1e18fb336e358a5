"""The training step: ours and Hugging Face's on the same work, what each axis costs, and where the time goes.

    python benchmarks/step.py [--models gpt2 llama 1.3b] [--variants ...] [--axes [LEVEL ...]] [--roofline] [--smoke]

Every row is a process of its own, but those of --axes. The work of a row: random tokens, the model compiled, bf16
autocast over fp32 weights, sdpa, gradients of several micro-batches, clipped, and fused AdamW. "x HF" is tokens/s over
those of Hugging Face's model of the same shapes in the same session, "gpt2" being the preset here and `GPT2LMHeadModel`
there.
"""

import argparse
import gc
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from axes import optional, split

from raytrain.accounting import memory
from raytrain.accounting.flops import flops_per_token
from raytrain.accounting.hardware import peak_flops
from raytrain.architecture import AXES, PRESETS, SCALES, Architecture
from raytrain.config.run import TrainConfig
from raytrain.kernels.linear_cross_entropy import linear_cross_entropy
from raytrain.model import activations, build, feed_forward, transformer
from raytrain.training import parallel
from raytrain.training.objective import PADDING, NextTokenLoss
from raytrain.training.optimizer import make_optimizer

# By name: the preset, the scale, sequences of a micro-batch, and micro-batches of a step.
MODELS = {
    "gpt2": ("gpt2", "124m", 64, 8),
    "llama": ("llama", "124m", 64, 8),
    "1.3b": ("llama", "1.3b", 8, 8),
}
SMOKE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64, "vocab_size": 256}
VARIANTS = ("", "plain head", "fp32 stream", "selective", "flash attention", "plain activations", "fp8")
STEPS = 6
KERNELS = 40  # shown of a profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--variants", nargs="+", default=[""], choices=VARIANTS, help="ours, changed in one thing")
    parser.add_argument("--micro", type=int, help="sequences of a micro-batch, in place of the usual number")
    parser.add_argument("--no-peer", action="store_true", help="without Hugging Face's")
    parser.add_argument(
        "--axes",
        nargs="*",
        metavar="LEVEL",
        help="instead: every named level at 124m, or these optional ones, as benchmarks/axes.py calls them",
    )
    parser.add_argument("--roofline", action="store_true", help="instead: where the time of ours goes")
    parser.add_argument("--smoke", action="store_true", help="a toy size, not compiled: does it run?")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.case:
        case = json.loads(flags.case)
        if flags.axes is not None:
            return measure_each(case)
        print(json.dumps(roofline(case) if flags.roofline else measure(case)))
        return
    heading()
    if flags.axes is not None:
        return show_axes(flags.axes, flags.smoke)
    if flags.roofline:
        for name in flags.models:
            show_roofline(name, flags.smoke)
        return
    print("model  whose                    micro   tokens/s    MFU   x HF   peak GB   first step")
    for name in flags.models:
        theirs = None if flags.no_peer else run(case_of(name, flags.smoke) | {"peer": True})
        show(name, "Hugging Face", theirs, theirs)
        for variant in flags.variants:
            case = case_of(name, flags.smoke) | {"variant": variant}
            if flags.micro:
                case |= {"micro": flags.micro, "repeats": case["micro"] * case["repeats"] // flags.micro}
            show(name, f"ours {variant}", run(case), theirs)


def heading() -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}, python {sys.version.split()[0]}, {time.strftime('%Y-%m-%d')}\n")


def case_of(name: str, smoke: bool, **changes: Any) -> dict[str, Any]:
    """What one process is to measure, as plain values."""
    kind, scale, micro, repeats = MODELS[name]
    changes, rest = split(changes)
    axes = PRESETS[kind] | changes
    if smoke:
        return {"family": kind, "arch": axes | SMOKE, "rest": rest, "micro": 4, "repeats": 2, "smoke": True}
    sizes = {"vocab_size": 50304} | SCALES[scale] | changes
    return {"family": kind, "arch": axes | sizes, "rest": rest, "micro": micro, "repeats": repeats}


def run(case: Any, *flags: str) -> Any:
    """The outcome of `case` in a process of its own; None if it failed, with its last words on stderr."""
    command = [sys.executable, __file__, *flags, "--case", json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, json.JSONDecodeError) as error:
        print(type(error).__name__, getattr(error, "stderr", None) or done.stderr[-2500:], file=sys.stderr)
        return None


def show(name: str, whose: str, found: dict[str, Any] | None, theirs: dict[str, Any] | None) -> None:
    if found is not None:
        ratio = f"{found['speed'] / theirs['speed']:6.2f}" if theirs else "     -"
        print(
            f"{name:6} {whose:24} {found['micro']:5} {found['speed']:10,.0f} {found['mfu']:6.1%} {ratio} "
            f"{found['peak_gb']:9.1f} {found['first']:10.1f} s",
            flush=True,
        )
    elif whose != "Hugging Face" or theirs is not None:
        print(f"{name:6} {whose:24} failed", flush=True)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Tokens/s of `case`; where memory does not suffice, with micro-batches of half the size and twice as many."""
    while True:
        try:
            return timed(case)
        except torch.OutOfMemoryError:
            case = case | {"micro": case["micro"] // 2, "repeats": case["repeats"] * 2}
        torch.cuda.empty_cache()


def measure_each(cases: list[dict[str, Any]]) -> None:
    """Print the outcome of one case after another, as a lane trains them: what is compiled is of one case."""
    for case in cases:
        try:
            found = measure(case)
        except Exception:
            traceback.print_exc()
            found = None
        print(json.dumps(found), flush=True)
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def timed(case: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    arch, step, _ = make_step(case)
    step()
    sync()
    first = time.perf_counter() - started
    step()
    sync()
    clock = time.perf_counter()
    for _ in range(STEPS):
        step()
    sync()
    seconds = (time.perf_counter() - clock) / STEPS
    speed = case["micro"] * case["repeats"] * arch.block_size / seconds
    peak = peak_flops(torch.cuda.get_device_name(), "bfloat16") if torch.cuda.is_available() else None
    memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    return {
        "micro": case["micro"],
        "speed": speed,
        "seconds": seconds,
        "flops": flops_per_token(arch).total,
        "mfu": speed * flops_per_token(arch).total / (peak or float("inf")),
        "peak_gb": memory,
        "first": first,
    }


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_step(case: dict[str, Any]) -> tuple[Architecture, Callable[[], None], Callable[[], None]]:
    """The architecture of `case`, a function that takes one optimizer step, and one that evaluates a micro-batch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arch = Architecture(**case["arch"])
    variant, compiled = case.get("variant", ""), not case.get("smoke")
    run_config = TrainConfig(
        architecture=arch,
        max_iters=1,
        global_batch=arch.block_size,
        compile=compiled,
        parallel="single",
        activation_checkpointing="selective" if variant == "selective" and compiled else "none",
        precision="fp8" if variant == "fp8" else "auto",
        **case.get("rest", {}),
    )
    world = parallel.World(0, 1, device, "single", torch.bfloat16)
    torch.manual_seed(0)
    if case.get("peer"):
        model = their_model(case["family"], arch, compiled)
    else:
        model = our_model(arch, variant, compiled, run_config.z_loss)
    model = model.to(device)
    if not case.get("peer"):
        model = parallel.parallelize(model, run_config, world)
    adamw = make_optimizer(model, run_config, world)
    parameters = list(model.parameters())
    tokens = torch.randint(arch.vocab_size, (case["micro"], arch.block_size + 1), device=device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    factor = 1 / (case["micro"] * case["repeats"] * arch.block_size)

    def step() -> None:
        for _ in range(case["repeats"]):
            with torch.autocast(device.type, torch.bfloat16):
                if case.get("peer"):  # labels are shifted there, so the work is the same but for one token
                    loss = model(input_ids=inputs, labels=inputs).loss / case["repeats"]
                else:
                    loss = model(inputs, targets) * factor
            loss.backward()
        parallel.clip_gradients(parameters, 1.0, world)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate() -> None:
        model.eval()
        with torch.autocast(device.type, torch.bfloat16):
            model(inputs, targets)
        model.train()

    return arch, step, evaluate


def our_model(arch: Architecture, variant: str, compiled: bool, z_loss: float) -> NextTokenLoss:
    if variant == "plain head":
        NextTokenLoss.head_loss = torch.compile(plain_head) if compiled else plain_head
    if variant.startswith("chunks of "):
        memory.HEAD_CHUNK_BYTES = int(float(variant.split()[2]) * 2**30)
    if variant == "fp32 stream":
        transformer.autocast = lambda x: x
    if variant == "plain activations":
        activations.gelu, feed_forward.silu_product = F.gelu, plain_silu_product
    if variant == "flash attention":
        torch.backends.cuda.enable_cudnn_sdp(False)
    return NextTokenLoss(build(arch), z_loss)


def plain_head(self: NextTokenLoss, hidden_BTD: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """All logits at once, as autograd has them."""
    logits = self.model.head(hidden_BTD).flatten(0, 1).float()
    return F.cross_entropy(logits, targets_BT.flatten(), ignore_index=PADDING, reduction="sum")


def plain_silu_product(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def their_model(family: str, arch: Architecture, compiled: bool) -> torch.nn.Module:
    import transformers

    if family == "gpt2":
        shape = transformers.GPT2Config(
            vocab_size=arch.vocab_size,
            n_positions=arch.block_size,
            n_embd=arch.n_embd,
            n_layer=arch.n_layer,
            n_head=arch.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    else:
        shape = transformers.LlamaConfig(
            vocab_size=arch.vocab_size,
            max_position_embeddings=arch.block_size,
            hidden_size=arch.n_embd,
            intermediate_size=arch.ffn_width,
            num_hidden_layers=arch.n_layer,
            num_attention_heads=arch.n_head,
            tie_word_embeddings=arch.weight_tying,
            use_cache=False,
        )
    model = transformers.AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa", dtype=torch.float32)
    return torch.compile(model.train()) if compiled else model.train()


def every_level() -> list[dict[str, Any]]:
    """Every level that is a text alone, and some others; activations with the standard FFN."""
    levels: list[dict[str, Any]] = []
    for axis, values in ((name, axis.levels) for name, axis in AXES.items() if axis.kind is str):
        also = {"ffn_type": "standard"} if axis == "activation" else {}
        usual = PRESETS["llama"].get(axis, AXES[axis].default)
        levels += [{axis: value, **also} for value in values if also or value != usual]
    return [*levels, {"bias": True}, {"weight_tying": True}, {"dropout": 0.1}]


def show_axes(names: list[str], smoke: bool) -> None:
    """Levels alone, each a change to llama at 124m: speed, and model FLOP/s, over llama's."""
    known = optional((SMOKE if smoke else SCALES["124m"])["block_size"])
    levels = {name: known[name] for name in names} or {
        ", ".join(f"{axis} {value}" for axis, value in level.items()): level for level in every_level()
    }
    levels = {"none": {}} | levels
    cases = [case_of("llama", smoke, **level) | {"repeats": 2} for level in levels.values()]
    print(
        "change from llama                        micro   tokens/s    MFU   x llama   x FLOP/s   peak GB   first step"
    )
    classes: dict[str, float] = {}  # FLOP/s
    base: dict[str, Any] = {}
    command = [sys.executable, __file__, "--axes", "--case", json.dumps(cases)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for words, line in zip(levels, process.stdout or (), strict=False):
            outcome = json.loads(line)
            if outcome is None:
                print(f"{words:46} failed", flush=True)
                continue
            base = base or outcome
            ratio = outcome["speed"] / base["speed"]
            classes[words] = ratio * outcome["flops"] / base["flops"]
            print(
                f"{words:40} {outcome['micro']:5} {outcome['speed']:10,.0f} {outcome['mfu']:6.1%} {ratio:9.2f} "
                f"{classes[words]:10.2f} {outcome['peak_gb']:9.1f} {outcome['first']:10.1f} s",
                flush=True,
            )
    slow = {words: x / max(classes.values()) for words, x in classes.items()}
    print("below 0.9 of the most FLOP/s: " + "; ".join(f"{words} {x:.2f}" for words, x in slow.items() if x < 0.9))
    if len(classes) < len(levels):
        sys.exit(f"{len(levels) - len(classes)} of {len(levels)} levels failed")


# What a kernel's name says about it; the first that matches.
PARTS = {
    "attention": r"flash|fmha|sdpa|attention",
    "GEMMs": r"gemm|nvjet|cutlass|xmma|cublas|splitK",
    "loss": r"_softmax_gradient",
    "optimizer": r"multi_tensor|adam|foreach",
    "copies": r"[Mm]emcpy|[Mm]emset",
    "other": r"",
}


def roofline(case: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds a step of each part, of the head alone, and the machine's own ceilings."""
    arch, step, _ = make_step(case)
    for _ in range(2):
        step()
    found: dict[str, Any] = {"step_ms": 1000 * timer(step, 3)}
    found["parts"], found["kernels"] = profile(step)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = case["micro"] * arch.block_size
    hidden = torch.randn(rows, arch.n_embd, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(arch.vocab_size, arch.n_embd, device=device, requires_grad=True)
    targets = torch.randint(arch.vocab_size, (rows,), device=device)

    def head_step() -> None:
        for _ in range(case["repeats"]):
            with torch.autocast(device, torch.bfloat16):
                loss = linear_cross_entropy(hidden, weight, targets)
            loss.backward()
            hidden.grad = weight.grad = None

    head_step()
    found["head_ms"] = 1000 * timer(head_step, 2)
    found["head_parts"], _ = profile(head_step)
    side = 256 if case.get("smoke") else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    found["gemm"] = 2 * side**3 / timer(lambda: a @ b, 20)
    source = torch.empty(side * side * 32, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.numel() / timer(lambda: target.copy_(source), 20)
    found["speed"] = rows * case["repeats"] / (found["step_ms"] / 1000)
    found["flops"] = flops_per_token(arch).total
    return found


def timer(work: Callable[[], Any], times: int) -> float:
    """Seconds a call."""
    work()
    sync()
    clock = time.perf_counter()
    for _ in range(times):
        work()
    sync()
    return (time.perf_counter() - clock) / times


def profile(step: Callable[[], None]) -> tuple[dict[str, float], list[tuple[str, float, int]]]:
    """Milliseconds of kernels by part, and the longest: name, milliseconds, calls."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    on_gpu = torch.cuda.is_available()
    with torch.profiler.profile(activities=activities[1:] if on_gpu else activities[:1]) as record:
        step()
        sync()
    rows = []
    for event in record.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        rows.append((event.key, spent / 1000, event.count))
    parts = dict.fromkeys(PARTS, 0.0)
    for name, spent, _ in rows:
        parts[next(part for part, pattern in PARTS.items() if re.search(pattern, name))] += spent
    return parts, sorted(rows, key=lambda row: -row[1])[:KERNELS]


def show_roofline(name: str, smoke: bool) -> None:
    found = run(case_of(name, smoke), "--roofline")
    if found is None:
        return print(f"{name} failed", flush=True)
    parts, heads, total = found["parts"], found["head_parts"], found["step_ms"]
    rest = {part: spent - (heads[part] if part != "optimizer" else 0.0) for part, spent in parts.items()}
    rest["head and loss"] = sum(heads.values()) - heads["optimizer"]
    print(f"{name}: {total:.1f} ms a step, {found['speed']:,.0f} tokens/s, {found['flops']:,} FLOPs a token")
    print(f"  ceilings: {found['gemm'] / 1e12:.0f} TFLOP/s (matrix product), {found['copy'] / 1e12:.2f} TB/s (copy)")
    for part, spent in rest.items():
        if part != "loss":
            print(f"  {part:16} {spent:8.1f} ms {spent / total:6.1%}")
    print(f"  {'nothing runs':16} {total - sum(parts.values()):8.1f} ms")
    print(f"  of the head: matrix products {heads['GEMMs']:.1f} ms, softmax {heads['loss']:.1f} ms")
    for kernel, spent, calls in found["kernels"]:
        print(f"    {spent:8.2f} ms {calls:5} x {kernel[:90]}")
    print(flush=True)


if __name__ == "__main__":
    main()
