"""Which tokens are read when. Training: sequence i of a run, by random access. Validation: fixed windows."""

import hashlib
import math

import numpy as np

from raytrain.data.dataset import Tokens
from raytrain.errors import UserError

_ROUNDS = 10  # enough that even the permutations of four windows are equally frequent (measured; six are not)


class Loader:
    """The training sequences of a run, in an order that only (tokens, block_size, seed) decide.

    Sequence i can be read at any time without those before it: there is no state. A training loop that gives each
    (step, micro-batch, rank) its own indices 0, 1, 2, ... sees the same stream at any world size, and resumes at any
    step without replay.

    An epoch is a permutation of non-overlapping windows of `block_size` targets. It starts at a random phase within a
    block, drawn anew each epoch so that the borders of windows move; at most two blocks at the ends are left out.
    """

    def __init__(self, tokens: Tokens, block_size: int, seed: int, vocab_size: int) -> None:
        """Raises UserError if there are fewer than `block_size` + 1 tokens."""
        _check_length(tokens, block_size, "training")
        self._tokens, self._block_size, self._seed, self._vocab_size = tokens, block_size, seed, vocab_size
        # The same number of windows at any phase, so that the epoch of an index is a division.
        self.sequences_per_epoch = max(1, len(tokens) // block_size - 1)
        self._phases = min(block_size, len(tokens) - self.sequences_per_epoch * block_size)

    def sequences(self, indices: np.ndarray) -> np.ndarray:
        """The sequences with these `indices` (B,): (B, block_size + 1) int64, the inputs and the last target.

        Raises UserError for a token id outside the vocabulary.
        """
        epochs, places = np.divmod(np.asarray(indices, np.int64), self.sequences_per_epoch)
        starts = np.empty_like(places)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            phase, *keys = epoch_keys(self._seed, int(epoch))
            windows = permute(places[now], self.sequences_per_epoch, keys)
            starts[now] = phase % self._phases + windows * self._block_size
        sequences = self._tokens.read(starts, self._block_size + 1)
        check_vocabulary(sequences, self._vocab_size)
        return sequences


def check_vocabulary(sequences: np.ndarray, vocab_size: int) -> None:
    """Raises UserError if `sequences` (any shape) hold a token id of `vocab_size` or more."""
    largest = int(sequences.max(initial=0))
    if largest >= vocab_size:
        raise UserError(
            f"The data holds token {largest}, outside vocab_size ({vocab_size}); "
            f"set --vocab_size to the data's vocabulary, {largest + 1} or more"
        )


def epoch_keys(seed: int, epoch: int) -> list[int]:
    """The key of the phase and those of the rounds: 32-bit words that are a function of (seed, epoch), by BLAKE2b."""
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=4 * (1 + _ROUNDS)).digest()
    out: list[int] = np.frombuffer(digest, "<u4").tolist()
    return out


def permute(places: np.ndarray, size: int, keys: list[int]) -> np.ndarray:
    """The images of `places` (N,) under a pseudo-random permutation of range(size), (N,) int64; no memory, no state.

    A Feistel network on the numbers left + a * right, with a * b >= size and both near its root; whatever lands outside
    goes through again ("cycle walking"). Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002.
    """
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    images = _network(places.astype(np.uint64), a, b, keys)
    while (outside := images >= size).any():
        images[outside] = _network(images[outside], a, b, keys)
    return images.astype(np.int64)


def _network(values: np.ndarray, a: int, b: int, keys: list[int]) -> np.ndarray:
    right, left = np.divmod(values, np.uint64(a))
    for number, key in enumerate(keys):
        if number % 2 == 0:
            left = (left + _mix(right, key) % np.uint64(a)) % np.uint64(a)
        else:
            right = (right + _mix(left, key) % np.uint64(b)) % np.uint64(b)
    return left + np.uint64(a) * right


def _mix(values: np.ndarray, key: int) -> np.ndarray:
    """A 64-bit hash of `values` for each key: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = (values ^ np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def validation_windows(tokens: Tokens, block_size: int, count: int) -> np.ndarray:
    """The starts of `count` fixed windows, evenly spaced and not overlapping, (count,) int64; all if there are fewer.

    A window is read as `block_size` + 1 tokens; "not overlapping" is about its `block_size` targets.
    Raises UserError if the split is shorter than one window.
    """
    _check_length(tokens, block_size, "validation")
    there = (len(tokens) - 1) // block_size
    count = min(count, there)
    return np.arange(count, dtype=np.int64) * there // count * block_size


def _check_length(tokens: Tokens, block_size: int, split: str) -> None:
    if len(tokens) < block_size + 1:
        raise UserError(
            f"The {split} split has {len(tokens)} tokens, block_size ({block_size}) needs {block_size + 1}; "
            f"use more data or a smaller --block_size"
        )
