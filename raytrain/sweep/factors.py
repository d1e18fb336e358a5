"""What the trials of a sweep differ in, the levels of each, and what all have alike. No torch, no ray."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raytrain.architecture import AXES
from raytrain.axes import find, implied, may_kill
from raytrain.config.run import TrainConfig
from raytrain.sweep.space import Space

_RECIPE = ("learning_rate", "schedule", "global_batch", "data")  # beside the axes


def levels_of(space: Space, config: TrainConfig) -> dict[str, Any]:
    """The level of each axis of `space` that the run's variant can differ in."""
    values = config.flat()
    dead = space.dead(values)
    choices = (axis for axis in space.levels if axis != "preset" and axis not in dead)
    return {axis: values[axis] for axis in choices if not is_speed_only(axis)}


def is_speed_only(axis: str) -> bool:
    """Whether `axis` changes how fast a run is, and nothing that it learns."""
    declared = find(axis)
    return declared is not None and declared.is_speed_only


def factors_of(space: Space, configs: Sequence[TrainConfig], base: TrainConfig) -> dict[str, Any]:
    """The axes that `configs` differ in, in the space's order after those of its presets, with the base's levels."""
    rows = [config.flat() for config in configs]
    spelled = [axis for axis in space.levels if axis != "preset"]
    preset_axes = [axis for axis in AXES if "preset" in space.levels and axis not in spelled]
    baseline = base.replace(architecture=base.architecture.program()).flat()
    choices = (axis for axis in (*preset_axes, *spelled) if not is_speed_only(axis))
    varied = [axis for axis in choices if len({row[axis] for row in rows}) > 1]
    return {axis: baseline[axis] for axis in varied}


def level_text(axis: str, level: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    """A level with the choices that it brings into effect, where the runs in `rows` with it have one: "standard (silu)"
    is an FFN with an activation, which SwiGLU has not. A row holds the fields of a run."""
    own = [row for row in rows if row.get(axis) == level]
    shown = [field for field in sorted(implied(axis, level)) if field in AXES and AXES[field].is_required]
    values = {field: {row.get(field) for row in own} for field in shown}
    texts = [str(one) for found in values.values() if len(found) == 1 for one in found if one is not None]
    return f"{level} ({', '.join(texts)})" if texts else str(level)


def held_fixed(rows: Sequence[Mapping[str, Any]], factors: Iterable[str]) -> dict[str, Any]:
    """What all `rows` have alike beside the `factors` and what those bring into effect: axes, without optional ones
    that are off, then the recipe and the data."""
    apart = {*factors}.union(*(may_kill(axis) for axis in factors))
    axes = (name for name, axis in AXES.items() if axis.is_required or rows[0].get(name) not in (None, axis.default))
    values = {name: [row.get(name) for row in rows] for name in (*axes, *_RECIPE) if name not in apart}
    return {name: of[0] for name, of in values.items() if all(one == of[0] for one in of)}


def compared(rows: Sequence[Mapping[str, Any]], factors: Mapping[str, Any]) -> list[str]:
    """The lines of a plan on what runs of the fields `rows` compare; `factors`: axes, with the base's level."""
    levels = {axis: list(dict.fromkeys((base, *(row[axis] for row in rows)))) for axis, base in factors.items()}
    texts = [f"{axis}: {', '.join(level_text(axis, level, rows) for level in of)}" for axis, of in levels.items()]
    fixed = ", ".join(f"{name} {value}" for name, value in held_fixed(rows, factors).items())
    return [*([f"compares    {'; '.join(texts)}"] if texts else []), f"fixed       {fixed}"]
