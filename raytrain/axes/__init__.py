"""The axes of an architecture: their levels, costs and facts, in one registry. Read `registry.py` first."""

from raytrain.axes import builtin, plugin
from raytrain.axes.cost import Part, Shape, Span, linear, total
from raytrain.axes.registry import (
    AXES,
    RUN_AXES,
    Axis,
    Level,
    add_axis,
    add_level,
    dead,
    find,
    implied,
    load,
    may_kill,
    registered,
    restore,
)

__all__ = [
    "AXES",
    "RUN_AXES",
    "Axis",
    "Level",
    "Part",
    "Shape",
    "Span",
    "add_axis",
    "add_level",
    "builtin",
    "dead",
    "find",
    "implied",
    "linear",
    "load",
    "may_kill",
    "plugin",
    "registered",
    "restore",
    "total",
]
