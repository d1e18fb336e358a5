"""The log of a run: a file of JSON lines, one report each. It is the truth; MLflow is fed from it."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raytrain.errors import UserError, short, unknown_value
from raytrain.rundir.parse import parse_json
from raytrain.rundir.schema import EVENTS, REPORT, REPORTS, Schema, check

Report = dict[str, Any]

_OF_STEPS = ("step", "eval", "gradients", "rung")  # the events of which a step has one each


class JsonLog:
    """Appends reports to the file at `path`, whose folder is made if need be.

    A process that died while it wrote leaves a torn last line. That is cut off, so that the next report does not run
    into it. A run that continues from a checkpoint redoes the steps after it: what they reported the first time stands,
    and is not written again.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            whole = self._path.read_bytes()
            if not whole.endswith(b"\n"):
                with self._path.open("r+b") as file:
                    file.truncate(whole.rfind(b"\n") + 1)
        self._written = {_key(report) for _, report in _lines(path)}

    def clear(self) -> None:
        """Forget all that was written: the run starts anew."""
        self._path.unlink(missing_ok=True)
        self._written = set()

    def write(self, report: Mapping[str, Any]) -> None:
        """Append `report` as one line, and flush it. `time`, in Unix seconds, defaults to now."""
        key = _key(report)
        if key is not None and key in self._written:
            return
        line = json.dumps({"time": time.time(), **report})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            error.filename = error.filename or str(self._path)
            raise
        self._written.add(key)


def read_log(path: str | Path, event: str | None = None) -> list[Report]:
    """The reports in a log, oldest first; none if there is no file yet. A torn last line is left out.

    A step that was redone after a kill counts once, as it was reported first. (Older logs hold it twice.)
    With `event`, those of that event alone: the lines of others, most of a long log, are not parsed.

    Raises UserError for a file that cannot be read or is not a log.
    """
    return [report for _, report in first_reports(read_lines(path, event))]


def first_reports(reports: Iterable[Report]) -> Iterator[tuple[int, Report]]:
    """The number of each report with something new in it, from 0, and the report."""
    seen = set()
    for number, report in enumerate(reports):
        key = _key(report)
        if key is None or key not in seen:
            seen.add(key)
            yield number, report


def _key(report: Mapping[str, Any]) -> tuple[str, int] | None:
    """What is the same for two reports of one step; None for other reports."""
    step = report.get("step")
    return (report["event"], step) if report["event"] in _OF_STEPS and isinstance(step, int) else None


def read_lines(path: str | Path, event: str | None = None) -> list[Report]:
    """As `read_log`, with a report for each line: also what a step reported again."""
    return [check(report, REPORTS.get(report["event"], REPORT), place) for place, report in _lines(path, event)]


def read_events(path: str | Path) -> list[Report]:
    """What happened to the trials of a study, oldest first: its events.jsonl. Raises UserError as `read_log`."""
    return [check(event, _schema_of(event, place), place) for place, event in _lines(path)]


class Tail:
    """What is appended to the log at `path`, as it comes: each call of `read` returns what is new, oldest first.

    The file need not be there yet. With `is_study` it is the events.jsonl of a study. A step that was redone after a
    kill may come twice, in older logs.
    """

    def __init__(self, path: Path, *, is_study: bool = False) -> None:
        self._path, self._is_study = path, is_study
        self._read = self._lines = 0  # bytes and lines that were read

    def read(self) -> list[Report]:
        """Raises UserError as `read_log`. A last line that is not whole yet, or never will be, waits."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"log ({self._path}) cannot be read: {error.strerror}") from None
        lines = whole[0].split(b"\n") if whole[1] else []
        first = self._lines + 1
        self._read, self._lines = self._read + len(whole[0]) + len(whole[1]), self._lines + len(lines)
        found = []
        for number, line in enumerate(lines, start=first):
            report, place = _report(self._path, number, line.decode(errors="replace"))
            schema = _schema_of(report, place) if self._is_study else REPORTS.get(report["event"], REPORT)
            found.append(check(report, schema, place))
        return found


def _schema_of(event: Report, place: str) -> Schema:
    if event["event"] not in EVENTS:
        raise unknown_value(f"event in {place}", event["event"], EVENTS)
    return EVENTS[event["event"]]


def _lines(path: str | Path, event: str | None = None) -> Iterator[tuple[str, Report]]:
    """Each report in a log, of that event alone if one is given, and the place where it stands, for messages."""
    try:
        *lines, _torn = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"log ({path}) cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if event is not None and f'"{event}"' not in line:
            continue
        report, place = _report(path, number, line)
        if event in (None, report["event"]):
            yield place, report


def _report(path: str | Path, number: int, line: str) -> tuple[Report, str]:
    """What a `line` of a log says, and the place where it stands, for messages. Raises UserError for no report."""
    place = f"log ({path}), line {number}"
    try:
        report = parse_json(line)
    except UserError:
        report = None
    if not isinstance(report, dict) or not isinstance(report.get("event"), str):
        raise UserError(f"{place} is not a report: {short(line)!r}")
    return report, place
