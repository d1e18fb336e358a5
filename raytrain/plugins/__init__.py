"""Levels and axes from a file of your own. A plugin imports this and decorates its classes: see docs/plugins.md."""

from raytrain.axes import Part, linear
from raytrain.plugins.api import (
    activation,
    attention,
    attention_backend,
    axis,
    ffn,
    level,
    norm,
    norm_position,
    optimizer,
    option,
    position_encoding,
    schedule,
)
from raytrain.plugins.loader import load

__all__ = [
    "Part",
    "activation",
    "attention",
    "attention_backend",
    "axis",
    "ffn",
    "level",
    "linear",
    "load",
    "norm",
    "norm_position",
    "optimizer",
    "option",
    "position_encoding",
    "schedule",
]
