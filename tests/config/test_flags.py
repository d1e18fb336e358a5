import dataclasses
import re
import shlex

import pytest

from raytrain import tune
from raytrain.config.flags import _GROUP_OF, FIRST, RESULTS, train_parser
from raytrain.config.run import TrainConfig

PARSERS = [pytest.param(train_parser, id="train"), pytest.param(tune._parser, id="tune")]


@pytest.mark.parametrize("made", PARSERS)
def test_help_begins_with_what_matters(made):
    """Would catch: a usage of sixty lines, the ten flags pushed down by a further group, a flag in no named group."""
    usage, _, *rest = made().format_help().splitlines()
    assert usage.startswith("usage: raytrain t")
    assert usage.endswith("[options]")
    titles = [line.removesuffix(":") for line in rest if re.fullmatch(r"[a-z].*:", line)]
    assert titles[0] == FIRST
    assert titles[-2:] == [RESULTS, "examples"]
    assert "options" not in titles
    (first,) = (group for group in made()._action_groups if group.title == FIRST)
    assert len(first._group_actions) == 11  # with --help


@pytest.mark.parametrize("made", PARSERS)
def test_every_flag_is_explained(made):
    """Would catch: a flag whose help is empty."""
    assert [action.dest for action in made()._actions if not action.help] == []


@pytest.mark.parametrize("made", PARSERS)
def test_the_examples_are_commands(made):
    """Would catch: an example with a flag that is no more."""
    for line in made().epilog.splitlines()[1:]:
        _, _, argv = line.partition(f"-m raytrain.{made().prog.split()[1]}")
        made().parse_args(shlex.split(argv, comments=True))


def test_groups_name_fields_that_exist():
    """Would catch: a field that was renamed, and fell into another group."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    assert _GROUP_OF.keys() - known == {"preset", "config", "plugin"}
