"""Search spaces: YAML files of axes and levels, and the distinct functions that they spell. Pure: no torch.

A file has `axes` (any field of a run -> its levels), or `presets`, or both; `base`, the preset that the points start
from; and `vary`: `all` combinations, or `one_at_a_time` around the base.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raytrain import architecture
from raytrain.architecture import AXES, PRESETS
from raytrain.errors import UserError, unknown_value
from raytrain.training.config import FIELDS, TrainConfig, read_value, read_yaml

_KEYS = ("base", "presets", "axes", "vary")
_VARY = ("all", "one_at_a_time")
# What a trial may differ in and still be ranked with the others. Not the data or the vocabulary, which move the zero
# of the loss; nor what is watched, or where and how fast a trial runs.
AXIS_FIELDS = (
    *("preset", *AXES, "n_layer", "n_head", "n_embd", "block_size", "n_kv_head", "d_ff"),
    *("global_batch", "learning_rate", "min_lr_fraction", "warmup_fraction", "schedule", "decay_fraction"),
    *("weight_decay", "beta1", "beta2", "grad_clip", "precision", "init_from"),
)
# A wheel has the spaces inside the package; a checkout, which an editable install points at, has them beside it.
_FOLDERS = (Path(__file__).parent / "search_spaces", Path(__file__).parents[1] / "search_spaces")


@dataclasses.dataclass(frozen=True)
class Point:
    """One spelling in a space: `values` are fields of a run, `preset` among them."""

    label: str
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Space:
    """Axes and their levels around a base. `preset` may be an axis; the base's own level comes first in its axis."""

    name: str
    base: str
    levels: Mapping[str, tuple[Any, ...]]
    vary: str = "all"

    def points(self) -> list[Point]:
        """Every spelling. The base comes first if it is one of them."""
        if self.vary == "all":
            combinations = itertools.product(*self.levels.values())
            return [self._point(dict(zip(self.levels, levels, strict=True))) for levels in combinations]
        base = {"preset": self.base} | PRESETS[self.base]
        changes = [{axis: level} for axis, levels in self.levels.items() for level in levels]
        return [self._point({})] + [self._point(change) for change in changes if not change.items() <= base.items()]

    def _point(self, change: dict[str, Any]) -> Point:
        values = {"preset": self.base} | change
        start = PRESETS[values["preset"]]
        dead = "activation" if values.get("ffn_type", start.get("ffn_type")) == "swiglu" else None
        differences = [
            f"{axis}={level}"
            for axis, level in change.items()
            if axis not in ("preset", dead) and not (axis in start and level == start[axis])
        ]
        if not differences or "preset" in self.levels:
            differences.insert(0, values["preset"])
        return Point(" ".join(differences), values)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One function (or one program) of a space, in the program form of its first spelling.

    `labels` holds the first label of each preset that spells it; `values` are those of the first spelling.
    """

    config: TrainConfig
    labels: tuple[str, ...]
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Expansion:
    """`points` spellings of `programs` distinct programs, and the candidates that are left to train."""

    points: int
    programs: int
    candidates: list[Candidate]


def expand(
    space: Space, resolve: Callable[[Mapping[str, Any]], TrainConfig], *, keep_backends: bool = False
) -> Expansion:
    """The distinct functions of `space`, in the order of their first spelling.

    Two points fall together if their architectures have one canonical form and all other fields of the run are equal.
    With `keep_backends` the attention backends stay apart: programs are the candidates, for a study of speed.
    `resolve` makes a run of a point's values. Raises UserError that names the combination it cannot be made of.
    """
    other_fields = [field.name for field in dataclasses.fields(TrainConfig) if field.name != "architecture"]
    points = space.points()
    programs = set()
    runs: dict[Any, tuple[TrainConfig, Mapping[str, Any]]] = {}
    labels: dict[Any, dict[str, str]] = {}  # by preset
    for point in points:
        try:
            config = resolve(point.values)
        except UserError as error:
            raise UserError(f"Space {space.name}, {point.label}: {error}") from None
        program = config.architecture.program()
        is_dead = {"decay_fraction"} if config.schedule == "cosine" else set()
        rest = tuple(getattr(config, field) for field in other_fields if field not in is_dead)
        programs.add((program, rest))
        key = (program if keep_backends else program.canonical(), rest)
        runs.setdefault(key, (config, point.values))
        labels.setdefault(key, {}).setdefault(point.values["preset"], point.label)
    candidates = [
        Candidate(config.replace(architecture=config.architecture.program()), tuple(labels[key].values()), values)
        for key, (config, values) in runs.items()
    ]
    return Expansion(len(points), len(programs), candidates)


def load_space(spec: str, base: str | None = None) -> Space:
    """The space called `spec` in search_spaces/, or in the YAML file `spec`. `base` overrides the file's.

    Raises UserError for an unknown name, an unreadable file, an unknown key, axis or level, or an empty space.
    """
    path = _find(spec)
    content = read_yaml(path, "space", "with axes or presets")
    for key in content:
        if key not in _KEYS:
            raise unknown_value(f"key in space {spec}", key, _KEYS)
    base = str(base or content.get("base", "gpt2"))
    if base not in PRESETS:
        raise unknown_value("base", base, PRESETS)
    vary = content.get("vary", "all")
    if vary not in _VARY:
        raise unknown_value(f"vary in space {spec}", vary, _VARY)
    axes = content.get("axes") or {}
    if not isinstance(axes, dict):
        raise UserError(f"axes in space {spec} must be a mapping of field to levels, not {axes!r}")
    if "presets" in content and "preset" in axes:
        raise UserError(f"Space {spec} has presets and an axis called preset; leave one of them out")
    if "presets" in content:
        axes = {"preset": content["presets"]} | axes
    if not axes:
        raise UserError(f"Space {spec} is empty: it needs axes or presets")
    levels = {axis: _levels(spec, axis, given) for axis, given in axes.items()}
    start = {"preset": base} | PRESETS[base]
    return Space(
        name=path.stem,
        base=base,
        levels={axis: tuple(sorted(levels[axis], key=lambda level: level != start.get(axis))) for axis in levels},
        vary=vary,
    )


def _find(spec: str) -> Path:
    spaces = {path.stem: path for folder in reversed(_FOLDERS) for path in sorted(folder.glob("*.yaml"))}
    if spec in spaces:
        return spaces[spec]
    if Path(spec).suffix in (".yaml", ".yml") or Path(spec).is_file():
        return Path(spec)
    raise unknown_value("space (and no YAML file)", spec, spaces)


def _levels(spec: str, axis: Any, given: Any) -> list[Any]:
    """The levels of one axis, as the types of that field."""
    if axis not in FIELDS and axis != "preset":
        raise unknown_value(f"axis in space {spec}", axis, AXIS_FIELDS)
    if axis not in AXIS_FIELDS:
        raise UserError(f"{axis} cannot be an axis of space {spec}: trials that differ in it are not to be ranked")
    if not isinstance(given, list):
        raise UserError(f"axis {axis} in space {spec} must be a list of levels, not {given!r}")
    if not given:
        raise UserError(f"Space {spec} is empty: axis {axis} has no levels")
    try:
        levels = [_level(axis, level) for level in given]
    except UserError as error:
        raise UserError(f"Axis {axis} in space {spec}: {error}") from None
    for index, level in enumerate(levels):
        if level in levels[:index]:
            raise UserError(f"Axis {axis} in space {spec} has the level {level} twice")
    return levels


def _level(axis: str, given: Any) -> Any:
    if axis == "preset":
        if str(given) not in PRESETS:
            raise unknown_value("preset", given, PRESETS)
        return given
    level = read_value(axis, given)
    if axis in AXES:
        architecture.preset("gpt2", **{axis: level})  # raises for a value outside the axis
    return level
