"""How defaults, a preset, a scale, a file and flags make one run. No torch.

Values are merged in one order: defaults, then preset and scale, then the file, then the flags. `resolve` returns where
each came from, so that a command can print it.
"""

import argparse
import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raytrain import architecture
from raytrain.architecture import AXES, PRESETS, SCALES, SIZES, Architecture
from raytrain.config.predecessor import hint_for_field
from raytrain.config.run import AUTO, STOPS, TrainConfig
from raytrain.errors import UserError, shown, unknown_value
from raytrain.rundir.parse import parse_yaml, read_bounded

# Batch in tokens, learning rate and budget that suit each scale. A flag or a file overrides any of them.
RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "global_batch": 1024,
        "learning_rate": 1e-3,
        "warmup_fraction": 0.2,  # post-norm needs it: docs/log.md
        "flops": 2.5e12,
        "eval_tokens": 32768,
    },
    "small": {"global_batch": 16384, "learning_rate": 1e-3, "flops": 1e15, "eval_tokens": 262144},
    "124m": {"global_batch": 524288, "learning_rate": 6e-4, "flops": 2e18, "eval_tokens": 1048576},
    "350m": {"global_batch": 524288, "learning_rate": 3e-4, "flops": 1.5e19, "eval_tokens": 1048576},
    "1.3b": {"global_batch": 1048576, "learning_rate": 2e-4, "flops": 2e20, "eval_tokens": 1048576},
}

_TYPES: dict[str, Any] = {  # of the fields that are no axes of an architecture
    **{field.name: field.type for field in dataclasses.fields(Architecture) if field.name in SIZES},
    **{field.name: field.type for field in dataclasses.fields(TrainConfig) if field.name != "architecture"},
}


def fields() -> tuple[str, ...]:
    """Every field of a run: axes (those of plugins among them), sizes, and how it is trained."""
    return (*AXES, *_TYPES)


def field_type(field: str) -> Any:
    """What a field's values are."""
    return AXES[field].kind if field in AXES else _TYPES[field]


def read_flags(flags: argparse.Namespace) -> dict[str, Any]:
    """The fields of a run that were given on the command line."""
    known = (*fields(), "preset")
    return {name: value for name, value in vars(flags).items() if name in known and value is not None}


def read_yaml(path: Path, what: str, content: str) -> dict[str, Any]:
    """The mapping of `content` in the YAML file of a `what`; empty for an empty file. Raises UserError otherwise."""
    try:
        text = read_bounded(path)
    except UserError as error:
        raise UserError(f"{what} ({path}) cannot be read: {error}") from None
    try:
        values = parse_yaml(text)
    except UserError as error:
        raise UserError(f"{what} ({path}) is not YAML: {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{what} ({path}) must be a mapping {content}, not a {type(values).__name__}")
    return values


def read_file(path: str) -> dict[str, Any]:
    """The fields of a run in a YAML file. Raises UserError for an unreadable file or an unknown field."""
    values = read_yaml(Path(path), "config", "of field to value")
    values.pop("plugins", None)  # loaded before: `plugins.loader.load_named`
    for name in values:
        if name not in (*fields(), "preset"):
            raise unknown_value(f"field in {path}", name, (*fields(), "preset"), hint_for_field(str(name)))
    return values


def read_ladder(given: Any) -> tuple[str, ...]:
    """The scales of a ladder, a list or text with commas, from the smallest up; none of an empty one.

    Raises UserError for what is no scale, and for one scale alone.
    """
    wanted = given.split(",") if isinstance(given, str) else given
    if not isinstance(wanted, list | tuple):
        raise UserError(f"ladder ({shown(given)}) must be a list of scales: {', '.join(SCALES)}")
    wanted = [str(scale) for scale in wanted]
    for scale in wanted:
        if scale not in SCALES:
            raise unknown_value("scale in ladder", scale, SCALES)
    if wanted and len({*wanted}) < max(2, len(wanted)):
        raise UserError(f"ladder ({','.join(wanted)}) must have two scales or more, each once, of {', '.join(SCALES)}")
    return tuple(scale for scale in SCALES if scale in wanted)


def resolve(
    given: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    data_vocab_size: int | None = None,
    largest_token: int | None = None,
    default_preset: str = "gpt2",
) -> tuple[TrainConfig, dict[str, str]]:
    """One run from layers of values, later ones first in rank: such as [("file", {...}), ("flags", {...})].

    `data_vocab_size` is what the data needs; it decides `vocab_size` (rounded up to 64) where nothing else does.
    Raises UserError for a `vocab_size` that has no place for the `largest_token` of the data.
    Returns the run and, for each field, the layer that it came from.
    """
    texts: dict[str, Any] = {}
    source: dict[str, str] = {}
    for layer, values in given:
        if any(values.get(stop) is not None for stop in STOPS):  # a stop replaces whatever stop lower layers have
            texts = {field: value for field, value in texts.items() if field not in STOPS}
        texts |= values
        source |= dict.fromkeys(values, layer)
    name, scale = str(texts.pop("preset", default_preset)), str(texts.get("scale", "tiny"))
    if name not in PRESETS:
        raise unknown_value("preset", name, PRESETS)
    if scale not in SCALES:
        raise unknown_value("scale", scale, SCALES)
    values = {field: read_value(field, value) for field, value in texts.items()}

    recipe = dict(RECIPES[scale])
    if any(values.get(stop) is not None for stop in STOPS):
        del recipe["flops"]
    below: list[tuple[str, Mapping[str, Any]]] = [
        (f"scale {scale}", recipe | SCALES[scale]),
        (f"preset {name}", PRESETS[name]),
    ]
    if data_vocab_size is not None:
        below.insert(0, ("data", {"vocab_size": math.ceil(data_vocab_size / 64) * 64}))
    for layer, defaults in reversed(below):
        source |= {field: layer for field in defaults if field not in values}
        values = {**defaults, **values}
    source = {field: source.get(field, "default") for field in fields()}

    shape = {field: value for field, value in values.items() if field in (*AXES, *SIZES)}
    arch = architecture.from_dict(shape)
    if data_vocab_size is not None and arch.vocab_size < data_vocab_size:
        raise UserError(f"vocab_size ({arch.vocab_size}) must be at least the data's vocabulary ({data_vocab_size})")
    if largest_token is not None and arch.vocab_size <= largest_token:
        raise UserError(
            f"vocab_size ({arch.vocab_size}) must be above {largest_token}, the largest token of the data; "
            f"set --vocab_size to the data's vocabulary"
        )
    rest = {field: value for field, value in values.items() if field not in shape}
    if "global_batch" not in texts and rest["global_batch"] % arch.block_size:
        rest["global_batch"] = max(1, rest["global_batch"] // arch.block_size) * arch.block_size
    return TrainConfig(architecture=arch, **rest), source


def read_value(field: str, value: Any) -> Any:
    """`value` as the type of `field`: text such as "False", "1e6" or "none" is read. Raises UserError otherwise."""
    if field == "rungs":
        return _rungs(value)
    if field == "eval_data":
        return _eval_data(value)
    declared = field_type(field)
    kinds = typing.get_args(declared) or (declared,)
    optional = type(None) in kinds
    kind = next(kind for kind in kinds if kind is not type(None))
    text = value if isinstance(value, str) else shown(value)
    if optional and text.lower() == "none":
        return None
    if kind is str or (str in kinds and value == AUTO):
        if not isinstance(value, str | int | float) or isinstance(value, bool) or "\0" in text:
            raise UserError(f"{field} ({shown(value)}) must be text")
        return text
    if kind not in (bool, int, float):  # an axis of values of its own
        check = AXES[field].check
        assert check is not None
        return check(parse_yaml(value) if isinstance(value, str) else value)
    if kind is bool:
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        raise UserError(f"{field} ({shown(value)}) must be True or False{' or none' if optional else ''}")
    return _number(field, kind, value, text)


def _rungs(value: Any) -> tuple[float, ...]:
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        return ()
    parts = value if isinstance(value, list | tuple) else [part for part in str(value).split(",") if part.strip()]
    if len(parts) > _MOST_RUNGS:
        raise UserError(f"rungs has {len(parts):,} values, and may have {_MOST_RUNGS}")
    return tuple(_number("rungs", float, part, str(part)) for part in parts)


def _number(field: str, kind: type, value: Any, text: str) -> Any:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(text)
        if math.isnan(number) or (kind is int and number != int(number)):
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(f"{field} ({shown(value)}) must be a {'whole number' if kind is int else 'number'}") from None
    if kind is float:
        return number
    whole = int(text) if text.lstrip("+-").isdecimal() else int(number)
    if abs(whole) > _MOST:
        raise UserError(f"{field} ({shown(value)}) must be below 2^63")
    return whole


def _eval_data(value: Any) -> tuple[tuple[str, str], ...]:
    """`name=folder,...`, or a mapping of name to folder, as pairs. Raises UserError for anything else."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",") if part.strip() and part.strip().lower() != "none"]
        pairs = [tuple(part.partition("=")[::2]) for part in parts]
    else:
        pairs = list((value or {}).items()) if isinstance(value, Mapping | None) else [("", "")]
    if not all(name and isinstance(folder, str) and folder for name, folder in pairs):
        raise UserError(f"eval_data ({shown(value)}) must be name=folder, with commas between, or a mapping of these")
    return tuple((str(name), folder) for name, folder in pairs)


_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
_MOST = 2**63 - 1  # what tensors and files count with
_MOST_RUNGS = 100
