import concurrent.futures
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from raytrain.data import Tokens, check, open_dataset
from raytrain.data.corpora import stdlib_sources
from raytrain.data.dataset import locate
from raytrain.data.prepare import prepare
from raytrain.data.splits import file_in_validation
from raytrain.errors import UserError


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4"])
def test_reading_across_shard_borders_equals_reading_the_whole(tmp_path, dtype):
    """Catches off-by-one errors at borders, windows over three shards, and a wrong offset after the first shard."""
    rng = np.random.default_rng(0)
    shards = [rng.integers(0, 250, size).astype(dtype) for size in (10, 1, 3, 25, 7)]
    paths = [tmp_path / f"{i}.bin" for i in range(len(shards))]
    for shard, path in zip(shards, paths, strict=True):
        shard.tofile(path)
    whole = np.concatenate(shards)
    tokens = Tokens(paths, np.dtype(dtype))
    assert len(tokens) == 46
    for length in (1, 2, 12, 46):
        starts = rng.permutation(46 - length + 1)
        read = tokens.read(starts, length)
        assert read.dtype == np.int64
        assert np.array_equal(read, np.stack([whole[start : start + length] for start in starts]))
    for start in (-1, 45):
        with pytest.raises(IndexError):
            tokens.read(np.array([start]), 2)


def test_a_dataset_is_pickled_without_its_tokens():
    """Catches a memory map that is copied whole into the message to another process."""
    dataset = open_dataset("stdlib")
    message = pickle.dumps(dataset)
    assert len(message) < 5000
    read = pickle.loads(message).train.read(np.array([1000]), 50)
    assert np.array_equal(read, dataset.train.read(np.array([1000]), 50))


def test_the_default_corpus_is_the_files_split_by_the_rule():
    """Catches a corpus that is not what its documentation says: order, separator, split, counts."""
    dataset = open_dataset("stdlib")
    assert (dataset.name, dataset.vocab_size) == ("stdlib", 256)
    for tokens, validation in ((dataset.train, False), (dataset.val, True)):
        files = [s.path.read_bytes() for s in stdlib_sources() if file_in_validation(s.key, 0.1) is validation]
        expected = b"".join(content + b"\0" for content in files if content)
        assert len(tokens) == len(expected)
        assert bytes(tokens.read(np.array([0]), len(tokens))[0].astype(np.uint8)) == expected
    share = len(dataset.val) / (len(dataset.train) + len(dataset.val))
    assert 0.05 < share < 0.2
    assert dataset.val_bytes_per_token == pytest.approx(1.0, abs=1e-3)


def _open_in(cache: str, barrier) -> str:
    os.environ["RAYTRAIN_CACHE"] = cache
    barrier.wait()
    return open_dataset("stdlib").fingerprint


def test_processes_that_make_the_default_corpus_at_once_all_succeed(tmp_path):
    """Catches the race of a sweep's first trials: a half-written cache, or an error for whoever comes second."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        barrier = manager.Barrier(2)
        results = [pool.submit(_open_in, str(tmp_path), barrier) for _ in range(2)]
        fingerprints = {result.result() for result in results}
    assert fingerprints == {open_dataset("stdlib").fingerprint}
    assert sorted(path.name[:10] for path in tmp_path.iterdir()) == ["checked", "stdlib-v1-"]


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    """Catches a read-only home that ends in a traceback with no way out."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYTRAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^cache \(.*is not a folder; RAYTRAIN_CACHE"):
        open_dataset("stdlib")


def write_nanogpt(folder: Path, train: np.ndarray, val: np.ndarray, dtype: str = "<u2") -> Path:
    folder.mkdir(exist_ok=True)
    train.astype(dtype).tofile(folder / "train.bin")
    val.astype(dtype).tofile(folder / "val.bin")
    return folder


@pytest.mark.parametrize("vocabulary", [2, 65, 50257, 128_256, 262_144])
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_both_widths_of_nanogpt_s_files_are_told_apart(tmp_path, vocabulary, dtype):
    """Catches uint32 tokens read as uint16: twice as many, every other one 0 (or 1, 2, 3), and nothing says so."""
    vocabulary = min(vocabulary, 65536) if dtype == "<u2" else vocabulary
    rng = np.random.default_rng(vocabulary)
    train, val = rng.integers(0, vocabulary, 40_001), rng.integers(0, vocabulary, 2000)
    dataset = open_dataset(str(write_nanogpt(tmp_path / "data", train, val, dtype)))
    assert (len(dataset.train), len(dataset.val)) == (40_001, 2000)
    assert np.array_equal(dataset.train.read(np.array([0]), 40_001)[0], train)
    assert np.array_equal(dataset.val.read(np.array([0]), 2000)[0], val)
    assert dataset.largest_token == max(train.max(), val.max())


def test_files_of_two_widths_and_of_other_formats_are_refused(tmp_path):
    """Catches one split read as what the other is, and a header that is trained on as tokens."""
    tokens = np.arange(300, 1300)
    folder = write_nanogpt(tmp_path / "data", tokens, tokens)
    tokens.astype("<u4").tofile(folder / "val.bin")
    with pytest.raises(UserError, match=r"hold different types \(train\.bin uint16 and val\.bin uint32\)"):
        open_dataset(str(folder))
    (folder / "val.bin").write_bytes(np.array([20240520, 1, 1000], "<i4").tobytes() + bytes(1012) + bytes(2000))
    with pytest.raises(UserError, match=r"val\.bin begins with the header of another format"):
        open_dataset(str(folder))


def _prepared(tmp_path: Path) -> Path:
    prepare(stdlib_sources()[:40], tmp_path / "out", val_fraction=0.5, shard_tokens=100_000)
    return tmp_path / "out"


def _with_other_bytes(path: Path, keep_times: bool) -> None:
    facts, content = path.stat(), path.read_bytes()
    path.write_bytes(bytes(reversed(content)))
    if keep_times:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("keep_times", [False, True])
def test_changed_tokens_are_found_also_after_the_data_was_read(tmp_path, keep_times):
    """Catches tokens that are not those of the fingerprint: same size, and even the same time of change."""
    folder = _prepared(tmp_path)
    open_dataset(str(folder))
    shard = sorted(folder.glob("train-*.bin"))[1]
    _with_other_bytes(shard, keep_times)
    with pytest.raises(UserError, match=rf"shard .*{shard.name} is damaged \(its sha256 is not its manifest's\)"):
        open_dataset(str(folder))


def test_each_file_is_read_whole_once(tmp_path, monkeypatch):
    """Catches a sweep whose every trial hashes all its data again; a damaged cache only costs another reading."""
    folder = _prepared(tmp_path)
    read: list[str] = []
    real = check._read
    monkeypatch.setattr(check, "_read", lambda path, dtype: read.append(path.name) or real(path, dtype))
    names = sorted(path.name for path in folder.glob("*.bin"))
    for _ in range(3):
        open_dataset(str(folder))
    assert sorted(read) == names
    os.utime(folder / names[0], ns=(1, 1))
    open_dataset(str(folder))
    assert sorted(read) == sorted([*names, names[0]])
    for path in Path(os.environ["RAYTRAIN_CACHE"], "checked").glob("*.json"):
        path.write_text("[")
    open_dataset(str(folder))
    assert len(read) == 2 * len(names) + 1


def test_a_manifest_with_a_smaller_vocabulary_is_damaged(tmp_path):
    """Catches ids that index past the embedding of every model made for this data."""
    folder = _prepared(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"vocab_size": 100}))
    with pytest.raises(UserError, match=r"its vocab_size is 100, but the shards hold token \d+"):
        open_dataset(str(folder))


def test_nanogpt_files_are_read_as_they_are(tmp_path):
    """Catches a wrong type or byte order, a guessed vocabulary, and a meta.pkl that is unpickled (it would raise)."""
    train, val = np.arange(65536), np.arange(500, 700)
    folder = write_nanogpt(tmp_path / "owt", train, val)
    (folder / "meta.pkl").write_bytes(b"cos\n_exit\n(I1\ntR.")  # exits when unpickled
    dataset = open_dataset(str(folder))
    assert dataset.name == "owt"
    assert (dataset.vocab_size, dataset.val_bytes_per_token, dataset.tokenizer) == (None, None, None)
    assert np.array_equal(dataset.train.read(np.array([0]), 65536)[0], train)
    assert np.array_equal(dataset.val.read(np.array([0]), 200)[0], val)


def test_the_sampled_fingerprint_sees_each_split_and_the_size(tmp_path):
    """Catches two data sets under one fingerprint, and a fingerprint that depends on the place."""
    base = np.arange(100_000) % 50_000
    prints = set()
    for i, (train, val) in enumerate([(base, base), (base + 1, base), (base, base + 1), (base, base[:-1])]):
        prints.add(open_dataset(str(write_nanogpt(tmp_path / str(i), train, val))).fingerprint)
    assert len(prints) == 4
    again = open_dataset(str(write_nanogpt(tmp_path / "elsewhere", base, base))).fingerprint
    assert again == open_dataset(str(tmp_path / "0")).fingerprint


def test_what_cannot_be_opened_is_one_line(tmp_path):
    """Catches tracebacks for a mistyped path, a folder without data, an empty split and half a token."""
    with pytest.raises(UserError, match=r"Unknown data: 'no/such' is no folder; give stdlib"):
        open_dataset("no/such")
    with pytest.raises(UserError, match=r"No data in .*neither manifest\.json nor train\.bin and val\.bin"):
        open_dataset(str(tmp_path))
    folder = write_nanogpt(tmp_path / "nano", np.arange(10), np.arange(0))
    with pytest.raises(UserError, match=r"val\.bin has 0 bytes"):
        open_dataset(str(folder))
    (folder / "val.bin").write_bytes(b"abc")
    with pytest.raises(UserError, match=r"val\.bin has 3 bytes"):
        open_dataset(str(folder))


def test_another_tokenizer_beside_the_data_is_refused(tmp_path):
    """Catches text decoded with a vocabulary that the tokens were not written with."""
    folder = tmp_path / "out"
    prepare(stdlib_sources()[:40], folder, tokenizer="bpe", vocab_size=260, val_fraction=0.5)
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content + "\n")
    with pytest.raises(UserError, match="is not the tokenizer of this data"):
        open_dataset(str(folder))


def test_the_cache_is_named_by_its_content():
    """Catches a corpus of another Python version being taken from the cache."""
    folder = locate("stdlib")
    assert folder.parent == Path(os.environ["RAYTRAIN_CACHE"])
    assert folder.name.startswith("stdlib-v1-")
