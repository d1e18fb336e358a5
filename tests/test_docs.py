"""The README and docs/: their commands, YAML examples and links."""

import argparse
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from raytrain import compare, errors, presets, train, tune
from raytrain.__main__ import COMMANDS
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


SMALL = "--max_iters 2 --eval_tokens 256 --n_layer 1 --n_head 2 --n_embd 32 --block_size 32 --global_batch 256"
COMMAND = re.compile(r"(?m)^(?:.*`)?(?:\.venv/bin/)?python -m raytrain\.(\w+)([^`#\n]*)")


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name) for page in PAGES[1:] if "--plan" in page.read_text()]
)
def test_plans(page, tmp_path, monkeypatch, capsys):
    """Would catch: a plan in the docs that parses and cannot be made, of a space as the page has it."""
    monkeypatch.chdir(tmp_path)
    for name in ("docs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for where in (ROOT / "docs" / "sweeps.md", page):
        for text in re.findall(r"(?s)```yaml\n(.*?)```", where.read_text()):
            if named := re.match(r"# (\w+\.yaml)", text):
                Path(named[1]).write_text(text)
    for name, argv in COMMAND.findall(page.read_text()):
        if name == "tune" and "--plan" in argv and "--follow_up" not in argv:
            assert tune.main(shlex.split(argv)) == 0, capsys.readouterr().err
            assert capsys.readouterr().out.startswith("space ")
    assert not (tmp_path / "runs").exists()


def test_single_runs(tmp_path, monkeypatch, capsys):
    """Would catch: a run in the docs that parses and does not train, and a comparison that then finds nothing."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "run.md").read_text()
    commands = COMMAND.findall(page)
    assert [name for name, _ in commands] == ["presets", "train", "train", "compare"]
    for name, argv in commands:
        small = SMALL.split() if name == "train" else []
        assert {"presets": presets, "train": train, "compare": compare}[name].main([*shlex.split(argv), *small]) == 0
    assert "GELU-PostNorm" in capsys.readouterr().out


def test_the_page_of_flags_has_every_command():
    """Would catch: a command or a flag that the site's page of flags leaves out."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.on_page_markdown((ROOT / "docs" / "flags.md").read_text())
    sections = page.split("\n## ")[1:]
    assert [section.split("\n")[0] for section in sections][: len(COMMANDS)] == list(COMMANDS)
    assert all("usage: " in section and "--help" in section for section in sections)
    assert "--tune_extend" in page
    assert "--tokenizer" in page


def test_every_page_is_in_the_site_once():
    """Would catch: a page that no menu leads to, and one that stands in two places of it."""
    nav = re.search(r"(?s)\nnav:\n(.*?)\n\n", (ROOT / "mkdocs.yml").read_text())[1]
    listed = re.findall(r": (\S+\.md)$", nav, re.MULTILINE)
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES[2:]]
    assert sorted(listed) == sorted([*pages, "results/README.md"])
