"""Where documents come from: the embedded default corpus, and files, folders and globs that a user names.

The default corpus, `stdlib`, is the source of the running Python's standard library: always there, real, and large
enough (about 12 MB) for small models. It differs between Python versions and a little between distributions; the data
fingerprint distinguishes them.
"""

import collections
import glob
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raytrain.data.saved import saved_entries
from raytrain.data.splits import named_split
from raytrain.errors import UserError, unknown_value

FORMATS = ("text", "jsonl", "parquet", "arrow")
SPLIT_BY = ("names", "text")
STDLIB = "stdlib"

# Endings in lower case; those of files are compared so.
_ENDINGS = dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".jl", ".json"), "jsonl")
_ENDINGS |= dict.fromkeys((".parquet", ".parq", ".pq"), "parquet")
_ENDINGS |= dict.fromkeys((".arrow", ".arrows", ".ipc", ".feather"), "arrow")
COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
OnNote = Callable[[str], None]  # called with a line on what the user should know
_ARCHIVES = {".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".xz", ".lzma", ".7z", ".rar", ".z"}
# Packages installed by someone, tests (which some distributions leave out), and files that the build or the system
# administrator writes, which differ between two machines with the same Python.
_NOT_STDLIB_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
_NOT_STDLIB_FILES = ("_sysconfigdata", "sitecustomize.py", "usercustomize.py")


@dataclass(frozen=True)
class Source:
    """One file of documents.

    `key` names it, with `/`, relative to the folder that all the sources share: the order hangs on it, so the folder
    can move. `format` is one of FORMATS, or `whole` for a file of the default corpus, which is one document whatever
    its length. `split` is `train` or `val` for all the documents of the file, None if each has its own.
    """

    key: str
    path: Path
    format: str
    split: str | None = None


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


def find_sources(
    files: Sequence[str],
    format: str | None = None,
    split_by: str = "names",
    on_note: OnNote = lambda line: print(line, file=sys.stderr),
) -> list[Source]:
    """The sources that `files` names: paths of files, folders, globs, and `stdlib`; sorted by key, each once.

    `format` None goes by the ending in either case, before that of a compression (.gz, .zst, .bz2, .lz4): .parquet;
    .arrow, .feather or .ipc; .jsonl, .ndjson or .json; anything else is text. Folders are read through links, each
    folder and each file once whatever leads to it; hidden files are left out, and so are those of another `format`,
    and in folders that `datasets` wrote what is no data.

    Under `split_by` `names`, where a file is called `train` (see `named_split`), names give the splits: files for
    testing are left out, and so is text beside named files of another format, such as a data set's README; `on_note`
    receives a line on it. Where no file is called so, and under `text`, names count for nothing.
    Raises UserError for a path or the target of a link that does not exist, an archive, what is no file or cannot be
    read, and a folder or glob that holds nothing to read.
    """
    if split_by not in SPLIT_BY:
        raise unknown_value("split_by", split_by, SPLIT_BY)
    found: dict[Path, Source] = {}
    sources: list[Source] = []
    for name in files:
        if name == STDLIB:
            sources += stdlib_sources()
            continue
        matches = _matches(name, format)
        if split_by == "names" and os.path.isdir(name):
            matches = _without_readme(matches)
        if not matches:
            kind = f"{format} files" if format else "files"
            raise UserError(f"Nothing to read at {name!r}: no such file or glob, nor a folder with {kind}")
        found |= {source.path: source for source in matches}
    real: dict[str, Source] = {}
    for path in sorted(found, key=lambda path: (path.is_symlink(), path)):  # a file goes by its own name, not a link's
        _check_readable(path, found[path].format)
        real.setdefault(os.path.realpath(path), found[path])
    shared = os.path.commonpath([source.path.parent for source in real.values()]) if real else ""
    kept = _split_by_names(list(real.values()), on_note) if split_by == "names" else real.values()
    for source in kept:
        split = source.split if split_by == "names" else None
        sources.append(replace(source, key=source.path.relative_to(shared).as_posix(), split=split))
    return sorted(sources, key=lambda source: source.key)


def _matches(name: str, format: str | None) -> list[Source]:
    """The files that `name` leads to, each with the split that its path from there on states, and its path as key."""
    if os.path.isdir(name):
        folder = Path(os.path.abspath(name))
        paths = [path for path in _files_below(folder, set()) if format in (None, _format_of(path))]
        parts = {path: path.relative_to(folder.parent) for path in paths}
    else:
        named = [name] if os.path.lexists(name) else sorted(glob.glob(name, recursive=True))
        parts = {path: Path(path.name) for path in map(_absolute, named) if not path.is_dir()}
    formats = {path: format or _format_of(path) for path in parts}
    return [Source(str(path), path, formats[path], named_split(part, formats[path])) for path, part in parts.items()]


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))


def _without_readme(matches: list[Source]) -> list[Source]:
    """The files of a folder without its texts, if it has tables whose names state splits."""
    if any(source.split == "train" and source.format != "text" for source in matches):
        return [source for source in matches if source.format != "text"]
    return matches


def _split_by_names(sources: list[Source], on_note: OnNote) -> list[Source]:
    """`sources` without those for testing, and each with its split: None is decided by the text of each document."""
    texts_count = all(source.split for source in sources if source.format == "text")
    named = [source if source.format != "text" or texts_count else replace(source, split=None) for source in sources]
    by_split = collections.Counter(source.split for source in named)
    if not by_split["train"]:
        return [replace(source, split=None) for source in sources]
    if by_split["test"] or by_split["val"]:
        on_note(
            f"note: by their names, files for training: {by_split['train']}, validation: {by_split['val']}, "
            f"testing (left out): {by_split['test']}; --split_by text takes no notice of names"
        )
    kept = [source for source in named if source.split != "test"]
    return kept if by_split["val"] else [replace(source, split=None) for source in kept]


def _files_below(folder: str | Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """All files but hidden ones, in an order that names alone decide; folders in `seen` are left out, and join it.

    In a folder that Hugging Face's `datasets` wrote, its data alone.
    """
    try:
        facts = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror}") from error
    if (facts.st_dev, facts.st_ino) in seen:  # a link that leads back, or a second one to the same place
        return
    seen.add((facts.st_dev, facts.st_ino))
    data = saved_entries(Path(folder), {entry.name for entry in entries})
    for entry in entries:
        if entry.name.startswith(".") or (data is not None and entry.name not in data):
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
