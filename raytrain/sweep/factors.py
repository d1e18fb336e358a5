"""What the trials of a sweep differ in: the levels of each, and the axes that vary among them. No torch, no ray."""

from collections.abc import Sequence
from typing import Any

from raytrain.architecture import AXES
from raytrain.axes import find
from raytrain.config.run import TrainConfig
from raytrain.sweep.space import Space


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
