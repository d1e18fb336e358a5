"""Who drives a study: one process at a time, known by a file in the study's folder."""

import contextlib
import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from raytrain.errors import UserError

_BEAT_SECONDS = 5.0  # how often a driver shows that it lives, by the file's time
_DEAD_SECONDS = 60.0  # one on another machine that has not for so long is gone; file systems of clusters are slow


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold the study in `folder`. Raises UserError, with the holder named, if another process does.

    A holder on this machine is dead if its process is; one elsewhere, if its file has not been touched for a minute.
    """
    path = folder / "holder.json"
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    while True:
        try:
            with path.open("x") as file:  # made by one process only, on network file systems too
                json.dump(mine | {"since": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}, file)
            break
        except FileExistsError:
            _check_dead(path, folder.name)
            path.unlink(missing_ok=True)
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="holder", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        path.unlink(missing_ok=True)


def _check_dead(path: Path, name: str) -> None:
    try:
        holder, age = json.loads(path.read_text()), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return
    except ValueError:  # its writer died at once, or writes now
        time.sleep(1)
        try:
            holder, age = json.loads(path.read_text()), 0.0
        except (OSError, ValueError):
            return
    here = holder["host"] == socket.gethostname()
    if _started(holder["pid"]) == holder["started"] if here else age < _DEAD_SECONDS:
        raise UserError(
            f"study {name} is held by process {holder['pid']} on {holder['host']} since {holder['since']}; "
            "end that one first"
        )


def _started(pid: int) -> str | None:
    """When a process of this machine began, so that another with its number is not taken for it; None if it is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        if Path("/proc/self").exists():
            return None
    try:  # no /proc on this system: the number has to do
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
