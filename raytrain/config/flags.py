"""The fields of a run as flags, in the groups that `--help` shows. Values stay text: `resolve` reads them."""

import argparse
import dataclasses
import textwrap
import typing
from collections.abc import Callable, Collection
from typing import Any

from raytrain.architecture import AXES, PRESETS, SIZES
from raytrain.axes import Axis
from raytrain.config.predecessor import hint_for_argument
from raytrain.config.resolve import field_type
from raytrain.config.run import TrainConfig
from raytrain.errors import Parser, UserError

# The titles of groups, in the order of help; a command may put its own between them.
FIRST, BUDGET, RUNS_ON, TRAINING, DATA = "the ten that matter first", "budget", "where it runs", "training", "data"
ARCHITECTURE = "architecture (overrides the preset's and the scale's)"
OPTIONAL, PLUGINS, RESULTS = "optional axes (off by default)", "axes of plugins", "results"

_GROUPS = {
    BUDGET: ("max_iters", "tokens", "flops"),
    RUNS_ON: (
        *("device", "precision", "compile", "parallel", "fsdp_shard_size", "micro_batch", "activation_checkpointing"),
        "peak_tflops",
    ),
    DATA: ("data", "eval_data", "eval_tokens", "evaluations", "eval_interval"),
    ARCHITECTURE: ("preset", "scale", "config", "plugin"),
    RESULTS: ("log_interval", "stats_interval", "checkpoint_interval", "keep_checkpoints"),
}
_GROUP_OF = {field: title for title, names in _GROUPS.items() for field in names}  # all else is TRAINING
_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig) if field.name != "architecture"}
_SIZE_HELP = {
    "n_layer": "layers",
    "n_head": "attention heads",
    "n_embd": "width of the residual stream",
    "block_size": "tokens of context",
    "vocab_size": "tokens that the head can tell apart [the data's, or the scale's]",
    "n_kv_head": "heads of keys and values [n_head]",
    "d_ff": "width of the FFN [4 x n_embd; swiglu: 8/3]",
}

_TRAIN_FIRST = ("preset", "scale", "max_iters", "flops", "learning_rate", "seed", "data", "config")
_TRAIN_EXAMPLES = """
python -m raytrain.train --preset llama --max_iters 100
python -m raytrain.train --preset gpt2 --normalization rmsnorm --scale small --name rms
python -m raytrain.train --resume runs/rms
torchrun --standalone --nproc_per_node=8 -m raytrain.train --preset llama --scale 1.3b --parallel fsdp
"""

Add = Callable[..., Any]  # `add_argument` of a parser or of a group


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help whose examples keep their lines, with room for the names of flags."""

    def __init__(self, prog: str, **how: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30} | how)


def command_parser(
    name: str, what: str, usage: str, examples: str, hint: Callable[[str], str] = hint_for_argument
) -> Parser:
    """A parser of `raytrain NAME` whose help begins with the group FIRST and ends with `examples`, a line each.

    `usage` follows the command's name in the first line; `hint` is what to say of an unknown argument (see `Parser`).
    """
    parser = Parser(
        f"raytrain {name}",
        what,
        hint,
        usage=f"raytrain {name} {usage}",
        epilog=f"examples:\n{textwrap.indent(examples.strip(), '  ')}",
        formatter_class=_Formatter,
    )
    parser._optionals.title = FIRST  # which has --help
    return parser


def train_parser() -> Parser:
    """The parser of `raytrain train`: the fields of a run, and where its folder is."""
    parser = command_parser(
        "train",
        "One run, alone or under torchrun. Needs neither Ray nor MLflow.",
        "[--preset NAME] [--scale NAME] [--max_iters N] [options]",
        _TRAIN_EXAMPLES,
    )
    add = group(parser, FIRST).add_argument
    for field in _TRAIN_FIRST:
        add_field(add, field)
    add("--name", help="the run's folder [the architecture's name and the time]")
    add("--resume", metavar="RUN", help="continue from the last checkpoint of this run folder")
    add_flags(parser, besides=_TRAIN_FIRST)
    group(parser, RESULTS).add_argument("--runs", default="runs", metavar="FOLDER", help="where runs are kept [runs]")
    return parser


def group(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """The group called `title` in the parser's help, made at its end where there is none."""
    found = [known for known in parser._action_groups if known.title == title]
    return found[0] if found else parser.add_argument_group(title)


def add_flags(parser: argparse.ArgumentParser, besides: Collection[str] = ()) -> None:
    """Every field of a run as `--name value` or `--name=value`, `besides` those that the parser has already."""
    for title in (BUDGET, RUNS_ON, TRAINING, DATA, ARCHITECTURE, OPTIONAL, PLUGINS, RESULTS):
        group(parser, title)  # in this order
    for name in ("preset", "config", "plugin", *_FIELDS):
        if name not in besides:
            add_field(group(parser, _GROUP_OF.get(name, TRAINING)).add_argument, name)
    for name in (*AXES, *SIZES):
        try:
            add_field(group(parser, _group_of_axis(AXES.get(name))).add_argument, name)
        except argparse.ArgumentError:
            raise UserError(f"axis {name!r} has the name of another flag: call it something else") from None


def add_field(add: Add, name: str) -> None:
    """The field `name` of a run, `preset`, `config` or `plugin` as a flag."""
    if name == "plugin":
        _add_plugin(add)
    elif name == "preset":
        add("--preset", metavar="NAME", help=f"architecture to start from: {', '.join(PRESETS)}")
    elif name == "config":
        add("--config", metavar="FILE", help="YAML file of fields of a run; flags override it")
    elif name in _FIELDS:
        field = _FIELDS[name]
        default = "" if field.default in (None, ()) else f" [{field.default}]"
        add(f"--{name}", metavar=_metavar(name), help=f"{field.metadata['help']}{default}")
    else:
        axis = AXES.get(name)
        add(f"--{name}", metavar=_metavar(name), help=_axis_help(axis) if axis else _SIZE_HELP[name])


def add_plugin_flag(parser: argparse.ArgumentParser) -> None:
    """`--plugin`, which `plugins.loader.load_named` has read already when a parser comes to it."""
    _add_plugin(parser.add_argument)


def _add_plugin(add: Add) -> None:
    add("--plugin", action="append", metavar="FILE", help="Python file of levels and axes of your own; may stand twice")


def _group_of_axis(axis: Axis | None) -> str:
    if axis is None or axis.is_required:
        return ARCHITECTURE
    return PLUGINS if axis.plugin else OPTIONAL


def _axis_help(axis: Axis) -> str | None:
    allowed = ", ".join(map(str, axis.levels))
    default = ", ".join(map(str, axis.default)) if isinstance(axis.default, tuple) else axis.default
    usual = "" if axis.is_required else f" [{default}]"
    return (": ".join(filter(None, (axis.help, allowed))) + usual).replace("%", "%%") or None


def _metavar(name: str) -> str:
    """A short word for a field's values, by their type."""
    declared: Any = field_type(name)
    kinds = [kind for kind in typing.get_args(declared) or (declared,) if kind is not type(None)]
    return {bool: "BOOL", int: "N", float: "X"}.get(kinds[0], "VALUE")
