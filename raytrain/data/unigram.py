"""The loss of a model that knows how frequent each token is, and nothing else: where training first stalls."""

import contextlib

import numpy as np

from raytrain.data.dataset import Dataset, Tokens
from raytrain.data.loader import check_vocabulary, validation_windows
from raytrain.errors import UserError
from raytrain.rundir.cache import kept

COUNTED = 1 << 24  # training tokens that frequencies are counted over, at most: 0.1 s
SMOOTHING = 0.5  # added to each count (Krichevsky and Trofimov, IEEE Trans. Inf. Theory 27, 1981)
_CHUNK = 1 << 16  # tokens read at a time


def unigram_loss(dataset: Dataset, block_size: int, eval_tokens: int, vocab_size: int) -> float:
    """The cross-entropy of the training split's unigram distribution on a run's own validation windows, nats per token.

    p(v) = (n_v + 0.5) / (n + 0.5 V) over the n training tokens that are counted: all, or 2^24 of them in evenly spaced
    stretches. A model at this loss has learned nothing of context. It is kept by the data's fingerprint, and so
    computed once a data set and vocabulary. Raises UserError for a token id outside the vocabulary.
    """
    key = {"data": dataset.fingerprint, "block_size": block_size, "eval_tokens": eval_tokens, "vocab_size": vocab_size}
    key |= {"counted": COUNTED, "smoothing": SMOOTHING}
    loss = None
    with contextlib.suppress(UserError):  # no cache, or one that others write to
        loss = kept("unigram", key)
    if loss is None:
        starts = validation_windows(dataset.val, block_size, max(1, eval_tokens // block_size))
        targets = counts(dataset.val, starts + 1, block_size, vocab_size)
        trained = training_counts(dataset.train, vocab_size)
        loss = cross_entropy(trained, targets)
        with contextlib.suppress(OSError, UserError):  # what cannot be kept is computed again
            kept("unigram", key, loss)
    return loss


def training_counts(tokens: Tokens, vocab_size: int) -> np.ndarray:
    """How frequent each token is in a training split, or in evenly spaced stretches that hold COUNTED tokens: (V,)."""
    length = min(_CHUNK, len(tokens))
    there = len(tokens) // length
    count = min(there, max(1, COUNTED // length))
    total = counts(tokens, np.arange(count, dtype=np.int64) * there // count * length, length, vocab_size)
    rest = len(tokens) - there * length
    if count == there and rest:
        total += counts(tokens, np.array([there * length]), rest, vocab_size)
    return total


def counts(tokens: Tokens, starts: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """How frequent each token is in the stretches of `length` from `starts` (N,): (V,) int64."""
    total = np.zeros(vocab_size, np.int64)
    rows = max(1, _CHUNK // length)
    for begin in range(0, len(starts), rows):
        read = tokens.read(starts[begin : begin + rows], length)
        check_vocabulary(read, vocab_size)
        total += np.bincount(read.ravel(), minlength=vocab_size)
    return total


def cross_entropy(trained: np.ndarray, targets: np.ndarray) -> float:
    """Nats per token of tokens counted in `targets` (V,) under the smoothed frequencies of `trained` (V,)."""
    logs = np.log((trained + SMOOTHING) / (trained.sum() + SMOOTHING * len(trained)))
    return float(-(targets @ logs) / targets.sum())
