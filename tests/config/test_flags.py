import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from raytrain import tune
from raytrain.config.flags import _GROUP_OF, FIRST, RESULTS, train_parser
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError

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


ROWS = re.findall(
    r"(?m)^\| `python train.py ([^`]*)` \| ([^|]+) \|",
    (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text(),
)


@pytest.mark.parametrize(("argv", "answer"), ROWS)
def test_what_the_page_for_the_predecessor_s_users_says(argv, answer):
    """Would catch: a row of docs/coming_from.md that states another answer than the command gives."""
    with pytest.raises(UserError) as caught:
        train_parser().parse_args(argv.split())
    assert str(caught.value).endswith(f". {answer}")


def test_the_page_has_rows():
    """Would catch: a table whose rows the test above no longer finds."""
    assert len(ROWS) == 8
