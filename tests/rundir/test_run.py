from pathlib import Path

import pytest

from raytrain.errors import UserError
from raytrain.rundir.log import JsonLog
from raytrain.rundir.run import RunFolder


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    """Would catch an error, or a made-up fact, for a trial that has not begun."""
    run = RunFolder(tmp_path / "t0")
    assert (run.has_begun, run.has_ended, run.config, run.result, run.reports) == (False, False, None, {}, [])
    assert (run.start, run.facts, run.rungs, run.pauses, run.last_step, run.seconds) == ({}, {}, {}, {}, 0, None)


def test_what_a_run_reported(tmp_path: Path) -> None:
    """Would catch a rung that a resumed run reports again in place of its first report, a pause taken for a rung, and
    facts of a log that outweigh the result."""
    run = RunFolder(tmp_path)
    log = JsonLog(run.log)
    log.write({"event": "start", "time": 10.0, "name": "a", "step": 0})
    log.write({"event": "rung", "time": 11.0, "rung": 0, "val_loss": 4.0, "step": 4})
    log.write({"event": "start", "time": 12.0, "name": "b", "step": 2})
    log.write({"event": "rung", "time": 13.0, "rung": 0, "val_loss": 3.5, "step": 4})
    log.write({"event": "pause", "time": 14.0, "rung": 0, "val_loss": 3.5, "reason": 'says "rung"'})
    assert run.start["name"] == "a"
    assert {rung: report["val_loss"] for rung, report in run.rungs.items()} == {0: 4.0}
    assert {rung: report["time"] for rung, report in run.pauses.items()} == {0: 14.0}
    assert (run.last_step, run.seconds) == (4, 4.0)
    assert {"name": "b", "val_loss": 3.5}.items() <= run.facts.items()
    run.write_result({"status": "complete", "val_loss": 3.0})
    assert RunFolder(tmp_path).facts == {"status": "complete", "val_loss": 3.0}
    run.remove_result()
    assert not RunFolder(tmp_path).has_ended


def test_a_damaged_run(tmp_path: Path) -> None:
    """Would catch a traceback, or a run taken for one that has not ended, where a file cannot be read."""
    for name in ("result.json", "log.jsonl", "config.json"):
        (tmp_path / name).write_text("{\n")
    for attribute in ("result", "reports", "config", "facts"):
        with pytest.raises(UserError, match=r"is not (JSON|a report)"):
            getattr(RunFolder(tmp_path), attribute)
