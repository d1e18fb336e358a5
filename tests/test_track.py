import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raytrain import track
from raytrain.config.resolve import resolve
from raytrain.engine.journal import StudyJournal
from raytrain.sweep.trial import AssignedTrial
from tests.studies import write_study


def test_sync_again_adds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a study that is doubled by a second sync, and trials that stay RUNNING after their study ended."""
    config = resolve([("test", {"max_iters": 1, "checkpoint_interval": None})], data_vocab_size=256)[0]
    trials = [AssignedTrial("t", ("t",), config)]
    about = {"name": "s", "space": "presets", "base": "gpt2", "scale": "tiny", "created": "2026-01-01T00:00:00+00:00"}
    about |= {"command": "c", "git_commit": None, "versions": {}, "budget_flops": 1, "axes": {}}
    about["counts"] = dict.fromkeys(("points", "programs", "variants", "trials"), 1)
    (tmp_path / "s").mkdir()
    about |= {"baseline": {}, "trials": [trial.to_dict() for trial in trials]}
    (tmp_path / "s" / "study.json").write_text(json.dumps(about))
    record = StudyJournal(tmp_path / "s", trials)
    segment = record.schedule.next()
    assert segment is not None
    record.begin(segment)
    record.take("t", {"event": "start", "time": 1.0}, "lane")
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    flags = ["sync", "s", "--runs", str(tmp_path), "--tracking_uri", uri]
    assert not track.main(flags)
    record.take("t", {"event": "end", "status": "complete", "val_loss": 1.0, "time": 2.0}, "lane")
    for _ in range(2):
        assert not track.main(flags)
    assert f"s is in {uri}; to compare: mlflow ui" in capsys.readouterr().out
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("sync nothing", "Unknown name in {runs}: 'nothing'. Available: "),
        ("sync ../s", "Unknown name in {runs}: '../s'"),
        (f"sync {'a' * 300}", "Unknown name in {runs}: 'aaa"),
        ("sync empty", "study.json is incomplete: missing name, space"),
        ("synk s", "invalid choice: 'synk'"),
    ],
)
def test_mistakes(flags: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a traceback, or an experiment made for a study that is not there."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "study.json").write_text("{}")
    assert track.main([*flags.split(), "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words.format(runs=tmp_path) in said
    assert said.count("\n") == 1


def test_a_database_that_is_locked_and_an_experiment_that_is_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a traceback for a database that another process holds, and for an experiment that was deleted, of
    which nobody says how it comes back."""
    write_study(tmp_path / "s", seeds=1, points=1)
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    flags = ["sync", "s", "--runs", str(tmp_path), "--tracking_uri"]
    assert not track.main([*flags, uri])
    with contextlib.closing(sqlite3.connect(tmp_path / "m.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        capsys.readouterr()
        assert track.main([*flags, f"{uri}?timeout=0.1"]) == 2
        said = capsys.readouterr().err
    assert "another process holds the database locked; end it, or try again later" in said
    assert said.count("\n") == 1
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    assert track.main([*flags, uri]) == 2
    said = capsys.readouterr().err
    assert "experiment s is deleted in MLflow" in said
    assert f"mlflow experiments restore --experiment-id {experiment.experiment_id}" in said
    assert said.count("\n") == 1
    client.restore_experiment(experiment.experiment_id)
    assert not track.main([*flags, uri])
