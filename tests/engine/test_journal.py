import json
from pathlib import Path
from typing import Any

import pytest

from raytrain.config.resolve import resolve
from raytrain.engine.journal import StudyJournal
from raytrain.rundir.log import read_log
from raytrain.sweep.schedule import LOST_RETRIES
from raytrain.sweep.trial import AssignedTrial

CONFIG = resolve([("test", {"max_iters": 1, "checkpoint_interval": None})], data_vocab_size=256)[0]


def trials(count: int, folder: Path | None = None) -> list[AssignedTrial]:
    place = str(folder) if folder else None
    return [AssignedTrial(f"t{n}", ("gpt2",), CONFIG.replace(seed=n), folder=place) for n in range(count)]


def start(record: StudyJournal) -> str:
    segment = record.schedule.next()
    assert segment is not None
    record.begin(segment)
    record.take(segment.trial, {"event": "start", "time": 1.0, "micro_batch": 8}, "lane")
    return segment.trial


def finish(record: StudyJournal, trial: str, **result: Any) -> None:
    record.take(trial, {"event": "end", "time": 2.0, **result}, "lane")


def status(folder: Path, trial: str) -> Any:
    path = folder / "trials" / trial / "result.json"
    return json.loads(path.read_text())["status"] if path.exists() else None


def test_outcomes(tmp_path: Path) -> None:
    """Would catch a trial out of memory that is tried again as it was, or for ever, or whose second chance is lost by a
    restart; and a lost trial that is recorded as ended while it may be tried again."""
    record = StudyJournal(tmp_path, trials(1))
    finish(record, start(record), status="oom", reason="too big")
    assert status(tmp_path, "t0") is None
    record = StudyJournal(tmp_path, trials(1))
    segment = record.schedule.next()
    assert segment is not None
    assert segment.micro_batch == 4
    trial = start(record)
    record.lane_died(trial, "lost", "the lane died")
    assert status(tmp_path, "t0") is None
    finish(record, start(record), status="oom", reason="too big")
    assert status(tmp_path, "t0") == "oom"
    assert record.schedule.is_over
    assert [r["event"] for r in read_log(tmp_path / "trials/t0/log.jsonl")] == [
        "start", "oom", "start", "lost", "start", "end",
    ]  # fmt: skip


@pytest.mark.parametrize(("sequences", "smaller"), [(8, 4), (6, 3), (9, 3), (7, 1)])
def test_out_of_memory_at_the_same_global_batch(tmp_path: Path, sequences: int, smaller: int) -> None:
    """Would catch a second try with micro-batches that do not divide the batch, and so fails for another reason."""
    record = StudyJournal(tmp_path, trials(1))
    trial = start(record)
    record.take(trial, {"event": "start", "time": 1.0, "micro_batch": sequences}, "lane")
    finish(record, trial, status="oom", reason="too big")
    segment = record.schedule.next()
    assert segment is not None
    assert segment.micro_batch == smaller


def test_stopped_at_a_rung(tmp_path: Path) -> None:
    """Would catch a stopped trial without the loss and FLOPs that it was stopped at, and checkpoints left behind by
    trials that have ended, or taken from one that goes on."""
    checkpoints = tmp_path / "kept" / "checkpoints"
    (checkpoints / "step-00000001").mkdir(parents=True)
    record = StudyJournal(tmp_path, trials(2, tmp_path / "kept"), {"keep": [1]})
    finish(record, start(record), status="paused", val_loss=1.0, train_flops=5)
    assert list(checkpoints.iterdir())
    finish(record, start(record), status="paused", val_loss=2.0, train_flops=6)
    stopped = json.loads((tmp_path / "trials" / "t1" / "result.json").read_text())
    facts = {"status": "stopped", "val_loss": 2.0, "train_flops": 6, "rung": 0, "hash": CONFIG.architecture.hash}
    assert facts.items() <= stopped.items()
    assert not checkpoints.exists()
    segment = record.schedule.next()
    assert segment is not None
    assert (segment.trial, segment.rung) == ("t0", None)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_driver_that_dies_between_two_writes(tmp_path: Path, lost: int) -> None:
    """Would catch a score or an end that is on disk, but is run again since the event was not written: the last `lost`
    events are cut off, as a kill would."""
    record = StudyJournal(tmp_path, trials(2), {"keep": [1]})
    finish(record, start(record), status="paused", val_loss=1.0)
    finish(record, start(record), status="paused", val_loss=2.0)  # writes the rung, then that t1 stops
    path = tmp_path / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-lost]))
    again = StudyJournal(tmp_path, trials(2), {"keep": [1]})
    segment = again.schedule.next()
    assert segment is not None
    assert (segment.trial, segment.rung) == ("t0", None)
    assert status(tmp_path, "t1") == "stopped"
    finish(again, start(again), status="complete", val_loss=0.5)
    assert again.schedule.is_over
    ends = [event["trial"] for event in read_log(path) if event["event"] == "end"]
    assert sorted(ends) == ["t0", "t1"]


def test_a_lost_trial_that_is_tried_again(tmp_path: Path) -> None:
    """Would catch a study that counts as ended while a new driver trains what was lost: MLflow would get final ranks,
    and a Ctrl-C a word of success. Would also catch a long trial that is given up as spot nodes come and go."""
    record = StudyJournal(tmp_path, trials(1))
    for _ in range(LOST_RETRIES + 1):  # none of which is held against it: nodes that are taken away say so before
        finish(record, start(record), status="lost", preempted=True)
    for _ in range(LOST_RETRIES + 1):
        record.lane_died(start(record), "lost", "the lane died")
    assert (status(tmp_path, "t0"), record.schedule.is_over) == ("lost", True)
    again = StudyJournal(tmp_path, trials(1))
    assert (status(tmp_path, "t0"), again.schedule.is_over) == (None, False)


def test_a_pause_without_a_loss(tmp_path: Path) -> None:
    """Would catch events.jsonl that is no JSON, with NaN for the loss of a pause that is made good."""
    record = StudyJournal(tmp_path, trials(2), {"keep": [1]})
    finish(record, start(record), status="paused", val_loss=float("nan"))
    path = tmp_path / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["event"] == "begin"))
    StudyJournal(tmp_path, trials(2), {"keep": [1]})
    assert [event["score"] for event in read_log(path) if event["event"] == "rung"] == [None]
