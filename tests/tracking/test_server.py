"""A study and a tracking server that asks for a password."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from raytrain import track
from tests.studies import write_study
from tests.tracking import server


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of one server for all tests."""
    folder = tmp_path_factory.mktemp("server")
    # Nothing of a test's own: the parent's settings would reach its store.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, server.__file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = f"http://127.0.0.1:{int(process.stdout.readline())}"
            assert urllib.request.urlopen(f"{address}/health", timeout=60).status == 200
            yield address
        finally:
            process.kill()


def sync(folder: Path, address: str) -> int | None:
    return track.main(["sync", folder.name, "--runs", str(folder.parent), "--tracking_uri", address])


def test_a_server_with_a_password(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: a study that no server with a password takes, whole, with its artifacts, or twice; a wrong password
    that is a traceback, or is printed; and one that leaves something behind there."""
    folder = write_study(tmp_path / "guarded", points=2, experiment="question")
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("the report")
    for password in ("wrong battery", None):
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
        if password is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", server.USER)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        assert sync(folder, address) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"tracking_uri ({address}) does not take the results" in said
        assert "another user or password: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD (401)" in said
        assert "battery" not in said

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", server.USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", server.PASSWORD)
    for _ in range(2):
        assert sync(folder, address) == 0
    assert address in capsys.readouterr().out
    client = mlflow.MlflowClient(address)
    (experiment,) = client.search_experiments(filter_string="name = 'question'")
    runs = {run.data.tags["raytrain.trial"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["", "t0", "t1", "t2", "t3"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    held = client.download_artifacts(runs[""].info.run_id, "report/index.html", str(tmp_path))
    assert Path(held).read_text() == "the report"
