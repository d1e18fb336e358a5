from collections import Counter

import numpy as np
import pytest

from raytrain.data import Loader, Tokens, open_dataset, validation_windows
from raytrain.data.loader import check_vocabulary, epoch_keys, permute
from raytrain.errors import UserError


def order(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    _, *keys = epoch_keys(seed, epoch)
    return permute(np.arange(size), size, keys)


def make_tokens(path, count: int) -> Tokens:
    np.arange(count).astype("<u4").tofile(path / f"{count}.bin")
    return Tokens([path / f"{count}.bin"], np.dtype("<u4"))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 16, 1000, 4097, 65536])
def test_the_order_of_an_epoch_is_a_bijection(size):
    """Catches windows that are seen twice or never: a round that is not invertible, or a wrong cycle walk."""
    for epoch in range(3):
        assert np.array_equal(np.sort(order(size, epoch=epoch)), np.arange(size))


def test_the_order_differs_between_seeds_and_epochs_and_looks_random():
    """Catches an ignored seed or epoch, and an order so regular that neighbours stay together."""
    base = order(1000)
    for other in (order(1000, seed=1), order(1000, epoch=1)):
        assert (base == other).mean() < 0.02
    assert abs(np.corrcoef(np.arange(1000), base)[0, 1]) < 0.15
    assert (np.diff(base) == 1).mean() < 0.01
    assert np.array_equal(base, order(1000))


def test_small_permutations_are_equally_frequent():
    """Catches too few rounds: all 24 orders of four windows must come up alike (chi-squared, 23 degrees, p = 1e-6)."""
    counts = Counter(tuple(order(4, epoch=epoch).tolist()) for epoch in range(4800))
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 72.5


@pytest.mark.parametrize(("count", "block_size"), [(9, 8), (16, 8), (17, 8), (100, 7), (1000, 8)])
def test_an_epoch_sees_each_token_of_its_windows_once(tmp_path, count, block_size):
    """Catches overlapping or missing windows, reading past the end, and targets that are not the next token."""
    loader = Loader(make_tokens(tmp_path, count), block_size, seed=3, vocab_size=count)
    n = loader.sequences_per_epoch
    for epoch in range(4):
        sequences = loader.sequences(np.arange(epoch * n, (epoch + 1) * n))
        assert sequences.shape == (n, block_size + 1)
        assert np.array_equal(np.diff(sequences, axis=1), np.ones((n, block_size)))
        targets = np.sort(sequences[:, 1:].ravel())
        assert np.array_equal(targets, np.arange(targets[0], targets[0] + n * block_size))
    assert count - n * block_size <= 2 * block_size


def test_the_borders_of_windows_move_between_epochs(tmp_path):
    """Catches a fixed phase, with which the same tokens always stand first, without context."""
    loader = Loader(make_tokens(tmp_path, 1000), 8, seed=0, vocab_size=1000)
    phases = {int(loader.sequences(np.array([epoch * loader.sequences_per_epoch]))[0, 0]) % 8 for epoch in range(60)}
    assert phases == set(range(8))


def test_a_sequence_does_not_depend_on_the_batch_that_asks_for_it():
    """Catches hidden state: world sizes, micro-batches and resumes must all see one stream, over epoch borders too."""
    tokens = open_dataset("stdlib").val
    loader = Loader(tokens, 1000, seed=5, vocab_size=256)
    indices = np.arange(3 * loader.sequences_per_epoch)
    whole = loader.sequences(indices)
    shuffled = np.random.default_rng(0).permutation(indices)
    assert np.array_equal(loader.sequences(shuffled), whole[shuffled])
    resumed = Loader(tokens, 1000, seed=5, vocab_size=256)
    assert np.array_equal(resumed.sequences(indices[-7:]), whole[-7:])
    assert not np.array_equal(Loader(tokens, 1000, seed=6, vocab_size=256).sequences(indices), whole)


def test_the_stream_is_the_same_on_every_machine():
    """Catches a change of the order between versions or machines, which would break resumed runs without a word."""
    _, *keys = epoch_keys(1337, 0)  # the figures are those of a program without numpy, in Python's integers
    assert permute(np.arange(10), 10, keys).tolist() == [3, 0, 2, 4, 9, 8, 1, 6, 7, 5]
    assert permute(np.arange(3), 10**9, keys).tolist() == [280677181, 575718967, 53407731]


def test_a_token_outside_the_vocabulary_is_named(tmp_path):
    """Catches the device-side assert of an embedding, far from its cause."""
    loader = Loader(make_tokens(tmp_path, 100), 8, seed=0, vocab_size=50)
    with pytest.raises(UserError, match=r"token \d+, outside vocab_size \(50\); set --vocab_size"):
        loader.sequences(np.arange(loader.sequences_per_epoch))
    check_vocabulary(np.array([49]), 50)
    with pytest.raises(UserError, match="51 or more"):
        check_vocabulary(np.array([[1, 50]]), 50)


@pytest.mark.parametrize(("length", "block_size", "count"), [(100, 8, 5), (100, 8, 12), (100, 8, 99), (9, 8, 1)])
def test_validation_windows_are_spread_and_do_not_overlap(tmp_path, length, block_size, count):
    """Catches windows that overlap, leave the split, or crowd at its start."""
    starts = validation_windows(make_tokens(tmp_path, length), block_size, count)
    there = (length - 1) // block_size
    assert len(starts) == min(count, there)
    assert starts.dtype == np.int64
    gaps = np.diff(starts)
    assert (gaps >= block_size).all()
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= block_size
    assert starts[0] == 0
    assert length - starts[-1] - block_size <= block_size * (there / len(starts) + 1)
    assert starts[-1] + block_size + 1 <= length


def test_a_split_shorter_than_a_window_is_an_error(tmp_path):
    """Catches an empty evaluation (a NaN loss) and a division by zero on tiny data."""
    tokens = make_tokens(tmp_path, 8)
    with pytest.raises(UserError, match=r"validation split has 8 tokens, block_size \(8\) needs 9"):
        validation_windows(tokens, 8, 4)
    with pytest.raises(UserError, match="training split has 8 tokens"):
        Loader(tokens, 8, seed=0, vocab_size=256)
