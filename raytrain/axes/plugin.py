"""Plugins as plain facts: what a run records of those that it uses, and what is known of one that is not loaded. Pure.

A record is `{"name", "sha256", "levels": [...]}`, where a level has the facts that names, hashes and comparisons need.
With it a study can be read without its plugin; to train, the plugin itself is needed.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raytrain.axes.registry import AXES, RUN_AXES, Axis, Level
from raytrain.errors import UserError

INLINE = "this process"  # the origin of what was registered outside of a file


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A loaded file of levels and axes: its name, the digest of its source, the source, and its place."""

    name: str
    sha256: str
    source: str = dataclasses.field(repr=False)
    path: str


LOADED: dict[str, Plugin] = {}
_RECALLED: dict[str, str] = {}  # digests of those that records alone made known
_FACTS = ("value", "part", "same_as")


def used(values: Mapping[str, Any]) -> list[tuple[Axis, Level]]:
    """The levels of plugins that a run of `values` (its axes' levels) has."""
    levels = []
    for name, axis in (AXES | RUN_AXES).items():
        level = axis.levels.get(values[name]) if axis.levels else None
        if level is not None and level.plugin and values[name] != axis.default:
            levels.append((axis, level))
    return levels


def records(values: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """A record of each plugin that a run of `values` uses, by name."""
    levels: dict[str, list[dict[str, Any]]] = {}
    for axis, level in used(values):
        facts = {name: getattr(level, name) for name in _FACTS} | {"axis": axis.name, "dead": dict(level.dead)}
        if axis.plugin:
            facts["default"] = axis.default
        levels.setdefault(level.plugin, []).append(facts)
    digests = _RECALLED | {name: plugin.sha256 for name, plugin in LOADED.items()}
    return tuple({"name": name, "sha256": digests.get(name, ""), "levels": levels[name]} for name in sorted(levels))


def recall(stored: Iterable[Mapping[str, Any]]) -> None:
    """Make the levels of plugins that are not loaded known from their records, so that runs with them can be read."""
    for record in stored:
        if record["name"] not in LOADED:
            _RECALLED[record["name"]] = record["sha256"]
            for facts in record["levels"]:
                _recall_level(record["name"], facts)


def _recall_level(plugin: str, facts: Mapping[str, Any]) -> None:
    name, value = facts["axis"], facts["value"]
    table = AXES if name not in RUN_AXES else RUN_AXES
    if name not in table:
        off = Level(value=facts["default"])
        table[name] = Axis(name=name, kind=type(value), levels={off.value: off}, default=off.value, plugin=plugin)
    missing = _Missing(plugin)
    known = {fact: facts[fact] for fact in _FACTS} | {"dead": dict(facts["dead"]), "plugin": plugin}
    level = Level(**known, make=missing, layer_hook=missing, per_model=missing)
    table[name].levels.setdefault(value, level)


@dataclasses.dataclass(frozen=True)
class _Missing:
    """Stands for what a plugin that is not loaded would build, or cost."""

    plugin: str

    def __call__(self, *_: Any, **__: Any) -> Iterator[Any]:
        raise UserError(f"plugin {self.plugin} is not loaded: give --plugin FILE")


def digests(stored: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What distinguishes one version of the recorded plugins from another, as plain values; empty without plugins."""
    return {f"plugin {record['name']}": record["sha256"] for record in stored}


def suspects(stored: Iterable[Mapping[str, Any]]) -> str:
    """Whose levels a run that went wrong had, as the end of a sentence: "; with normalization=dyt of plugin dyt.py"."""
    levels = [
        f"{one['axis']}={one['value']} of plugin {record['name']}" for record in stored for one in record["levels"]
    ]
    return f"; with {', '.join(levels)}" if levels else ""


def forget(plugin: str) -> None:
    """Drop what `recall` made known of `plugin`, which is about to be loaded itself."""
    for table in (AXES, RUN_AXES):
        for name, axis in list(table.items()):
            if axis.plugin == plugin:
                del table[name]
            for value in [value for value, level in axis.levels.items() if level.plugin == plugin]:
                del axis.levels[value]


def check_unchanged(stored: Iterable[Mapping[str, Any]]) -> None:
    """Raises UserError for a recorded plugin whose source is another than the one that is loaded."""
    for record in stored:
        name, before = record["name"], record["sha256"]
        if name in LOADED and LOADED[name].sha256 != before:
            raise UserError(
                f"plugin {name} has changed: its sha256 was {before}, and is {LOADED[name].sha256} now; "
                "give the file as it was"
            )


def check_loaded(stored: Iterable[Mapping[str, Any]]) -> None:
    """Raises UserError for a recorded plugin that is not loaded, or has changed."""
    for record in stored:
        if record["name"] not in LOADED:
            raise UserError(
                f"plugin {record['name']} (sha256 {record['sha256']}) is not loaded: give --plugin {record['name']}"
            )
    check_unchanged(stored)
