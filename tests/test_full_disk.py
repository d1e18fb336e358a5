"""A full disk is one line: what could not be written, what to free, how to go on. Nothing that was written is lost."""

import contextlib
import errno
import io
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rich.console

from raytrain import train
from raytrain.engine.journal import StudyJournal
from raytrain.engine.session import Session
from raytrain.errors import UserError, command, unwritable
from raytrain.report.sections import write_report
from raytrain.rundir import folders
from raytrain.rundir.log import JsonLog
from raytrain.rundir.run import RunFolder
from raytrain.sweep.schedule import Segment
from tests.engine.test_journal import trials
from tests.studies import write_study

SMALL = [
    "--n_layer",
    "1",
    "--n_head",
    "2",
    "--n_embd",
    "32",
    "--block_size",
    "32",
    "--global_batch",
    "64",
    "--eval_tokens",
    "64",
    "--max_iters",
    "4",
]


def full(*_args: Any, **_kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_command_names_the_file(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a traceback from any writer, whatever it writes."""

    def main(argv: list[str] | None) -> int:
        raise OSError(number, os.strerror(number), "/data/file")

    assert command(main)([]) == 1
    said = capsys.readouterr().err
    assert said == (
        f"error: /data/file cannot be written: {os.strerror(number)}; free space on that disk, "
        "then run the same command again\n"
    )
    assert unwritable(FileNotFoundError(errno.ENOENT, "no")) == ""


def test_a_run_that_cannot_begin_leaves_its_name_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a name that is taken for good by a run that never was."""
    flags = ["--runs", str(tmp_path), "--name", "r", *SMALL]
    monkeypatch.setattr(RunFolder, "write_config", full)
    assert train.main(flags) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(JsonLog, "write", full)
    assert train.main(flags) == 1
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert train.main(flags) == 0


def test_a_run_that_has_trained_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch checkpoints deleted with a run that met a full disk, and a user who does not know of them."""
    real = JsonLog.write

    def write(self: JsonLog, report: Any) -> None:
        full() if report["event"] == "end" else real(self, report)

    monkeypatch.setattr(JsonLog, "write", write)
    assert train.main(["--runs", str(tmp_path), "--name", "r", *SMALL]) == 2
    said = capsys.readouterr().err
    assert f"resume with: python -m raytrain.train --resume {tmp_path / 'r'}" in said
    assert (tmp_path / "r" / "checkpoints").is_dir()


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, which the system answers as it does a full disk, amid a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    """Would catch a study.json of zero bytes, and partial files that fill the disk up further."""
    folders.write_json(tmp_path / "a.json", {"a": 1})
    with room_for(5), pytest.raises(OSError, match="File too large") as error:
        folders.write_json(tmp_path / "a.json", {"a": 2})
    assert error.value.filename == str(tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_a_report_is_whole_or_as_it_was(tmp_path: Path) -> None:
    """Would catch a page of zero bytes, or of half a study, in the place of a whole one."""
    folder = write_study(tmp_path / "s")
    files = write_report(folder)
    before = {file: file.read_bytes() for file in files}
    with room_for(5), pytest.raises(UserError, match=r"index\.html cannot be written: File too large; free space"):
        write_report(folder)
    assert {file: file.read_bytes() for file in (folder / "report").iterdir()} == before


def test_a_study_ends_with_its_resume_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a full disk that Tune takes for a trial's failure, so that all trials fail one after another."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.json").write_text("{}")
    console = rich.console.Console(file=io.StringIO(), width=500)
    session = Session(tmp_path / "s", console)
    left: list[int] = []
    monkeypatch.setattr(session.ending, "leave", left.append)
    record = StudyJournal(tmp_path / "s", trials(1))
    record.on_full_disk = session.disk_is_full
    monkeypatch.setattr(JsonLog, "write", full)
    with pytest.raises(OSError, match="No space left"):
        record.begin(Segment("t0", None, None))
    assert left == [1]
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{tmp_path / 's'} cannot be written: No space left on device; free space on that disk" in said
    assert f"resume with: python -m raytrain.tune --resume s --runs {tmp_path}" in said
