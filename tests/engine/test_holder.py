import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raytrain.engine.holder import holding
from raytrain.errors import UserError


def test_a_second_driver_is_refused_with_the_holder_named(tmp_path: Path) -> None:
    """Would catch two drivers on one study, and a study that nobody can take up after a good end."""
    with holding(tmp_path):
        with pytest.raises(UserError, match=rf"held by process {os.getpid()} on {socket.gethostname()} since "):
            holding(tmp_path).__enter__()
        assert (tmp_path / "holder.json").exists()
    with holding(tmp_path):
        pass
    assert not (tmp_path / "holder.json").exists()


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    """Would catch a study that a kill -9 locks for ever, and a live process of the dead one's number taken for it."""
    code = f"import os; from pathlib import Path; from raytrain.engine.holder import holding as h; \
held = h(Path({str(tmp_path)!r})); held.__enter__(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    left = json.loads((tmp_path / "holder.json").read_text())
    with holding(tmp_path):
        pass
    (tmp_path / "holder.json").write_text(json.dumps(left | {"pid": os.getpid()}))
    with holding(tmp_path):
        pass


def test_a_holder_elsewhere_lives_while_it_beats(tmp_path: Path) -> None:
    """Would catch a driver on another node that is thrown out because its process is not on this one, and a dead one
    that is waited for for ever."""
    path = tmp_path / "holder.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1", "since": "noon"}))
    with pytest.raises(UserError, match="held by process 1 on elsewhere since noon"):
        holding(tmp_path).__enter__()
    os.utime(path, (1, 1))
    with holding(tmp_path):
        pass
