import subprocess
import sys

import pytest

from raytrain.errors import shown
from raytrain.report.__main__ import main
from tests.studies import write_study


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    write_study(runs / "first", seeds=2)
    return runs


def test_by_name_and_by_folder(runs, tmp_path, capsys):
    """Would catch: a study found one way alone, a report in the wrong place, or a path printed that is not the page."""
    assert main(["first", "--runs", str(runs)]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("No winner: ")
    assert last == str(runs / "first" / "report" / "index.html")
    assert main([str(runs / "first"), "--out", str(tmp_path / "deep" / "er")]) == 0
    assert (tmp_path / "deep" / "er" / "index.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "deep" / "er" / "summary.md").read_text().startswith("# Study first")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["frist"], "Unknown study in {runs}: 'frist'. Available: first. Did you mean first?"),
        (["a" * 300], f"Unknown study in {{runs}}: {shown('a' * 300)}. Available: first."),
        ([], "the following arguments are required: study"),
        (["first", "--output", "x"], "Unknown argument: --output. Did you mean --out?"),
        (["first", "--out", "/dev/null/x"], "out (/dev/null/x) cannot be written: Not a directory"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(runs, argv, message, capsys):
    """Would catch: a traceback, or an exit code of 0, for a mistake in the command line."""
    assert main([*argv, "--runs", str(runs)]) == 2
    assert capsys.readouterr().err == f"error: {message.format(runs=runs)}\n"


def test_a_folder_that_is_no_study(tmp_path, capsys):
    """Would catch: a traceback for the folder of runs in place of a study's."""
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: study ({tmp_path}) is a folder without a study: it has no study.json\n"


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("{}", "is incomplete: missing name")])
def test_a_damaged_study(text, message, tmp_path, capsys):
    """Would catch: a traceback for a study.json that is cut off, or has not what a study's has."""
    (tmp_path / "study.json").write_text(text)
    assert main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"study.json {message}" in said
    assert said.count("\n") == 1


def test_it_needs_neither_torch_nor_ray_nor_mlflow(runs):
    """Would catch: a report that takes a cluster's packages to write, or seconds to say --help."""
    code = (
        f"import sys; from raytrain.report.__main__ import main; main(['first', '--runs', {str(runs)!r}]); "
        "sys.exit(len({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_function_that_came_through(tmp_path):
    """Would catch: a study without a report, as all trials of all variants but one diverged."""
    diverged = {"status": "diverged", "val_loss": None}
    folder = write_study(
        tmp_path / "one", axes={"bias": (False, True)}, results=lambda index: diverged if index > 1 else {}
    )
    assert main([str(folder)]) == 0
    assert "No effects: all trials with a loss are of one variant" in (folder / "report" / "summary.md").read_text()
