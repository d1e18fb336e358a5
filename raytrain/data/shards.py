"""The prepared folder: token shards, a manifest, and the tokenizer if it has a file.

    train-00000.bin ...   token ids, little-endian uint8, uint16 or uint32 (the smallest that holds the vocabulary)
    val-00000.bin ...     the same for validation
    manifest.json         see Manifest
    tokenizer.json        Hugging Face's format; absent for bytes

Each document is followed by one end-of-document token; documents cross from shard to shard. A folder is written beside
its place and renamed into it, so it is either absent or whole.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from raytrain.data.tokenizer import ByteTokenizer, Tokenizer, encodable, read_tokenizer, sha256_of
from raytrain.errors import UserError, shown
from raytrain.rundir.parse import parse_json
from raytrain.rundir.schema import DATA

SPLITS = ("train", "val")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"

_VERSION = 1
_REMEDY = "prepare the data again"
_LOCK, _REPLACED = ".lock", ".replaced"
_STALE_SECONDS = 60.0  # after which a temporary folder without its lock is nobody's
_BATCH_CHARACTERS = 1 << 20  # documents are encoded together up to this


class FolderExists(UserError):
    """The folder to be written is there already."""


@dataclass(frozen=True)
class Shard:
    """One file of a split."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """`tokens` counts the end-of-document tokens too; `bytes` is the UTF-8 length of the text, without them."""

    documents: int
    tokens: int
    bytes: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds. Nothing in it depends on paths, times or machines."""

    tokenizer: str
    tokenizer_sha256: str | None
    vocab_size: int
    dtype: str
    train: Split
    val: Split
    version: int = _VERSION

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest: equal for equal tokens in equal shards with an equal tokenizer."""
        return sha256_of(json.dumps(asdict(self), sort_keys=True))


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest little-endian unsigned integer that holds ids below `vocab_size`."""
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")


class SplitWriter:
    """Encodes documents in batches and writes them as the shards of one split, of `shard_tokens` tokens each."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self._folder, self._split, self._tokenizer, self._shard_tokens = folder, split, tokenizer, shard_tokens
        self._dtype = dtype_for(tokenizer.vocab_size)
        self._waiting: list[str] = []
        self._waiting_characters = 0
        self._shards: list[Shard] = []
        self._file: BinaryIO | None = None
        self.documents = self.tokens = self.bytes = 0
        self.replaced = 0  # characters that cannot be encoded, or that would end their document

    def add(self, text: str) -> None:
        text, replaced = encodable(text, self._tokenizer.reserved)
        self.replaced += replaced
        self._waiting.append(text)
        self._waiting_characters += len(text)
        if self._waiting_characters >= _BATCH_CHARACTERS:
            self._encode()

    def close(self) -> Split:
        """Write what is left. Raises UserError if there was no document at all."""
        self._encode()
        self._end_shard()
        if not self.documents:
            raise UserError(
                f"No document is for {self._split}: give more documents that differ, or another --val_fraction. Plain "
                "text is cut into several, a line of JSON or a row of a table is one whatever its length"
            )
        return Split(self.documents, self.tokens, self.bytes, tuple(self._shards))

    def _encode(self) -> None:
        end = np.array([self._tokenizer.end_of_document], self._dtype)
        encoded = self._tokenizer.encode_batch(self._waiting)
        if any((ids == end).any() for ids in encoded):
            raise UserError(
                f"The tokenizer {self._tokenizer.name} makes its end-of-document token of plain text, so documents "
                "would end where they do not; use another"
            )
        pieces = [piece for ids in encoded for piece in (ids, end)]
        if pieces:
            self._write(np.concatenate(pieces).astype(self._dtype))
        self.documents += len(self._waiting)
        self.bytes += sum(len(text.encode()) for text in self._waiting)
        self._waiting, self._waiting_characters = [], 0

    def _write(self, tokens: np.ndarray) -> None:
        self.tokens += len(tokens)
        while len(tokens):
            if self._file is None:
                self._name = f"{self._split}-{len(self._shards):05d}.bin"
                self._file = (self._folder / self._name).open("wb")
                self._in_shard, self._sha256 = 0, hashlib.sha256()
            piece = tokens[: self._shard_tokens - self._in_shard]
            self._file.write(piece.data)
            self._sha256.update(piece.data)
            self._in_shard += len(piece)
            tokens = tokens[len(piece) :]
            if self._in_shard == self._shard_tokens:
                self._end_shard()

    def _end_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self._shards.append(Shard(self._name, self._in_shard, self._sha256.hexdigest()))


def write_manifest(folder: Path, tokenizer: Tokenizer, train: Split, val: Split) -> Manifest:
    """Complete a prepared folder: its manifest, and its tokenizer if that has a file."""
    content = tokenizer.to_json()
    if content is not None:
        (folder / TOKENIZER).write_text(content, encoding="utf-8")
    manifest = Manifest(
        tokenizer=tokenizer.name,
        tokenizer_sha256=None if content is None else sha256_of(content),
        vocab_size=tokenizer.vocab_size,
        dtype=dtype_for(tokenizer.vocab_size).name,
        train=train,
        val=val,
    )
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    return manifest


@contextlib.contextmanager
def new_folder(target: Path, overwrite: bool = False, mark: str = MANIFEST) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends, by one rename, and vanishes if the block fails.

    What killed processes have left beside `target` is removed first. `overwrite` replaces a folder that has a file
    called `mark`, and nothing else. Raises FolderExists for a `target` that is there and not empty, before the block
    and, if another process was quicker, after it; UserError if it cannot be written.
    """
    target = Path(os.path.abspath(target))
    name = f".{target.name}.{secrets.token_hex(4)}"
    temporary, replaced = target.with_name(name), target.with_name(f"{name}{_REPLACED}")
    try:
        _remove_stale(target)
        _check_free(target, overwrite, mark)
        temporary.mkdir(parents=True)
        with (temporary / _LOCK).open("wb") as lock:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield temporary
            _check_free(target, overwrite, mark)
            (temporary / _LOCK).unlink()
        if overwrite and target.exists():
            target.rename(replaced)
        try:
            temporary.rename(target)
        except OSError:
            _check_free(target, False, mark)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_stale(target: Path) -> None:
    """Remove the temporary folders of processes that were killed; what one had moved away to replace it comes back."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if not re.fullmatch(rf"[0-9a-f]{{8}}({re.escape(_REPLACED)})?", folder.name[len(target.name) + 2 :]):
            continue
        with contextlib.suppress(OSError):  # another process removes it, or it is another user's
            if folder.name.endswith(_REPLACED):
                shutil.rmtree(folder) if target.exists() else folder.rename(target)
            elif not _is_in_use(folder):
                shutil.rmtree(folder)


def _is_in_use(folder: Path) -> bool:
    """Whether the process that makes `folder` is alive: it holds the lock in it, once it has made that."""
    try:
        with (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime < _STALE_SECONDS
    except BlockingIOError:
        return True


def _check_free(target: Path, overwrite: bool, mark: str) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise FolderExists(f"{target} exists; choose another --out, or --overwrite it")
    if not (target / mark).is_file():
        raise UserError(f"{target} has no {mark}, and --overwrite replaces only what this command has made")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder, checked against the sizes of its files.

    Raises UserError for a damaged manifest, another version's, an empty split, and a missing or truncated shard.
    """
    path = folder / MANIFEST
    try:
        values = parse_json(path.read_bytes())
        version = values.get("version", _VERSION) if isinstance(values, dict) else _VERSION
        manifest = _manifest(values) if version == _VERSION else None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {_REMEDY}") from error
    if manifest is None:
        raise UserError(f"{path} has version {shown(version)}, this raytrain reads {_VERSION}; {_REMEDY}")
    itemsize = np.dtype(manifest.dtype).itemsize
    for split in SPLITS:
        for shard in getattr(manifest, split).shards:
            _check_size(folder / shard.name, shard.tokens * itemsize)
    return manifest


def _manifest(values: Any) -> Manifest:
    """Raises ValueError for what is none."""
    if problem := DATA.problem(values, ""):
        raise ValueError(problem)
    manifest = Manifest(**(values | {split: _split(values[split]) for split in SPLITS}))
    if manifest.dtype != dtype_for(manifest.vocab_size).name:
        raise ValueError(f"dtype {manifest.dtype} for a vocabulary of {manifest.vocab_size}")
    return manifest


def _split(values: dict[str, Any]) -> Split:
    shards = tuple(Shard(**shard) for shard in values["shards"])
    split = Split(**(values | {"shards": shards}))
    if any(Path(shard.name).name != shard.name or shard.tokens < 1 for shard in shards):
        raise ValueError("a shard without tokens, or outside the folder")
    if split.tokens < 1 or split.tokens != sum(shard.tokens for shard in shards):
        raise ValueError(f"{split.tokens} tokens, but the shards have {sum(shard.tokens for shard in shards)}")
    return split


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"Cannot read the shard {path}: {error.strerror}; prepare the data again") from error
    if size != expected:
        raise UserError(
            f"The shard {path} has {size:,} bytes, its manifest records {expected:,}; prepare the data again"
        )


def load_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer:
    """The tokenizer of a prepared folder. Raises UserError if it is not the one that the manifest names."""
    if manifest.tokenizer_sha256 is None:
        return ByteTokenizer()
    tokenizer = read_tokenizer(folder / TOKENIZER)
    if sha256_of(tokenizer.to_json()) != manifest.tokenizer_sha256:
        raise UserError(f"{folder / TOKENIZER} is not the tokenizer of this data; prepare the data again")
    return tokenizer
