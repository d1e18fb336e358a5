"""Where documents come from: the embedded default corpus, and text, JSON-lines and Parquet files, read as streams.

The default corpus, `stdlib`, is the source of the running Python's standard library: always there, real, and large
enough (about 12 MB) for small models. It differs between Python versions and a little between distributions; the data
fingerprint tells them apart.
"""

import codecs
import contextlib
import functools
import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from raytrain.errors import UserError, unknown_value

FORMATS = ("text", "jsonl", "parquet")
STDLIB = "stdlib"

_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_READ_BYTES = 1 << 20  # files are read in blocks of about this
_PARQUET_ROWS = 1 << 14  # at most, of a batch: sizes in the file are those before dictionaries are expanded
_PIECE = 1 << 16  # characters: a longer text file becomes several documents
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

    `format` None goes by the ending, before that of a compression (.gz, .zst, .bz2, .lz4): .parquet; .jsonl, .ndjson
    or .json; anything else is text. In a folder, hidden files are left out, and so are those of another `format`.
    Raises UserError for a path that does not exist and for a folder or glob that holds nothing to read.
    """
    paths: dict[Path, str] = {}
    sources: list[Source] = []
    for name in files:
        if name == STDLIB:
            sources += stdlib_sources()
            continue
        if os.path.isdir(name):
            found = [path for path in _files_below(name) if format in (None, _format_of(path))]
        elif os.path.exists(name):
            found = [Path(name)]
        else:
            found = [Path(path) for path in glob.glob(name, recursive=True) if os.path.isfile(path)]
        if not found:
            kind = f"{format} files" if format else "files"
            raise UserError(f"Nothing to read at {name!r}: no such file or glob, nor a folder with {kind}")
        paths |= {Path(os.path.abspath(path)): format or _format_of(path) for path in found}
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    sources += [Source(path.relative_to(shared).as_posix(), path, kind) for path, kind in paths.items()]
    return sorted(sources, key=lambda source: source.key)


def _files_below(folder: str) -> Iterator[Path]:
    for at, below, files in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(at, name) for name in files if not name.startswith("."))


def _format_of(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix in _COMPRESSED else path
    return _ENDINGS.get(plain.suffix, "text")


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


def read_documents(source: Source, column: str) -> Iterator[tuple[list[str | None], float]]:
    """Batches of the documents of `source`, in order, each with the fraction of the file read so far; bounded memory.

    text: UTF-8; one document a file, but a file longer than 65,536 characters becomes several of at most that many,
    cut at line ends (a document must end somewhere to be split, and memory is bounded). jsonl and parquet: the string
    `column` of each line or row, None where it is null.
    Raises UserError for a file that cannot be read and for a column that is not there.
    """
    try:
        yield from _READERS[source.format](source.path, column)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {source.path} as {source.format}: {str(error).splitlines()[0]}") from error


def _read_whole(path: Path, column: str) -> Iterator[tuple[list[str | None], float]]:
    yield [path.read_bytes().decode()], 1.0


def _read_text(path: Path, column: str) -> Iterator[tuple[list[str | None], float]]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = ""
    with _open(path) as (raw, stream):
        while block := stream.read(_READ_BYTES):
            pieces, rest = _cut(rest + decoder.decode(block))
            yield pieces, raw.tell() / raw.size()
        decoder.decode(b"", final=True)
    yield [rest], 1.0


def _cut(text: str) -> tuple[list[str | None], str]:
    """Full pieces of `text` and the rest of it. Where the cuts fall does not depend on how the text was read."""
    pieces: list[str | None] = []
    start = 0
    while len(text) - start > _PIECE:
        end = text.rfind("\n", start, start + _PIECE) + 1 or start + _PIECE
        pieces.append(text[start:end])
        start = end
    return pieces, text[start:]


def _read_jsonl(path: Path, column: str) -> Iterator[tuple[list[str | None], float]]:
    # Parsed block by block: pyarrow's own streaming reader reads ahead 32 blocks, and a line must fit in a block.
    # The schema is given, so that a column's type cannot change between blocks, and the other columns are not built.
    options = pyarrow.json.ParseOptions(
        explicit_schema=pa.schema([(column, pa.string())]), unexpected_field_behavior="ignore"
    )
    done = 0
    for lines, fraction in _line_blocks(path):
        block = pyarrow.json.ReadOptions(block_size=len(lines) + 1)
        try:
            texts = pyarrow.json.read_json(pa.BufferReader(lines), block, options).column(0)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(f"in the lines from {done + 1:,}: {error}") from error
        if done == 0 and texts.null_count == len(texts):
            keys = json.loads(lines.strip().split(b"\n", 1)[0])
            if column not in keys:
                raise unknown_value(f"column of {path}", column, keys)
        done += len(texts)
        yield texts.to_pylist(), fraction


def _line_blocks(path: Path) -> Iterator[tuple[bytes, float]]:
    """Blocks of whole lines, none of them blank: about _READ_BYTES each, or one longer line."""
    rest = b""
    with _open(path) as (raw, stream):
        while block := stream.read(_READ_BYTES):
            lines, _, rest = (rest + block).rpartition(b"\n")
            if lines.strip():
                yield lines, raw.tell() / raw.size()
    if rest.strip():
        yield rest, 1.0


def _read_parquet(path: Path, column: str) -> Iterator[tuple[list[str | None], float]]:
    # A buffer, and no pre-buffering: pages are read as they are needed, not whole column chunks.
    with pyarrow.parquet.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
        schema, groups = file.schema_arrow, [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        if column not in schema.names:
            raise unknown_value(f"column of {path}", column, schema.names)
        kind = schema.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"Column {column} of {path} holds {kind}, not strings")
        sizes = [group.column(i) for group in groups for i in range(group.num_columns)]
        text_bytes = sum(chunk.total_uncompressed_size for chunk in sizes if chunk.path_in_schema == column)
        rows, done = file.metadata.num_rows, 0
        batch_rows = min(max(1, _READ_BYTES * rows // max(text_bytes, 1)), _PARQUET_ROWS)
        for batch in file.iter_batches(batch_rows, columns=[column]):
            done += len(batch)
            yield batch.column(0).to_pylist(), done / rows


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[pa.NativeFile, pa.NativeFile]]:
    """The file as it is, whose position tells the progress, and its decompressed stream."""
    with (
        pa.OSFile(str(path)) as raw,
        pa.input_stream(raw, compression=_COMPRESSED.get(path.suffix)) as stream,
    ):
        yield raw, stream


_READERS = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet, "whole": _read_whole}
