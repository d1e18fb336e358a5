"""What a plugin declares, held against what it builds, before anything trains with it: at two sizes, on the CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.architecture import Architecture, preset
from raytrain.axes import AXES, Axis, Level
from raytrain.axes.plugin import Plugin
from raytrain.errors import UserError
from raytrain.model import build
from raytrain.plugins.derive import counted

# Every two dimensions differ, so that no term of a formula can stand in for another.
_SIZES = (
    {"n_layer": 2, "n_head": 6, "n_kv_head": 2, "n_embd": 24, "d_ff": 20, "block_size": 7, "vocab_size": 11},
    {"n_layer": 3, "n_head": 4, "n_kv_head": 4, "n_embd": 40, "d_ff": 36, "block_size": 13, "vocab_size": 17},
)
_STEP = 1e-4  # of the numeric derivative, in units of a parameter's own size
_TOLERANCE = 0.02  # leaves room for what a module computes in float32


def check(plugin: Plugin) -> None:
    """Raises UserError, one line, naming the level and what is wrong: parameters or FLOPs that are not those declared,
    a parameter that is not set or gets no gradient, a loss that is not finite, or a gradient that is not its slope."""
    for axis in AXES.values():
        for level in axis.levels.values():
            if level.plugin == plugin.name:
                try:
                    for size in _SIZES:
                        _check_level(axis, level, size)
                except UserError as error:
                    raise UserError(f"plugin {plugin.name}, {axis.name} {level.value!r}: {error}") from None
                except Exception as error:
                    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    raise UserError(f"plugin {plugin.name}, {axis.name} {level.value!r} does not run: {why}") from None


def _check_level(axis: Axis, level: Level, size: dict[str, int]) -> None:
    alive = {"ffn_type": "standard"} if axis.name == "activation" else {}
    arch = preset("llama", **size | alive | {axis.name: level.value})
    _check_costs(arch)
    _check_gradient(arch, is_slope=level.is_slope)


def _check_costs(arch: Architecture) -> None:
    flops, parameters = counted(arch, arch.block_size)
    for what, declared, there in (
        ("parameters", parameter_count(arch)["total"], parameters),
        ("forward FLOPs a token", flops_per_token(arch).forward, flops),
    ):
        if declared != there:
            raise UserError(f"it declares {declared:,} {what} at n_embd {arch.n_embd}, and the model has {there:,}")


def _check_gradient(arch: Architecture, *, is_slope: bool) -> None:
    """The slope of the loss along a random direction: by backward, and by two evaluations in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(arch).double()
        tokens = torch.randint(arch.vocab_size, (2, arch.block_size + 1))
        named = dict(model.named_parameters())
        direction = {name: (p.abs().mean() + 0.1) * torch.randn_like(p) for name, p in named.items()}

    def loss() -> Tensor:
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    value = loss()
    if not value.isfinite():
        raise UserError(f"the loss of a new model is {value.item()}")
    value.backward()
    slope = sum((_gradient(name, parameter) * direction[name]).sum().item() for name, parameter in named.items())
    ends = []
    for step in (_STEP, -2 * _STEP):
        torch._foreach_add_([p.data for p in named.values()], list(direction.values()), alpha=step)
        with torch.no_grad():
            ends.append(loss().item())
    numeric = (ends[0] - ends[1]) / (2 * _STEP)
    if is_slope and not abs(slope - numeric) <= _TOLERANCE * max(abs(slope), abs(numeric)) + 1e-5:
        raise UserError(
            f"its gradient is wrong: along a random direction the loss rises by {numeric:.4g}, not {slope:.4g}"
        )


def _gradient(name: str, parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise UserError(f"its parameter {name} gets no gradient")
    if not parameter.grad.isfinite().all():
        raise UserError(f"the gradient of {name} is not finite")
    return parameter.grad
