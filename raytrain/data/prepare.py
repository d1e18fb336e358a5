"""Files to a prepared folder, in bounded memory: read batches of documents, split, encode, write shards."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from raytrain.data.corpora import OnNote, Source
from raytrain.data.documents import read_documents
from raytrain.data.shards import Manifest, SplitWriter, new_folder, write_manifest
from raytrain.data.splits import draw, drawn, file_in_validation, validation_limit
from raytrain.data.tokenizer import ByteTokenizer, Tokenizer, encodable, read_tokenizer, train_bpe
from raytrain.errors import UserError, unknown_value

VAL_FRACTION = 0.1
SHARD_TOKENS = 100_000_000
BPE_VOCAB_SIZE = 4096

_BPE_SAMPLE_BYTES = 256 << 20  # of the sources' size on disk: bounds the time and the memory of learning a BPE

# Called with what is being done, the bytes of the sources done, and their bytes in all.
OnProgress = Callable[[str, float, int], None]
IsValidation = Callable[[Source, str], bool]  # whether this document of that source is for validation


def _no_progress(task: str, done: float, total: int) -> None:
    pass


def prepare(
    sources: Sequence[Source],
    out: Path,
    *,
    tokenizer: str = "bytes",
    vocab_size: int | None = None,
    column: str = "text",
    val_fraction: float = VAL_FRACTION,
    shard_tokens: int = SHARD_TOKENS,
    overwrite: bool = False,
    on_progress: OnProgress = _no_progress,
    on_note: OnNote = lambda line: print(line, file=sys.stderr),
) -> Manifest:
    """Write the documents of `sources` as the prepared folder `out` (see `shards`). Empty documents are left out.

    U+FFFD takes the place of lone surrogates, which have no UTF-8, and under `bytes` of U+0000, which ends documents;
    `on_note` receives their number.

    The split of a document is that of its source, or else follows from its text, whatever the file it stands in: the
    share `val_fraction` is for validation.

    `tokenizer` is `bytes`, `bpe` (learned from the training documents, or from an even sample of them where the
    sources are larger than 256 MiB; `vocab_size` tokens) or the path of a `tokenizer.json`.
    Equal sources and arguments give equal folders, whatever the order in which the sources were named.
    Raises UserError for bad values, for what cannot be read or written, and when a split would be empty.
    """
    if not 0.0 < val_fraction < 1.0:
        raise UserError(f"val_fraction ({val_fraction}) must be above 0 and below 1")
    if shard_tokens < 1:
        raise UserError(f"shard_tokens ({shard_tokens}) must be 1 or more")
    if vocab_size is not None and tokenizer != "bpe":
        raise UserError(f"vocab_size ({vocab_size}) is for tokenizer 'bpe'; {tokenizer!r} has its own")
    with new_folder(out, overwrite) as folder:
        is_validation = _rule(sources, column, val_fraction)
        encoder: Tokenizer
        if tokenizer == "bytes":
            encoder = ByteTokenizer()
        elif tokenizer == "bpe":
            sample = _training_sample(sources, column, is_validation, on_progress)
            encoder = train_bpe(sample, BPE_VOCAB_SIZE if vocab_size is None else vocab_size)
        elif os.path.exists(tokenizer):
            encoder = read_tokenizer(Path(tokenizer))
        else:
            raise unknown_value("tokenizer", tokenizer, ["bytes", "bpe", "the path of a tokenizer.json"])
        train, val = (SplitWriter(folder, split, encoder, shard_tokens) for split in ("train", "val"))
        for source, text in _documents(sources, column, "write", on_progress):
            (val if is_validation(source, text) else train).add(text)
        manifest = write_manifest(folder, encoder, train.close(), val.close())
    if replaced := train.replaced + val.replaced:
        zeros = " and U+0000" if encoder.reserved else ""
        on_note(f"note: U+FFFD took the place of {replaced:,} characters (lone surrogates{zeros})")
    return manifest


def _rule(sources: Sequence[Source], column: str, val_fraction: float) -> IsValidation:
    without = [source for source in sources if source.split is None and source.format != "whole"]
    limit = validation_limit((draw(text) for _, text in _documents(without, column, "", _no_progress)), val_fraction)

    def is_validation(source: Source, text: str) -> bool:
        if source.split is not None:
            return source.split == "val"
        if source.format == "whole":
            return file_in_validation(source.key, val_fraction)
        return draw(text) < limit

    return is_validation


def _training_sample(
    sources: Sequence[Source], column: str, is_validation: IsValidation, on_progress: OnProgress
) -> Iterator[str]:
    kept = min(1.0, _BPE_SAMPLE_BYTES / max(1, _size(sources)))
    for source, text in _documents(sources, column, "learn the BPE", on_progress):
        if not is_validation(source, text) and drawn(text, "bpe", kept):
            yield encodable(text, "")[0]


def _documents(
    sources: Sequence[Source], column: str, task: str, on_progress: OnProgress
) -> Iterator[tuple[Source, str]]:
    """The documents that are not empty, each with its source."""
    done, total = 0, _size(sources)
    for source in sources:
        size = _size([source])
        for texts, fraction in read_documents(source, column):
            for text in texts:
                if text:
                    yield source, text
            on_progress(task, done + fraction * size, total)
        done += size


def _size(sources: Sequence[Source]) -> int:
    try:
        return sum(source.path.stat().st_size for source in sources)
    except OSError as error:
        raise UserError(f"Cannot read {error.filename}: {error.strerror}") from error
