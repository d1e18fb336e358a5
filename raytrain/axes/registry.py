"""The registry of axes: what each can be, what that costs, what it leaves without effect, and what builds it. Pure.

An `Axis` is one choice in an architecture, a `Level` one of its values. Built-in axes are declared in
`raytrain.axes.builtin`, a plugin's by `raytrain.plugins`: the same classes, the same tables. Everything else asks here.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from raytrain.axes.cost import Part, Shape, Span
from raytrain.errors import UserError, shown, unknown_value

REQUIRED: Any = object()  # the default of an axis without one


def _no_parts(*_: object) -> Iterable[Part]:
    return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One value of an axis, and all facts about it.

    part        what it is called in an architecture's name; "" leaves it out
    make        what builds it, for axes that have a place in the model or the training (the module of that kind
                documents its arguments), or "module:name" of it, so that a process without torch can read this
    layer_hook  a `model.hooks.LayerHook` of each layer; `model_hook` a `ModelHook` of the whole model
    parameters  of a norm: how many one of a given width has
    per_model   the parts that the model has once, of (architecture, span)
    per_layer   those of each layer, likewise; what differs from layer to layer is summed in per_model
    dead        fields that have no effect under this level -> the value that stands in their place
    same_as     the level that computes the same function, where this one differs from it in speed alone
    is_slope    whether its gradient is meant to be the slope of what it computes; not that of a straight-through step
    plugin      the file that brought it, if one did
    """

    value: Any
    part: str = ""
    make: Any = None
    layer_hook: Any = None
    model_hook: Any = None
    parameters: Callable[[int], int] = lambda width: 0
    per_model: Callable[[Shape, Span], Iterable[Part]] = _no_parts
    per_layer: Callable[[Shape, Span], Iterable[Part]] = _no_parts
    dead: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    same_as: Any = None
    is_slope: bool = True
    plugin: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """One choice: its levels by value, or any value that `check` accepts, whose facts are those of `open`.

    `default` reproduces the model as it was before there was this axis: an architecture at it does not mention the axis
    in its JSON, its hash or its name. `spoken` is what it is called in messages. `plugin` names the file that brought
    it. `check` returns the value as it is to be kept, or raises UserError.
    """

    name: str
    kind: type
    levels: dict[Any, Level] = dataclasses.field(default_factory=dict)
    default: Any = REQUIRED
    spoken: str = ""
    help: str = ""
    check: Callable[[Any], Any] | None = None
    open: Level | None = None
    plugin: str = ""

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED

    @property
    def is_speed_only(self) -> bool:
        """Whether all levels compute one function."""
        return len(self.levels) > 1 and len({level.same_as or level.value for level in self.levels.values()}) == 1

    def level(self, value: Any) -> Level:
        """The facts about one value. Raises UserError for a value that the axis does not have."""
        if self.check is not None:
            value = self.check(value)
            return Level(value=value) if self.open is None or value == self.default else self.open
        if type(value) is not self.kind or value not in self.levels:
            if self.kind is bool:
                raise UserError(f"{self.name} ({shown(value)}) must be True or False")
            raise unknown_value(self.spoken or self.name, value, self.levels)
        return self.levels[value]

    def read(self, value: Any) -> Any:
        """`value` as an architecture keeps it. Raises UserError for one that the axis does not have."""
        return self.level(value).value if self.check is None else self.check(value)


AXES: dict[str, Axis] = {}  # of an architecture, in the order in which they are listed everywhere
RUN_AXES: dict[str, Axis] = {}  # of how it is trained: fields of a run whose levels are components too


def add_axis(axis: Axis, to: dict[str, Axis] = AXES) -> None:
    """Raises UserError if the name is taken."""
    if axis.name in AXES or axis.name in RUN_AXES:
        raise UserError(f"axis {axis.name!r} is taken{_owner(find(axis.name))}")
    to[axis.name] = axis


def add_level(axis: str, level: Level) -> None:
    """Raises UserError for an unknown axis, one without named levels, or a taken value."""
    target = find(axis)
    if target is None:
        raise unknown_value("axis", axis, (*AXES, *RUN_AXES))
    if target.check is not None:
        raise UserError(f"axis {axis!r} takes any {target.kind.__name__}: it has no named levels to add to")
    if level.value in target.levels:
        raise UserError(f"{axis} {level.value!r} is taken{_owner(target.levels[level.value])}")
    target.levels[level.value] = level


def _owner(taken: Axis | Level | None) -> str:
    return f" by plugin {taken.plugin}" if taken is not None and taken.plugin else ""


def find(name: str) -> Axis | None:
    """The axis of that name, of an architecture or of a run."""
    return AXES.get(name) or RUN_AXES.get(name)


def levels_of(values: Mapping[str, Any]) -> Iterator[tuple[str, Level]]:
    """The facts about each field of `values` that is an axis, None and unknown values left out."""
    for name, value in values.items():
        axis = find(name)
        if axis is not None and axis.check is None and axis.levels.get(value) is not None:
            yield name, axis.levels[value]


def dead(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have no effect beside the axes in `values` -> what stands in their place."""
    fields: dict[str, Any] = {}
    for name, level in levels_of(values):
        if name not in fields:  # what is dead itself makes nothing dead
            fields |= level.dead
    return fields


def may_kill(axis: str) -> set[str]:
    """The fields that some level of `axis` leaves without effect."""
    choice = find(axis)
    return {field for level in choice.levels.values() for field in level.dead} if choice else set()


def implied(axis: str, value: Any) -> set[str]:
    """The fields that count with level `value` of `axis`, and without effect with another: a standard FFN, unlike
    SwiGLU, has an activation."""
    choice = find(axis)
    level = choice.levels.get(value) if choice else None
    return may_kill(axis) - level.dead.keys() if level else set()


def load(target: Any) -> Any:
    """What a level is built of: itself, or the object that its text "module:name" names."""
    if not isinstance(target, str):
        return target
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


Registered = tuple[tuple[dict[str, Axis], dict[str, tuple[Axis, dict[Any, Level]]]], ...]


def registered() -> Registered:
    """All that is registered now, for `restore`."""
    tables = (AXES, RUN_AXES)
    return tuple((table, {name: (axis, dict(axis.levels)) for name, axis in table.items()}) for table in tables)


def restore(before: Registered) -> None:
    """Forget what was registered since."""
    for table, axes in before:
        table.clear()
        for name, (axis, levels) in axes.items():
            axis.levels.clear()
            axis.levels.update(levels)
            table[name] = axis
