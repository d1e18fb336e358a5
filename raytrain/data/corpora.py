"""Where documents come from: the embedded default corpus, and files, folders and globs that a user names.

The default corpus, `stdlib`, is the source of the running Python's standard library: always there, real, and large
enough (about 12 MB) for small models. It differs between Python versions and a little between distributions; the data
fingerprint distinguishes them.
"""

import functools
import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raytrain.errors import UserError

FORMATS = ("text", "jsonl", "parquet")
STDLIB = "stdlib"

# Endings in lower case; those of files are compared so.
_ENDINGS = dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".jl", ".json"), "jsonl")
_ENDINGS |= dict.fromkeys((".parquet", ".parq", ".pq"), "parquet")
COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_ARCHIVES = {".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".xz", ".lzma", ".7z", ".rar", ".z"}
# Packages installed by someone, tests (which some distributions leave out), and files that the build or the system
# administrator writes, which differ between two machines with the same Python.
_NOT_STDLIB_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
_NOT_STDLIB_FILES = ("_sysconfigdata", "sitecustomize.py", "usercustomize.py")


@dataclass(frozen=True)
class Source:
    """One file of documents.

    `key` names it, with `/`, relative to the folder that all the sources share: the order and the split hang on it, so
    the folder can move. `format` is one of FORMATS, or `whole` for a file that is one document whatever its length.
    """

    key: str
    path: Path
    format: str


def stdlib_sources() -> list[Source]:
    """The default corpus: each `*.py` of the running Python's standard library, sorted by its relative path.

    Without site-packages, dist-packages and every test folder, and without the files that a build generates.
    Raises UserError where the library's source is not installed (a zipped one, for example).
    """
    root = Path(sysconfig.get_path("stdlib"))
    sources = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name not in _NOT_STDLIB_FOLDERS and not name.startswith("config-")]
        for name in files:
            if name.endswith(".py") and not name.startswith(_NOT_STDLIB_FILES):
                path = Path(folder, name)
                sources.append(Source(path.relative_to(root).as_posix(), path, "whole"))
    if not sources:
        raise UserError(f"The source of Python's standard library is not in {root}; give --data a folder instead")
    return sorted(sources, key=lambda source: source.key)


def find_sources(files: Sequence[str], format: str | None = None) -> list[Source]:
    """The sources that `files` names: paths of files, folders, globs, and `stdlib`; sorted by key, each once.

    `format` None goes by the ending in either case, before that of a compression (.gz, .zst, .bz2, .lz4): .parquet;
    .jsonl, .ndjson or .json; anything else is text. Folders are read through links, each folder and each file once
    whatever leads to it; hidden files are left out, and so are those of another `format`.
    Raises UserError for a path or the target of a link that does not exist, an archive, what is no file or cannot be
    read, and a folder or glob that holds nothing to read.
    """
    paths: dict[Path, str] = {}
    sources: list[Source] = []
    for name in files:
        if name == STDLIB:
            sources += stdlib_sources()
            continue
        if os.path.isdir(name):
            matches = [path for path in _files_below(name, set()) if format in (None, _format_of(path))]
        elif os.path.lexists(name):
            matches = [Path(name)]
        else:
            matches = [Path(path) for path in sorted(glob.glob(name, recursive=True)) if not os.path.isdir(path)]
        if not matches:
            kind = f"{format} files" if format else "files"
            raise UserError(f"Nothing to read at {name!r}: no such file or glob, nor a folder with {kind}")
        paths |= {Path(os.path.abspath(path)): format or _format_of(path) for path in matches}
    real: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (path.is_symlink(), path)):  # a file goes by its own name, not a link's
        _check_readable(path, paths[path])
        real.setdefault(os.path.realpath(path), path)
    shared = os.path.commonpath([path.parent for path in real.values()]) if real else ""
    sources += [Source(path.relative_to(shared).as_posix(), path, paths[path]) for path in real.values()]
    return sorted(sources, key=lambda source: source.key)


def _files_below(folder: str | Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """All files but hidden ones, in an order that names alone decide; folders in `seen` are left out, and join it."""
    try:
        facts = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror}") from error
    if (facts.st_dev, facts.st_ino) in seen:  # a link that leads back, or a second one to the same place
        return
    seen.add((facts.st_dev, facts.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_below(entry.path, seen)
        else:
            yield Path(entry.path)


def _check_readable(path: Path, format: str) -> None:
    if format == "archive":
        raise UserError(
            f"{path} is an archive, or compressed in a way that is not read: unpack it, or use one of "
            f"{', '.join(COMPRESSIONS)}"
        )
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there")
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder")


def _format_of(path: Path) -> str:
    """One of FORMATS, or `archive`."""
    *_, before, last = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    if last in _ARCHIVES or (last in COMPRESSIONS and before in _ARCHIVES):
        return "archive"
    return _ENDINGS.get(before if last in COMPRESSIONS else last, "text")


def in_validation(key: str, index: int, fraction: float) -> bool:
    """Whether document `index` of the source `key` is for validation: a fixed rule, whatever else is prepared with it.

    Systematic sampling with a start hashed from the key: the start steps through [0, 1) by `fraction` a document, and
    documents that land below `fraction` are for validation. So a source of one document is drawn with probability
    `fraction`, and a source of n documents gives n * fraction of them to within one.
    """
    step = round(fraction * 2**32)
    return (_start(key) + index * step) % 2**32 < step


@functools.lru_cache(maxsize=16)
def _start(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(key), digest_size=4).digest(), "little")
