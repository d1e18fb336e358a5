"""What a machine lacks is found before any trial, and is no result of one."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytrain.config.resolve import resolve
from raytrain.engine import hosts
from raytrain.engine.journal import StudyJournal
from raytrain.engine.lane import describe
from raytrain.errors import HostError, UserError
from raytrain.sweep.schedule import Schedule
from raytrain.sweep.trial import AssignedTrial, trials_of
from tests.studies import write_study

CONFIG = resolve([], data_vocab_size=256)[0]


def data(folder: Path, first: int = 1) -> str:
    """Data of 1,000 tokens, as nanoGPT has it."""
    folder.mkdir()
    for split in ("train", "val"):
        np.full(1000, first, np.uint16).tofile(folder / f"{split}.bin")
    return str(folder)


def trials_on(place: str, **trial: Any) -> list[AssignedTrial]:
    return [AssignedTrial(f"t{index}", ("",), CONFIG.replace(data=place), **trial) for index in range(2)]


def test_a_machine_that_has_it_all_lacks_nothing(tmp_path: Path) -> None:
    """Would catch a check that stops studies for nothing, or leaves folders behind."""
    trials = trials_on(data(tmp_path / "a"), folder=str(tmp_path / "runs" / "s" / "trials" / "t0"))
    hosts.check_hosts(trials, hosts.fingerprints(trials), None, is_local=True)
    assert not (tmp_path / "runs").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Would catch a study that starts where every trial must fail, and data that changed under it."""
    place = data(tmp_path / "a")
    trials = trials_on(place)
    wanted = hosts.fingerprints(trials)
    os.rename(place, tmp_path / "b")
    with pytest.raises(UserError, match=rf"^node .* lacks what the trials need: Unknown data: '{place}'"):
        hosts.check_hosts(trials, wanted, None, is_local=True)
    data(tmp_path / "a", first=2)
    with pytest.raises(UserError, match=r"data \(.*/a\) has changed: its fingerprint is"):
        hosts.check_hosts(trials, wanted, None, is_local=True)
    config = CONFIG.replace(data=str(tmp_path / "b"))
    assert "init_from (/nowhere) is not a folder" in hosts.missing(config.replace(init_from="/nowhere"))
    assert "Unknown data: '/gone'" in hosts.missing(config.replace(eval_data=(("other", "/gone"),)))
    (tmp_path / "file").touch()
    assert "Not a directory" in hosts.missing(config, str(tmp_path / "file" / "t0"))
    assert "cannot be reached" in hosts.missing(config, "s3nope://bucket/t0")


def test_every_node_of_a_cluster_is_asked(ray_here: None, tmp_path: Path) -> None:
    """Would catch a question that Ray does not take: then no study starts on a cluster."""
    place = data(tmp_path / "a")
    trials = trials_on(place)
    wanted = hosts.fingerprints(trials)
    hosts.check_hosts(trials, wanted, None, is_local=False)
    os.rename(place, tmp_path / "b")
    with pytest.raises(UserError, match=rf"^node .* lacks what the trials need: Unknown data: '{place}'"):
        hosts.check_hosts(trials, wanted, None, is_local=False)


def test_moved_data_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    """Would catch a study that cannot go on with its folder renamed, and one that goes on with other data."""
    place = data(tmp_path / "a")
    trials = trials_on(place)
    wanted = hosts.fingerprints(trials)
    study = {"trials": [trial.to_dict() for trial in trials], "data_fingerprints": wanted}
    os.rename(place, tmp_path / "b")
    before = json.dumps(study)
    with pytest.raises(UserError, match=r"data \(.*/c\) is not that of the study: its fingerprint is"):
        hosts.moved(study, data(tmp_path / "c", first=2))
    with pytest.raises(UserError, match="Unknown data"):
        hosts.moved(study, str(tmp_path / "nowhere"))
    there = hosts.moved(study, str(tmp_path / "b"))
    assert json.dumps(study) == before
    moved = trials_of(there)
    assert {trial.config.data for trial in moved} == {str(tmp_path / "b")}
    hosts.check_hosts(moved, there["data_fingerprints"], None, is_local=True)
    study["trials"][1]["config"]["data"] = "/elsewhere"
    with pytest.raises(UserError, match="the study's 2 data sets"):
        hosts.moved(study, str(tmp_path / "b"))


def test_the_fingerprint_of_an_older_study_is_that_of_its_results(tmp_path: Path) -> None:
    """Would catch a study of before fingerprints were kept, that cannot follow its data."""
    folder = write_study(tmp_path / "s")
    study = json.loads((folder / "study.json").read_text())
    place = study["trials"][0]["config"]["data"]
    assert hosts.recorded_fingerprints(folder, study) == {place: "f00dcafe"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HostError("checkpoint step-00000006 was not saved: No space left on device"), "lost"),
        (FileNotFoundError(2, "No such file or directory", "/data/train.bin"), "lost"),
        (OSError(28, "No space left on device"), "lost"),
        (UserError("micro_batch (5) must divide"), "failed"),
        (RuntimeError("bad luck"), "failed"),
        (MemoryError(), "oom"),
    ],
)
def test_a_failure_of_the_machine_is_no_result(error: Exception, status: str) -> None:
    """Would catch a full disk or a folder that is gone, recorded as what an architecture is worth."""
    assert describe(error)["status"] == status


def test_trials_that_were_failed_for_what_a_machine_lacked_are_tried_again(tmp_path: Path) -> None:
    """Would catch a study marked failed, for good, since its data was away when it was resumed by an older version."""
    reasons = {"t0": "Unknown data: '/gone' is no folder", "t1": "RuntimeError: bad luck", "t2": None}
    names = list(reasons)
    for name, reason in reasons.items():
        (tmp_path / "trials" / name).mkdir(parents=True)
        result = {"status": "failed", "reason": reason} if reason else {"status": "complete"}
        (tmp_path / "trials" / name / "result.json").write_text(json.dumps(result))
    trials = [AssignedTrial(name, ("",), CONFIG) for name in names]
    with (tmp_path / "events.jsonl").open("w") as file:
        for name in names:
            end = {"event": "end", "trial": name, "status": "failed" if reasons[name] else "complete"}
            file.write(json.dumps({"time": 0} | end) + "\n")
    record = StudyJournal(tmp_path, trials)
    assert [record.schedule.has_ended(name) for name in names] == [False, True, True]
    assert not (tmp_path / "trials" / "t0" / "result.json").exists()
    again = Schedule(trials)
    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        again.apply(json.loads(line))
    assert [again.has_ended(name) for name in names] == [False, True, True]


def test_what_fails_while_a_signal_ends_the_study_is_no_result(tmp_path: Path) -> None:
    """Would catch a trial failed for good since the signal that ended the study reached its compiler's processes."""
    record = StudyJournal(tmp_path, [AssignedTrial("t0", ("",), CONFIG)])
    record._apply(event="begin", trial="t0", rung=None)
    record._rung["t0"] = None
    record.is_ending = True
    record.take("t0", {"event": "end", "status": "failed", "reason": "BrokenProcessPool", "time": 1.0}, "lane")
    assert not record.schedule.has_ended("t0")
    assert not (tmp_path / "trials" / "t0" / "result.json").exists()
