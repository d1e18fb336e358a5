"""What a study leaves behind: its folder, written in the driver, and MLflow, fed from that folder."""

import logging
import pickle
import shlex
import threading
import time
from pathlib import Path
from typing import Any

import rich.console
from ray import tune

from raytrain import architecture as architectures
from raytrain.engine.lane import Report, one_line
from raytrain.engine.timing import Timing
from raytrain.files import write_json
from raytrain.tracking.log import JsonLog

LOST_RETRIES = 2  # times that a trial whose lane died is started again, from its newest checkpoint if it has one
_SYNC_SECONDS = 5.0
_LAST_SYNC_SECONDS = 60.0  # what MLflow may take at the end before it is left behind


class Recorder(tune.Callback):
    """Writes what the trials report to the study's folder.

    In the driver: the folder may be on the driver's own disk while trials train on other machines.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "trials"
        self._logs: dict[str, JsonLog] = {}
        self.timings: dict[str, Timing] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        # Taken out of the result, since Tune keeps the last one of every trial.
        for report in result.pop("reports"):
            if report["event"] == "end" and report["status"] != "lost":
                trial.max_failures = 0  # it has an outcome: the lane that it broke is not to train it again
            self._write(trial, report, result["lane"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A lane that breaks ends its trial before this. Without an end, the lane's own process died."""
        if not (self._folder / trial.config["trial"]["id"] / "result.json").exists():
            error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
            end = {"event": "end", "status": "lost", "reason": f"the lane died: {_cause(error)}", "time": time.time()}
            self._write(trial, end, trial.last_result.get("lane", ""))

    def _write(self, trial: Any, report: Report, lane: str) -> None:
        planned = trial.config["trial"]
        folder, report = self._folder / planned["id"], dict(report)
        if planned["id"] not in self.timings:
            self.timings[planned["id"]] = Timing(lane)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", planned["config"])
            self._logs[planned["id"]] = JsonLog(folder / "log.jsonl")
        self.timings[planned["id"]].note(report, lane)
        trace = report.pop("traceback", None)
        if trace is not None:
            (folder / "traceback.txt").write_text(trace)
        if report["event"] == "end" and report["status"] == "lost" and trial.num_failures < trial.max_failures:
            report["event"] = "lost"  # not the end: Tune starts it again
        is_end = report["event"] == "end"
        if is_end:  # a trial that failed does not say itself which it was
            architecture = architectures.from_dict(planned["config"]["architecture"])
            report = {"name": architecture.name, "hash": planned["hash"], "seed": planned["seed"]} | report
        self._logs[planned["id"]].write(report)
        if is_end:
            del self._logs[planned["id"]]
            write_json(folder / "result.json", {k: v for k, v in report.items() if k not in ("event", "time")})


class Sync:
    """Brings the study to MLflow from a thread, every few seconds and at the end. An error of MLflow's is one line."""

    def __init__(self, folder: Path, tracking_uri: str | None, console: rich.console.Console) -> None:
        self._folder, self._tracking_uri, self._console = folder, tracking_uri, console
        self.uri: str | None = None
        self.ui: str | None = None
        self._error: str | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)

    def __enter__(self) -> "Sync":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join(_LAST_SYNC_SECONDS)
        if self._thread.is_alive():
            self._error = f"it has not answered for {_LAST_SYNC_SECONDS:g} s"
        if self._error is not None:
            again = (
                f"from raytrain.tracking.uploader import Uploader; Uploader({str(self._folder)!r}, {self.uri!r}).sync()"
            )
            self._console.print(f"MLflow does not have it all: {self._error}", markup=False)
            self._console.print(f"send the rest later with: python -c {shlex.quote(again)}", markup=False)

    def _run(self) -> None:
        try:
            from raytrain.tracking.uploader import Uploader, ui_command  # here: importing MLflow takes seconds

            for name in ("mlflow", "alembic"):  # each tells of every table that it makes
                logging.getLogger(name).setLevel(logging.WARNING)
            uploader = Uploader(self._folder, self._tracking_uri)
            self.uri, self.ui = uploader.uri, ui_command(uploader.uri)
        except Exception as error:
            self._error = one_line(error)
            return
        is_last = False
        while not is_last:
            is_last = self._is_over.wait(_SYNC_SECONDS)
            try:
                uploader.sync()
                self._error = None
            except Exception as error:  # whatever a tracking server does, the sweep goes on
                self._error = one_line(error)


def _cause(error: Exception) -> str:
    """Why a lane's process died: of one that could not start, its own last words."""
    return str(error).strip().splitlines()[-1] if "creation task" in str(error) else one_line(error)
