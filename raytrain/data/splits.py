"""Which documents are for validation: what the names of files say, else a hash of the document's text.

A hash of the text alone gives a document the same split in every format, under every name and in any order, and equal
documents never stand in both splits.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

_DRAWS = 1 << 64
_FEW = 1000  # documents, below which chance would leave the share of validation open
_FILE_DRAWS = 1 << 32

# What the Hugging Face hub takes for the name of a split, as a word of a file's or a folder's name.
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def draw(text: str, purpose: str = "") -> int:
    """A number in [0, 2^64) that follows from `text` alone, another one for each `purpose` (16 ASCII letters at most).

    Lone surrogates count as the bytes that UTF-16's pairs would have in UTF-8.
    """
    content = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=purpose.encode()).digest(), "little")


def drawn(text: str, purpose: str, fraction: float) -> bool:
    """Whether `text` is in the sample of this `fraction` that is drawn for `purpose`."""
    return draw(text, purpose) < round(fraction * _DRAWS)


def validation_limit(draws: Iterable[int], fraction: float) -> int:
    """The number that the `draw` of a document is below if it is for validation.

    It is `fraction` of 2^64, so that a document's split hangs on nothing else. Fewer than 1,000 documents would miss
    that share by chance, or have no validation at all: of n different ones the round(n * fraction) least draws are for
    validation, one at least and never all. No more than 1,000 of `draws` are taken.
    """
    first = list(itertools.islice(draws, _FEW))
    if len(first) == _FEW:
        return round(fraction * _DRAWS)
    different = sorted(set(first))
    count = min(max(1, round(fraction * len(different))), len(different) - 1)
    return different[count - 1] + 1 if count > 0 else 0


def file_in_validation(key: str, fraction: float) -> bool:
    """The rule of the default corpus, whose documents are files: a hash of the file's `key`.

    It has never changed, so that runs of all versions have the same data.
    """
    start = int.from_bytes(hashlib.blake2b(os.fsencode(key), digest_size=4).digest(), "little")
    return start < round(fraction * _FILE_DRAWS)


def named_split(path: Path, format: str) -> str | None:
    """`train`, `val` or `test` where `path` states it, None where it states none or several.

    A word of the file's name does (`train-00000-of-00002.parquet`, `c4-validation.0.json.gz`), or else one of the
    nearest folder's (`train/data-00000-of-00001.arrow`). A text file must be called so and nothing more (`valid.txt`),
    since names of texts are words of their subject; folders do not count for it.
    """
    if format == "text":
        stem, dot, ending = path.name.lower().partition(".")
        return _WORDS.get(stem) if dot and ending.split(".")[0] == "txt" else None
    for part in reversed(path.parts):
        splits = {_WORDS[word] for word in re.findall("[a-z]+", part.lower()) if word in _WORDS}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None
