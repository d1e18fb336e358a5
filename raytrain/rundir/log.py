"""The log of a run: a file of JSON lines, one report each. It is the truth; MLflow is fed from it."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytrain.errors import UserError


class JsonLog:
    """Appends reports to the file at `path`, whose folder is made if need be.

    A process that died while it wrote leaves a torn last line. That is cut off, so that the next report does not run
    into it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            whole = self._path.read_bytes()
            if not whole.endswith(b"\n"):
                with self._path.open("r+b") as file:
                    file.truncate(whole.rfind(b"\n") + 1)

    def clear(self) -> None:
        """Forget all that was written: the run starts anew."""
        self._path.unlink(missing_ok=True)

    def write(self, report: Mapping[str, Any]) -> None:
        """Append `report` as one line, and flush it. `time`, in Unix seconds, defaults to now."""
        line = json.dumps({"time": time.time(), **report})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            error.filename = error.filename or str(self._path)
            raise


def read_log(path: str | Path, event: str | None = None) -> list[dict[str, Any]]:
    """The reports in a log, oldest first; none if there is no file yet. A torn last line is left out.

    With `event`, those of that event alone: the lines of others, most of a long log, are not parsed.

    Raises UserError for a file that cannot be read or is not a log.
    """
    try:
        *lines, _torn = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"log ({path}) cannot be read: {error.strerror}") from None
    reports = []
    for number, line in enumerate(lines, start=1):
        if event is not None and f'"{event}"' not in line:
            continue
        try:
            report = json.loads(line)
        except ValueError:
            report = None
        if not isinstance(report, dict) or "event" not in report:
            raise UserError(f"log ({path}), line {number} is not a report: {line[:60]!r}")
        if event in (None, report["event"]):
            reports.append(report)
    return reports
