import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.data import Tokens, open_dataset
from raytrain.data.corpora import find_sources, in_validation, stdlib_sources
from raytrain.data.prepare import prepare
from raytrain.errors import UserError

DOCUMENTS = [f"document {i}: né 漢字\n" + "word " * (i % 37) for i in range(400)]


def all_of(tokens: Tokens) -> np.ndarray:
    return tokens.read(np.array([0]), len(tokens))[0]


def documents_in(folder) -> list[bytes]:
    dataset = open_dataset(str(folder))
    return [text for split in (dataset.train, dataset.val) for text in bytes(all_of(split).tolist()).split(b"\0")[:-1]]


def write_jsonl(path, documents) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")


def test_the_three_formats_give_the_same_tokens_for_the_same_documents(tmp_path):
    """Catches a format whose documents are lost, doubled, joined or changed on the way to the shards."""
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    pq.write_table(pa.table({"text": DOCUMENTS}), tmp_path / "a.parquet", row_group_size=64)
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(DOCUMENTS):
        (tmp_path / "texts" / f"{i}.txt").write_bytes(text.encode())
    for name in ("a.jsonl", "a.parquet", "texts"):
        manifest = prepare(find_sources([str(tmp_path / name)]), tmp_path / f"{name}.out", shard_tokens=1000)
        assert manifest.train.documents + manifest.val.documents == len(DOCUMENTS)
        assert sorted(documents_in(tmp_path / f"{name}.out")) == sorted(text.encode() for text in DOCUMENTS)


def test_each_document_is_in_the_split_that_the_rule_gives(tmp_path):
    """Catches train documents in the validation split; null and empty rows must not shift the numbering."""
    rows = [*DOCUMENTS[:50], None, "", *DOCUMENTS[50:]]
    write_jsonl(tmp_path / "a.jsonl", rows)
    prepare(find_sources([str(tmp_path / "a.jsonl")]), tmp_path / "out", val_fraction=0.25)
    val = bytes(all_of(open_dataset(str(tmp_path / "out")).val).tolist())
    expected = [text for i, text in enumerate(rows) if text and in_validation("a.jsonl", i, 0.25)]
    assert val == b"".join(text.encode() + b"\0" for text in expected)


def test_the_order_of_the_files_on_the_command_line_does_not_matter(tmp_path):
    """Catches a fingerprint that depends on how a shell sorts."""
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS[:200])
    write_jsonl(tmp_path / "b.jsonl", DOCUMENTS[200:])
    names = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    one = prepare(find_sources(names), tmp_path / "one")
    two = prepare(find_sources(names[::-1]), tmp_path / "two")
    assert one.fingerprint == two.fingerprint


def test_bits_per_byte_are_counted_on_the_text(tmp_path):
    """Catches bytes counted as characters or with the end tokens, which would shift val_bpb."""
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    manifest = prepare(
        find_sources([str(tmp_path / "a.jsonl")]), tmp_path / "out", tokenizer="bpe", vocab_size=300, shard_tokens=777
    )
    assert manifest.train.bytes + manifest.val.bytes == sum(len(text.encode()) for text in DOCUMENTS)
    dataset = open_dataset(str(tmp_path / "out"))
    assert dataset.vocab_size == 300
    assert dataset.tokenizer is not None
    text = dataset.tokenizer.decode(all_of(dataset.val)).replace("<|endoftext|>", "")
    assert dataset.val_bytes_per_token == len(text.encode()) / len(dataset.val)


def test_a_bpe_is_learned_from_training_documents_alone(tmp_path):
    """Catches validation text leaking into the vocabulary."""
    documents = [f"{'validation' * 9 if in_validation('a.jsonl', i, 0.1) else 'training' * 9} {i}" for i in range(300)]
    write_jsonl(tmp_path / "a.jsonl", documents)
    prepare(find_sources([str(tmp_path / "a.jsonl")]), tmp_path / "out", tokenizer="bpe", vocab_size=400)
    vocabulary = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["model"]["vocab"]
    assert any("training" in token for token in vocabulary)
    assert not any("valid" in token for token in vocabulary)


def test_a_prepared_tokenizer_serves_other_data(tmp_path):
    """Catches a tokenizer.json that does not survive the way out and in."""
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    sources = find_sources([str(tmp_path / "a.jsonl")])
    one = prepare(sources, tmp_path / "one", tokenizer="bpe", vocab_size=300)
    two = prepare(sources, tmp_path / "two", tokenizer=str(tmp_path / "one" / "tokenizer.json"))
    assert one.fingerprint == two.fingerprint


def test_the_default_corpus_is_what_prepare_makes_of_stdlib(tmp_path):
    """Catches the cached corpus and a hand-prepared one being two different data sets under one name."""
    assert prepare(stdlib_sources(), tmp_path / "out").fingerprint == open_dataset("stdlib").fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, r"val_fraction \(0.0\) must be above 0 and below 1"),
        ({"shard_tokens": 0}, r"shard_tokens \(0\) must be 1 or more"),
        ({"vocab_size": 300}, "is for tokenizer 'bpe'"),
        ({"tokenizer": "bqe"}, "Unknown tokenizer: 'bqe'.*Did you mean bpe"),
        ({"tokenizer": "bpe", "vocab_size": 5}, r"vocab_size \(5\) of a BPE"),
        ({"tokenizer": "bpe", "column": "txt"}, "Unknown column"),
        ({"val_fraction": 1e-9}, "No document is for val"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, options, message):
    """Catches a half-written folder after a mistake, and an exception swallowed inside the tokenizer's training."""
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    with pytest.raises(UserError, match=message) as error:
        prepare(find_sources([str(tmp_path / "a.jsonl")]), tmp_path / "out", **options)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


# Peaks of Python's and numpy's memory, and of Arrow's, in a process of its own.
MEASURE = """
import sys, tracemalloc
from pathlib import Path
import pyarrow as pa
from raytrain.data.corpora import find_sources
from raytrain.data.prepare import prepare
tracemalloc.start()
prepare(find_sources([sys.argv[1]]), Path(sys.argv[2]))
print(tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory())
"""


@pytest.mark.parametrize("format", ["txt", "jsonl", "parquet"])
def test_memory_is_bounded_whatever_the_size_of_the_file(tmp_path, format):
    """Catches a reader or a writer that holds the file: 60 MB must pass through far less memory."""
    texts = [f"line {i % 977} of a text\n" * 1000 for i in range(3200)]
    path = tmp_path / f"a.{format}"
    if format == "txt":
        path.write_text("".join(texts))
    elif format == "jsonl":
        write_jsonl(path, texts)
    else:
        # Small batches, so that a page (the least that can be read) has its usual 1 MB, not 1,024 of these texts.
        options = {"use_dictionary": False, "compression": "none", "write_batch_size": 16}
        pq.write_table(pa.table({"text": texts}), path, **options)
    size = path.stat().st_size
    assert size > 55e6
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "out")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(out.stdout) < size / 3
