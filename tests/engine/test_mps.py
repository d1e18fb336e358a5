"""The service that lets lanes share a GPU, with a script in place of NVIDIA's program."""

import os
from pathlib import Path

import pytest

from raytrain.engine import mps

CONTROL = """#!/bin/sh
echo "$@ $(cat) ${CUDA_VISIBLE_DEVICES-all}" >> "$CALLS"
exit ${CODE:-0}
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the service's program, first on the path, was called with."""
    program = tmp_path / "nvidia-cuda-mps-control"
    program.write_text(CONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for variable in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "RAYTRAIN_MPS"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "calls").touch()
    return tmp_path / "calls"


def test_a_service_runs_for_as_long_as_lanes_may(calls: Path, tmp_path: Path) -> None:
    """Would catch: a service that outlives its study, one where other users could reach it, lanes that are not told of
    it, and one that numbers GPUs otherwise than they do."""
    with mps.sharing(tmp_path / "private"):
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "private" / "pipe")
        assert (tmp_path / "private" / "log").is_dir()
        assert calls.read_text().split() == ["-d", "all"]
    assert not mps.is_on()
    assert calls.read_text().split() == ["-d", "all", "quit", "all"]


def test_without_a_service_lanes_take_turns(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch lanes that wait for a service which did not start, was not wanted, or is the user's own to end."""
    monkeypatch.setenv("CODE", "1")
    with mps.sharing(tmp_path / "failed"):
        assert not mps.is_on()
    monkeypatch.setenv("RAYTRAIN_MPS", "0")
    with mps.sharing(tmp_path / "unwanted"):
        assert not mps.is_on()
    monkeypatch.delenv("RAYTRAIN_MPS")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "mine")
    with mps.sharing(tmp_path / "given"):
        pass
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == "mine"
    assert calls.read_text().split() == ["-d", "all"]
