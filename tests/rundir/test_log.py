import json

import pytest

from raytrain.errors import UserError
from raytrain.rundir.log import JsonLog, read_log


def test_what_is_written_is_read(tmp_path):
    """Would catch: a line lost, reordered, or a large integer or a float changed on the way."""
    reports = [{"event": "start", "train_flops": 2 * 10**20 + 1}, {"event": "step", "step": 1, "loss": 0.1 + 0.2}]
    for report in reports:
        JsonLog(tmp_path / "trial" / "log.jsonl").write(report)  # as a resumed process does
    read = read_log(tmp_path / "trial" / "log.jsonl")
    assert [{key: report[key] for key in report if key != "time"} for report in read] == reports
    assert 0 <= read[1]["time"] - read[0]["time"] < 60


def test_a_line_is_there_at_once(tmp_path):
    """Would catch: reports held in a buffer, which a killed process would take with it."""
    log = JsonLog(tmp_path / "log.jsonl")
    log.write({"event": "step", "step": 1})
    assert json.loads((tmp_path / "log.jsonl").read_text())["step"] == 1


@pytest.mark.parametrize("torn", ['{"event": "st', '{"event": "step", "step": 2}', '{"event": "caf\udcc3'])
def test_a_torn_last_line(tmp_path, torn):
    """Would catch: a log that a killed process left unreadable, or a report glued to the torn line by the next one."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"event": "step", "step": 1}\n' + torn.encode("utf-8", "surrogateescape"))
    assert [report["step"] for report in read_log(path)] == [1]
    JsonLog(path).write({"event": "step", "step": 3})
    assert [report["step"] for report in read_log(path)] == [1, 3]


def test_no_log_yet(tmp_path):
    """Would catch: an error for a trial that has not begun."""
    assert read_log(tmp_path / "log.jsonl") == []


@pytest.mark.parametrize("line", ["hello", "[1, 2]", '{"step": 1}'])
def test_not_a_log(tmp_path, line):
    """Would catch: some other file taken for a log, and the line that is wrong not named."""
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"event": "start"}}\n{line}\n')
    with pytest.raises(UserError, match="line 2 is not a report"):
        read_log(path)


def test_a_folder_is_not_a_log(tmp_path):
    """Would catch: a traceback for a path that cannot be read."""
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_log(tmp_path)
