"""What a plugin declares, held against what it builds, before anything trains with it: at two sizes, on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.architecture import Architecture, preset
from raytrain.axes import AXES, RUN_AXES, Axis, Level
from raytrain.axes.plugin import Plugin
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError, shown
from raytrain.model import Transformer, build
from raytrain.plugins.derive import counted
from raytrain.plugins.loader import line_in_plugin
from raytrain.training.objective import NextTokenLoss
from raytrain.training.optimizer import OptimizerChoice, chosen, initial_state, learning_rate

# Every two dimensions differ, so that no term of a formula can stand in for another.
_SIZES = (
    {"n_layer": 2, "n_head": 6, "n_kv_head": 2, "n_embd": 24, "d_ff": 20, "block_size": 7, "vocab_size": 11},
    {"n_layer": 3, "n_head": 4, "n_kv_head": 4, "n_embd": 40, "d_ff": 36, "block_size": 13, "vocab_size": 17},
)
_STEP = 1e-4  # of the numeric derivative, in units of a parameter's own size
_TOLERANCE = 0.02  # leaves room for what a module computes in float32


def check(plugin: Plugin) -> None:
    """Raises UserError, one line, naming the level and what is wrong.

    Of a model's: parameters or FLOPs that are not those declared, a parameter that is not set or gets no gradient, a
    loss, its own term included, that is not finite, or a gradient that is not its slope. Of an optimizer: a parameter
    that it leaves out or as it was, state that a checkpoint would lack, or a step that is not finite. Of a schedule:
    what is no learning rate.
    """
    for axis in (*AXES.values(), *RUN_AXES.values()):
        for level in axis.levels.values():
            if level.plugin == plugin.name:
                try:
                    _CHECKS.get(axis.name, _check_model)(axis, level)
                except UserError as error:
                    raise UserError(f"plugin {plugin.name}, {axis.name} {level.value!r}: {error}") from None
                except Exception as error:
                    place = line_in_plugin(error) or f"plugin {plugin.name}"
                    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    raise UserError(f"{place}, {axis.name} {level.value!r} does not run: {why}") from None


def _check_model(axis: Axis, level: Level) -> None:
    alive = {"ffn_type": "standard"} if axis.name == "activation" else {}
    for size in _SIZES:
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
        return _loss(model, tokens[:, :-1], tokens[:, 1:])

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


def _loss(model: Transformer, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """What is trained on, in nats per token: the cross-entropy, and the model's own terms."""
    hidden_BTD, carry = model.states(inputs_BT)
    loss = F.cross_entropy(model.head(hidden_BTD).flatten(0, 1), targets_BT.flatten())
    term = model.auxiliary_loss(hidden_BTD, targets_BT, carry)
    if term is None:
        return loss
    if not isinstance(term, Tensor) or term.shape or not term.isfinite():
        raise UserError(f"its loss term must be a finite scalar, in nats per token, and is {shown(term)}")
    return loss + term


def _gradient(name: str, parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise UserError(f"its parameter {name} gets no gradient")
    if not parameter.grad.isfinite().all():
        raise UserError(f"the gradient of {name} is not finite")
    return parameter.grad


def _check_optimizer(_: Axis, level: Level) -> None:
    """Two steps on random gradients."""
    config = _run(2, optimizer=level.value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        named = dict(NextTokenLoss(build(config.architecture)).named_parameters())
        choice = chosen(named.items(), config)
        if not isinstance(choice, OptimizerChoice):
            raise UserError(f"it must return a training.optimizer.OptimizerChoice, and returns {shown(choice)}")
        optimizer = choice.kind(choice.groups, **choice.options)
        kept = _kept(optimizer, named)
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        for _step in range(2):
            for parameter in named.values():
                parameter.grad = torch.randn_like(parameter)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate
            optimizer.step()
    for name, parameter in named.items():
        if not parameter.isfinite().all():
            raise UserError(f"its step makes {name} infinite or NaN")
        if torch.equal(parameter, before[name]):
            raise UserError(f"its steps leave {name} as it was")
        _check_state(optimizer.state[parameter], kept[name])


def _kept(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """The state that checkpoints keep of each parameter."""
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in named.items():
        if id(parameter) not in groups:
            raise UserError(f"its groups leave out the parameter {name}")
    return {name: initial_state(optimizer, p.detach(), groups[id(p)]) for name, p in named.items()}


def _check_state(state: dict[str, Any], kept: dict[str, Tensor]) -> None:
    shapes = ({k: tuple(v.shape) if isinstance(v, Tensor) else v for k, v in s.items()} for s in (state, kept))
    there, expected = shapes
    if there != expected:
        raise UserError(
            f"its state after a step is {shown(there)}, and initial_state, which checkpoints go by, {shown(expected)}"
        )


def _check_schedule(_: Axis, level: Level) -> None:
    """Every step of runs of several lengths."""
    for steps, warmup in ((1, 0.0), (2, 0.5), (50, 0.0), (300, 0.1)):
        config = _run(steps, schedule=level.value, warmup_fraction=warmup)
        for step in range(steps):
            learning_rate(config, step)


def _run(steps: int, **changes: Any) -> TrainConfig:
    arch = preset("llama", **_SIZES[0])
    return TrainConfig(architecture=arch, max_iters=steps, global_batch=arch.block_size, **changes)


_CHECKS = {"optimizer": _check_optimizer, "schedule": _check_schedule}
