import collections
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.data import open_dataset
from raytrain.data.__main__ import main
from raytrain.data.corpora import find_sources
from raytrain.data.documents import read_documents
from raytrain.data.prepare import prepare
from raytrain.data.splits import draw, drawn, file_in_validation, named_split, validation_limit
from raytrain.errors import UserError

DOCUMENTS = [f"document {i}: né 漢字\n" + "word " * (i % 37) for i in range(400)]


def stream_bytes(texts: list[str], rows: int = 1000) -> bytes:
    """What the `ArrowWriter` of `datasets` writes: an IPC stream in batches, its features in the schema's metadata."""
    features = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}}}}
    schema = pa.schema([("text", pa.string())], metadata={"huggingface": json.dumps(features)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(texts), rows):
            writer.write_batch(pa.record_batch([pa.array(texts[start : start + rows])], schema=schema))
    return sink.getvalue().to_pybytes()


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def write_saved(folder: Path, texts: list[str], shards: int = 2, split: str | None = None) -> None:
    """What `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        part = texts[i * len(texts) // shards : (i + 1) * len(texts) // shards]
        (folder / name).write_bytes(stream_bytes(part, rows=64))
    rest = {"_fingerprint": "0123456789abcdef", "_format_type": None, "_output_all_columns": False, "_split": split}
    state = {"_data_files": [{"filename": name} for name in names], **rest}
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}, indent=2))


def write_saved_dict(folder: Path, splits: dict[str, list[str]]) -> None:
    """What `DatasetDict.save_to_disk` writes."""
    for name, texts in splits.items():
        write_saved(folder / name, texts, split=name)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def write_as(kind: str, folder: Path, texts: list[str]) -> str:
    """`texts` in a format; the path to give to prepare."""
    folder.mkdir()
    if kind == "text":
        for i, text in enumerate(texts):
            (folder / f"{i:05d}.txt").write_bytes(text.encode())
        return str(folder)
    if kind == "saved":
        write_saved(folder / "out", texts, shards=3)
        (folder / "out" / "cache-0123456789abcdef.arrow").write_bytes(stream_bytes(["what a map has kept"]))
        return str(folder / "out")
    path = folder / f"name of {kind}.{'arrow' if 'arrow' in kind else kind}"
    table = pa.table({"text": texts})
    if kind == "jsonl":
        write_jsonl(path, texts)
    elif kind == "parquet":
        pq.write_table(table, path, row_group_size=64)
    elif kind == "arrow stream":
        path.write_bytes(stream_bytes(texts))
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=50)
    return str(path)


KINDS = ["text", "jsonl", "parquet", "arrow file", "arrow stream", "saved"]


def texts_of(folder: Path, split: str) -> list[str]:
    tokens = getattr(open_dataset(str(folder)), split)
    return bytes(tokens.read(np.array([0]), len(tokens))[0].tolist()).decode().split("\0")[:-1]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
@pytest.mark.parametrize("count", [400, 1500])
def test_the_same_documents_give_the_same_data_in_every_format(tmp_path, tokenizer, count):
    """Catches a validation split (and with it every loss) that depends on how the documents were stored: its share was
    12.1, 7.7 and 17.4% of one corpus as text, JSON lines and Parquet."""
    texts = [f"{i} {DOCUMENTS[i % 400]}" for i in range(count)]
    fingerprints = set()
    for kind in KINDS:
        out = tmp_path / f"{kind} out"
        sources = find_sources([write_as(kind, tmp_path / kind, texts)])
        fingerprints.add(prepare(sources, out, tokenizer=tokenizer, vocab_size=None).fingerprint)
    assert len(fingerprints) == 1
    if tokenizer == "bytes":
        draws = {
            text: int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for text in texts
        }
        least = set(sorted(texts, key=draws.get)[:40]) if count == 400 else {t for t in texts if draws[t] < 2**64 / 10}
        assert texts_of(out, "val") == [text for text in texts if text in least]
        assert texts_of(out, "train") == [text for text in texts if text not in least]


def test_a_split_hangs_on_the_text_alone():
    """Catches a split that hangs on the process (Python's salted hash), or that misses its fraction."""
    texts = [f"text {i}" for i in range(5000)]
    code = "from raytrain.data.splits import draw; print([draw(f'text {i}') for i in range(50)])"
    path = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(out.stdout) == [draw(text) for text in texts[:50]]
    assert draw("\ud800") != draw("?")
    for fraction in (0.001, 0.1, 0.37, 0.9):
        limit = validation_limit((draw(text) for text in texts), fraction)
        count = sum(draw(text) < limit for text in texts)
        assert abs(count - 5000 * fraction) < 5 * (5000 * fraction * (1 - fraction)) ** 0.5
    both = sum(drawn(text, "bpe", 0.5) and draw(text) < 2**63 for text in texts)
    assert abs(both - 1250) < 5 * (5000 * 0.25 * 0.75) ** 0.5  # the samples are drawn apart


@pytest.mark.parametrize(("count", "fraction", "expected"), [(2, 0.1, 1), (17, 0.1, 2), (999, 0.1, 100), (3, 0.9, 2)])
def test_few_documents_have_the_share_that_was_asked_for(count, fraction, expected):
    """Catches a small text (17 pieces of 64 KB) that has no validation in a sixth of cases, or no training."""
    draws = [draw(f"text {i}") for i in range(count)]
    assert sum(number < validation_limit(draws, fraction) for number in draws) == expected


def test_equal_documents_are_never_in_both_splits(tmp_path):
    """Catches validation on what was trained on, where a crawl has a page many times."""
    write_jsonl(tmp_path / "a.jsonl", [DOCUMENTS[i % 7] for i in range(500)])
    prepare(find_sources([str(tmp_path / "a.jsonl")]), tmp_path / "out")
    assert set(texts_of(tmp_path / "out", "val")).isdisjoint(texts_of(tmp_path / "out", "train"))
    assert len({draw(text) for text in DOCUMENTS}) == 400


def test_empty_and_null_documents_do_not_shift_the_split(tmp_path):
    """Catches a split by a document's place, which a row before it changes."""
    write_jsonl(tmp_path / "a.jsonl", [*DOCUMENTS[:50], None, "", *DOCUMENTS[50:]])
    write_jsonl(tmp_path / "b.jsonl", DOCUMENTS)
    one, two = (prepare(find_sources([str(tmp_path / f"{n}.jsonl")]), tmp_path / n) for n in "ab")
    assert one.fingerprint == two.fingerprint


def test_the_rule_of_the_default_corpus_is_the_one_it_always_had():
    """Catches a default corpus whose fingerprint changes, so that old runs cannot be compared with new ones.
    Version 0.1 had the first five of these files in its validation split, and none of the others."""
    validation = ["__future__.py", "asyncio/locks.py", "email/feedparser.py", "encodings/cp1257.py", "hmac.py"]
    training = ["abc.py", "argparse.py", "json/decoder.py", "typing.py", "asyncio/events.py", "ast.py", "this.py"]
    assert all(file_in_validation(key, 0.1) for key in validation)
    assert not any(file_in_validation(key, 0.1) for key in training)
    assert 350 < sum(file_in_validation(f"folder/{i}.py", 0.1) for i in range(4000)) < 450


def places(found) -> dict[str, str | None]:
    return {source.key: source.split for source in found}


def test_named_splits_of_a_saved_dict(tmp_path, capsys):
    """Catches a published validation split that is trained on, a test split that is, and JSON descriptions as text."""
    splits = {"train": DOCUMENTS[:300], "validation": DOCUMENTS[300:350], "test": DOCUMENTS[350:]}
    write_saved_dict(tmp_path / "saved", splits)
    assert main(["prepare", str(tmp_path / "saved"), "--out", str(tmp_path / "out")]) == 0
    assert texts_of(tmp_path / "out", "train") == splits["train"]
    assert texts_of(tmp_path / "out", "val") == splits["validation"]
    note = "note: by their names, files for training: 2, validation: 2, testing (left out): 2; --split_by text takes no"
    assert note in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "saved"), "--out", str(tmp_path / "all"), "--split_by", "text"]) == 0
    assert sorted(texts_of(tmp_path / "all", "train") + texts_of(tmp_path / "all", "val")) == sorted(DOCUMENTS)
    assert "note" not in capsys.readouterr().err


def test_named_splits_of_a_hub_snapshot(tmp_path):
    """Catches a data set's README as a document, and its test split in training where it has no validation."""
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    (hub / "README.md").write_text("---\nlicense: mit\n---\n# A data set\n")
    for i in range(2):
        pq.write_table(pa.table({"text": DOCUMENTS[i::2]}), hub / "data" / f"train-0000{i}-of-00002.parquet")
    pq.write_table(pa.table({"text": ["a test"]}), hub / "data" / "test-00000-of-00001-0a1b2c3d4e5f6789.parquet")
    notes: list[str] = []
    found = find_sources([str(hub)], on_note=notes.append)
    assert places(found) == dict.fromkeys(("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"))
    assert "training: 2, validation: 0, testing (left out): 1" in notes[0]
    write_jsonl(hub / "data" / "dev.jsonl", ["a"])
    found = find_sources([str(hub)], on_note=notes.append)
    assert collections.Counter(source.split for source in found) == {"train": 2, "val": 1}
    (tmp_path / "link").symlink_to(hub)
    assert len(find_sources([str(tmp_path / "link")], on_note=notes.append)) == 3


def test_names_count_only_beside_one_for_training(tmp_path):
    """Catches a file that the user names, or the only one, that is left out for its name; prose and code as splits."""
    write_jsonl(tmp_path / "test.jsonl", DOCUMENTS)
    write_jsonl(tmp_path / "validation.jsonl", DOCUMENTS)
    for named in (["test.jsonl"], ["validation.jsonl"], ["test.jsonl", "validation.jsonl"]):
        found = find_sources([str(tmp_path / name) for name in named])
        assert places(found) == dict.fromkeys(named)
    for name in ("code/train.py", "code/test/case.py", "code/eval.py", "prose/train.txt", "prose/test.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "prose" / "apple.txt").write_text("an apple")
    for folder, count in (("code", 3), ("prose", 3)):
        found = find_sources([str(tmp_path / folder)])
        assert len(found) == count
        assert {source.split for source in found} == {None}
    (tmp_path / "prose" / "apple.txt").rename(tmp_path / "prose" / "valid.txt")
    found = find_sources([str(tmp_path / "prose")], on_note=lambda line: None)
    assert places(found) == {"train.txt": "train", "valid.txt": "val"}


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("c4-validation.00000-of-00008.json.gz", "val"),
        ("train/data-00000-of-00001.arrow", "train"),
        ("test/train.jsonl", "train"),
        ("dataset-train.arrow", "train"),
        ("validation_matched/0000.parquet", "val"),
        ("train_test.jsonl", None),
        ("contest.jsonl", None),
        ("trainer.jsonl", None),
        ("latest-valley.parquet", None),
    ],
)
def test_which_names_state_a_split(path, split):
    """Catches words that only hold the name of a split, and the names that the hub gives its files."""
    assert named_split(Path(path), "jsonl") == split


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}', r"lacks 'gone\.arrow', which its state\.json"),
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', r"lacks '\.\./x\.arrow'"),
        ("state.json", '{"_data_files": [["x"]]}', r"lacks \['x'\]"),
        ("state.json", '{"_data_files": 3}', "_data_files is 3, not a list"),
        ("state.json", "[]", r"state\.json is not as datasets writes it: \[\]"),
        ("state.json", "{", r"state\.json is damaged"),
        ("state.json", '{"_indices_data_files": [{"filename": "x"}]}', "selects rows by a second file"),
        ("dataset_dict.json", '{"splits": ["train"]}', r"lacks 'train', which its dataset_dict\.json"),
    ],
)
def test_a_folder_that_is_not_as_datasets_writes_it(tmp_path, name, content, words):
    """Catches a part of a data set that is missing in silence, and a traceback for a description of another version."""
    write_saved(tmp_path / "saved", DOCUMENTS)
    (tmp_path / "saved" / name).write_text(content)
    with pytest.raises(UserError, match=words):
        find_sources([str(tmp_path / "saved")])


def test_what_datasets_writes_itself_is_read(tmp_path):
    """Catches a format that this file's writers imitate wrongly; runs where `datasets` is installed."""
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(str(tmp_path / "one"), num_shards=2)
    found = find_sources([str(tmp_path / "one")])
    assert [text for source in found for texts, _ in read_documents(source, "text") for text in texts] == DOCUMENTS
    parts = {
        "train": datasets.Dataset.from_dict({"text": ["a"]}),
        "validation": datasets.Dataset.from_dict({"text": ["b"]}),
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    found = find_sources([str(tmp_path / "both")], on_note=lambda line: None)
    assert [source.split for source in found] == ["train", "val"]
