"""Texts that are nearly one another, found by MinHash and locality-sensitive hashing.

Own NumPy, of a page, and not a library: the same packages must give the same corpus to the byte, whatever is installed
beside raytrain and whichever version of it.
"""

import collections
import hashlib
import re
import zlib

import numpy as np

_WORDS = 5  # of a shingle
_HASHES = 128  # the standard deviation of a similarity of 0.8 is then 0.035
_BANDS = 16  # of 8 hashes: two texts of similarity s are compared with probability 1 - (1 - s^8)^16, 0.95 at 0.8
_CHUNK = 1024  # shingles hashed at a time: a matrix that stays in a core's cache


class NearDuplicates:
    """The texts seen so far, but for those that were nearly one of them.

    Two texts are nearly one if their sets of shingles (five words in a row) have an estimated Jaccard similarity of
    `threshold` or more. Sources: Broder, SEQUENCES 1997 (shingles, MinHash); Indyk and Motwani, STOC 1998 (bands).
    """

    def __init__(self, threshold: float = 0.8) -> None:
        self._threshold = threshold
        self._signatures: list[np.ndarray] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = collections.defaultdict(list)

    def is_new(self, text: str) -> bool:
        """Whether `text` is nearly none of those before; it is then one of them."""
        signature = signature_of(text)
        keys = [(band, rows.tobytes()) for band, rows in enumerate(signature.reshape(_BANDS, -1))]
        near = sorted({number for key in keys for number in self._buckets.get(key, ())})
        if near and max(similarity(signature, self._signatures[number]) for number in near) >= self._threshold:
            return False
        for key in keys:
            self._buckets[key].append(len(self._signatures))
        self._signatures.append(signature)
        return True


def signature_of(text: str) -> np.ndarray:
    """The MinHash signature of `text`: (128,) uint32, the least value of each hash over the text's shingles."""
    words = re.findall(r"\w+", text)
    codes = np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))
    if len(codes) < _WORDS:  # one shingle, of all there is
        codes = np.concatenate([codes, np.zeros(_WORDS - len(codes), np.uint64)])
    count = len(codes) - _WORDS + 1
    shingles = np.zeros(count, np.uint64)
    for i, factor in enumerate(_WORD_FACTORS):
        shingles += codes[i : i + count] * factor
    shingles ^= shingles >> np.uint64(29)
    shingles *= _MIX
    shingles ^= shingles >> np.uint64(32)
    least = np.full(_HASHES, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, count, _CHUNK):  # multiply-add-shift: Dietzfelbinger, STACS 1996
        hashed = _FACTORS[:, None] * shingles[None, start : start + _CHUNK]
        hashed += _TERMS[:, None]
        np.minimum(least, hashed.min(axis=1), out=least)
    return (least >> np.uint64(32)).astype(np.uint32)


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The estimated Jaccard similarity of two signatures, in [0, 1]."""
    return float((one == other).mean())


def _constants(purpose: str, count: int) -> np.ndarray:
    """Odd random numbers that no library's version can change: (count,) uint64."""
    return np.frombuffer(hashlib.shake_128(purpose.encode()).digest(8 * count), "<u8").astype(np.uint64) | np.uint64(1)


_MIX, _WORD_FACTORS = _constants("mix", 1)[0], _constants("word", _WORDS)
_FACTORS, _TERMS = _constants("factor", _HASHES), _constants("term", _HASHES)
