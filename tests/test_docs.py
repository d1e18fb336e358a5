"""The README and docs/: their commands, YAML examples and links."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from raytrain import errors
from raytrain.config.resolve import read_file, read_flags, resolve
from raytrain.sweep.space import load_space

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def found(pattern):
    """Each distinct match of `pattern` in the pages, with its page."""
    matches = {(page, match) for page in PAGES for match in re.findall(pattern, page.read_text())}
    assert matches
    return [
        pytest.param(page, match, id=f"{page.name}-{number}") for number, (page, match) in enumerate(sorted(matches))
    ]


class Parsed(Exception):
    """Ends a command when it has read its flags."""


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(("page", "command"), found(r"-m raytrain\.\w+[^`|\n]*"))
def test_commands(monkeypatch, page, command):
    """Would catch: a command in the docs with a flag or a value that the code no longer has."""

    monkeypatch.chdir(ROOT)

    def stop_after(parse):
        def parse_args(parser, args=None, namespace=None):
            raise Parsed(parse(parser, args, namespace))

        return parse_args

    for parser in (argparse.ArgumentParser, errors.Parser):
        monkeypatch.setattr(parser, "parse_args", stop_after(parser.parse_args))
    _, module, *argv = shlex.split(command, comments=True)
    name = f"{module}.__main__" if module in ("raytrain.data", "raytrain.report") else module
    with pytest.raises(Parsed) as stopped:
        importlib.import_module(name).main(argv)
    flags = stopped.value.args[0]
    if module in ("raytrain.train", "raytrain.tune"):
        resolve([("docs", read_flags(flags))])  # raises for a value that cannot be
    if module == "raytrain.tune" and not flags.space.endswith(".yaml"):
        load_space(flags.space, flags.base)


@pytest.mark.parametrize(("page", "example"), found(r"(?s)```yaml\n(?!apiVersion)(.*?)```"))
def test_yaml(tmp_path, page, example):
    """Would catch: an example of a space or of a run's configuration that the code does not take."""
    file = tmp_path / "example.yaml"
    file.write_text(example)
    if "axes:" in example:
        load_space(str(file))
    else:
        resolve([("file", read_file(str(file)))])


@pytest.mark.parametrize(("page", "target"), found(r"\]\(([^)#:]+)[^):]*\)"))
def test_links(page, target):
    """Would catch: a link to a page that was moved or never written."""
    assert (page.parent / target).exists(), f"{page.name} links to {target}"
