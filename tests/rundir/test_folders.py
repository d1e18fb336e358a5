"""The folders of runs and studies."""

import json
import os
import threading
from pathlib import Path

import pytest

from raytrain import compare, generate, replay, track
from raytrain.errors import UserError
from raytrain.report.__main__ import main as report
from raytrain.rundir.folders import find_study, in_runs, read_json, read_study_json, tracking_address, write_json
from raytrain.training.storage import open_storage
from tests.studies import write_study


def study_with(folder: Path, **fields: object) -> Path:
    """A study of two trials in `folder`, with other `fields` in its study.json."""
    return write_study(folder, points=1, seeds=2, **fields)


def test_counts_of_an_old_study(tmp_path: Path) -> None:
    """Would catch a study of an earlier version, whose variants are `functions`, that no command reads any more."""
    study_with(tmp_path, counts={"points": 9, "programs": 6, "functions": 3, "trials": 4})
    expected = {"points": 9, "programs": 6, "variants": 3, "trials": 4}
    assert list(read_study_json(tmp_path)["counts"].items()) == list(expected.items())


@pytest.mark.parametrize("wrong", ["../../up", "/etc", "", ".hidden", None, {"a": 1}])
def test_an_id_that_leads_out_of_the_study_is_refused(wrong: object, tmp_path: Path) -> None:
    """Would catch a study.json from elsewhere that has files of other folders read, overwritten or deleted."""
    first, second = json.loads((study_with(tmp_path / "a") / "study.json").read_text())["trials"]
    study_with(tmp_path / "b", trials=[first, second | {"id": wrong}])
    with pytest.raises(UserError, match=r"study\.json is damaged: trials\[1\]\.id \(.*\) must be a name of letters"):
        read_study_json(tmp_path / "b")


def test_a_link_at_a_partial_file_is_not_followed(tmp_path: Path) -> None:
    """Would catch another file overwritten through a link that lies where ours is written first."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f".a.json.{os.getpid()}-{threading.get_ident()}.partial").symlink_to(tmp_path / "mine")
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert (tmp_path / "mine").read_text() == "mine"


def test_secrets_of_an_older_study_are_not_read(tmp_path: Path) -> None:
    """Would catch a password that an older study.json holds in a report or in MLflow."""
    study_with(tmp_path, command="tune --tracking_uri http://me:SECRET@host")
    assert read_study_json(tmp_path)["command"] == "tune --tracking_uri http://***@host"


def test_the_id_of_a_trial_that_differs_in_a_field(tmp_path: Path) -> None:
    """Would catch a study over learning rates, whose ids say them, called damaged."""
    first, second = json.loads((study_with(tmp_path / "a") / "study.json").read_text())["trials"]
    study_with(tmp_path / "b", trials=[first, second | {"id": "4L-RoPE-f87b23-learning_rate=0.003-s1"}])
    assert read_study_json(tmp_path / "b")["trials"][1]["id"].endswith("=0.003-s1")


def test_names_that_are_no_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a traceback where a file's name, or text that came from one, is not UTF-8: a study's results and
    its command, the table to replay, a folder of runs, and weights."""
    odd = tmp_path / "caf\udce9"
    study = write_study(odd / "study", points=2, results=lambda _: {"data": "caf\udce9"}, command="--data caf\udce9")
    assert compare.main([str(study)]) == 0
    assert report([str(study), "--out", str(odd / "report")]) == 0
    assert "caf\\udce9" in (odd / "report" / "summary.md").read_text()
    assert replay.main([str(odd / "table.parquet"), "--export", str(study)]) == 0
    assert replay.main([str(odd / "table.parquet"), "--replays", "2"]) == 0
    assert generate.main([str(odd / "study" / "trials" / "t0")]) == 2
    with pytest.raises(UserError, match="must be in UTF-8"):
        open_storage(odd)
    for uri in (None, "http://host"):  # whose artifacts would come into another folder
        with pytest.raises(UserError, match=r"runs .* must be in UTF-8"):
            tracking_address(odd, uri)
    broken = json.loads((study / "study.json").read_text())
    broken["trials"][0]["config"]["architecture"]["normalization"] = 3
    (study / "study.json").write_text(json.dumps(broken))
    assert replay.main([str(odd / "table.parquet"), "--export", str(study)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_name_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a name that is looked for in the working directory first, and a path looked for among the runs."""
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    for folder in (runs / "s", Path("s"), Path("t"), runs / "empty"):
        folder.mkdir(parents=True)
        if folder.name != "empty":
            (folder / "study.json").write_text("{}")
    for given, folder in (
        ("s", runs / "s"),
        ("./s", Path("s")),
        ("t", Path("t")),
        (tmp_path / "s", tmp_path / "s"),
    ):
        assert find_study(given, runs) == in_runs(given, runs) == folder
    for given, words in (
        ("empty", r"study \(empty\) is a folder without a study"),
        ("u", "Unknown study in runs: 'u'. Available: s"),
        ("../s", "Unknown study"),
        ("a" * 300, "Unknown study"),
    ):
        with pytest.raises(UserError, match=words):
            find_study(given, runs)


@pytest.mark.parametrize("is_name", [True, False])
def test_every_command_takes_a_name_or_a_path(
    is_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a command that takes a study by its name alone, or by its folder alone."""
    folder = write_study(tmp_path / "runs" / "study")
    monkeypatch.chdir(tmp_path)
    study, runs = ("study", ["--runs", str(folder.parent)]) if is_name else (str(folder), [])
    assert compare.main([study, *runs]) == 0
    assert report([study, *runs]) == 0
    assert replay.main([str(tmp_path / "table.parquet"), "--export", study, *runs]) == 0
    assert replay.main([study, *runs, "--replays", "2"]) == 0
    assert track.main(["sync", study, *runs, "--tracking_uri", f"sqlite:///{tmp_path}/m.db"]) == 0
    assert "error" not in capsys.readouterr().err
