import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raytrain import watch
from raytrain.engine.journal import StudyJournal
from raytrain.engine.lock import study_lock
from raytrain.engine.session import mark_interrupted
from raytrain.engine.watching import follow
from raytrain.rundir.folders import read_study_json, write_json
from raytrain.sweep.schedule import Segment
from raytrain.sweep.stages import Stage, with_stage
from tests.engine.test_journal import trials

DEAD = json.dumps({"host": "elsewhere", "pid": 7, "started": "1", "since": "noon"})


def make(folder: Path, count: int = 2) -> Path:
    """A study of `count` trials that nobody has begun."""
    about = {"name": "s", "space": "presets", "base": "gpt2", "scale": "tiny", "created": "2026-01-01T00:00:00+00:00"}
    about |= {"command": "c", "git_commit": None, "versions": {}, "axes": {}, "baseline": {}}
    about["counts"] = dict.fromkeys(("points", "programs", "variants", "trials"), count)
    about |= {"budget_flops": 1000, "trials": [trial.to_dict() for trial in trials(count)]}
    folder.mkdir()
    write_json(folder / "study.json", about)
    return folder


def run(record: StudyJournal, trial: str, loss: float | None = None) -> None:
    """Begin `trial`, or end it with `loss`."""
    if loss is None:
        record.begin(Segment(trial, None, None))
        record.take(trial, {"event": "start", "time": 1.0}, "lane")
        record.take(trial, {"event": "step", "step": 1, "loss": 2.25, "train_flops": 500, "time": 2.0}, "lane")
    else:
        record.take(trial, {"event": "end", "status": "complete", "val_loss": loss, "time": 3.0}, "lane")


def never(_: Any) -> None:
    raise AssertionError


def script(*steps: Callable[[], object]) -> Callable[[float], None]:
    """What happens between the looks of `follow`: one of `steps` after each."""
    left = iter(steps)
    return lambda seconds: (next(left)(), None)[1]


def test_it_follows_a_study_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a watcher that reads the folder once, one that ends between the last trial and the report, a best
    loss or a lane that it does not show, and a stage whose trials it does not know."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("raytrain.engine.view.VIEW_SECONDS", 0.0)
    folder = make(tmp_path / "s")
    lock = study_lock(folder, never)
    holds = []

    def take_up() -> None:
        lock.__enter__()
        holds.append(StudyJournal(folder, trials(2)))

    def grow() -> None:
        further = dataclasses.replace(trials(3)[2], stage="confirm", role="confirm")
        write_json(folder / "study.json", with_stage(read_study_json(folder), Stage("confirm", [further], "why")))
        holds[0].trials[further.id] = further
        holds[0]._join()

    def report() -> None:
        (folder / "report").mkdir()
        (folder / "report" / "index.html").touch()

    steps = (
        take_up,
        lambda: run(holds[0], "t0"),
        lambda: run(holds[0], "t0", 1.5),
        lambda: run(holds[0], "t1"),
        lambda: run(holds[0], "t1", 1.75),
        grow,
        lambda: (run(holds[0], "t2"), run(holds[0], "t2", 1.25)),
        report,
        lambda: lock.__exit__(None, None, None),
    )
    assert follow(folder, wait=script(*steps)) == 0
    said = terminal.getvalue()
    states = [line.partition("  ")[2].split(";")[0].strip() for line in said.split("\n") if "ended" in line]
    assert [state for state, _ in itertools.groupby(states)] == [
        "0 of 2 trials ended, 2 waiting",
        "0 of 2 trials ended, 1 running, 1 waiting",
        "1 of 2 trials ended, 1 waiting",
        "1 of 2 trials ended, 1 running",
        "2 of 2 trials ended",
        "2 of 3 trials ended, 1 waiting",
        "3 of 3 trials ended",
        "all trials have ended",
    ]
    assert "   50%  loss 2.2500  gpt2 seed 0\n" in said
    assert said.count("best val_loss 1.2500") == 0  # a fresh seed of the leader's is no better variant
    assert said.endswith(
        f"best val_loss 1.5000 (gpt2)\nover        all trials have ended\nreport      {folder}/report/index.html\n"
    )


def test_a_line_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch control codes in a log, and a line a second in it."""
    folder = make(tmp_path / "s", 1)
    lock = study_lock(folder, never)
    lock.__enter__()
    record = StudyJournal(folder, trials(1))
    run(record, "t0")
    end = lambda: (run(record, "t0", 1.5), lock.__exit__(None, None, None))  # noqa: E731
    assert follow(folder, wait=script(lambda: None, lambda: None, end)) == 0
    assert [line.split(";")[0] for line in capsys.readouterr().out.splitlines()] == [
        "0:00  0 of 1 trials ended, 1 running",
        "0:00  1 of 1 trials ended",
        "over        all trials have ended",
    ]


@pytest.mark.parametrize("how", ["dead", "interrupted", "gone"])
def test_a_study_that_nobody_works_on(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a watcher that waits for ever for a driver that was killed, trials of a dead driver that are said to
    run, and a new driver's takeover that is taken for the end."""
    folder = make(tmp_path / "s")
    record = StudyJournal(folder, trials(2))
    run(record, "t0")
    words = "stopped     no process works on it"
    if how == "dead":
        (folder / "lock.json").write_text(DEAD)
        os.utime(folder / "lock.json", (1, 1))
        words = "stopped     its driver has died: process 7 on elsewhere since noon"
    elif how == "interrupted":
        mark_interrupted(folder)
        words = "stopped     it was interrupted"
    looks = 0

    def wait(_: float) -> None:
        nonlocal looks
        looks += 1

    assert follow(folder, wait=wait) == 1
    assert looks > 1
    out = capsys.readouterr().out.splitlines()
    assert out[-3:] == [
        "0:00  0 of 2 trials ended, 2 waiting",
        words,
        f"resume with: python -m raytrain.tune --resume s --runs {tmp_path}",
    ]


def test_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a state that a script cannot ask for without waiting, and lanes that it leaves out."""
    folder = make(tmp_path / "s")
    with study_lock(folder, never):
        run(StudyJournal(folder, trials(2)), "t1")
        assert watch.main(["s", "--runs", str(tmp_path), "--once"]) == 0
        lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0:00  0 of 2 trials ended, 1 running, 1 waiting; about ")
    assert lines[1:] == ["   50%  loss 2.2500  gpt2 seed 1"]
    assert watch.main(["s", "--runs", str(tmp_path), "--once"]) == 1
    assert "no process works on it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ("nothing", "Unknown study in {runs}: 'nothing'. Available: empty, torn"),
        ("plain", "study ({runs}/plain) is a folder without a study: it has no study.json"),
        ("empty", "study.json is incomplete: missing name, space"),
        ("torn", "trial (t9) is not in study.json"),
    ],
)
def test_mistakes(study: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a traceback, or a watcher that waits, for a folder that holds no study, or half of one."""
    for name in ("plain", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty" / "study.json").write_text("{}")
    (make(tmp_path / "torn") / "events.jsonl").write_text('{"event": "begin", "trial": "t9"}\n')
    given = str(tmp_path / study) if study == "plain" else study
    assert watch.main([given, "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words.format(runs=tmp_path) in said
    assert said.count("\n") == 1


def test_ctrl_c_ends_the_watcher_alone(tmp_path: Path) -> None:
    """Would catch a traceback at Ctrl-C, and one that says that the study was interrupted."""
    folder = make(tmp_path / "s")
    with study_lock(folder, never):
        StudyJournal(folder, trials(2))
        watcher = subprocess.Popen(
            [sys.executable, "-m", "raytrain.watch", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watcher.stdout is not None
        assert "0 of 2 trials ended" in watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        _, said = watcher.communicate(timeout=60)
        assert watcher.returncode == 130
        assert said == "no longer watching; the study goes on\n"
    assert not read_study_json(folder).get("interrupted")
