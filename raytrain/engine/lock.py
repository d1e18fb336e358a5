"""Who drives a study: one process at a time, known by a file in the study's folder."""

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from raytrain.errors import UserError

_BEAT_SECONDS = 5.0  # how often a driver shows that it lives, by the file's time
_MISSED_BEATS = 2  # in a row without a file, after which it is another's
_DEAD_SECONDS = 60.0  # one on another machine that has not for so long is gone; file systems of clusters are slow


@contextlib.contextmanager
def study_lock(folder: Path, on_loss: Callable[[str], None]) -> Iterator[None]:
    """Hold the study in `folder`. Raises UserError, with the holder named, if another process does.

    A holder on this machine is dead if its process is; one elsewhere, if its file has not been touched for a minute.
    If this one is taken for dead, as a machine that slept may be, `on_loss` is called from a thread, with the reason:
    the study is another's now.
    """
    path = folder / "lock.json"
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "since": since}
    mine = json.dumps(facts | {"key": uuid.uuid4().hex})
    while True:
        try:
            with path.open("x") as file:  # made by one process only, on network file systems too
                file.write(mine)
            break
        except FileExistsError:
            dead = _dead_holder(path, folder.name)
            if dead is not None:
                _remove(path, dead)
    is_over = threading.Event()

    def beat() -> None:
        missed = 0
        while not is_over.wait(_BEAT_SECONDS):
            try:
                missed = 0 if path.read_text() == mine else _MISSED_BEATS
                if not missed:
                    os.utime(path)
            except FileNotFoundError:  # another looks whose it is, or has held the study and ended
                missed += 1
            except OSError:  # the file system's, which may pass
                continue
            if missed >= _MISSED_BEATS:
                on_loss(f"study {folder.name} was taken over by another process")
                return

    thread = threading.Thread(target=beat, name="holder", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        _remove(path, mine)


def _remove(path: Path, text: str) -> None:
    """Remove the holder's file if it is the one with this `text`, and not that of another who took the study since."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)  # by one process only
        if aside.read_text() == text:
            aside.unlink()
        else:
            aside.rename(path)


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that a study's lock names; `is_alive` as far as can be known from this machine."""

    host: str
    pid: int
    since: str
    is_alive: bool

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def holder_of(folder: Path) -> Holder | None:
    """Who drives the study in `folder`, or did when it died; None where none is named, as at the moment of a change."""
    path = folder / "lock.json"
    try:
        return _holder(path.read_text(), time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _dead_holder(path: Path, name: str) -> str | None:
    """What the file of a dead holder says; None if there is no file any more. Raises UserError if the holder lives."""
    try:
        text, age = path.read_text(), time.time() - path.stat().st_mtime
        holder = _holder(text, age)
        if holder is None:  # its writer died at once, or writes now
            time.sleep(1)
            text = path.read_text()
            holder = _holder(text, 0.0)
    except FileNotFoundError:
        return None
    if holder is not None and holder.is_alive:
        raise UserError(f"study {name} is held by {holder}; end that one first")
    return text


def _holder(text: str, age: float) -> Holder | None:
    """The holder in a file that says `text` and was touched `age` seconds ago; None for a text that is not whole."""
    try:
        facts = json.loads(text)
        host, pid, since, started = (facts[name] for name in ("host", "pid", "since", "started"))
    except (ValueError, KeyError, TypeError):
        return None
    is_alive = _started(pid) == started if host == socket.gethostname() else age < _DEAD_SECONDS
    return Holder(host, pid, since, is_alive)


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
