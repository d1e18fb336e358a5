"""What a plugin calls to add a level, an axis, an optimizer, a schedule or a loss. See docs/plugins.md.

Each function is a decorator of the class or function that is added:

    @plugins.norm("dyt", part="DyT")
    class DynamicTanh(nn.Module):
        def __init__(self, width, arch): ...
        def reset_parameters(self): ...

A level states its costs as `per_model` and `per_layer`, functions of (architecture, span) that return `Part`s; where it
states none they are derived: counted on the meta device (`derive.Derived`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from raytrain.axes import Axis, Level, Part, Shape, Span, add_axis, add_level
from raytrain.errors import UserError
from raytrain.plugins.derive import Derived, width_parameters
from raytrain.plugins.loader import origin

T = TypeVar("T", bound=Callable[..., Any])
Cost = Callable[[Shape, Span], Iterable[Part]]
Decorator = Callable[[T], T]


def norm(
    value: str,
    *,
    part: str | None = None,
    parameters: Callable[[int], int] | None = None,
    same_as: str | None = None,
    is_slope: bool = True,
    model_hook: type | None = None,
    per_model: Cost | None = None,
) -> Decorator[T]:
    """A norm: a module made with (width, architecture). `parameters(width)` is counted where it is not given.

    `model_hook`, with its cost `per_model`, is for what a model with this norm needs once.
    """

    def add(make: T) -> T:
        facts = {"make": make, "parameters": parameters or width_parameters(make), "same_as": same_as}
        once = {} if per_model is None else {"per_model": per_model}
        _add("normalization", value, part, is_slope=is_slope, model_hook=model_hook, **facts, **once)
        return make

    return add


def activation(
    value: str, *, part: str | None = None, same_as: str | None = None, is_slope: bool = True
) -> Decorator[T]:
    """An activation: a function of a tensor, or a module made with (F, architecture), whose parameters are counted."""

    def add(make: T) -> T:
        derived = {"per_model": Derived("activation", value)} if isinstance(make, type) else {}
        _add("activation", value, part, make=make, same_as=same_as, is_slope=is_slope, **derived)
        return make

    return add


def attention_backend(value: str, *, same_as: str = "sdpa") -> Decorator[T]:
    """A function (q_BHTE, k_BKTE, v_BKTE, dropout) -> y_BHTE that computes what `same_as` does, at another speed."""
    return _level("attention_backend", value, "", same_as=same_as)


def position_encoding(value: str, **facts: Any) -> Decorator[T]:
    """A `model.position.Position`, made with (architecture). `facts` as of `level`."""
    return level("position_encoding", value, **facts)


def ffn(value: str, **facts: Any) -> Decorator[T]:
    """A feed-forward network: a module made with (architecture), called with (x_BTD, carry). `facts` as of `level`."""
    return level("ffn_type", value, **facts)


def attention(value: str, **facts: Any) -> Decorator[T]:
    """A form of attention: a module made with (architecture, position, hooks, layer), called with (x_BTD, carry)."""
    return level("attention", value, **facts)


def norm_position(value: str, **facts: Any) -> Decorator[T]:
    """How sublayers join the residual stream: a `model.norm.Join`. It must state its costs, the norms' among them."""
    return level("norm_position", value, **facts)


def level(
    axis: str,
    value: Any,
    *,
    part: str | None = None,
    per_model: Cost | None = None,
    per_layer: Cost | None = None,
    dead: Mapping[str, Any] | None = None,
    same_as: Any = None,
    is_slope: bool = True,
) -> Decorator[T]:
    """A level of any axis, built by what is decorated.

    `part` is its part of an architecture's name (the value, if not another; "" for none); `dead` the fields without
    effect under it, each with the value that stands in its place; `same_as` the level that computes the same function;
    `is_slope` False that of a module whose gradient is not the slope on purpose, as a straight-through estimator's.
    """
    facts = _costs(axis, value, per_model, per_layer)
    return _level(axis, value, part, dead=dict(dead or {}), same_as=same_as, is_slope=is_slope, **facts)


def axis(
    name: str,
    *,
    off: Any,
    levels: Iterable[Level] = (),
    help: str = "",
) -> None:
    """A new axis. `off` is its default, which leaves every model as it is; `levels` are the others (see `option`)."""
    every = [Level(value=off), *levels]
    kinds = {type(one.value) for one in every}
    if len(kinds) > 1 or not kinds <= {str, bool, int, float}:
        raise UserError(f"axis {name!r}: its levels must be of one type: text, numbers or True and False")
    table = {one.value: one for one in every}
    if len(table) < len(every) or len(every) < 2:
        raise UserError(f"axis {name!r} needs two levels or more, each of another value")
    table = {value: dataclasses.replace(one, plugin=origin()) for value, one in table.items()}
    add_axis(Axis(name=name, kind=kinds.pop(), levels=table, default=off, help=help, plugin=origin()))


def option(
    axis: str,
    value: Any,
    *,
    part: str | None = None,
    layer_hook: type | None = None,
    model_hook: type | None = None,
    per_model: Cost | None = None,
    per_layer: Cost | None = None,
    dead: Mapping[str, Any] | None = None,
    same_as: Any = None,
    is_slope: bool = True,
) -> Level:
    """A level of the new `axis`, which acts by a `model.hooks.LayerHook`, a `ModelHook`, or both."""
    shown = f"{axis}={value}" if part is None else part
    facts = _costs(axis, value, per_model, per_layer)
    fixed = Level(value=value, part=shown, dead=dict(dead or {}), same_as=same_as, is_slope=is_slope)
    return dataclasses.replace(fixed, layer_hook=layer_hook, model_hook=model_hook, **facts)


def optimizer(value: str) -> Decorator[T]:
    """An optimizer: a function (named parameters, config) -> `training.optimizer.OptimizerChoice`."""
    return _level("optimizer", value, "")


def schedule(value: str, *, dead: Mapping[str, Any] | None = None) -> Decorator[T]:
    """A schedule: a function (config, step, warm-up steps) -> the learning rate as a fraction of its peak."""
    return _level("schedule", value, "", dead=dict(dead or {}))


def _level(axis: str, value: Any, part: str | None, **facts: Any) -> Decorator[T]:
    def add(make: T) -> T:
        _add(axis, value, part, make=make, **facts)
        return make

    return add


def _add(axis: str, value: Any, part: str | None, **facts: Any) -> None:
    add_level(axis, Level(value=value, part=str(value) if part is None else part, plugin=origin(), **facts))


def _costs(axis: str, value: Any, per_model: Cost | None, per_layer: Cost | None) -> dict[str, Any]:
    if per_model is None and per_layer is None:
        return {"per_model": Derived(axis, value)}
    given = {"per_model": per_model, "per_layer": per_layer}
    return {name: cost for name, cost in given.items() if cost is not None}


__all__ = [
    "activation",
    "attention",
    "attention_backend",
    "axis",
    "ffn",
    "level",
    "norm",
    "norm_position",
    "optimizer",
    "option",
    "position_encoding",
    "schedule",
]
