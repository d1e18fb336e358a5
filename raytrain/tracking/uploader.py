"""A study in MLflow: a parent run for the study and a child run a trial, fed from the study's folder.

The only module that imports mlflow. It uses a client of its own and leaves MLflow's global state alone.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)
from mlflow.utils.validation import MAX_DATASET_DIGEST_SIZE
from sqlalchemy.exc import SQLAlchemyError

from raytrain.analysis.answer import Answer, answer
from raytrain.analysis.ranking import UNFINISHED, rank, read_study, short_name
from raytrain.architecture import AXES
from raytrain.axes.plugin import digests
from raytrain.config.run import flat
from raytrain.data.corpora import STDLIB
from raytrain.errors import UserError, readable
from raytrain.rundir.folders import check_path, read_study_json, tracking_address
from raytrain.rundir.log import first_reports, read_lines
from raytrain.rundir.run import RunFolder
from raytrain.tracking.numbers import FIXED, OF_ATTEMPT, numbers
from raytrain.tracking.views import NOTE_LENGTH, description, figures, key, link, views
from raytrain.uris import shown, without_secrets

_BATCH = 900  # entities; MLflow takes 1,000 in one request, tags included
_STATUS = {"running": "RUNNING", "paused": "RUNNING", "interrupted": "KILLED"}
_STATUS |= {"complete": "FINISHED", "stopped": "FINISHED"}  # else FAILED
_EXACT = "train_flops"  # an integer beyond a float's 53 bits: a string tag beside the metric
_LINES = "raytrain.lines"  # how many lines of the trial's log are in MLflow
_ARTIFACTS = "raytrain.artifacts"  # of the parent: a digest of each file that is in MLflow, as JSON
_FINAL = ["rank", "hardware_rank"]  # what is sent once all trials have ended
_FINAL += [f"{kind}_gain{end}" for kind in ("compute", "hardware") for end in ("", "_low", "_high")]
_LOCAL_UI = "http://127.0.0.1:5000"  # of `mlflow ui`, by default


def resolve_uri(runs: str | Path, given: str | None = None) -> str:
    """As `tracking_address`; a SQLite path comes out absolute, since Ray changes its processes' working directory."""
    uri = tracking_address(Path(runs), given)
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return uri


def ui_command(uri: str) -> str:
    """The shell command that shows the results kept at `uri` in a browser."""
    if uri.startswith(("http://", "https://")):
        return f"python -m webbrowser {shlex.quote(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


@dataclasses.dataclass
class _Run:
    """What MLflow holds of a run. `metrics` are the values at the highest step."""

    id: str
    status: str
    params: set[str]
    has_data: bool
    metrics: dict[str, float]
    tags: dict[str, str]


class Uploader:
    """Brings the study in `study_dir` to MLflow, into the experiment that it names: in an older study, its own name.

    `sync` may be called at any time and any number of times, by this or another process: runs are identified by their
    tags raytrain.study, raytrain.created and raytrain.trial, and only what is new or has changed is sent. Artifacts of
    the parent run are study.json and what is in the study's folder report/; its description is the answer in words.
    The experiment has saved views (`tracking.views`): the study's trials by rank, what varies in them and their gains.
    """

    def __init__(self, study_dir: str | Path, tracking_uri: str | None = None) -> None:
        self._dir = Path(study_dir).absolute()
        check_path(self._dir, "study")
        self.uri = resolve_uri(self._dir.parent, tracking_uri)
        self._experiment = self._view = ""
        self._origin: dict[str, str] = {}  # tags of each run, which say where it comes from
        self._runs: dict[str, _Run] = {}  # by trial; the parent is ""
        self._seen: dict[str, Any] = {}  # what each trial's files were like at the last sync

    def sync(self) -> None:
        """Raises UserError if the tracking server does not take it; nothing is lost, a later sync sends the rest."""
        study, table = read_study_json(self._dir), read_study(self._dir)
        ended = ~table["status"].isin(UNFINISHED)
        final = answer(self._dir) if ended.all() else None
        table = final.table if final else rank(table)
        told = _told(final)
        trials = {trial["id"]: trial for trial in study["trials"]}
        with self._speaking():
            if not self._experiment:
                self._open(study)
            parent = self._sync_parent(study, told, {"ended": int(ended.sum())} | (figures(final) if final else {}))
            for row in table.to_dict("records"):
                trial, status, ranking = row["trial"], row["status"], _ranking(row, bool(ended.all()))
                log = RunFolder(self._dir / "trials" / trial).log
                seen = (status, ranking, log.stat().st_size if log.exists() else 0)
                if status != "waiting" and self._seen.get(trial) != seen:
                    self._sync_trial(study, trials[trial], status, ranking)
                    self._seen[trial] = seen
            whole = "complete" if ended.all() else "interrupted" if study.get("interrupted") else "running"
            self._set_status(parent, whole, time.time())  # last: a parent that is finished has all its trials

    def add(self, trial: str, metrics: dict[str, float], step: int) -> bool:
        """Add `metrics` at optimizer step `step` to the run of `trial`. False if MLflow has none. Raises as `sync`."""
        study = read_study_json(self._dir)
        with self._speaking():
            experiment = self._client.get_experiment_by_name(readable(study.get("experiment", study["name"])))
            if experiment is None:
                return False
            self._experiment = experiment.experiment_id
            self._find(_key(study) | {"raytrain.trial": trial})
            if trial in self._runs:
                self._send(self._runs[trial], [], metrics, step, {})
        return trial in self._runs

    @property
    def link(self) -> str | None:
        """Where a browser shows the ranking, with `ui_command` or at the server; None before the first sync."""
        server = shown(self.uri).rstrip("/") if self.uri.startswith(("http://", "https://")) else _LOCAL_UI
        return link(server, self._experiment, self._view) if self._experiment else None

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            text = " ".join(str(error).split())
            if "database is locked" in text:
                text = "another process holds the database locked; end it, or try again later"
            if "error code 401" in text:
                text = "it wants another user or password: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD (401)"
            text = without_secrets(text, self.uri)
            raise UserError(f"tracking_uri ({shown(self.uri)}) does not take the results: {text}") from error

    def connect(self) -> None:
        """Make the tracking database, if it is one that is not there yet: that takes seconds. Raises as `sync` does."""
        with self._speaking():
            self._client  # noqa: B018

    @functools.cached_property
    def _client(self) -> MlflowClient:
        _, is_sqlite, path = self.uri.partition("sqlite:///")
        if is_sqlite and "?" not in path and not Path(path).exists():  # settings may follow a "?"
            _make_database(Path(path))
        return MlflowClient(tracking_uri=self.uri)

    def _open(self, study: dict[str, Any]) -> None:
        """The experiment, and the runs in it that are of this study."""
        self._origin = _origin(study, self._dir)
        name = readable(study.get("experiment", study["name"]))
        experiment = self._client.get_experiment_by_name(name) or self._new_experiment(name)
        if experiment.lifecycle_stage == "deleted":
            restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            uri = shlex.quote(shown(self.uri))
            raise UserError(
                f"experiment {name} is deleted in MLflow; restore it by: MLFLOW_TRACKING_URI={uri} {restore}"
            )
        self._experiment, self._view = experiment.experiment_id, key(study)
        self._find(_key(study))
        for tag, view in views(study, _created(study)).items():
            if tag not in experiment.tags:
                self._client.set_experiment_tag(self._experiment, tag, view)

    def _new_experiment(self, name: str) -> Experiment:
        artifacts = (self._dir.parent / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None
        try:
            return self._client.get_experiment(self._client.create_experiment(name, artifacts))
        except MlflowException:  # another study of the same experiment may be faster
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return experiment

    def _find(self, tags: dict[str, str]) -> None:
        """Take up the runs that MLflow has with these tags."""
        query = " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        page: str | None = ""
        while page is not None:
            matches = self._client.search_runs([self._experiment], query, page_token=page or None)
            page = matches.token or None
            for run in matches:
                info, data = run.info, run.data
                has_data = bool(run.inputs and run.inputs.dataset_inputs)
                known = _Run(info.run_id, info.status, {*data.params}, has_data, dict(data.metrics), dict(data.tags))
                self._runs[data.tags["raytrain.trial"]] = known

    def _sync_parent(self, study: dict[str, Any], told: dict[str, str | None], metrics: dict[str, float]) -> _Run:
        facts = {key: study[key] for key in ("space", "base", "scale", "budget_flops")}
        run = self._run(study, "", study["name"], facts, _created(study))
        tags = {key: study[key] for key in ("command", "git_commit")} | study["versions"]
        tags |= study["counts"] | told | self._origin  # a study that grows has other counts later
        self._send(run, [], metrics, 0, tags)
        self._sync_artifacts(run)
        return run

    def _sync_artifacts(self, run: _Run) -> None:
        """Send the files that are not in MLflow as they are now, by their size and time."""
        files = [self._dir / "study.json", *sorted((self._dir / "report").rglob("*"))]
        held = json.loads(run.tags.get(_ARTIFACTS, "{}"))
        for file in files:
            if not file.is_file():
                continue
            place, facts = file.relative_to(self._dir), file.stat()
            digest = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:8]
            if held.get(str(place)) != digest:
                self._client.log_artifact(run.id, str(file), str(place.parent) if place.parent.name else None)
                held[str(place)] = digest
        self._send(run, [], {}, 0, {_ARTIFACTS: json.dumps(held)})

    def _sync_trial(self, study: dict[str, Any], trial: dict[str, Any], status: str, ranking: dict[str, Any]) -> None:
        folder = RunFolder(self._dir / "trials" / trial["id"])
        reports, result = read_lines(folder.log), folder.result
        first, last = (reports[0]["time"], reports[-1]["time"]) if reports else (time.time(), time.time())
        known = folder.start | result
        config = flat(trial["config"])
        plugins = digests(config.pop("plugins", ()))
        usual = {axis: AXES[axis].default for axis in study.get("axes", ()) if axis in AXES}
        fixed = {key: known.get(key) for key in FIXED}
        facts = {key: value for key, value in (usual | config | plugins | fixed).items() if value is not None}
        labels = ", ".join(trial["labels"])
        run = self._run(study, trial["id"], short_name(trial), facts, first)

        sent = int(run.tags.get(_LINES, 0))
        series = [
            Metric(key, value, int(report["time"] * 1000), report["step"])
            for number, report in first_reports(reports)
            if number >= sent and "step" in report
            for key, value in numbers(report).items()
        ]
        tags = {key: trial[key] for key in ("hash", "seed")} | {"git_commit": study["git_commit"], "status": status}
        tags |= {"labels": labels, _LINES: len(reports)}
        tags |= {"architecture": known.get("name"), "data_fingerprint": known.get("data_fingerprint")}
        tags |= {key: known.get(key) for key in OF_ATTEMPT} | {key: result.get(key) for key in ("reason", _EXACT)}
        tags |= {"budget_ok": ranking["budget_ok"] if result else None} | self._origin
        final = numbers(result | ranking) if result else {}
        self._send_data(run, config.get("data"), known.get("data_fingerprint"))
        self._send(run, series, final, folder.last_step, tags)
        self._set_status(run, status, last)

    def _run(self, study: dict[str, Any], trial: str, name: str, facts: dict[str, Any], started: float) -> _Run:
        """The run of a trial (the parent's is ""), with `facts` as its params; made if MLflow does not have it."""
        if trial not in self._runs:
            tags = _key(study) | {"raytrain.trial": trial}
            self._find(tags)  # another process may have made it since
        if trial not in self._runs:
            tags |= self._origin
            if trial:
                tags[MLFLOW_PARENT_RUN_ID] = self._runs[""].id
            info = self._client.create_run(self._experiment, int(started * 1000), tags, name).info
            self._runs[trial] = _Run(info.run_id, info.status, params=set(), has_data=False, metrics={}, tags=tags)
        run = self._runs[trial]
        params = [Param(key, readable(str(value))) for key, value in facts.items() if key not in run.params]
        if params:
            self._client.log_batch(run.id, params=params)
            run.params |= facts.keys()
        return run

    def _send_data(self, run: _Run, data: str | None, fingerprint: str | None) -> None:
        """The training data as an input of `run`, once it is known."""
        if not data or not fingerprint or run.has_data:
            return
        made: dict[str, Any] = {"tags": {MLFLOW_SOURCE_NAME: STDLIB}}
        kind, source = ("code", made) if data == STDLIB else ("local", {"uri": data})
        name, digest = readable(Path(data).name or data), fingerprint[:MAX_DATASET_DIGEST_SIZE]
        dataset = Dataset(name, digest, kind, json.dumps(source))
        self._client.log_inputs(run.id, [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])])
        run.has_data = True

    def _send(
        self, run: _Run, series: list[Metric], final: dict[str, float], final_step: int, tags: dict[str, Any]
    ) -> None:
        """`series`, then the `final` values and the `tags` that MLflow does not have yet, as the newest."""
        latest = run.metrics | {metric.key: metric.value for metric in series}
        now = int(time.time() * 1000)
        new = {key: value for key, value in final.items() if latest.get(key) != value}
        series = series + [Metric(key, value, now, final_step) for key, value in new.items()]
        stale = {key: "" for key, value in tags.items() if value is None and key in run.tags}  # a reason, after a retry
        texts = stale | {key: readable(str(value)) for key, value in tags.items() if value is not None}
        changed = {key: text for key, text in texts.items() if run.tags.get(key) != text}
        for begin in range(0, len(series), _BATCH):
            self._client.log_batch(run.id, metrics=series[begin : begin + _BATCH])
        if changed:
            self._client.log_batch(run.id, tags=[RunTag(key, text) for key, text in changed.items()])
        run.metrics = latest | final
        run.tags |= changed

    def _set_status(self, run: _Run, status: str, when: float) -> None:
        wanted = _STATUS.get(status, "FAILED")
        if wanted == run.status:
            return
        if wanted == "RUNNING":
            self._client.update_run(run.id, wanted)
        else:
            self._client.set_terminated(run.id, wanted, int(when * 1000))
        run.status = wanted


def _make_database(path: Path) -> None:
    """Make MLflow's SQLite database whole or not at all: one whose making was cut short, MLflow can never use.

    That takes seconds, in which this process may be killed, so it is made in a folder for temporary files.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with tempfile.TemporaryDirectory(prefix="raytrain-") as folder:
        made = Path(folder) / "mlflow.db"
        MlflowClient(tracking_uri=f"sqlite:///{made}")
        try:
            shutil.copyfile(made, partial)
            try:
                os.link(partial, path)
            except FileExistsError:  # another process was faster
                pass
            except OSError:  # a disk without hard links
                partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)


def _created(study: dict[str, Any]) -> float:
    """When the study began, in Unix seconds. Raises UserError for what is no time."""
    try:
        return datetime.fromisoformat(study["created"]).timestamp()
    except (ValueError, OverflowError):
        raise UserError(f"study.json is damaged: created ({shown(study['created'])}) must be a date and time") from None


def _origin(study: dict[str, Any], folder: Path) -> dict[str, str]:
    """Where the study comes from, in MLflow's own tags. Its user is the owner of its folder."""
    tags = {MLFLOW_SOURCE_TYPE: "LOCAL", MLFLOW_SOURCE_NAME: readable(study["command"])}
    if study["git_commit"]:
        tags[MLFLOW_GIT_COMMIT] = study["git_commit"]
    with contextlib.suppress(KeyError):  # a user without a name, as in a container
        tags[MLFLOW_USER] = folder.owner()
    return tags


def _key(study: dict[str, Any]) -> dict[str, str]:
    """The tags that distinguish this study's runs from those of another study of the same name."""
    return {"raytrain.study": study["name"], "raytrain.created": study["created"]}


def _told(final: Answer | None) -> dict[str, str | None]:
    """The answer in words, as tags of the parent."""
    if final is None:
        return {"headline": None, MLFLOW_RUN_NOTE: None}
    return {"headline": final.sentences[0][:NOTE_LENGTH], MLFLOW_RUN_NOTE: description(final.sentences)}


def _ranking(row: dict[Any, Any], is_final: bool) -> dict[str, Any]:
    """The columns of `rank` that MLflow gets: `budget_ok`, a tag, and those that become metrics.

    The ratios only where the budget is ok: elsewhere they reflect who stopped first, and the UI would sort by that.
    Ranks and gains only once all trials have ended: before, each end would have to send them anew for all of them.
    """
    columns = ["budget_ok"]
    columns += ["loss_per_flop", "loss_per_hardware_flop"] if row["budget_ok"] else []
    columns += _FINAL if is_final else []
    return {column: None if pd.isna(row[column]) else row[column] for column in columns}
