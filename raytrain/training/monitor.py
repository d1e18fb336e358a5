"""How a run is monitored: the start-up report, the meter of speed and MFU, gradient statistics, and the console."""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import rich.console
import rich.progress
import torch
from torch import nn

from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.accounting.hardware import peak_flops
from raytrain.architecture import AXES, PRESETS
from raytrain.config.run import TrainConfig
from raytrain.training.parallel import World, local, uses_compile

Report = dict[str, Any]


def device_name(device: torch.device) -> str:
    """The device as its vendor names it; `peak_flops` knows some of these names."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def compute_name(config: TrainConfig, world: World) -> str:
    """The dtype that most matrix products run in."""
    return "fp8" if config.precision == "fp8" else str(world.dtype).removeprefix("torch.")


def device_peak(config: TrainConfig, world: World) -> float | None:
    """Dense FLOP/s of one device at the compute dtype: the user's `peak_tflops`, or the table's, or None."""
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12
    dtype = compute_name(config, world)
    if dtype == "float32" and world.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        dtype = "tf32"
    return peak_flops(device_name(world.device), dtype)


def reference_ratio(config: TrainConfig, world: World) -> float:
    """The device's dense peak for bf16 over that at the compute dtype; 1 where either is not from the table.

    Hardware FLOPs are counted at bf16's peak whatever a run computes in, or a slow run in fp32 would seem cheap beside
    a fast one in fp8.
    """
    peak, reference = device_peak(config, world), peak_flops(device_name(world.device), "bfloat16")
    return reference / peak if peak and reference and config.peak_tflops is None else 1.0


def start_report(config: TrainConfig, world: World) -> Report:
    """The facts of a run before its first step."""
    arch, peak = config.architecture, device_peak(config, world)
    flops, causal = flops_per_token(arch), flops_per_token(arch, attention="causal")
    report: Report = {
        "event": "start",
        "name": arch.name,
        "hash": arch.hash,
        "seed": config.seed,
        "device": device_name(world.device),
        "world_size": world.size,
        "parallel": world.strategy,
        "dtype": compute_name(config, world),
        "compile": uses_compile(config, world),
        "vocab_size": arch.vocab_size,
        "parameters": parameter_count(arch)["total"],
        "flops_per_token": flops.total,
        "flops_per_token_causal": causal.total,
        "attention_ffn_ratio": flops.attention_ffn_ratio,
        "total_steps": config.total_steps,
        "total_tokens": config.total_sequences * arch.block_size,
        "total_flops": config.train_flops,
    }
    if peak is not None:
        report |= {"peak_tflops": peak / 1e12, "tokens_per_second_at_50_mfu": 0.5 * peak * world.size / flops.total}
    return report


def format_start(config: TrainConfig, report: Report) -> str:
    """The start-up report as text."""
    arch = config.architecture
    flops, counts = flops_per_token(arch), parameter_count(arch)
    axes = {axis: arch.value(axis) for axis in AXES if axis in arch.to_dict()}
    axes |= {axis: f"{value} (without effect here)" for axis, value in arch.dead.items()}
    groups = ", ".join(f"{group} {count:,}" for group, count in counts.items() if group != "total")
    lines = [f"{report['name']}   {report['hash']}   seed {report['seed']}"]
    lines += [f"  {axis:<20} {value}" for axis, value in axes.items()]
    lines += [
        f"  {'size':<20} {arch.n_layer} layers, {arch.n_head} heads ({arch.kv_heads} kv) of {arch.head_dim}, "
        f"n_embd {arch.n_embd}, d_ff {arch.ffn_width}, block_size {arch.block_size}, vocab_size {arch.vocab_size}",
        f"  {'parameters':<20} {counts['total']:,} ({groups})",
        f"  {'FLOPs per token':<20} {flops.total:,} training = 3 x {flops.forward:,} forward",
    ]
    lines += [
        f"    {component:<18} {count:>16,} {100 * count / flops.forward:5.1f}%"
        for component, count in flops.components().items()
        if count
    ]
    lines += [
        f"  {'attention/FFN':<20} {flops.attention_ffn_ratio:.2f}",
        f"  {'budget':<20} {report['total_steps']:,} steps of {config.global_batch:,} tokens: "
        f"{report['total_tokens']:,} tokens, {report['total_flops']:.4g} FLOPs",
        f"  {'device':<20} {report['world_size']} x {report['device']}, {report['parallel']}, {report['dtype']}, "
        f"compile {report['compile']}",
    ]
    if "peak_tflops" in report:
        lines.append(
            f"  {'peak':<20} {report['peak_tflops']:g} TFLOP/s a device, dense {report['dtype']}: "
            f"{report['tokens_per_second_at_50_mfu']:,.0f} tokens/s at 50% MFU"
        )
    else:
        lines.append(
            f"  {'peak':<20} unknown for device {report['device']!r} at {report['dtype']}: MFU is not logged; "
            "--peak_tflops sets it"
        )
    if arch.to_dict().items() >= PRESETS["gpt2"].items():
        lines.append("  (post-norm, as this preset is specified; OpenAI's GPT-2 is preset openai_gpt2)")
    return "\n".join(lines)


@dataclasses.dataclass
class Interval:
    """Some steps of training. `device_seconds` and `peak_flops` are those of all devices together in that time."""

    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    peak_flops: float = 0.0  # 0 where a peak is unknown, or proved wrong

    def __add__(self, other: "Interval") -> "Interval":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        total = Interval(*(a + b for a, b in pairs))
        if any(stretch.steps and not stretch.peak_flops for stretch in (self, other)):
            total.peak_flops = 0.0  # an MFU of a part is not one of the whole
        return total


class Meter:
    """Counts the tokens and the seconds of training steps; evaluation, checkpoints and statistics are outside of it.

    The first steps of a process, which hold compilation and warm-up, are left out of the run's own speed. `before` is
    the `state` of the meter of a process that this one continues, maybe on other devices.
    """

    def __init__(self, config: TrainConfig, world: World, before: Mapping[str, Any]) -> None:
        self._world = world
        self._flops = flops_per_token(config.architecture)
        self._causal = flops_per_token(config.architecture, attention="causal")
        self._peak = device_peak(config, world)
        # Under fp8 the MFU is also given against the peak of bf16, for comparison with runs in bf16.
        self._reference = reference_ratio(config, world) if config.precision == "fp8" else 1.0
        self._started: float | None = None  # when the clock was started, if it runs
        self._new, self._steady = Interval(), Interval(**before)
        self.train_seconds = 0.0  # in this process, its first steps' included
        self.first_steps_seconds = 0.0  # those alone

    def start(self) -> None:
        """Let the clock run, if it does not."""
        if self._started is None:
            self._world.synchronize()
            self._started = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock, once the device's queue has ended."""
        if self._started is not None:
            self._world.synchronize()
            seconds = time.perf_counter() - self._started
            self._new.seconds += seconds
            self.train_seconds += seconds
            self._started = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside takes no time on this clock."""
        running = self._started is not None
        self.stop()
        yield
        if running:
            self.start()

    def count(self, tokens: int) -> None:
        """A step of `tokens` tokens, over all ranks, is done."""
        self._new.tokens += tokens
        self._new.steps += 1

    def read(self, *, warms_up: bool) -> Report:
        """The speed since the last reading, with the clock stopped; of steps that are left out if it `warms_up`.

        An MFU above 1 means a wrong peak. It is not logged, nor is the run's: `wrong_peak_tflops` stands in its place.
        """
        new, self._new = self._new, Interval()
        new.device_seconds = new.seconds * self._world.size
        new.peak_flops = new.device_seconds * (self._peak or 0.0)
        if self._peak and self._flops.total * new.tokens > new.peak_flops:
            new.peak_flops = 0.0
        if warms_up:
            self.first_steps_seconds += new.seconds
        else:
            self._steady += new
        return self._speed(new)

    def state(self) -> dict[str, Any]:
        """What a later process continues from, as plain values."""
        return dataclasses.asdict(self._steady)

    def summary(self) -> Report:
        """The speed of the whole run, over all its processes, without the first steps of each."""
        return self._speed(self._steady) if self._steady.steps else {}

    def _speed(self, stretch: Interval) -> Report:
        flops = self._flops.total * stretch.tokens
        speed = {
            "step_seconds": stretch.seconds / stretch.steps,
            "tokens_per_second": stretch.tokens / stretch.seconds,
            "tflops": flops / stretch.device_seconds / 1e12,  # achieved, of one device
        }
        if stretch.peak_flops:
            mfu = flops / stretch.peak_flops
            speed |= {"mfu": mfu, "mfu_causal": mfu * self._causal.total / self._flops.total}
            if self._reference != 1.0:
                speed["mfu_of_bf16_peak"] = mfu / self._reference
        elif self._peak is not None:
            speed["wrong_peak_tflops"] = self._peak / 1e12
        return speed


def memory(device: torch.device) -> Report:
    """GPU memory in GB (1e9 bytes); nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "memory_allocated_gb": torch.cuda.memory_allocated(device) / 1e9,
        "memory_reserved_gb": torch.cuda.memory_reserved(device) / 1e9,
        "memory_peak_gb": torch.cuda.max_memory_allocated(device) / 1e9,
    }


def gradient_stats(blocks: Iterable[nn.Module], model: nn.Module, world: World) -> Report:
    """Gradient norms by layer (min, mean, max), and the mean and standard deviation of all gradients. A collective."""
    groups = [list(block.parameters()) for block in blocks] + [list(model.parameters())]
    sums = torch.zeros(len(groups), 3, dtype=torch.float64, device=world.device)  # of squares, of values, of ones
    for index, parameters in enumerate(groups):
        for gradient in (local(p.grad).double() for p in parameters if p.grad is not None):
            sums[index] += torch.stack([gradient.square().sum(), gradient.sum(), sums.new_tensor(gradient.numel())])
    if world.strategy == "fsdp":
        world.sum(sums).div_(world.replicas)
    squares, values, ones = sums.unbind(1)
    layer_norms = squares[:-1].sqrt()
    mean = values[-1] / ones[-1]
    return {
        "layer_grad_norm_min": layer_norms.min().item(),
        "layer_grad_norm_mean": layer_norms.mean().item(),
        "layer_grad_norm_max": layer_norms.max().item(),
        "grad_mean": mean.item(),
        "grad_std": (squares[-1] / ones[-1] - mean.square()).clamp(min=0).sqrt().item(),
    }


class Console:
    """Shows reports: a live bar on a terminal, plain lines elsewhere. Use it as `on_report`, inside a `with`."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._console = rich.console.Console(highlight=False, soft_wrap=True)
        self._bar = rich.progress.Progress(
            "{task.description}",
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=config.total_steps)

    def __enter__(self) -> "Console":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was, cursor included."""
        self._bar.stop()

    def __call__(self, report: Report) -> None:
        if report["event"] == "start":
            self._console.print(format_start(self._config, report), markup=False)
        elif report["event"] != "end":
            self._bar.update(self._task, completed=report["step"])
        if report["event"] == "step":
            self._bar.update(self._task, description=f"loss {report['loss']:.4f}")
        if report["event"] in ("step", "eval", "gradients"):
            self._console.print(format_line(report), markup=False)


def format_line(report: Report) -> str:
    """One report of a step, an evaluation or gradient statistics, as a line."""
    shown = {
        "loss": "{:.4f}",
        "val_loss": "{:.4f}",
        "val_bpb": "{:.4f}",
        "learning_rate": "{:.2e}",
        "step_seconds": "{:.4g} s",
        "tokens_per_second": "{:,.0f} tokens/s",
        "tflops": "{:.4g} TFLOP/s",
        "mfu": "mfu {:.2%}",
        "mfu_causal": "(causal {:.2%})",
        "mfu_of_bf16_peak": "(of bf16's peak {:.2%})",
        "wrong_peak_tflops": "mfu not logged: faster than the peak of {:g} TFLOP/s, which must be wrong",
        "grad_norm": "{:.3g}",
        "memory_allocated_gb": "{:.2f}",
        "memory_peak_gb": "{:.2f}",
        "memory_reserved_gb": "{:.2f} GB",
        "layer_grad_norm_min": "{:.3g}",
        "layer_grad_norm_mean": "{:.3g}",
        "layer_grad_norm_max": "{:.3g}",
        "grad_mean": "{:.2e}",
        "grad_std": "{:.2e}",
    }
    names = {
        "loss": "loss",
        "val_loss": "val_loss",
        "val_bpb": "val_bpb",
        "learning_rate": "lr",
        "grad_norm": "grad norm",
        "memory_allocated_gb": "memory now",
        "memory_peak_gb": "peak",
        "memory_reserved_gb": "reserved",
        "layer_grad_norm_min": "layer grad norm min",
        "layer_grad_norm_mean": "mean",
        "layer_grad_norm_max": "max",
        "grad_mean": "grad mean",
        "grad_std": "std",
    }
    if report["event"] == "eval":
        shown = {key: "{:.4f}" for key in report if key.startswith(("val_loss", "val_bpb"))}
        names = {key: key for key in shown}
    parts = [f"{names.get(key, '')} {form.format(report[key])}".strip() for key, form in shown.items() if key in report]
    return f"step {report['step']:>6}  " + "  ".join(parts)
