"""What the folder of a run holds: the one reader behind studies, comparisons, MLflow and the engine. Pure.

config.json   what it was to be (`TrainConfig.to_dict`)
log.jsonl     every report, as it came
result.json   the last one, once the run has ended
"""

import dataclasses
import functools
import os.path  # whose functions, unlike Path's, take a name too long for any file
from pathlib import Path
from typing import Any

from raytrain.rundir.folders import read_json, write_json
from raytrain.rundir.log import Report, read_log
from raytrain.rundir.schema import CONFIG as CONFIG_SCHEMA
from raytrain.rundir.schema import RESULT as RESULT_SCHEMA

CONFIG, LOG, RESULT = "config.json", "log.jsonl", "result.json"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The run in the folder `path`, which need not be there yet. Each file is read once, when it is first asked for.

    Every attribute raises UserError for a file that cannot be read.
    """

    path: Path

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def has_begun(self) -> bool:
        return os.path.exists(self.log)

    @property
    def has_ended(self) -> bool:
        return os.path.exists(self.path / RESULT)

    @functools.cached_property
    def config(self) -> dict[str, Any] | None:
        """config.json; None for a folder without one."""
        path = self.path / CONFIG
        return read_json(path, CONFIG_SCHEMA) if os.path.exists(path) else None

    @functools.cached_property
    def result(self) -> Report:
        """result.json; empty for a run that has not ended."""
        return read_json(self.path / RESULT, RESULT_SCHEMA) if self.has_ended else {}

    @functools.cached_property
    def reports(self) -> list[Report]:
        """The log, oldest first, each step once."""
        return read_log(self.log)

    @property
    def start(self) -> Report:
        """The first report of a start; empty for a run that has not started."""
        return next((report for report in self.reports if report["event"] == "start"), {})

    @property
    def facts(self) -> Report:
        """What is known of the run: its result; of one that has not ended, the newest value of all that it reported."""
        if self.has_ended:
            return self.result
        newest: Report = {}
        for report in self.reports:
            newest |= report
        return newest

    @property
    def rungs(self) -> dict[int, Report]:
        """The report of each rung that the run has reached."""
        return {report["rung"]: report for report in read_log(self.log, event="rung")}

    @property
    def evaluations(self) -> list[Report]:
        """The report of each evaluation, oldest first."""
        return read_log(self.log, event="eval")

    @property
    def pauses(self) -> dict[int, Report]:
        """The report of each rung that the run has paused at, with its loss there; the newest."""
        return {report["rung"]: report for report in read_log(self.log, event="pause")}

    @property
    def last_step(self) -> int:
        """The highest optimizer step of any report; 0 before the first.

        Also of an end's `steps`: those before it may have no report, where a driver died with the last ones.
        """
        return max((max(report.get("step", 0), report.get("steps", 0)) for report in self.reports), default=0)

    @property
    def seconds(self) -> float | None:
        """From the first report to the last, pauses included; None before the first."""
        times = [report["time"] for report in self.reports if "time" in report]
        return times[-1] - times[0] if times else None

    def write_config(self, config: dict[str, Any]) -> None:
        write_json(self.path / CONFIG, config)

    def write_result(self, result: Report) -> None:
        write_json(self.path / RESULT, result)

    def remove_result(self) -> None:
        (self.path / RESULT).unlink(missing_ok=True)
