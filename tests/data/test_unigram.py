import math
from collections import Counter

import numpy as np
import pytest

from raytrain.data import open_dataset, unigram
from raytrain.data.unigram import unigram_loss
from raytrain.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """nanoGPT's two files, of 100,003 and 5,001 tokens below 40, whose frequencies differ."""
    rng = np.random.default_rng(0)
    rng.geometric(0.2, 100_003).clip(max=39).astype("<u2").tofile(tmp_path / "train.bin")
    rng.geometric(0.1, 5_001).clip(max=39).astype("<u2").tofile(tmp_path / "val.bin")
    return tmp_path


def by_hand(folder, counted, windows, block_size, vocab_size):
    """The formula, token by token."""
    train, val = (np.fromfile(folder / f"{split}.bin", "<u2").tolist() for split in ("train", "val"))
    counts = Counter(train[:counted])
    n = sum(counts.values())
    there = (len(val) - 1) // block_size
    starts = [index * there // windows * block_size for index in range(windows)]
    targets = [token for start in starts for token in val[start + 1 : start + 1 + block_size]]
    return -sum(math.log((counts[t] + 0.5) / (n + 0.5 * vocab_size)) for t in targets) / len(targets)


@pytest.mark.parametrize("eval_tokens", [5, 640, 10**9])
def test_it_is_the_hand_count_on_the_runs_own_windows(folder, eval_tokens):
    """Catches inputs counted as targets, other windows than a run's, a tail of the training split that is left out, and
    a smoothing over another vocabulary than the model's."""
    windows = min(max(1, eval_tokens // 32), 5_000 // 32)
    found = unigram_loss(open_dataset(str(folder)), 32, eval_tokens, 64)
    assert found == pytest.approx(by_hand(folder, None, windows, 32, 64), rel=1e-12)


def test_of_a_large_split_so_many_tokens_are_counted_all_over_it(folder, monkeypatch):
    """Catches a count of the first documents alone, and one that reads a terabyte: half of it, in every second part."""
    monkeypatch.setattr(unigram, "COUNTED", 50_000)
    monkeypatch.setattr(unigram, "_CHUNK", 10_000)
    train = np.fromfile(folder / "train.bin", "<u2")
    found = unigram.training_counts(open_dataset(str(folder)).train, 64)
    parts = [train[start : start + 10_000] for start in range(0, 100_000, 20_000)]
    assert found.tolist() == np.bincount(np.concatenate(parts), minlength=64).tolist()


def test_it_is_computed_once_a_data_set_and_vocabulary(folder, monkeypatch):
    """Catches a count at the start of every trial, and a kept figure that is given to other data or windows."""
    dataset, calls = open_dataset(str(folder)), []
    compute = unigram.cross_entropy
    monkeypatch.setattr(unigram, "cross_entropy", lambda *counts: calls.append(1) or compute(*counts))
    first = unigram_loss(dataset, 16, 800, 64)
    assert (unigram_loss(dataset, 16, 800, 64), len(calls)) == (first, 1)
    others = [(16, 1600, 64), (16, 800, 128), (8, 800, 64)]
    assert first not in {unigram_loss(dataset, *other) for other in others}
    assert len(calls) == 4
    np.full(100_003, 7, "<u2").tofile(folder / "train.bin")
    assert unigram_loss(open_dataset(str(folder)), 16, 800, 64) != first


def test_a_cache_that_cannot_be_written_costs_the_cache_alone(folder, monkeypatch):
    """Catches a run that ends because the home folder is read-only."""
    monkeypatch.setenv("RAYTRAIN_CACHE", "/proc/nowhere")
    assert unigram_loss(open_dataset(str(folder)), 32, 640, 64) == pytest.approx(by_hand(folder, None, 20, 32, 64))


def test_a_token_outside_the_vocabulary_is_named(folder):
    """Catches counts that grow beyond the vocabulary, and a traceback of numpy's."""
    with pytest.raises(UserError, match=r"token 39, outside vocab_size \(32\)"):
        unigram_loss(open_dataset(str(folder)), 32, 10**6, 32)
