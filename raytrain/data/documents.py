"""Documents of text, JSON-lines, Parquet and Arrow files, read as streams in bounded memory.

A lone surrogate (half of a pair that UTF-16 writes one character with) is no character and has no UTF-8. Text is
yielded with it all the same: who encodes it decides what takes its place, and counts.
"""

import codecs
import contextlib
import json
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet

from raytrain.data.corpora import COMPRESSIONS, Source
from raytrain.errors import UserError, short, shown, unknown_value

_READ_BYTES = 1 << 20  # files are read in blocks of about this
_LINE_BYTES = 1 << 27  # that a line of JSON may have: it is held whole, several times over
_PARQUET_ROWS = 1 << 14  # at most, of a batch: sizes in the file are those before dictionaries are expanded
_ARROW_FILE = b"ARROW1"  # how a file begins, and a stream does not
_PIECE = 1 << 16  # characters: a longer text file becomes several documents

Documents = list[str | None]
Batches = Iterator[tuple[Documents, float]]


def read_documents(source: Source, column: str) -> Batches:
    """Batches of the documents of `source`, in order, each with the fraction of the file read so far; bounded memory.

    text: UTF-8; one document a file, but a file longer than 65,536 characters becomes several of at most that many,
    cut at line ends (a document must end somewhere to be split, and memory is bounded). jsonl, parquet and arrow: the
    string `column` of each line or row, None where it is null; `doc.text` is the field `text` of the column `doc`. An
    arrow file is an IPC file or stream; Hugging Face's `datasets` writes streams, Feather (version 2) is a file.
    Raises UserError for a file that cannot be read, a column that is not there, and a line above 128 MiB.
    """
    try:
        yield from _READERS[source.format](source.path, column)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = short(str(error).partition("\n")[0], 300)
        raise UserError(f"Cannot read {source.path} as {source.format}: {reason}") from error


def _read_whole(path: Path, column: str) -> Batches:
    yield [path.read_bytes().decode()], 1.0


def _read_text(path: Path, column: str) -> Batches:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
    rest = ""
    with _open(path) as (raw, stream):
        while block := stream.read(_READ_BYTES):
            pieces, rest = _cut(rest + decoder.decode(block))
            yield pieces, raw.tell() / raw.size()
        decoder.decode(b"", final=True)
    yield [rest], 1.0


def _cut(text: str) -> tuple[Documents, str]:
    """Full pieces of `text` and the rest of it. Where the cuts fall does not depend on how the text was read."""
    pieces: Documents = []
    start = 0
    while len(text) - start > _PIECE:
        end = text.rfind("\n", start, start + _PIECE) + 1 or start + _PIECE
        pieces.append(text[start:end])
        start = end
    return pieces, text[start:]


def _read_jsonl(path: Path, column: str) -> Batches:
    done = 0
    fields: list[str] = []
    keys: dict[str, Any] = {}
    for lines, fraction in _line_blocks(path):
        first = not done
        if first:
            keys = _keys_of_line(lines.split(b"\n", 1)[0])
            fields = [column] if column in keys else _nested(column, keys)
        try:
            texts = _parse_block(lines, fields)
        except (pa.ArrowInvalid, UnicodeDecodeError):
            texts = _parse_lines(lines, fields, done + 1)
        if first and column not in keys and not any(texts):
            raise unknown_value(f"column of {path}", column, keys)
        done += len(texts)
        yield texts, fraction


def _keys_of_line(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):  # the reader of the line reports what is wrong with it
        values = json.loads(line.decode("utf-8", "surrogatepass"))
        return values if isinstance(values, dict) else {}
    return {}


def _nested(column: str, keys: Container[str]) -> list[str]:
    """The names that lead to `column`: its parts, where the first of them is one of `keys`; else itself."""
    parts = column.split(".")
    return parts if parts[0] in keys else [column]


def _parse_block(lines: bytes, fields: list[str]) -> Documents:
    # Parsed block by block: pyarrow's own streaming reader reads ahead 32 blocks, and a line must fit in a block.
    # The schema is given, so that a column's type cannot change between blocks, and the other columns are not built.
    kind: pa.DataType = pa.string()
    for name in reversed(fields[1:]):
        kind = pa.struct([(name, kind)])
    schema = pa.schema([(fields[0], kind)])
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    block = pyarrow.json.ReadOptions(block_size=len(lines) + 1)
    texts = pyarrow.json.read_json(pa.BufferReader(lines), block, options).column(0)
    for name in fields[1:]:
        texts = pa.compute.struct_field(texts, name)
    documents: Documents = texts.to_pylist()
    return documents


def _parse_lines(lines: bytes, fields: list[str], first: int) -> Documents:
    """As `_parse_block`, line by line: takes lone surrogates, and names the line that cannot be read."""
    texts: Documents = []
    for number, line in enumerate((line for line in lines.split(b"\n") if line.strip()), first):
        try:
            value: Any = json.loads(line.decode("utf-8", "surrogatepass"))
        except RecursionError:
            raise pa.ArrowInvalid(f"document {number:,} is nested too deeply") from None
        except ValueError as error:
            raise pa.ArrowInvalid(f"document {number:,}: {error}") from None
        if not isinstance(value, dict):
            raise pa.ArrowInvalid(f"document {number:,} is {shown(value)}, not an object with {fields[0]!r}")
        for name in fields:
            value = value.get(name) if isinstance(value, dict) else value
        if not isinstance(value, str | None):
            raise pa.ArrowInvalid(f"document {number:,} has {shown(value)} as {'.'.join(fields)}, not a string")
        texts.append(value)
    return texts


def _line_blocks(path: Path) -> Iterator[tuple[bytes, float]]:
    """Blocks of whole lines, none of them blank: about _READ_BYTES each, or one longer line."""
    parts: list[bytes] = []  # of a line that has not ended
    size = 0
    with _open(path) as (raw, stream):
        while block := stream.read(_READ_BYTES):
            lines, end, rest = block.rpartition(b"\n")
            if not end:
                parts.append(block)
                size += len(block)
                if size > _LINE_BYTES:
                    raise UserError(f"{path} has a line above {_LINE_BYTES:,} bytes; one document a line is read whole")
                continue
            whole = b"".join([*parts, lines])
            parts, size = [rest], len(rest)
            if whole := whole.strip():
                yield whole, raw.tell() / raw.size()
    if rest := b"".join(parts).strip():
        yield rest, 1.0


def _read_parquet(path: Path, column: str) -> Batches:
    # A buffer, and no pre-buffering: pages are read as they are needed, not whole column chunks.
    with (
        pa.OSFile(os.fsencode(path)) as raw,
        pyarrow.parquet.ParquetFile(raw, buffer_size=_READ_BYTES, pre_buffer=False) as file,
    ):
        fields = _fields_of_schema(path, column, file.schema_arrow)
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        sizes = [group.column(i) for group in groups for i in range(group.num_columns)]
        text_bytes = sum(chunk.total_uncompressed_size for chunk in sizes if chunk.path_in_schema == column)
        rows, done = file.metadata.num_rows, 0
        batch_rows = min(max(1, _READ_BYTES * rows // max(text_bytes, 1)), _PARQUET_ROWS)
        for batch in file.iter_batches(batch_rows, columns=[column]):
            done += len(batch)
            yield _texts(batch.column(0), fields[1:]), done / rows


def _read_arrow(path: Path, column: str) -> Batches:
    # Mapped: a batch, which may be the whole file, is not copied into memory but for the rows that are taken from it.
    with pa.memory_map(os.fsencode(path)) as raw:
        is_file = raw.read(len(_ARROW_FILE)) == _ARROW_FILE
        raw.seek(0)
        with pyarrow.ipc.open_file(raw) if is_file else pyarrow.ipc.open_stream(raw) as reader:
            fields = _fields_of_schema(path, column, reader.schema)
            count = reader.num_record_batches if is_file else 0
            batches = (reader.get_batch(i) for i in range(count)) if is_file else reader
            for done, batch in enumerate(batches, 1):
                values = batch.column(fields[0])
                rows = max(1, _READ_BYTES * len(values) // max(values.nbytes, 1))
                fraction = done / count if is_file else raw.tell() / raw.size()
                for start in range(0, len(values), rows):
                    yield _texts(values.slice(start, rows), fields[1:]), fraction


def _fields_of_schema(path: Path, column: str, schema: pa.Schema) -> list[str]:
    """The names that lead to `column`. Raises UserError if it is not there or holds no text."""
    fields = [column] if column in schema.names else _nested(column, schema.names)
    if fields[0] not in schema.names:
        raise unknown_value(f"column of {path}", column, schema.names)
    kind = schema.field(fields[0]).type
    for name in fields[1:]:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            inner = [field.name for field in kind] if pa.types.is_struct(kind) else []
            raise unknown_value(f"field of column {fields[0]} of {path}", name, inner)
        kind = kind.field(name).type
    content = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_kind(content) for is_kind in _TEXT_KINDS):
        is_struct = pa.types.is_struct(kind) and kind.num_fields
        hint = f"; name a field of it, as {column}.{kind[0].name}" if is_struct else ""
        raise UserError(f"Column {column} of {path} holds {short(str(kind))}, not strings{hint}")
    return fields


_TEXT_KINDS = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary),
    pa.types.is_null,  # a part of a data set whose texts are all null has no other type
)


def _texts(values: pa.Array, fields: list[str]) -> Documents:
    for name in fields:
        values = pa.compute.struct_field(values, name)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not pa.types.is_null(values.type):
        values = values.cast(pa.large_binary())
    return [None if text is None else text.decode("utf-8", "surrogatepass") for text in values.to_pylist()]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[pa.NativeFile, pa.NativeFile]]:
    """The file as it is, whose position gives the progress, and its decompressed stream."""
    with (
        pa.OSFile(os.fsencode(path)) as raw,
        pa.input_stream(raw, compression=COMPRESSIONS.get(path.suffix.lower())) as stream,
    ):
        yield raw, stream


_READERS = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "whole": _read_whole,
}
