"""Checkpoints below a URI are as good as those in a folder, and no failure of a storage goes unsaid."""

import errno
import io
import json
import os
import re
import socket
import threading
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from pyarrow import fs
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from raytrain.errors import UserError
from raytrain.training import storage
from raytrain.training.loop import train
from raytrain.training.manifest import newest
from raytrain.training.pretrained import load_run
from raytrain.training.storage import open_storage
from tests.ranks import Ranks

STEPS = 12


@pytest.fixture(scope="module")
def config(tiny_run):
    return tiny_run(preset="llama", max_iters=STEPS, checkpoint_interval=3, eval_interval=STEPS)


@pytest.fixture(scope="module")
def uninterrupted(config) -> float:
    return train(config)["train_loss"]


class ObjectStore(fs.FSSpecHandler):
    """Objects in memory. `fails` (a pattern) breaks the operations on paths that match it; writes, half way."""

    def __init__(self) -> None:
        super().__init__(fsspec.filesystem("memory", skip_instance_cache=True))
        self.fs.store, self.fs.pseudo_dirs = {}, [""]
        self.fails, self.log = "^$", []

    def _check(self, operation: str, path: str) -> bool:
        self.log.append(f"{operation} {path}")
        return re.search(self.fails, self.log[-1]) is not None

    def open_output_stream(self, path, metadata):
        is_cut = self._check("write", path)
        return (
            pa.PythonFile(Cut(self.fs.open(path, "wb")), "w") if is_cut else super().open_output_stream(path, metadata)
        )

    def open_input_stream(self, path):
        if self._check("read", path):
            raise OSError("connection reset by peer")
        return super().open_input_stream(path)

    def delete_file(self, path):
        if self._check("delete", path):
            raise OSError("access denied")
        super().delete_file(path)

    def delete_dir(self, path):
        if self._check("delete", path):
            raise OSError("access denied")
        super().delete_dir(path)


class Cut(io.RawIOBase):
    """Leaves half of what is written to it, and says that the connection broke."""

    def __init__(self, file) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, content) -> int:
        self._file.write(bytes(content)[: len(content) // 2])
        self._file.close()
        raise OSError("connection reset by peer")


@pytest.fixture
def store(monkeypatch) -> ObjectStore:
    """The object store that `store://bucket/run` names."""
    handler = ObjectStore()
    monkeypatch.setattr(storage, "connect", lambda uri: (fs.PyFileSystem(handler), "bucket/run"))
    return handler


URI = "store://bucket/run"


def train_until(config, folder: Path | str, step: int, machines: int = 1) -> dict:
    """Train in `folder`; stop after `step`, as if preempted. Ranks are on `machines` machines, as far as they know."""
    rank, seen = int(os.environ.get("RANK", "0")), [0]
    if machines > 1:
        socket.gethostname = lambda: f"machine-{rank % machines}"
    return train(
        config, lambda r: seen.append(r.get("step", 0)), folder, interrupted=lambda: rank == 0 and seen[-1] + 1 >= step
    )


@pytest.mark.parametrize("machines", [1, 2])
def test_a_uri_goes_on_as_a_folder_does(config, uninterrupted, tmp_path, machines):
    """Catches shards of a rank that were not uploaded or not brought to each machine, and another layout by URI."""
    uri = tmp_path.as_uri()
    fsdp = config.replace(parallel="fsdp")
    assert Ranks(2, train_until, fsdp, uri, 4, machines).join() == [0, 0]
    assert Ranks(2, train_until, fsdp, uri, 8, machines).join() == [0, 0]
    reports: list[dict] = []
    result = train(config, reports.append, tmp_path)
    assert reports[0]["checkpoint"] == "step-00000008"
    assert result["train_loss"] == pytest.approx(uninterrupted, rel=1e-5)
    reports = []
    assert train(config, reports.append, uri)["train_loss"] == result["train_loss"]
    assert (reports[0]["checkpoint"], len(reports)) == ("step-00000012", 2)


@pytest.mark.parametrize("victim", ["model", "manifest"])
def test_an_upload_cut_short_is_an_error_and_leaves_the_one_before(config, uninterrupted, store, victim):
    """Catches a half-written object that is taken for a checkpoint, and an upload whose failure nobody hears of."""
    store.fails = f"write .*step-00000006/.*{victim}"
    with pytest.raises(UserError, match=f"^checkpoint step-00000006 in {URI}/checkpoints was not saved: .*reset"):
        train(config, folder=URI)
    assert any("step-00000006" in path for path in store.fs.store)
    manifest, damaged = newest(open_storage(URI))
    assert manifest["name"] == "step-00000003"
    assert damaged == ["step-00000006: manifest.json is missing or damaged"]
    store.fails = "^$"
    reports: list[dict] = []
    result = train(config, reports.append, URI)
    assert (reports[0]["checkpoint"], reports[0]["damaged_checkpoints"]) == ("step-00000003", damaged)
    assert result["train_loss"] == uninterrupted
    assert newest(open_storage(URI))[0]["name"] == "step-00000012"


def test_damage_is_named_and_shards_of_nobody_are_not_read(config, uninterrupted, store):
    """Catches a download that is trusted, and shards that another world size left in the same place."""
    train_until(config, URI, 8)
    shards = sorted(path for path in store.fs.store if path.endswith(".safetensors"))
    newer = store.fs.store[shards[-1]].getvalue()
    store.fs.pipe_file(shards[-2].replace("shard-00001", "shard-00002"), newer)
    store.fs.pipe_file(shards[-1], newer[:-1])
    reports: list[dict] = []
    result = train(config, reports.append, URI)
    assert reports[0]["checkpoint"] == "step-00000006"
    assert reports[0]["damaged_checkpoints"] == [f"step-00000008: {Path(shards[-1]).name} is damaged (sha256 differs)"]
    assert result["train_loss"] == uninterrupted


def test_a_network_that_fails_is_not_damage(config, store):
    """Catches a run that starts from nothing, burying its checkpoints, when it cannot read them for a moment."""
    train_until(config, URI, 6)
    before = {path: file.getvalue() for path, file in store.fs.store.items()}
    store.fails = "read .*manifest"
    with pytest.raises(UserError, match=f"^checkpoints in {URI}/checkpoints were not read: .*reset"):
        train(config, folder=URI)
    assert {path: file.getvalue() for path, file in store.fs.store.items()} == before


def test_rotation_takes_the_manifest_first_and_may_fail(config, store):
    """Catches a checkpoint that is deleted file by file while it looks whole, and a run that ends over old files."""
    train(config.replace(keep_checkpoints=1), folder=URI)
    assert open_storage(URI).names() == ["step-00000012"]
    deleted = [line.split("/", 3)[-1] for line in store.log if line.startswith("delete")]
    assert deleted[:2] == ["step-00000003/manifest.json", "step-00000003"]
    store.fails, store.fs.store = "delete", {}
    assert train(config, folder=URI)["status"] == "complete"
    assert len(open_storage(URI).names()) == 4


@pytest.mark.parametrize("folder", ["URI", "path"])
def test_a_damaged_later_checkpoint_does_not_push_out_the_whole_one(config, store, tmp_path, folder):
    """Catches a rotation that keeps the last one by name, damaged, and deletes the one just saved."""
    folder = URI if folder == "URI" else tmp_path
    if folder == URI:
        store.fs.pipe_file("bucket/run/checkpoints/step-00000099/x", b"")
    else:
        (tmp_path / "checkpoints" / "step-00000099").mkdir(parents=True)
    train(config.replace(keep_checkpoints=1), folder=folder)
    assert newest(open_storage(folder))[0]["name"] == "step-00000012"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("nope://user:secret@bucket/run?key=secret", "nope://***@bucket/run/checkpoints?key=***"),
        ("file:///dev/null/run", "file:///dev/null/run/checkpoints"),
    ],
)
def test_a_place_that_cannot_be_reached_is_one_line(config, uri, shown):
    """Catches a traceback, hours of training before the first save fails, and a secret in the log."""
    with pytest.raises(UserError) as caught:
        train(config, folder=uri)
    text = str(caught.value)
    assert text.startswith(f"folder ({shown}) cannot be reached: ")
    assert "\n" not in text
    assert "secret" not in text


def fill_disk(monkeypatch, at_save: int, rank: int = 0) -> None:
    """Writing fails at the `at_save`-th save of this process, if it is `rank`."""
    saves, write = iter(range(1, 100)), HuggingFaceStorageWriter.write_data

    def write_data(self, plan, planner):
        if next(saves) == at_save and int(os.environ.get("RANK", "0")) == rank:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, plan, planner)

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", write_data)


def test_a_full_disk_is_an_error_and_leaves_the_one_before(config, tmp_path, monkeypatch):
    """Catches a failure in the writing thread that nobody hears of, or that costs the last good checkpoint."""
    fill_disk(monkeypatch, at_save=2)
    with pytest.raises(UserError, match=r"step-00000006 in .*checkpoints was not saved: .*No space left on device"):
        train(config, folder=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert newest(open_storage(tmp_path))[0]["name"] == "step-00000003"


def fail_on_one_rank(config, folder: Path | str) -> None:
    """A full disk for rank 1: both ranks must say so."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        fill_disk(monkeypatch, at_save=4, rank=1)  # the last one: only finish() can say it
        with pytest.raises(UserError, match=r"step-00000012 in .*checkpoints was not saved: .*No space left on device"):
            train(config, folder=folder)


@pytest.mark.parametrize("is_uri", [False, True])
def test_a_full_disk_of_one_rank_is_raised_on_all(config, tmp_path, is_uri):
    """Catches ranks that wait for one that failed, or go on as if it had not."""
    assert Ranks(2, fail_on_one_rank, config, tmp_path.as_uri() if is_uri else tmp_path).join() == [0, 0]
    assert open_storage(tmp_path).names() == ["step-00000006", "step-00000009"]


def train_again_and_again(config, folder: Path) -> None:
    """Twenty runs in one process group: complete, diverged, and ended by an error while a checkpoint is written."""
    dist.init_process_group("gloo")
    for index in range(20):
        calls = iter(range(100))
        run = config.replace(max_iters=2, checkpoint_interval=1, learning_rate=1e30 if index % 3 == 1 else 1e-3)

        def interrupted(index=index, calls=calls) -> bool:
            if next(calls) == 1 and index % 3 == 2:
                raise KeyError("on every rank")
            return False

        try:
            train(run, folder=folder / str(index), interrupted=interrupted)
        except KeyError:
            assert index % 3 == 2
        assert len(dist.distributed_c10d._world.pg_map) == 1
        for thread in threading.enumerate():
            if thread.name.startswith("AsyncCheckpoint"):
                thread.join(10)
                assert not thread.is_alive()
        assert newest(open_storage(folder / str(index)))[0] is not None
    dist.destroy_process_group()


def test_runs_in_one_process_group_leave_no_groups(config, tmp_path):
    """Catches a process group a run on a warm lane, and a thread that still writes when the next run starts."""
    assert Ranks(2, train_again_and_again, config, tmp_path).join() == [0, 0]


def test_links_in_place_of_checkpoints_are_replaced_and_not_followed(config, uninterrupted, tmp_path):
    """Catches a run that ends since a link lies where a checkpoint is written, and files deleted that it leads to."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / ".step-00000003.partial").symlink_to(elsewhere)
    (folder / ".step-00000006.partial").symlink_to(tmp_path / "nowhere")
    (folder / "step-00000009").symlink_to(elsewhere)
    assert train(config, folder=tmp_path / "run")["train_loss"] == uninterrupted
    assert newest(open_storage(tmp_path / "run"))[0]["name"] == "step-00000012"
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]


def test_weights_in_a_store_are_those_of_the_end(config, store, tmp_path):
    """Catches weights that only a folder takes, a store that fails and takes the run's result with it, and a run that
    would continue from them."""
    plain = config.replace(checkpoint_interval=None)
    (tmp_path / "config.json").write_text(json.dumps(plain.to_dict()))
    store.fails = "write .*weights"
    result = train(plain, weights=URI)
    assert result["status"] == "complete"
    assert "weights" not in result
    assert "was not saved: connection reset by peer" in result["weights_lost"]
    store.fails = "^$"
    again = train(plain, folder=URI, weights=URI)
    assert again["first_step"] == 0
    assert again["weights"] == f"step-{STEPS:08d}"
    _, model = load_run(tmp_path, [URI])
    train(plain.replace(checkpoint_interval=0), folder=tmp_path)
    _, other = load_run(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    open_storage(URI, "weights").clear()
    assert open_storage(URI, "weights").names() == []


def _keep(config, folder):
    result = train(config, weights=folder)
    assert result["weights"] == "step-00000003"


def test_weights_of_several_ranks_are_whole(tiny_run, tmp_path):
    """Catches a shard in place of the model, which FSDP leaves on each rank, and a rank that waits for ever."""
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        config = tiny_run(max_iters=3, checkpoint_interval=None, parallel="fsdp" if size > 1 else "single")
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        assert Ranks(size, _keep, config, folder).join() == [0] * size
    ones, twos = (load_run(tmp_path / size)[1].state_dict() for size in ("1", "2"))
    assert all(torch.allclose(ones[name], twos[name], atol=1e-5) for name in ones)
