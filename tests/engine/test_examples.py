"""The Python API from end to end: the examples, run as they stand."""

import runpy
import sys
from pathlib import Path

import pytest

import raytrain

EXAMPLES = Path(__file__).parents[2] / "examples"
OLD_STUDY = Path(__file__).parents[1] / "fixtures" / "v0_1" / "study"


def test_a_sweep_in_ten_lines(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch an example that no longer runs, a study that is not where `run` says, and one that `resume` trains
    again."""
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(EXAMPLES / "sweep.py"))
    study = names["study"]
    assert list(study.trials["status"]) == ["complete"] * 4
    assert study.folder.parent == tmp_path / "runs"
    assert sorted(study.ranking()["losses"].map(len)) == [2, 2]
    assert study.answer().sentences[0] in " ".join(capsys.readouterr().out.split())  # it may be wrapped
    again = raytrain.resume(study)
    assert "nothing is left to run" in capsys.readouterr().out
    assert again.trials["val_loss"].tolist() == study.trials["val_loss"].tolist()
    code = [line for line in (EXAMPLES / "sweep.py").read_text().splitlines() if line and not line.startswith('"""')]
    assert len(code) <= 10


def test_a_study_of_the_first_version_is_read_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a study of 0.1 that a notebook can no longer read, and a picture that is not drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["read_study.py", str(OLD_STUDY)])
    names = runpy.run_path(str(EXAMPLES / "read_study.py"))
    assert (tmp_path / "effects.png").read_bytes().startswith(b"\x89PNG")
    assert names["effects"]["estimate"].notna().any()
    assert names["study"].is_over
    assert names["study"].answer().sentences[0] in capsys.readouterr().out
