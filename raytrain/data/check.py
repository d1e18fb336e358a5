"""What the bytes of a data file are: read whole once, and remembered by the file's place, size and time."""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raytrain.errors import UserError
from raytrain.rundir.cache import cache_folder
from raytrain.rundir.folders import read_json, write_json
from raytrain.rundir.private import private_folder

_CHUNK_BYTES = 1 << 22
_THREADS = 8  # hashing leaves the interpreter's lock
_NOTED_BYTES = 4 << 30  # from here on a first reading takes so long that it is announced


@dataclass(frozen=True)
class Content:
    """The sha256 (hex) of a file, and the largest token in it."""

    sha256: str
    largest: int


def contents(paths: Sequence[Path], dtype: np.dtype) -> list[Content]:
    """What is in `paths`, files of one folder that hold tokens of `dtype`.

    Each is read once for as long as its size and time of change stay: answers are kept in the cache folder. Where that
    cannot be written, each process reads anew. Raises UserError for a file that cannot be read.
    """
    folder = paths[0].parent.resolve()
    place = hashlib.sha256(f"{folder}\0{dtype.str}".encode(errors="surrogateescape")).hexdigest()[:16]
    with _kept(place) as kept:
        stamps = {path.name: _stamp(path) for path in paths}
        known = {name: kept[name] for name, stamp in stamps.items() if kept.get(name, {}).get("stamp") == stamp}
        missing = [path for path in paths if path.name not in known]
        if sum(stamps[path.name][0] for path in missing) > _NOTED_BYTES:
            print(f"reading the data in {folder} once, to know that it is whole", file=sys.stderr)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for path, content in zip(missing, pool.map(lambda path: _read(path, dtype), missing), strict=True):
                known[path.name] = {"stamp": stamps[path.name], "sha256": content.sha256, "largest": content.largest}
        kept.update(known)
    return [Content(known[path.name]["sha256"], known[path.name]["largest"]) for path in paths]


def _stamp(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}") from error
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _read(path: Path, dtype: np.dtype) -> Content:
    digest, largest = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                tokens = np.frombuffer(chunk[: len(chunk) // dtype.itemsize * dtype.itemsize], dtype)
                largest = max(largest, int(tokens.max(initial=0)))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}") from error
    return Content(digest.hexdigest(), largest)


@contextlib.contextmanager
def _kept(place: str) -> Iterator[dict[str, dict[str, Any]]]:
    """What was kept at `place`; what the block adds is kept. The ranks of a machine read a file one after another."""
    try:
        folder = private_folder(cache_folder() / "checked", "cache", "RAYTRAIN_CACHE chooses another place")
    except UserError:  # what others may have written proves nothing
        yield {}
        return
    path, kept = folder / f"{place}.json", {}
    with contextlib.ExitStack() as at_end:
        with contextlib.suppress(OSError):
            lock = at_end.enter_context((folder / f"{place}.lock").open("wb"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(UserError):
            kept = {name: facts for name, facts in read_json(path).items() if isinstance(facts, dict)}
        before = json.dumps(kept)
        yield kept
        if json.dumps(kept) != before:
            with contextlib.suppress(OSError):
                write_json(path, kept)
