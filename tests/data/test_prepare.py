import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from raytrain.data import Tokens, open_dataset
from raytrain.data.corpora import find_sources, stdlib_sources
from raytrain.data.prepare import prepare
from raytrain.data.shards import read_manifest
from raytrain.data.splits import draw
from raytrain.data.tokenizer import train_bpe
from raytrain.errors import UserError

DOCUMENTS = [f"document {i}: né 漢字\n" + "word " * (i % 37) for i in range(400)]


def all_of(tokens: Tokens) -> np.ndarray:
    return tokens.read(np.array([0]), len(tokens))[0]


def documents_in(folder) -> list[bytes]:
    dataset = open_dataset(str(folder))
    return [text for split in (dataset.train, dataset.val) for text in bytes(all_of(split).tolist()).split(b"\0")[:-1]]


def write_jsonl(path, documents) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")


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
    candidates = [f"{word * 9} {i}" for i in range(1500) for word in ("validation", "training")]
    documents = [text for text in candidates if text.startswith("validation") is (draw(text) < round(0.1 * 2**64))]
    assert len(documents) > 1000  # from there on the rule is that of each document alone
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
        ({"val_fraction": math.nan}, r"val_fraction \(nan\) must be"),
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


@pytest.mark.parametrize("format", ["txt", "jsonl", "parquet", "arrow"])
def test_memory_is_bounded_whatever_the_size_of_the_file(tmp_path, format):
    """Catches a reader or a writer that holds the file: 60 MB must pass through far less memory."""
    texts = [f"line {i % 977} of a text\n" * 1000 for i in range(3200)]
    path = tmp_path / f"a.{format}"
    if format == "txt":
        path.write_text("".join(texts))
    elif format == "jsonl":
        write_jsonl(path, texts)
    elif format == "arrow":  # in one batch
        pa.feather.write_feather(pa.table({"text": texts}), str(path), compression="uncompressed", chunksize=4000)
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


def _prepared_tokens(folder: Path) -> list[int]:
    dataset = open_dataset(str(folder))
    return [token for split in (dataset.train, dataset.val) for token in all_of(split).tolist()]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe", "file"])
def test_only_documents_ends_are_end_tokens(tmp_path, tokenizer):
    """Catches text that holds the end of a document (a zero byte, `<|endoftext|>`): one document becomes several, and
    the model learns an end that is none."""
    texts = [f"document {i}: a zero \0 and <|endoftext|>, <|pad|> and </s>" for i in range(40)]
    write_jsonl(tmp_path / "a.jsonl", texts)
    if tokenizer == "file":  # as some publish it: the end is no special token there
        learned = json.loads(train_bpe(texts, 300).to_json())
        learned["added_tokens"] = [token | {"special": False} for token in learned["added_tokens"]]
        (tmp_path / "tokenizer.json").write_text(json.dumps(learned))
        tokenizer = str(tmp_path / "tokenizer.json")
    notes: list[str] = []
    options = {"tokenizer": tokenizer, "val_fraction": 0.5, "on_note": notes.append}
    prepare(find_sources([str(tmp_path / "a.jsonl")]), tmp_path / "out", **options)
    dataset = open_dataset(str(tmp_path / "out"))
    tokens = _prepared_tokens(tmp_path / "out")
    assert tokens.count(dataset.tokenizer.end_of_document) == len(texts)
    decoded = dataset.tokenizer.decode([t for t in tokens if t != dataset.tokenizer.end_of_document])
    assert decoded.count("<|endoftext|>") == len(texts)
    if tokenizer == "bytes":
        assert decoded.count("\N{REPLACEMENT CHARACTER}") == len(texts)
        assert notes == ["note: U+FFFD took the place of 40 characters (lone surrogates and U+0000)"]
    else:
        assert decoded.count("\0") == len(texts)
        assert notes == []


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_lone_surrogates_are_replaced_and_counted(tmp_path, tokenizer):
    """Catches one broken character among millions of documents that stops everything, or goes unnoticed."""
    texts = [f"document {i} \ud83d broken" if i % 4 == 0 else f"document {i} \U0001f600" for i in range(40)]
    write_jsonl(tmp_path / "a.jsonl", texts)
    notes: list[str] = []
    options = {"tokenizer": tokenizer, "val_fraction": 0.5, "on_note": notes.append}
    manifest = prepare(find_sources([str(tmp_path / "a.jsonl")]), tmp_path / "out", **options)
    assert len(notes) == 1
    assert "place of 10 characters (lone surrogates" in notes[0]
    whole = "".join(texts).replace("\ud83d", "\N{REPLACEMENT CHARACTER}")
    assert manifest.train.bytes + manifest.val.bytes == len(whole.encode())


def test_one_long_document_says_how_it_can_be_split(tmp_path):
    """Catches a line that blames --val_fraction alone where no fraction of one document can help."""
    write_jsonl(tmp_path / "a.jsonl", ["a long text\n" * 100_000])
    with pytest.raises(UserError, match=r"No document is for (val|train): .*Plain text is cut into several"):
        prepare(find_sources([str(tmp_path / "a.jsonl")]), tmp_path / "out")
    (tmp_path / "a.txt").write_text("".join(f"line {i} of a long text\n" for i in range(100_000)))
    manifest = prepare(find_sources([str(tmp_path / "a.txt")]), tmp_path / "out")
    assert manifest.val.documents > 0


KILLED = """
import os, signal, sys
from raytrain.data import __main__, prepare
def die(*args):
    print("half made", flush=True)
    signal.pause()
prepare.write_manifest = die
sys.exit(__main__.main(["prepare", sys.argv[1], "--out", sys.argv[2], *sys.argv[3:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_preparation_leaves_no_hidden_folder(tmp_path, number, overwrite):
    """Catches hidden folders of many GB that pile up beside the data; after SIGKILL the next preparation removes them,
    but never one that another process is making."""
    source, out = tmp_path / "a.jsonl", tmp_path / "made" / "out"
    write_jsonl(source, DOCUMENTS)
    if overwrite:
        prepare(find_sources([str(source)]), out)
    command = [sys.executable, "-c", KILLED, str(source), str(out), *(["--overwrite"] if overwrite else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"half made\n"
        prepare(find_sources([str(source)]), out, overwrite=overwrite)  # while the other one is at work
        assert len(list(out.parent.iterdir())) == 2
        process.send_signal(number)
        process.wait()
    if number == signal.SIGKILL:
        prepare(find_sources([str(source)]), out, overwrite=True)
    assert list(out.parent.iterdir()) == [out]
    assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}.get(number, 128 + number)


def test_what_a_killed_process_moved_away_comes_back(tmp_path):
    """Catches data that is lost where a preparation was killed between its two renames."""
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    sources, out = find_sources([str(tmp_path / "a.jsonl")]), tmp_path / "made" / "out"
    made = prepare(sources, out)
    out.rename(out.with_name(".out.0123abcd.replaced"))
    with pytest.raises(UserError, match="exists"):
        prepare(sources, out)
    assert read_manifest(out) == made
    assert list(out.parent.iterdir()) == [out]
