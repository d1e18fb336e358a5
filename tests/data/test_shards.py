import hashlib
import json

import numpy as np
import pytest

from raytrain.data.shards import FolderExists, SplitWriter, dtype_for, new_folder, read_manifest, write_manifest
from raytrain.data.tokenizer import ByteTokenizer, train_bpe
from raytrain.errors import UserError

TEXTS = ["hello\n", "né 漢字", "z" * 50]


def write(folder, tokenizer=None, shard_tokens=16):
    tokenizer = tokenizer or ByteTokenizer()
    folder.mkdir(exist_ok=True)
    writers = [SplitWriter(folder, split, tokenizer, shard_tokens) for split in ("train", "val")]
    for text in TEXTS:
        writers[0].add(text)
    writers[1].add(TEXTS[1])
    return write_manifest(folder, tokenizer, *(writer.close() for writer in writers))


def test_the_shards_together_are_the_documents_each_with_its_end(tmp_path):
    """Catches tokens lost at shard borders, wrong counts and a wrong hash."""
    manifest = write(tmp_path)
    names = [shard.name for shard in manifest.train.shards]
    assert names == [f"train-{i:05d}.bin" for i in range(len(names))]
    contents = [(tmp_path / name).read_bytes() for name in names]
    assert b"".join(contents) == b"".join(text.encode() + b"\0" for text in TEXTS)
    assert [len(content) for content in contents[:-1]] == [16] * (len(names) - 1)
    assert [shard.sha256 for shard in manifest.train.shards] == [hashlib.sha256(c).hexdigest() for c in contents]
    assert manifest.train.documents == 3
    assert manifest.train.bytes == sum(len(text.encode()) for text in TEXTS)
    assert manifest.train.tokens == manifest.train.bytes + 3
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(("vocab_size", "name"), [(256, "u1"), (257, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_the_smallest_type_that_holds_the_vocabulary(vocab_size, name):
    """Catches an off-by-one at 256 or 65,536 that would wrap ids."""
    assert dtype_for(vocab_size) == np.dtype(name)


def test_the_fingerprint_is_of_the_content(tmp_path):
    """Catches a fingerprint with paths or times in it, and one that misses the tokens or the tokenizer."""
    first = write(tmp_path / "a").fingerprint
    assert write(tmp_path / "b").fingerprint == first
    assert write(tmp_path / "c", train_bpe(TEXTS, 260)).fingerprint != first
    (tmp_path / "b" / "manifest.json").write_text(
        (tmp_path / "a" / "manifest.json").read_text().replace('"sha', ' "sha')
    )
    assert read_manifest(tmp_path / "b").fingerprint == first


def test_a_failed_write_leaves_nothing(tmp_path):
    """Catches half-written folders that a later run would take for data."""

    def fail() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "x").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_wins_and_stays_whole(tmp_path):
    """Catches a race in which the second writer mixes its files into the first's folder, or deletes them."""

    def race() -> None:
        with new_folder(tmp_path / "out") as slow:
            (slow / "slow").touch()
            with new_folder(tmp_path / "out") as quick:
                (quick / "quick").touch()

    with pytest.raises(FolderExists):
        race()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["quick"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_replaces_a_prepared_folder_and_nothing_else(tmp_path):
    """Catches --overwrite deleting someone's home, and old shards left among the new."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(FolderExists, match="--overwrite"), new_folder(out):
        pass
    with (
        pytest.raises(UserError, match=r"has no manifest\.json, and --overwrite replaces only"),
        new_folder(out, overwrite=True),
    ):
        pass
    assert (out / "thesis.tex").exists()
    (out / "manifest.json").touch()
    with new_folder(out, overwrite=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    """Catches a traceback when the parent is a file."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write .*file/out"), new_folder(tmp_path / "file" / "out"):
        pass


def changed(manifest: dict, **values) -> str:
    return json.dumps(manifest | values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: "{", "is damaged"),
        (lambda m: "[]", "is damaged"),
        (lambda m: "{}", "is damaged"),
        (lambda m: changed(m, version=2), "has version 2, this raytrain reads 1"),
        (lambda m: changed(m, dtype="float64"), "is damaged"),
        (lambda m: changed(m, vocab_size=70000), "is damaged"),
        (lambda m: changed(m, extra=1), "is damaged"),
        (lambda m: changed(m, val=m["val"] | {"tokens": 1}), "is damaged"),
        (lambda m: changed(m, val=m["val"] | {"tokens": 0, "shards": []}), "is damaged"),
        (lambda m: json.dumps(m).replace("val-00000.bin", "../val-00000.bin"), "outside the folder"),
    ],
)
def test_a_damaged_manifest_is_a_named_error(tmp_path, damage, message):
    """Catches tracebacks on damaged manifests, and wrong tokens read because one was believed."""
    write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(UserError, match=message) as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value)


def test_truncated_and_missing_shards_are_named(tmp_path):
    """Catches an interrupted copy being trained on."""
    write(tmp_path)
    shard = tmp_path / "train-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-00001\.bin has 15 bytes, its manifest records 16"):
        read_manifest(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=r"Cannot read the shard .*train-00001\.bin"):
        read_manifest(tmp_path)
