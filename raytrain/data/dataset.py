"""Token data to train on: the default corpus, a prepared folder, or nanoGPT's two files; all as memory maps."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raytrain.data.corpora import STDLIB, stdlib_sources
from raytrain.data.prepare import prepare
from raytrain.data.shards import MANIFEST, SPLITS, FolderExists, load_tokenizer, read_manifest
from raytrain.data.tokenizer import Tokenizer
from raytrain.errors import UserError
from raytrain.rundir.cache import cache_folder

_SAMPLES = 64  # chunks of a nanoGPT file that its fingerprint reads
_SAMPLE_BYTES = 1 << 16


class Tokens:
    """The tokens of one split: its shards, memory-mapped, as one sequence."""

    def __init__(self, paths: Sequence[Path], dtype: np.dtype) -> None:
        self._paths, self._dtype = list(paths), dtype
        # Views as plain arrays: slicing a np.memmap costs microseconds more each time.
        self._shards = [np.asarray(np.memmap(path, dtype, mode="r")) for path in paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)
        self._first = (self._ends - [len(shard) for shard in self._shards]).tolist()

    def __reduce__(self) -> tuple[type["Tokens"], tuple[list[Path], np.dtype]]:
        return Tokens, (self._paths, self._dtype)  # else pickle would copy all the tokens

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


@dataclass(frozen=True)
class Dataset:
    """Train and validation tokens, and what is known of them.

    `fingerprint` (hex) names the content. `vocab_size`, `val_bytes_per_token` (bytes of text per token, for bits per
    byte) and `tokenizer` are None where unknown (nanoGPT's files).
    """

    name: str
    fingerprint: str
    vocab_size: int | None
    train: Tokens
    val: Tokens
    val_bytes_per_token: float | None
    tokenizer: Tokenizer | None


def open_dataset(spec: str) -> Dataset:
    """The data that `spec` names: `stdlib` (built on first use, see `locate`), or the path of a folder.

    The folder is a prepared one, or has nanoGPT's `train.bin` and `val.bin`: flat uint16, read as they are, whose
    vocabulary is unknown (the `meta.pkl` beside them is never read: unpickling runs code). Their fingerprint is a
    *sampled* sha256: of each file's size and 64 evenly spaced chunks of 64 KiB, since whole files may have many GB.
    Raises UserError, one line, for what is missing, damaged or empty.
    """
    folder = locate(spec)
    name = STDLIB if spec == STDLIB else folder.name
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        train, val = (
            Tokens([folder / shard.name for shard in split.shards], dtype) for split in (manifest.train, manifest.val)
        )
        bytes_per_token = manifest.val.bytes / manifest.val.tokens
        tokenizer = load_tokenizer(folder, manifest)
        return Dataset(name, manifest.fingerprint, manifest.vocab_size, train, val, bytes_per_token, tokenizer)
    paths = [folder / f"{split}.bin" for split in SPLITS]
    digest = hashlib.sha256()
    for path in paths:
        _update_sampled(digest, path)
    train, val = (Tokens([path], np.dtype("<u2")) for path in paths)
    return Dataset(name, digest.hexdigest(), None, train, val, None, None)


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
