import json

import pytest

from raytrain.errors import UserError
from raytrain.rundir.log import JsonLog, Tail, first_reports, read_lines, read_log


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


def test_redone_steps_stand_once(tmp_path):
    """Would catch: a run that was killed after step 4 and continued from step 2 with its steps 3 and 4 twice, in the
    file and in what is read of a file of an older version."""
    first = [{"event": "start", "first_step": 0}, *({"event": "step", "step": n, "loss": 1 / n} for n in (1, 2, 3, 4))]
    first += [{"event": "eval", "step": 4}, {"event": "gradients", "step": 4}]
    again = [{"event": "start", "first_step": 2}, *({"event": "step", "step": n, "loss": 2 / n} for n in (3, 4, 5))]
    again += [
        {"event": "eval", "step": 4},
        {"event": "rung", "rung": 0, "step": 5},
        {"event": "rung", "rung": 0, "step": 5},
    ]
    path = tmp_path / "log.jsonl"
    for reports in (first, again):
        log = JsonLog(path)
        for report in reports:
            log.write({"time": 1.0, **report})
    expected = [{"time": 1.0, **report} for report in [*first, again[0], again[3], again[5]]]
    assert read_log(path) == expected
    assert read_lines(path) == expected
    path.write_text("".join(json.dumps({"time": 1.0, **report}) + "\n" for report in [*first, *again]))
    assert read_log(path) == expected
    assert [number for number, _ in first_reports(read_lines(path))] == [0, 1, 2, 3, 4, 5, 6, 7, 10, 12]


def test_a_tail_reads_each_line_once_and_whole(tmp_path):
    """Would catch: a report that a watcher reads twice, or half while its writer is at it, and a damaged line that it
    gives the wrong number."""
    path = tmp_path / "log.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"event": "start"}\n{"event": "step", "st')
    assert tail.read() == [{"event": "start"}]
    assert tail.read() == []
    with path.open("a") as file:
        file.write('ep": 1}\n{"event": "step", "step": 2}\n')
    assert [report["step"] for report in tail.read()] == [1, 2]
    with path.open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(UserError, match="line 4 is not a report: 'nonsense'"):
        tail.read()
