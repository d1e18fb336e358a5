"""What the files of runs, studies and data hold: one declaration a file, and one check for all. Pure.

A file from elsewhere, or that somebody has edited, is wrong in one line with the file, the field, its value and what is
allowed. Fields that a file may have beyond those declared are left to the version that wrote them: they are not read.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from raytrain.errors import UserError, shown

_MOST = 10**30  # of whole numbers: model FLOPs of a run are exact, and go beyond 2^63
NAME_LENGTH = 128  # a file's name may have 255 bytes, and others are made of this one


class Schema(Protocol):
    """What a value must be."""

    def problem(self, value: Any, place: str) -> str:
        """What is wrong with `value`, which stands at `place` in its file; empty if nothing is."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A value without parts, for which `holds` is true; `name` says what it must be."""

    name: str
    holds: Callable[[Any], bool]

    def problem(self, value: Any, place: str) -> str:
        return "" if self.holds(value) else f"{place} ({shown(value)}) must be {self.name}"


def either(*kinds: Kind) -> Kind:
    """What any of `kinds` says."""
    return Kind(" or ".join(kind.name for kind in kinds), lambda value: any(kind.holds(value) for kind in kinds))


@dataclasses.dataclass(frozen=True)
class Maybe:
    """None, or what `of` says."""

    of: Schema

    def problem(self, value: Any, place: str) -> str:
        return "" if value is None else self.of.problem(value, place)


@dataclasses.dataclass(frozen=True)
class ListOf:
    """A list of what `of` says, of `least` entries or more."""

    of: Schema
    least: int = 0

    def problem(self, value: Any, place: str) -> str:
        if not isinstance(value, list | tuple) or len(value) < self.least:
            return f"{place} ({shown(value)}) must be a list{' that is not empty' if self.least else ''}"
        return next(filter(None, (self.of.problem(entry, f"{place}[{i}]") for i, entry in enumerate(value))), "")


@dataclasses.dataclass(frozen=True)
class MapOf:
    """A mapping of any names to what `of` says."""

    of: Schema

    def problem(self, value: Any, place: str) -> str:
        if not isinstance(value, Mapping):
            return f"{place} ({shown(value)}) must be a mapping"
        if unnamed := [name for name in value if not _is_text(name)]:
            return f"{place} has a name ({shown(unnamed[0])}) that must be text"
        return next(filter(None, (self.of.problem(entry, _join(place, name)) for name, entry in value.items())), "")


@dataclasses.dataclass(frozen=True)
class Record:
    """A mapping with the fields of `required`, and any of `optional`. `only`: with no others.

    `families` are optional fields by the start of their names. What is declared may grow after the record was made: the
    layers above add what is theirs.
    """

    required: Mapping[str, Schema]
    optional: Mapping[str, Schema] = dataclasses.field(default_factory=dict)
    families: Mapping[str, Schema] = dataclasses.field(default_factory=dict)
    only: bool = False

    def problem(self, value: Any, place: str) -> str:
        if not isinstance(value, Mapping):
            return f"{place or 'it'} ({shown(value)}) must be a mapping of field to value"
        if missing := [name for name in self.required if name not in value]:
            return f"{place and f'{place}: '}missing {', '.join(missing)}"
        for name, entry in value.items():
            schema = self._schema(name)
            if schema is None and self.only:
                return f"{_join(place, name)} is no field of it"
            if schema is not None and (found := schema.problem(entry, _join(place, name))):
                return found
        return ""

    def _schema(self, name: str) -> Schema | None:
        found = self.required.get(name) or self.optional.get(name)
        if found is None and self.families:
            found = next((schema for start, schema in self.families.items() if name.startswith(start)), None)
        return found


@dataclasses.dataclass(frozen=True)
class ByField:
    """A mapping whose text `field` names the one of `records` that it is."""

    field: str
    records: Mapping[str, Record]

    def problem(self, value: Any, place: str) -> str:
        if found := Record({self.field: TEXT}).problem(value, place):
            return found
        if (record := self.records.get(value[self.field])) is None:
            return f"{_join(place, self.field)} ({shown(value[self.field])}) must be {' or '.join(self.records)}"
        return record.problem(value, place)


def _join(place: str, name: str) -> str:
    return f"{place}.{shown(name)[1:-1]}" if place else shown(name)[1:-1]


def check(value: Any, schema: Schema, source: object) -> Any:
    """`value`, if it is what `schema` says. Raises UserError, about the file `source`, if not."""
    if found := schema.problem(value, ""):
        raise UserError(f"{source} is {'incomplete' if found.startswith('missing') else 'damaged'}: {found}")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_text(value: Any) -> bool:
    """What can be written as UTF-8, or name a file of any name: Python has its bytes as some of the lone surrogates."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def is_name(text: Any) -> bool:
    """Whether `text` may be the name of a folder."""
    return (
        isinstance(text, str)
        and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", text) is not None
        and len(text) <= NAME_LENGTH
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and is_name(value.replace("=", "-"))  # those of trials that differ in a field have it


ANY = Kind("anything", lambda value: True)
WHOLE = Kind("a whole number", _is_whole)
COUNT = Kind("a whole number of 0 or more", lambda value: _is_whole(value) and value >= 0)
POSITIVE = Kind("a whole number of 1 or more", lambda value: _is_whole(value) and value >= 1)
SIZE = Kind("a whole number below 2^63", lambda value: _is_whole(value) and abs(value) < 2**63)  # tensors count so
NUMBER = Kind("a number", _is_number)
BUDGET = Kind("a number above 0", lambda value: _is_number(value) and 0 < value < math.inf)
TIME = Kind("a time in seconds", lambda value: _is_number(value) and 0 <= value < 1e11)  # else no calendar has it
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", _is_text)
SCALAR = Kind("text, a number, true or false", lambda value: isinstance(value, bool | str) or _is_number(value))
ID = Kind("a name of letters, digits, '.', '_', '-' and '='", _is_id)
DIGEST = Kind(
    "64 hexadecimal digits", lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
)

# What runs report, wherever it stands. A loss may be null, where there is none.
_FACTS: dict[str, Schema] = {
    **dict.fromkeys(("step", "steps", "total_steps", "parameters"), COUNT),
    **dict.fromkeys(("world_size", "vocab_size", "micro_batch"), POSITIVE),
    **dict.fromkeys(("val_loss", "val_bpb", "train_loss", "loss", "grad_norm"), Maybe(NUMBER)),
    **dict.fromkeys(("seed", "train_flops", "decay_flops", "tokens", "flops_per_token", "learning_rate"), NUMBER),
    **dict.fromkeys(("hardware_flops", "mfu", "mfu_causal", "tflops", "tokens_per_second"), NUMBER),
    **dict.fromkeys(("train_seconds", "eval_seconds", "startup_seconds", "restored_seconds"), NUMBER),
    **dict.fromkeys(("step_seconds", "memory_peak_gb", "memory_resident_gb"), NUMBER),
    **dict.fromkeys(("name", "hash", "device", "parallel", "dtype", "data_fingerprint", "status"), TEXT),
    "reason": Maybe(TEXT),
    "rung": Maybe(COUNT),  # of an event of a study's, null for the end of a trial
    "first_step": Maybe(NUMBER),  # of an event of a study's, a time
    "time": TIME,
}
_LOSSES: dict[str, Schema] = {"val_loss_": Maybe(NUMBER), "val_bpb_": Maybe(NUMBER)}

RESULT = Record({"status": TEXT}, _FACTS | {"rung": COUNT}, _LOSSES)
_REPORT = Record({"event": TEXT}, _FACTS, _LOSSES)
_AT_RUNG = Record({"event": TEXT, "rung": COUNT}, _FACTS, _LOSSES)
REPORTS: Mapping[str, Schema] = {"rung": _AT_RUNG, "pause": _AT_RUNG}  # by event; of others `REPORT`
REPORT: Schema = _REPORT

_LEVEL = Record(
    {"axis": TEXT, "value": SCALAR},
    {"default": SCALAR, "dead": MapOf(ANY), "part": Maybe(TEXT), "same_as": ANY},
)
_PLUGIN = Record({"name": TEXT, "sha256": TEXT, "levels": ListOf(_LEVEL)})
# `raytrain.config.run`, which is above, adds the fields of a run.
RUN_FIELDS: dict[str, Schema] = {"plugins": ListOf(_PLUGIN)}
CONFIG = Record({"architecture": MapOf(ANY)}, RUN_FIELDS)

_TRIAL = Record(
    {"id": ID, "labels": ListOf(TEXT, least=1), "hash": TEXT, "seed": COUNT, "config": CONFIG},
    {
        **dict.fromkeys(("label", "role", "stage", "like", "folder"), TEXT),
        "levels": MapOf(ANY),
        "tuned": Maybe(MapOf(NUMBER)),
    },
)
_TUNING = Record({"levels": MapOf(ListOf(NUMBER, least=1)), "spreads": FLAG}, {"recipe": MapOf(NUMBER)})
_ESTIMATE = Record({"seconds": NUMBER}, {"devices": NUMBER, "device": TEXT, "basis": TEXT, "lanes": COUNT})
_DESIGN = Record({"name": TEXT}, {"half_widths_in_noise_sd": Maybe(MapOf(Maybe(NUMBER)))})
_COUNTS = Record(dict.fromkeys(("points", "programs", "variants", "trials"), COUNT))
_HALVING = Record({"keep": ListOf(COUNT), "rungs": ListOf(BUDGET)}, {"rung_decay": NUMBER, "unit": TEXT})
_SCHEDULER = Maybe(ByField("name", {"none": Record({}), "halving": _HALVING}))
_SPACE: dict[str, Schema] = {
    "axes": Maybe(MapOf(ListOf(ANY, least=1))),
    "baseline": Maybe(MapOf(ANY)),
    "factors": Maybe(MapOf(ANY)),
    "scheduler": _SCHEDULER,
}
_SCALE = Record({"budget_flops": BUDGET, "counts": _COUNTS, **_SPACE}, {"tuning": Maybe(_TUNING)})
_LADDER = Record({"scales": MapOf(_SCALE), "project_to": Record({"scale": TEXT, "flops_per_token": BUDGET})})
_PLAN = Record(
    {},
    {
        "tuning": Maybe(_TUNING),
        "ladder": Maybe(_LADDER),
        "estimate": Maybe(_ESTIMATE),
        "design": Maybe(_DESIGN),
        "flops_per_token": Record({"least": NUMBER, "most": NUMBER, "ratio": NUMBER}, {}),
        "total_flops": NUMBER,
    },
)
_REQUESTS = ("gpus_per_trial", "workers_per_trial", "trials_per_gpu", "concurrent", "compile_ahead")
STUDY = Record(
    {
        **dict.fromkeys(("name", "space", "base", "scale", "command", "created"), TEXT),
        "git_commit": Maybe(TEXT),
        "budget_flops": BUDGET,
        "counts": _COUNTS,
        "versions": MapOf(Maybe(TEXT)),
        "trials": ListOf(_TRIAL),
    },
    {
        "plugins": MapOf(TEXT),
        **_SPACE,
        "plan": Maybe(_PLAN),
        "lanes": Maybe(Record({}, dict.fromkeys(_REQUESTS, Maybe(COUNT)), only=True)),
        "data_fingerprints": MapOf(TEXT),
        "grows": ListOf(Record({"stage": TEXT}, {"most": COUNT, "seeds": POSITIVE})),
        "stages": ListOf(Record({"name": TEXT, "trials": ListOf(ID), "reason": TEXT})),
        "interrupted": FLAG,
        "time_limit": NUMBER,
        "experiment": TEXT,
        "models": Record({"keep": TEXT}, {"storage": TEXT, "kept": MapOf(TEXT)}),
    },
)

# What events.jsonl holds: see raytrain.sweep.schedule.
_OF_TRIAL: dict[str, Schema] = {"event": TEXT, "trial": ID}
_SECONDS = ("startup", "train", "eval", "restored", "restored_eval", "first_steps", "checkpoint")
_SEGMENT: dict[str, Schema] = {"ended": NUMBER, "first_step": Maybe(NUMBER), "lane": TEXT}
_SEGMENT |= {f"{name}_seconds": NUMBER for name in _SECONDS}
EVENTS: Mapping[str, Schema] = {
    "driver": Record({"event": TEXT}, {"started": TIME, "lanes": POSITIVE}),
    "segment": Record(_OF_TRIAL | {"lane": TEXT}, _SEGMENT),
    "stage": Record({"event": TEXT, "trials": ListOf(ID)}),
    "begin": Record(_OF_TRIAL),
    "lost": Record(_OF_TRIAL),
    "rung": Record(_OF_TRIAL | {"rung": COUNT, "score": Maybe(NUMBER)}),
    "oom": Record(_OF_TRIAL | {"micro_batch": POSITIVE}),
    "end": Record(_OF_TRIAL | {"status": TEXT}),
}

_STATE = Record(
    {"step": COUNT, "sequences": COUNT, "evaluation": MapOf(Maybe(NUMBER)), "evaluated_step": COUNT},
    {
        **dict.fromkeys(("micro_batch", "scored_step", "decay_flops"), COUNT),
        **dict.fromkeys(("train_loss", "grad_norm", "train_seconds", "eval_seconds"), NUMBER),
        **dict.fromkeys(("score", "speed"), MapOf(Maybe(NUMBER))),
    },
    only=True,
)
CHECKPOINT = Record(
    {
        "name": TEXT,
        "state": _STATE,
        "trajectory": Record({"architecture": MapOf(ANY)}),
        "files": MapOf(DIGEST),
    }
)

# The config.json of a folder of Hugging Face's, where we read it: see raytrain.model.interchange.
_SIZES = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner", "hidden_size", "num_hidden_layers")
_MORE_SIZES = ("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "intermediate_size", "head_dim")
_ROPE = Record({}, {"rope_type": TEXT, "rope_theta": NUMBER})
HUGGING_FACE = Record(
    {"model_type": TEXT},
    {
        **dict.fromkeys(_SIZES + _MORE_SIZES, Maybe(POSITIVE)),
        **dict.fromkeys(("rope_theta", "rms_norm_eps", "resid_pdrop", "attention_dropout"), NUMBER),
        **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias"), FLAG),
        **dict.fromkeys(("rope_parameters", "rope_scaling"), Maybe(_ROPE)),
        "activation_function": TEXT,
    },
)

_SHARD = Record({"name": TEXT, "tokens": COUNT, "sha256": DIGEST}, only=True)
_SPLIT = Record({"documents": COUNT, "tokens": POSITIVE, "bytes": COUNT, "shards": ListOf(_SHARD, least=1)}, only=True)
DATA = Record(
    {
        "tokenizer": TEXT,
        "tokenizer_sha256": Maybe(DIGEST),
        "vocab_size": POSITIVE,
        "dtype": TEXT,
        "train": _SPLIT,
        "val": _SPLIT,
        "version": COUNT,
    },
    only=True,
)
