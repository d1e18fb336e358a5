"""What launchers leave in the environment is named in one line, and no run waits for ranks that never come."""

import os
import socket
from pathlib import Path

import pytest

from raytrain import train
from raytrain.errors import UserError
from raytrain.training.launch import Launch, forget, launched

FULL = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without a launcher."""
    for name in FULL:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "1"}, "RANK (1) is set in the environment, and WORLD_SIZE is not"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE ('') in the environment is not a number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE ('two')"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE ('-1')"),
        ({"WORLD_SIZE": "0"}, "RANK (0) must be from 0 to below WORLD_SIZE (0)"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE (4) is set in the environment, and RANK, MASTER_ADDR, MASTER_PORT not"),
        (FULL | {"RANK": "4"}, "RANK (4) must be from 0 to below WORLD_SIZE (4)"),
        (FULL | {"MASTER_PORT": "x"}, "MASTER_PORT ('x')"),
        (FULL | {"LOCAL_RANK": ""}, "LOCAL_RANK ('')"),
    ],
)
def test_what_cannot_be_is_one_line(
    variables: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Would catch a traceback, or a run that waits, for variables that an earlier job left behind."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert train.main(["--runs", str(tmp_path / "runs"), "--max_iters", "1"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "for a single run: unset RANK WORLD_SIZE" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_launcher_that_is_gone_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a run that waits ten minutes for the torchrun whose variables a shell still has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (FULL | {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^rank 1 of 4 .* at 127\.0\.0\.1:{port}: .*refused; for"):
        launched()


def test_what_a_launcher_declares_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch ranks that take themselves for another, or for alone."""
    assert launched() == Launch()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert launched() == Launch()
    for name, value in FULL.items():
        monkeypatch.setenv(name, value)
    assert launched() == Launch(1, 4, 1, ("127.0.0.1", 29500))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    forget()
    assert launched() == Launch()
    assert not [name for name in os.environ if name.startswith("TORCHELASTIC_")]
