import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raytrain.engine import lock
from raytrain.engine.lock import study_lock
from raytrain.errors import UserError

ELSEWHERE = json.dumps({"host": "elsewhere", "pid": 1, "started": "1", "since": "noon"})


def never(reason: str) -> None:
    raise AssertionError(reason)


def test_a_second_driver_is_refused_with_the_holder_named(tmp_path: Path) -> None:
    """Would catch two drivers on one study, and a study that nobody can take up after a good end."""
    with study_lock(tmp_path, never):
        with pytest.raises(UserError, match=rf"held by process {os.getpid()} on {socket.gethostname()} since "):
            study_lock(tmp_path, never).__enter__()
        assert (tmp_path / "lock.json").exists()
    with study_lock(tmp_path, never):
        pass
    assert not (tmp_path / "lock.json").exists()


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    """Would catch a study that a kill -9 locks for ever, and a live process of the dead one's number taken for it."""
    code = f"import os; from pathlib import Path; from raytrain.engine.lock import study_lock as h; \
held = h(Path({str(tmp_path)!r}), print); held.__enter__(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    left = json.loads((tmp_path / "lock.json").read_text())
    with study_lock(tmp_path, never):
        pass
    (tmp_path / "lock.json").write_text(json.dumps(left | {"pid": os.getpid()}))
    with study_lock(tmp_path, never):
        pass


def test_a_holder_elsewhere_lives_while_it_beats(tmp_path: Path) -> None:
    """Would catch a driver on another node that is thrown out because its process is not on this one, and a dead one
    that is waited for for ever."""
    path = tmp_path / "lock.json"
    path.write_text(ELSEWHERE)
    with pytest.raises(UserError, match="held by process 1 on elsewhere since noon"):
        study_lock(tmp_path, never).__enter__()
    os.utime(path, (1, 1))
    with study_lock(tmp_path, never):
        pass


def test_two_drivers_that_take_over_from_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch two drivers on one study: both find the holder dead, and the slower removes the other's file."""
    path = tmp_path / "lock.json"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": "0", "since": "noon"}))
    dead_holder = lock._dead_holder

    def then_another_is_quicker(path: Path, name: str) -> str | None:
        dead = dead_holder(path, name)
        path.write_text(ELSEWHERE)
        return dead

    monkeypatch.setattr(lock, "_dead_holder", then_another_is_quicker)
    with pytest.raises(UserError, match="held by process 1 on elsewhere since noon"):
        study_lock(tmp_path, never).__enter__()
    assert path.read_text() == ELSEWHERE
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_driver_that_was_taken_for_dead(tmp_path: Path, has_ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a driver that slept and goes on though another holds its study, or has held it to its end; and one
    that removes another's file."""
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.0)
    path, lost = tmp_path / "lock.json", threading.Event()
    with study_lock(tmp_path, lambda reason: lost.set()):
        if has_ended:
            path.unlink()
        else:
            path.write_text(ELSEWHERE)
        assert lost.wait(60)
    assert path.exists() != has_ended
    assert has_ended or path.read_text() == ELSEWHERE
