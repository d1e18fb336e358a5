"""YAML and JSON as untrusted text: what is ambiguous, too large or too deep is one line, never a guess. Pure.

YAML is read by the core schema of YAML 1.2: `010` is ten, `1:30`, `yes` and `2026-01-01` are text. PyYAML's own rules
are those of YAML 1.1, where they are 8, 90, True and a date. A key that stands twice is an error in both.
"""

import json
import re
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from raytrain.errors import UserError, short, shown

_YAML_BYTES = 256 * 1024  # of a file, which PyYAML reads in about two seconds; the spaces here have under 1 KB
_YAML_NODES = 100_000  # after aliases are written out
_JSON_DIGITS = 40  # of a whole number; the FLOPs of a run have up to 25
_JSON_DEPTH = 50  # what is written here has under 10
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2, and nothing twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _check(node)
        return node


for _kind, _pattern, _first in (
    ("null", r"|~|null|Null|NULL", ["", "~", "n", "N"]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):  # fmt: skip
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        return int(text[2:] if base != 10 else text, base)
    except ValueError:  # more digits than Python converts
        raise _error(node, f"{short(text)} is not a whole number that can be read") from None


_Loader.add_constructor(f"{_TAG}int", _construct_int)


def parse_yaml(text: str) -> Any:
    """The one document in `text`; None if it is empty. Raises UserError with the line and the reason."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise UserError(f"{_place(mark) if mark else ''}{problem or ' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError("it is nested too deeply") from None
    except UserError:
        raise
    except ValueError as error:  # of a tag that does not fit its text
        raise UserError(short(str(error))) from None


def parse_json(text: str | bytes) -> Any:
    """The value in `text`. Raises UserError with the reason."""
    try:
        text = text if isinstance(text, str) else text.decode()
        value = _JSON.decode(text)
    except RecursionError:
        raise UserError("it is nested too deeply") from None
    except UserError:
        raise
    except ValueError as error:  # also for bytes that are not UTF-8
        raise UserError(short(str(error))) from None
    if text.count("[") + text.count("{") > _JSON_DEPTH and _is_deep(value):
        raise UserError("it is nested too deeply")
    return value


def _bounded(digits: str) -> int:
    if len(digits) > _JSON_DIGITS:
        raise UserError(f"a number of {len(digits):,} digits is too large")
    return int(digits)


_JSON = json.JSONDecoder(parse_int=_bounded)


def _is_deep(value: Any) -> bool:
    """Whether lists and mappings in `value` are nested more deeply than whoever walks through it can go."""
    level = [value]
    for _ in range(_JSON_DEPTH):
        level = [part for entry in level if isinstance(entry, dict | list) for part in _parts(entry)]
    return bool(level)


def _parts(entry: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return entry.values() if isinstance(entry, dict) else entry


def read_bounded(path: Path) -> str:
    """The text of a YAML file. Raises UserError if it cannot be read or is larger than any that is meant."""
    try:
        with path.open("rb") as file:
            content = file.read(_YAML_BYTES + 1)
        text = content.decode(errors="strict" if len(content) <= _YAML_BYTES else "replace")
    except OSError as error:
        raise UserError(error.strerror or str(error)) from None
    except ValueError as error:  # not UTF-8, or a path that cannot be one
        raise UserError(short(str(error))) from None
    if len(content) > _YAML_BYTES:
        raise UserError(f"it has more than {_YAML_BYTES:,} bytes")
    return text


def _check(root: yaml.Node) -> None:
    """Raises UserError for a key that stands twice, an unknown tag, and aliases that write out to too much."""
    sizes: dict[int, int] = {}  # of each node, with all below it; 0 while it is being counted

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise _error(node, "an alias stands for what it is a part of")
            return sizes[id(node)]
        sizes[id(node)] = 0
        if node.tag not in _TAGS:
            raise _error(node, f"the tag {shown(node.tag)} is none that has a meaning here")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        total = 1 + sum(map(size, _children(node)))
        if total > _YAML_NODES:
            raise _error(node, f"it has more than {_YAML_NODES:,} values")
        sizes[id(node)] = total
        return total

    size(root)


_TAGS = {_TAG + kind for kind in ("null", "bool", "int", "float", "merge", "str", "seq", "map")}


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[Hashable, int] = {}
    for key, _ in node.value:
        name = (key.tag, str(key.value))
        if name in lines:
            raise _error(key, f"the key {shown(key.value)} stands twice, first in line {lines[name]}")
        lines[name] = key.start_mark.line + 1


def _error(node: yaml.Node, problem: str) -> UserError:
    return UserError(f"{_place(node.start_mark)}{problem}")


def _place(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: "
