"""Token data to train on: the default corpus, a prepared folder, or nanoGPT's two files; all as memory maps."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from raytrain.data.check import contents
from raytrain.data.corpora import STDLIB, stdlib_sources
from raytrain.data.prepare import prepare
from raytrain.data.shards import MANIFEST, SPLITS, FolderExists, Manifest, load_tokenizer, read_manifest
from raytrain.data.tokenizer import Tokenizer
from raytrain.errors import UserError
from raytrain.rundir.cache import cache_folder

_SAMPLES = 64  # chunks of a nanoGPT file that its fingerprint reads
_SAMPLE_BYTES = 1 << 16
_HIGH_HALF = 15  # the upper 16 bits of a token have at most this, in a vocabulary below a million
_LEAST_VALUES = 16  # uint16 values needed to distinguish the types
_LLM_C = (20240520).to_bytes(4, "little")  # how llm.c's files begin, whose tokens come after a header of 1 KB


class Tokens:
    """The tokens of one split: its shards, memory-mapped, as one sequence."""

    def __init__(self, paths: Sequence[Path], dtype: np.dtype) -> None:
        self._paths, self.dtype = list(paths), dtype
        # Views as plain arrays: slicing a np.memmap costs microseconds more each time.
        self._shards = [np.asarray(np.memmap(path, dtype, mode="r")) for path in paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)
        self._first = (self._ends - [len(shard) for shard in self._shards]).tolist()

    def __reduce__(self) -> tuple[type["Tokens"], tuple[list[Path], np.dtype]]:
        return Tokens, (self._paths, self.dtype)  # else pickle would copy all the tokens

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` tokens from each of `starts` (N,): (N, length) int64, across the borders of shards.

        Raises IndexError for a window that does not lie within the split.
        """
        starts = np.asarray(starts, np.int64)
        if len(starts) and not 0 <= starts.min() <= starts.max() <= len(self) - length:
            raise IndexError(f"windows of {length} from {starts.min()} to {starts.max()} in {len(self)} tokens")
        windows = np.empty((len(starts), length), np.int64)
        shard_of = np.searchsorted(self._ends, starts, side="right")
        for window, start, shard in zip(windows, starts.tolist(), shard_of.tolist(), strict=True):
            filled = 0
            while filled < length:
                at = start + filled - self._first[shard]
                piece = self._shards[shard][at : at + length - filled]
                window[filled : filled + len(piece)] = piece
                filled += len(piece)
                shard += 1
        return windows


class Vocabulary(TypedDict):
    """What a run's vocabulary must hold: the number of tokens, where it is known, and the largest id."""

    data_vocab_size: int | None
    largest_token: int


@dataclass(frozen=True)
class Dataset:
    """Train and validation tokens, and what is known of them.

    `fingerprint` (hex) names the content. `vocab_size`, `val_bytes_per_token` (bytes of text per token, for bits per
    byte) and `tokenizer` are None where unknown (nanoGPT's files). `largest_token` is the largest id in either split.
    """

    name: str
    fingerprint: str
    vocab_size: int | None
    train: Tokens
    val: Tokens
    val_bytes_per_token: float | None
    tokenizer: Tokenizer | None
    largest_token: int

    @property
    def vocabulary(self) -> Vocabulary:
        """What a run's vocabulary must hold, as `config.resolve.resolve` takes it."""
        return {"data_vocab_size": self.vocab_size, "largest_token": self.largest_token}


def open_dataset(spec: str) -> Dataset:
    """The data that `spec` names: `stdlib` (built on first use, see `locate`), or the path of a folder.

    The folder is a prepared one, or has nanoGPT's `train.bin` and `val.bin`, of uint16 or uint32. Their
    vocabulary is unknown (the `meta.pkl` beside them is never read: unpickling runs code), and their fingerprint is a
    *sampled* sha256: of each file's size and 64 evenly spaced chunks of 64 KiB, as it was before files were read whole.
    Every file is read whole the first time: a prepared one must have the sha256 that its manifest records.
    Raises UserError, one line, for what is missing, damaged or empty.
    """
    folder = locate(spec)
    name = STDLIB if spec == STDLIB else folder.name
    if (folder / MANIFEST).exists():
        return _prepared(name, folder, read_manifest(folder))
    paths = [folder / f"{split}.bin" for split in SPLITS]
    digest = hashlib.sha256()
    for path in paths:
        _update_sampled(digest, path)
    dtype = _width(paths)
    largest = max(content.largest for content in contents(paths, dtype))
    train, val = (Tokens([path], dtype) for path in paths)
    return Dataset(name, digest.hexdigest(), None, train, val, None, None, largest)


def open_tokenizer(spec: str) -> Tokenizer | None:
    """The tokenizer of the data that `spec` names, whose shards are not read; None for nanoGPT's files.

    Raises UserError as `locate` does, and for a tokenizer that is missing or damaged.
    """
    folder = locate(spec)
    return load_tokenizer(folder, read_manifest(folder)) if (folder / MANIFEST).exists() else None


def _prepared(name: str, folder: Path, manifest: Manifest) -> Dataset:
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    shards = [*manifest.train.shards, *manifest.val.shards]
    files = contents([folder / shard.name for shard in shards], dtype)
    remedy = "delete its folder, and it is made anew" if name == STDLIB else "prepare the data again"
    for shard, content in zip(shards, files, strict=True):
        if content.sha256 != shard.sha256:
            raise UserError(f"The shard {folder / shard.name} is damaged (its sha256 is not its manifest's); {remedy}")
    largest = max(content.largest for content in files)
    if largest >= manifest.vocab_size:
        raise UserError(
            f"{folder / MANIFEST} is damaged: its vocab_size is {manifest.vocab_size}, but the shards hold token "
            f"{largest}; {remedy}"
        )
    train, val = (
        Tokens([folder / shard.name for shard in split.shards], dtype) for split in (manifest.train, manifest.val)
    )
    bytes_per_token = manifest.val.bytes / manifest.val.tokens
    tokenizer = load_tokenizer(folder, manifest)
    return Dataset(name, manifest.fingerprint, manifest.vocab_size, train, val, bytes_per_token, tokenizer, largest)


def locate(spec: str) -> Path:
    """The folder of `spec`. That of `stdlib` is `$RAYTRAIN_CACHE` or `~/.cache/raytrain`, and is made on first use.

    The cached folder is named by the content of the corpus and published by a rename, so processes may race.
    Raises UserError for a path that is no folder, and for a folder that holds no data.
    """
    if spec == STDLIB:
        return _cached_stdlib()
    folder = Path(spec).absolute()
    if not folder.is_dir():
        raise UserError(f"Unknown data: {spec!r} is no folder; give {STDLIB}, or a folder of prepared shards")
    if not (folder / MANIFEST).exists() and not all((folder / f"{split}.bin").exists() for split in SPLITS):
        raise UserError(f"No data in {folder}: neither {MANIFEST} nor train.bin and val.bin; see raytrain.data prepare")
    return folder


def _cached_stdlib() -> Path:
    sources = stdlib_sources()
    digest = hashlib.sha256()
    for source in sources:
        content = source.path.read_bytes()
        digest.update(f"{source.key}\0{len(content)}\0".encode())
        digest.update(content)
    folder = cache_folder().absolute() / f"{STDLIB}-v1-{digest.hexdigest()[:16]}"
    if not folder.exists():
        try:
            prepare(sources, folder)
        except FolderExists:
            pass  # another process was quicker, with the same content
        except UserError as error:
            raise UserError(f"{error} (RAYTRAIN_CACHE chooses another place)") from error
    return folder


def _update_sampled(digest: "hashlib._Hash", path: Path) -> None:
    try:
        size = path.stat().st_size
        if size == 0 or size % 2:
            raise UserError(f"{path} has {size:,} bytes; nanoGPT's format is one or more uint16 tokens")
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for start in np.linspace(0, max(0, size - _SAMPLE_BYTES), _SAMPLES).astype(np.int64):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}") from error


def _width(paths: Sequence[Path]) -> np.dtype:
    """The type of nanoGPT's files: uint32 where every other uint16 is the upper half of a token, else uint16.

    An upper half is 0 in any vocabulary below 65,536 and 15 or less in one below a million, whatever the lower half is.
    In a file of uint16 tokens the two kinds of places hold the same tokens. Raises UserError if the files differ, and
    for formats that share the ending.
    """
    widths = {path: width for path in paths if (width := _width_of(path))}
    if len(set(widths.values())) > 1:
        names = " and ".join(f"{path.name} uint{width}" for path, width in widths.items())
        raise UserError(f"The files in {paths[0].parent} hold different types ({names}); write both as one")
    return np.dtype("<u4" if 32 in widths.values() else "<u2")


def _width_of(path: Path) -> int | None:
    """16 or 32; None where the file does not show it, such as one of zeros alone."""
    sample = Tokens([path], np.dtype("<u2"))
    length = min(len(sample), _SAMPLE_BYTES // 2) // 2 * 2
    starts = np.linspace(0, len(sample) - length, _SAMPLES).astype(np.int64) // 2 * 2
    places = sample.read(starts, length)
    head = places[0, :8].astype("<u2").tobytes()
    if head.startswith((_LLM_C, b"\x93NUMPY")):
        raise UserError(f"{path} begins with the header of another format; nanoGPT's is tokens alone")
    low, high = int(places[:, ::2].max(initial=0)), int(places[:, 1::2].max(initial=0))
    if len(sample) % 2 or high > _HIGH_HALF:
        return 16
    if len(sample) >= _LEAST_VALUES and (low > 255 if high else low):
        return 32
    return None
