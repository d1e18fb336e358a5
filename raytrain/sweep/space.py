"""Search spaces: YAML files of axes and levels, and the distinct variants that they spell. Pure: no torch.

A file has `axes` (any field of a run -> its levels), or `presets`, or both; `base`, the preset that the points start
from; and `vary`: `all` combinations, or `one_at_a_time` around the base. It may have

    when        for an axis the levels of others that it counts with; elsewhere it is dead, and the base's value stands
    placement   for trials of some levels the ranks that each takes
    seeds       trials of each variant, where --seeds is not given
    run         fields that all trials share, such as `max_iters: 400`; --config and flags override them
    eval_data   further validation sets for all trials, name -> folder
    tune        fields of the recipe and their levels, at each of which every variant runs: no axes, as their levels are
                not ranked against each other; each variant counts at its own best
    ladder      scales at each of which every variant runs, compared within each scale alone
"""

import dataclasses
import graphlib
import itertools
import math
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from raytrain import architecture
from raytrain.architecture import AXES, PRESETS, preset_axes
from raytrain.axes import dead
from raytrain.config.predecessor import hint_for_field
from raytrain.config.resolve import field_type, fields, read_ladder, read_value, read_yaml
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError, shown, unknown_value

_KEYS = (
    *("base", "presets", "axes", "vary", "when", "placement"),
    *("seeds", "run", "tune", "ladder", "eval_data", "plugins"),
)
_VARY = ("all", "one_at_a_time")
_LEVELS = 1000  # of an axis
_POINTS = 30_000  # spellings of a space: each is resolved before the plan is known, which takes 0.3 ms
# What a trial may differ in and still be ranked with the others. Not the data or the vocabulary, which move the zero
# of the loss; nor what is watched, or where and how fast a trial runs.
_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "n_kv_head", "d_ff")
# Of these, how a run is trained.
RECIPE = (
    *("global_batch", "learning_rate", "min_lr_fraction", "warmup_fraction", "schedule", "decay_fraction"),
    *("optimizer", "weight_decay", "beta1", "beta2", "grad_clip", "z_loss", "precision", "init_from"),
)
TUNABLE = {"learning_rate": 3, "weight_decay": 2, "warmup_fraction": 2}  # field -> levels at least; 3 have a curvature


def axis_fields() -> tuple[str, ...]:
    """What a space may vary."""
    return ("preset", *AXES, *_SIZES, *RECIPE)


# A wheel has the spaces inside the package; a checkout, which an editable install points at, has them beside it.
_FOLDERS = tuple(Path(__file__).parents[up] / "search_spaces" for up in (1, 2))


@dataclasses.dataclass(frozen=True)
class Point:
    """One spelling in a space: `values` are fields of a run, `preset` among them."""

    label: str
    values: Mapping[str, Any]


Condition = Mapping[str, tuple[Any, ...]]  # axis -> levels of it; it holds where all those axes have one of theirs


@dataclasses.dataclass(frozen=True)
class Space:
    """Axes and their levels around a base. `preset` may be an axis; the base's own level comes first in its axis.

    `when` holds the conditions of conditional axes, each after those that its own condition names. `placement` are
    conditions, and the ranks of a trial that meets one; the first that holds counts. `tune` are the fields that are
    tuned for each variant, with their levels in ascending order. `ladder` are the scales that it runs at, if several.
    `eval_data` are further validation sets (see TrainConfig). `seeds` are the trials of each variant, and `run` the
    fields of all, where nothing else gives them.
    """

    name: str
    base: str
    levels: Mapping[str, tuple[Any, ...]]
    vary: str = "all"
    when: Mapping[str, Condition] = dataclasses.field(default_factory=dict)
    placement: tuple[tuple[Condition, int], ...] = ()
    eval_data: tuple[tuple[str, str], ...] = ()
    seeds: int = 1
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tune: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    ladder: tuple[str, ...] = ()

    @property
    def settings(self) -> list[dict[str, float]]:
        """Every combination of the tuned levels: a single empty one where nothing is tuned."""
        return [dict(zip(self.tune, levels, strict=True)) for levels in itertools.product(*self.tune.values())]

    def tuned(self, given: Mapping[str, Any]) -> "Space":
        """This space with the levels of the fields in `given` to tune, over its own. Raises UserError if they cannot
        be."""
        return dataclasses.replace(self, tune={**self.tune, **_tune(self.name, given, self.levels)})

    def dead(self, values: Mapping[str, Any]) -> set[str]:
        """The axes that do not count in a run of `values`. A condition on a dead axis does not hold."""
        axes: set[str] = set()
        for axis, condition in self.when.items():
            if axes & condition.keys() or not _holds(condition, values):
                axes.add(axis)
        return axes

    def workers(self, values: Mapping[str, Any]) -> int | None:
        """The ranks of a trial of `values`; None where the space does not set them."""
        return next((ranks for condition, ranks in self.placement if _holds(condition, values)), None)

    def points(self) -> list[Point]:
        """Every spelling. The base comes first if it is one of them."""
        if self.vary == "all":
            if (count := math.prod(map(len, self.levels.values()))) > _POINTS:
                raise UserError(
                    f"Space {self.name} has {count:,} points, and may have {_POINTS:,}: leave levels or axes out, or "
                    "vary one_at_a_time"
                )
            combinations = itertools.product(*self.levels.values())
            return [self._point(dict(zip(self.levels, levels, strict=True))) for levels in combinations]
        base = {"preset": self.base} | preset_axes(self.base)
        changes = [{axis: level} for axis, levels in self.levels.items() for level in levels]
        return [self._point({})] + [self._point(change) for change in changes if not change.items() <= base.items()]

    def _point(self, change: dict[str, Any]) -> Point:
        start = preset_axes(change.get("preset", self.base))
        dead_axes = self.dead(start | change)
        change = {axis: level for axis, level in change.items() if axis not in dead_axes}
        values = {"preset": self.base} | change
        without_effect = dead(start | values)
        differences = [
            f"{axis}={','.join(map(str, level)) if isinstance(level, tuple) else level}"
            for axis, level in change.items()
            if axis != "preset" and axis not in without_effect and not (axis in start and level == start[axis])
        ]
        if not differences or "preset" in self.levels:
            differences.insert(0, values["preset"])
        return Point(" ".join(differences), values)


def _holds(condition: Condition, values: Mapping[str, Any]) -> bool:
    return all(values.get(axis) in levels for axis, levels in condition.items())


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One variant (or one program) of a space, in the program form of its first spelling.

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
    """The distinct variants of `space`, in the order of their first spelling.

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
        is_dead = dead(config.to_dict())
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
    return read_space(path.stem, read_yaml(path, "space", "with axes or presets"), base, spec=spec)


def read_space(name: str, content: Mapping[str, Any], base: str | None = None, *, spec: str | None = None) -> Space:
    """The space `name` of what a file of one holds; `spec` is what errors call it. Otherwise as `load_space`."""
    spec = spec or name
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
        raise UserError(f"axes in space {spec} must be a mapping of field to levels, not {shown(axes)}")
    if "presets" in content and "preset" in axes:
        raise UserError(f"Space {spec} has presets and an axis called preset; leave one of them out")
    if "presets" in content:
        axes = {"preset": content["presets"]} | axes
    if not axes:
        raise UserError(f"Space {spec} is empty: it needs axes or presets")
    levels = {axis: _levels(spec, axis, given) for axis, given in axes.items()}
    start = {"preset": base} | preset_axes(base)
    return Space(
        name=name,
        base=base,
        levels={axis: tuple(sorted(levels[axis], key=lambda level: level != start.get(axis))) for axis in levels},
        vary=vary,
        when=_when(spec, content.get("when") or {}, levels),
        placement=_placement(spec, content.get("placement") or [], levels),
        eval_data=read_value("eval_data", content.get("eval_data")),
        seeds=1 if content.get("seeds") is None else content["seeds"],  # null is what is not given
        run=_run(spec, content.get("run") or {}),
        tune=_tune(spec, content.get("tune") or {}, levels),
        ladder=read_ladder(content.get("ladder") or []),
    )


def _when(spec: str, given: Any, levels: Mapping[str, list[Any]]) -> dict[str, Condition]:
    """The conditions of axes, in an order in which each comes after those that it depends on."""
    if not isinstance(given, dict):
        raise UserError(f"when in space {spec} must be a mapping of axis to condition, not {shown(given)}")
    for axis in given:
        if axis not in levels:
            raise unknown_value(f"axis in when of space {spec}", axis, levels)
    conditions = {axis: _condition(spec, f"when of {axis}", condition, levels) for axis, condition in given.items()}
    try:
        order = graphlib.TopologicalSorter({axis: condition.keys() for axis, condition in conditions.items()})
        return {axis: conditions[axis] for axis in order.static_order() if axis in conditions}
    except graphlib.CycleError as error:
        raise UserError(f"when in space {spec} goes in a circle: {' -> '.join(error.args[1])}") from None


def _tune(spec: str, given: Any, axes: Container[str]) -> dict[str, tuple[float, ...]]:
    """The levels of tuned fields, ascending."""
    if not isinstance(given, Mapping):
        raise UserError(f"tune in space {spec} must be a mapping of field to levels, not {shown(given)}")
    tuned = {}
    for field, wanted in given.items():
        if field not in TUNABLE:
            raise unknown_value(f"field to tune in space {spec}", field, TUNABLE)
        if field in axes:
            raise UserError(f"{field} in space {spec} cannot be both an axis, whose levels are ranked, and tuned")
        levels = _levels(spec, field, wanted, "tuned field")
        if len(levels) < TUNABLE[field]:
            raise UserError(
                f"tune in space {spec}: {field} ({', '.join(f'{level:g}' for level in levels)}) must have "
                f"{TUNABLE[field]} levels or more"
            )
        if field == "learning_rate" and min(levels) <= 0:
            raise UserError(f"tune in space {spec}: learning_rate ({min(levels):g}) must be above 0")
        tuned[field] = tuple(sorted(levels))
    return tuned


def _run(spec: str, given: Any) -> dict[str, Any]:
    """The fields that all trials share, as their types."""
    if not isinstance(given, dict):
        raise UserError(f"run in space {spec} must be a mapping of field to value, not {shown(given)}")
    for field in given:
        if field not in fields():
            raise unknown_value(f"field in run of space {spec}", field, fields(), hint_for_field(str(field)))
    try:
        return {field: read_value(field, value) for field, value in given.items()}
    except UserError as error:
        raise UserError(f"run in space {spec}: {error}") from None


def _placement(spec: str, given: Any, levels: Mapping[str, list[Any]]) -> tuple[tuple[Condition, int], ...]:
    if not isinstance(given, list):
        raise UserError(f"placement in space {spec} must be a list of when and workers, not {shown(given)}")
    placements = []
    for entry in given:
        if not isinstance(entry, dict) or entry.keys() != {"when", "workers"}:
            raise UserError(f"placement in space {spec}: {shown(entry)} must have when and workers")
        workers = entry["workers"]
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise UserError(f"placement in space {spec}: workers ({shown(workers)}) must be a whole number, 1 or more")
        placements.append((_condition(spec, "placement", entry["when"], levels), workers))
    return tuple(placements)


def _condition(spec: str, place: str, given: Any, levels: Mapping[str, list[Any]]) -> Condition:
    if not isinstance(given, dict) or not given:
        raise UserError(f"{place} in space {spec} must be a mapping of axis to levels, not {shown(given)}")
    condition = {}
    for axis, wanted in given.items():
        if axis not in levels:
            raise unknown_value(f"axis in {place} of space {spec}", axis, levels)
        try:
            read = [_level(axis, level) for level in (wanted if isinstance(wanted, list) else [wanted])]
        except UserError as error:
            raise UserError(f"{place} in space {spec}: {error}") from None
        for level in read:
            if level not in levels[axis]:
                raise unknown_value(f"level of {axis} in {place} of space {spec}", level, map(str, levels[axis]))
        condition[axis] = tuple(read)
    return condition


def _find(spec: str) -> Path:
    spaces = {path.stem: path for folder in reversed(_FOLDERS) for path in sorted(folder.glob("*.yaml"))}
    if spec in spaces:
        return spaces[spec]
    if Path(spec).suffix in (".yaml", ".yml") or Path(spec).is_file():
        return Path(spec)
    raise unknown_value("space (and no YAML file)", spec, spaces)


def _levels(spec: str, axis: Any, given: Any, what: str = "axis") -> list[Any]:
    """The levels of one axis, as the types of that field; `what` it is called."""
    if axis not in fields() and axis != "preset":
        raise unknown_value(f"axis in space {spec}", axis, axis_fields())
    if axis not in axis_fields():
        raise UserError(f"{axis} cannot be an axis of space {spec}: trials that differ in it are not to be ranked")
    if isinstance(given, dict):
        given = _range(spec, axis, given, what)
    if not isinstance(given, list | tuple):
        raise UserError(f"{what} {axis} in space {spec} must be a list of levels or a range, not {shown(given)}")
    if not given:
        raise UserError(f"Space {spec} is empty: {what} {axis} has no levels")
    if len(given) > _LEVELS:
        raise UserError(f"{what} {axis} in space {spec} has {len(given):,} levels, and may have {_LEVELS:,}")
    try:
        levels = [_level(axis, level) for level in given]
    except UserError as error:
        raise UserError(f"{what.capitalize()} {axis} in space {spec}: {error}") from None
    seen: set[Any] = set()
    for level in levels:
        if level in seen:
            raise UserError(f"{what.capitalize()} {axis} in space {spec} has the level {shown(level)} twice")
        seen.add(level)
    return levels


_RANGE = {"low": "learning_rate", "high": "learning_rate", "count": "log_interval"}  # each read as such a field


def _range(spec: str, axis: str, given: dict[Any, Any], what: str) -> list[float]:
    """`count` levels from `low` to `high`, each the same factor above the one before, to six digits."""
    allowed = ("low", "high", "count")
    for key in given:
        if key not in allowed:
            raise unknown_value(f"key of {what} {axis} in space {spec}", key, allowed)
    try:
        low, high, count = (read_value(field, given[name]) for name, field in _RANGE.items())
    except (KeyError, UserError):
        raise UserError(f"{what} {axis} in space {spec}: a range has the numbers low, high and count") from None
    if axis == "preset" or field_type(axis) is not float or not 0 < low < high < math.inf or not 2 <= count <= _LEVELS:
        raise UserError(
            f"{what} {axis} in space {spec}: a range is of a real-valued field, with 0 < low < high and a count of 2 "
            f"to {_LEVELS:,}, not {shown(given)}"
        )
    return [float(f"{low * (high / low) ** (place / (count - 1)):.6g}") for place in range(count)]


def _level(axis: str, given: Any) -> Any:
    if axis == "preset":
        if str(given) not in PRESETS:
            raise unknown_value("preset", given, PRESETS)
        return given
    level = read_value(axis, given)
    if axis in AXES:
        architecture.preset("gpt2", **{axis: level})  # raises for a value outside the axis
    return level
