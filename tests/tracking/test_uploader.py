import errno
import json
import math
import os
import shlex
import sqlite3
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from raytrain import architecture
from raytrain.analysis.answer import answer
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError
from raytrain.report.document import markdown
from raytrain.rundir.log import JsonLog
from raytrain.tracking import uploader
from raytrain.tracking.uploader import Uploader, resolve_uri, ui_command
from tests.studies import write_study

BUDGET = 3 * 10**17 + 1  # no float holds it

NINE = [name for name, axis in architecture.AXES.items() if axis.is_required]  # others are shown where they vary


@pytest.fixture(scope="module", autouse=True)
def default_store():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs root, whose database is migrated once for all tests here."""
    return tmp_path_factory.mktemp("runs")


class Study:
    """A study folder as the engine writes it."""

    def __init__(self, runs, name, trials, created="2025-01-01T00:00:00Z"):
        self.dir = runs / name
        self.name = name
        config = TrainConfig(architecture=architecture.preset("llama", **architecture.SCALES["tiny"]), flops=1e12)
        entries = [
            {"id": trial, "label": f"label {trial}", "labels": ["llama", "team"], "hash": f"ab12-{trial}", "seed": 7}
            | {"config": config.to_dict()}
            for trial in trials
        ]
        study = {"name": name, "space": "presets", "base": "gpt2", "scale": "tiny", "created": created}
        study |= {"command": "python -m raytrain.tune", "git_commit": "c0ffee", "budget_flops": BUDGET}
        study |= {"counts": {"points": 5, "programs": 4, "variants": 4, "trials": len(trials)}}
        study |= {"trials": entries, "versions": {"python": "3.11"}}
        self.dir.mkdir(exist_ok=True)
        (self.dir / "study.json").write_text(json.dumps(study))

    def log(self, trial, steps, **values):
        log = JsonLog(self.dir / "trials" / trial / "log.jsonl")
        for step in steps:
            log.write({"event": "step", "step": step, "loss": 6.0 - step / 100, "learning_rate": 1e-3, **values})

    def end(self, trial, val_loss=None, status="complete", flops=BUDGET, **values):
        result = {"status": status, "name": "4L-RoPE", "hash": f"ab12-{trial}", "seed": 7, "vocab_size": 256, **values}
        if val_loss is not None:
            result = {"val_loss": val_loss, "train_flops": flops, "data_fingerprint": "f00d"} | result
        folder = self.dir / "trials" / trial
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(result))

    def sync(self):
        uploader = Uploader(self.dir)
        uploader.sync()
        return uploader

    def runs(self, **query):
        """The study's runs as MLflow tells them, by trial; the parent is ""."""
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.dir.parent / 'mlflow.db'}")
        experiment = client.get_experiment_by_name(self.name).experiment_id
        found = client.search_runs([experiment], **query)
        return {run.data.tags["raytrain.trial"]: run for run in found}

    def history(self, trial, metric):
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.dir.parent / 'mlflow.db'}")
        points = client.get_metric_history(self.runs()[trial].info.run_id, metric)
        return [(point.step, point.value) for point in points]


def rows(runs, table):
    with sqlite3.connect(runs / "mlflow.db") as database:
        return database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_redone_steps_are_points_once(runs):
    """Would catch: a run that was killed after step 4 and continued from step 2 with two points a step, also where an
    older version's log holds both, and where the first of them was sent before the kill."""
    study = Study(runs, "redone", ["a"])
    study.log("a", (1, 2, 3, 4))
    study.sync()
    again = "".join(
        json.dumps({"time": 2e9, "event": "step", "step": step, "loss": 6.0 - step / 100}) + "\n" for step in (3, 4, 5)
    )
    with (study.dir / "trials" / "a" / "log.jsonl").open("a") as file:
        file.write(again)
    study.sync()
    study.log("a", (4, 5, 6))
    study.sync()
    assert sorted(study.history("a", "loss")) == [(step, 6.0 - step / 100) for step in (1, 2, 3, 4, 5, 6)]


def test_a_result_is_at_the_step_of_its_end(runs):
    """Would catch: the loss of a trial whose last steps' reports died with the driver (it went on from a checkpoint
    after all of its steps) as a second point at an earlier step."""
    study = Study(runs, "end", ["a"])
    study.log("a", (2, 4), val_loss=3.0)
    study.sync()
    JsonLog(study.dir / "trials" / "a" / "log.jsonl").write({"event": "end", "steps": 6, "val_loss": 2.5})
    study.end("a", 2.5)
    study.sync()
    assert study.history("a", "val_loss") == [(2, 3.0), (4, 3.0), (6, 2.5)]


def test_the_ui_s_order_is_the_ranking(runs):
    """Would catch: a trial that stopped early sorted first by loss per FLOP; a parent or a failure among them."""
    study = Study(runs, "order", ["early", "worst", "best", "broken", "middle"])
    study.end("early", 3.5, flops=BUDGET // 10)  # the highest ratio of all
    study.end("worst", 3.0)
    study.end("best", 2.0)
    study.end("broken", status="failed", reason="CUDA out of memory")
    study.end("middle", 2.5)
    study.sync()

    order = study.runs(order_by=["metrics.loss_per_flop DESC"])
    assert list(order)[:3] == ["best", "middle", "worst"]
    assert [order[trial].data.metrics.get("rank") for trial in list(order)[:3]] == [1, 2, 3]
    assert {trial: order[trial].data.tags.get("budget_ok") for trial in ("early", "best")} == {
        "early": "0",
        "best": "1",
    }
    assert "loss_per_flop" not in order[""].data.metrics
    children = [
        trial for trial, run in order.items() if run.data.tags.get("mlflow.parentRunId") == order[""].info.run_id
    ]
    assert sorted(children) == ["best", "broken", "early", "middle", "worst"]


@pytest.mark.parametrize("experiment", [None, "question"])
def test_the_saved_view_shows_what_there_is(runs, experiment):
    """Would catch: a view that the UI cannot read, or a column of it, an axis or a metric, that no trial has; constants
    before what varies; other studies of the experiment among a study's own."""
    name = f"viewed-{experiment}"
    more = {"experiment": experiment} if experiment else {}
    folder = write_study(runs / name, frontier_budgets=(2.5e14, 5e14, 2e15), results=lambda _: {"val_bpb": 1.5}, **more)
    uploader = Uploader(folder)
    uploader.sync()
    client, found, _ = children(folder, experiment)
    own = f"ranking-{name}" if experiment else "ranking"
    assert uploader.link.endswith(f"?viewStateShareKey={own}&workflowType=machine_learning")
    tags = client.get_experiment_by_name(experiment or name).tags
    for key in {own, "ranking"}:
        view = json.loads(tags[f"mlflow.sharedViewState.{key}"])
        assert (view["name"], type(view["createdAt"])) == (key, int)
        state = json.loads(view["state"])
        data = found["t0"].data
        has = {f"metrics.`{name}`" for name in data.metrics} | {f"params.`{name}`" for name in data.params}
        has |= {f"tags.`{name}`" for name in data.tags}
        columns = state["selectedColumns"]
        assert {*columns, state["orderByKey"]} <= has
        assert {f"params.`{axis}`" for axis in NINE} <= {*columns}
        shown = ["tags.`raytrain.study`"] if experiment and key == "ranking" else []
        varied = [f"params.`{axis}`" for axis in ("norm_position", "position_encoding", "normalization")]
        assert columns[: columns.index("metrics.`val_loss`")] == ["metrics.`rank`", *shown, *varied, "tags.`seed`"]
        wanted = f"tags.`raytrain.study` = '{name}'" if key != "ranking" else ""
        assert state["searchFilter"] == wanted
        assert [chart["metricKey"] for chart in state["compareRunCharts"]] == ["val_loss", "loss"]
        assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {
            state["compareRunSections"][0]["uuid"]
        }
        assert len(tags[f"mlflow.sharedViewState.{key}"]) < 5000  # what a column of the database holds
    assert len(client.search_runs([found[""].info.experiment_id], f"tags.`raytrain.study` = '{name}'")) == len(found)


def test_studies_of_one_question_stand_together(runs):
    """Would catch: an experiment a study; runs of one taken for those of another; a view that the second study lacks;
    a study of an earlier version that moves to another experiment."""
    for name in ("first", "second"):
        Uploader(write_study(runs / name, points=2, experiment="norms")).sync()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    together = client.get_experiment_by_name("norms")
    parents = {run.info.run_name for run in client.search_runs([together.experiment_id], "tags.`raytrain.trial` = ''")}
    assert parents == {"first", "second"}
    assert {f"mlflow.sharedViewState.ranking{end}" for end in ("", "-first", "-second")} <= together.tags.keys()
    assert client.get_experiment_by_name("first") is None
    Uploader(write_study(runs / "earlier", points=2)).sync()
    assert client.get_experiment_by_name("earlier") is not None


def test_effects_and_noise_are_the_parent_s(runs):
    """Would catch: effects that are in the report alone, other figures than its, and a name that MLflow refuses."""
    axes = {"normalization": ("rmsnorm", "layernorm"), "ffn_type": ("standard", "swiglu")}
    folder = write_study(
        runs / "figures", axes=axes, seeds=3, effect=lambda point: 0.1 * (point["ffn_type"] == "swiglu")
    )
    Uploader(folder).sync()
    final = answer(folder)
    _, found, _ = children(folder)
    metrics = found[""].data.metrics
    row = final.effects.table.set_index("effect").loc["ffn_type=swiglu"]
    assert metrics["effect/ffn_type.swiglu"] == row["estimate"]
    assert (metrics["effect/ffn_type.swiglu_low"], metrics["effect/ffn_type.swiglu_high"]) == (row["low"], row["high"])
    assert metrics["noise_sd"] == final.noise.sd
    assert metrics.keys() == {"ended", "noise_sd"} | {
        f"effect/{level}{end}"
        for level in ("normalization.layernorm", "ffn_type.swiglu")
        for end in ("", "_low", "_high")
    }
    assert found[""].data.tags["headline"] == final.sentences[0]


def test_a_second_sync_changes_nothing(runs, monkeypatch):
    """Would catch: runs, series or final metrics that are sent twice, by one process or by the next."""
    sent = []
    log_batch = mlflow.MlflowClient.log_batch
    monkeypatch.setattr(
        mlflow.MlflowClient, "log_batch", lambda *args, **given: sent.append(given) or log_batch(*args, **given)
    )
    study = Study(runs, "twice", ["a", "b"])
    for trial, loss in (("a", 2.0), ("b", 3.0)):
        study.log(trial, range(1, 6))
        study.end(trial, loss)
    uploader = study.sync()
    counts = [rows(runs, table) for table in ("runs", "metrics", "params", "tags")]
    assert sent
    sent.clear()
    uploader.sync()
    study.sync()
    assert [rows(runs, table) for table in ("runs", "metrics", "params", "tags")] == counts
    assert not sent
    assert study.history("a", "loss") == [(step, 6.0 - step / 100) for step in range(1, 6)]


def test_what_came_since_is_sent(runs):
    """Would catch: new lines left out or old ones repeated, and a status, final value or rank that stays as it was."""
    study = Study(runs, "growing", ["a", "b"])
    study.log("a", [1, 2], val_loss=4.0)
    study.sync()
    assert sorted(study.runs()) == ["", "a"]  # b has not begun
    assert study.runs()["a"].info.status == "RUNNING"
    assert "loss_per_flop" not in study.runs()["a"].data.metrics

    study.log("a", [3], val_loss=3.0)
    study.end("a", 2.5)
    study.sync()
    run = study.runs()["a"]
    assert study.history("a", "loss") == [(1, 5.99), (2, 5.98), (3, 5.97)]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_loss"] == 2.5  # the UI's value: the newest at the highest step
    assert "rank" not in run.data.metrics
    assert study.runs()[""].info.status == "RUNNING"

    study.end("b", 2.0)
    study.sync()
    assert {trial: study.runs()[trial].data.metrics["rank"] for trial in "ab"} == {"a": 2, "b": 1}
    assert study.runs()[""].info.status == "FINISHED"


def test_an_evaluation_is_added_to_its_trial(runs):
    """Would catch: metrics that go to another trial or step, a run made for a trial that was never sent, and a later
    sync that takes the evaluation back."""
    study = Study(runs, "evaluated", ["a", "b"])
    assert not Uploader(study.dir).add("a", {"arc/acc": 0.5}, 4)
    study.log("a", (1, 2))
    study.end("a", 3.0)
    study.sync()
    assert Uploader(study.dir).add("a", {"arc/acc": 0.5, "arc/acc_stderr": 0.01}, 4)
    assert not Uploader(study.dir).add("b", {"arc/acc": 0.5}, 4)
    study.sync()
    assert study.history("a", "arc/acc") == [(4, 0.5)]
    assert study.history("a", "arc/acc_stderr") == [(4, 0.01)]
    assert "arc/acc" not in study.runs()[""].data.metrics


def test_params_and_tags(runs):
    """Would catch: an integer that lost digits as a float, a missing axis, or a label lost with its duplicate."""
    study = Study(runs, "facts", ["a"])
    study.log("a", [1])
    study.end("a", 2.0)
    study.sync()
    run = study.runs()["a"]
    assert run.data.tags["train_flops"] == "300000000000000001"
    assert run.data.metrics["train_flops"] == 3e17
    expected = {
        "architecture": "4L-RoPE",
        "hash": "ab12-a",
        "seed": "7",
        "git_commit": "c0ffee",
        "data_fingerprint": "f00d",
    }
    expected |= {"status": "complete", "labels": "llama, team"}
    assert expected.items() <= run.data.tags.items()
    assert run.info.run_name == "llama, team"
    assert {*NINE, "n_layer", "vocab_size", "learning_rate"} <= run.data.params.keys()
    assert "None" not in run.data.params.values()  # the text of what is not set
    assert run.data.params["position_encoding"] == "rope"
    assert study.runs()[""].data.params["budget_flops"] == str(BUDGET)


def test_constants_are_no_charts(runs):
    """Would catch: a chart of one point for each number that a run has one of; a param that is not there once a run has
    started, or that MLflow refuses to change when the next attempt starts elsewhere."""
    study = Study(runs, "constants", ["a"])
    fixed = {"parameters": 123, "flops_per_token": BUDGET, "attention_ffn_ratio": 0.75, "unigram_loss": 5.5}
    fixed |= {"total_steps": 9, "total_tokens": 900, "total_flops": BUDGET, "flops_per_token_causal": 600}
    attempt = {"world_size": 1, "first_step": 0, "restored_seconds": 0.0, "micro_batch": 8, "peak_tflops": 989.0}
    log = JsonLog(study.dir / "trials" / "a" / "log.jsonl")
    log.write({"event": "step", "step": 1, "loss": 5.0})  # older than the report of a start
    first = study.sync()
    log.write({"event": "start", **fixed, **attempt, "tokens_per_second_at_50_mfu": 1e5})
    first.sync()
    data = study.runs()["a"].data
    assert {key: data.params.get(key) for key in fixed} == {key: str(value) for key, value in fixed.items()}
    assert (data.tags["first_step"], data.tags["world_size"]) == ("0", "1")

    study.end("a", 2.0, **fixed, **attempt | {"first_step": 4, "world_size": 2})
    study.sync()
    found = study.runs()
    data = found["a"].data
    assert (data.tags["first_step"], data.tags["world_size"], data.tags["budget_ok"]) == ("4", "2", "1")
    assert data.metrics.keys() == {"loss", "val_loss", "train_flops", "loss_per_flop", "rank"}
    assert found[""].data.metrics == {"ended": 1}
    assert {key: found[""].data.tags[key] for key in ("points", "trials")} == {"points": "5", "trials": "1"}


def inputs(run):
    return [
        (given.dataset.name, given.dataset.digest, {tag.key: tag.value for tag in given.tags})
        for given in run.inputs.dataset_inputs
    ]


def test_the_data_is_an_input_once(runs, monkeypatch):
    """Would catch: a run without its data, or sent again at each sync; a fingerprint that is too long for MLflow; a
    source that MLflow cannot read."""
    sent = []
    log_inputs = mlflow.MlflowClient.log_inputs
    monkeypatch.setattr(
        mlflow.MlflowClient, "log_inputs", lambda *given, **more: sent.append(given) or log_inputs(*given, **more)
    )
    study = Study(runs, "inputs", ["a", "b"])
    content = json.loads((study.dir / "study.json").read_text())
    content["trials"][1]["config"]["data"] = "/my data/tiny"
    (study.dir / "study.json").write_text(json.dumps(content))
    study.log("a", [1])
    study.sync()
    assert not sent  # the log has no fingerprint yet

    study.end("a", 2.0)
    study.end("b", 2.5, data_fingerprint="f00d" * 16)
    uploader = study.sync()
    uploader.sync()
    study.sync()
    found = study.runs()
    assert inputs(found["a"]) == [("stdlib", "f00d", {"mlflow.data.context": "training"})]
    assert inputs(found["b"]) == [("tiny", "f00d" * 9, {"mlflow.data.context": "training"})]
    assert inputs(found[""]) == []
    assert len(sent) == 2
    sources = [mlflow.data.get_source(found[trial].inputs.dataset_inputs[0]) for trial in "ab"]
    assert [type(source).__name__ for source in sources] == ["CodeDatasetSource", "LocalArtifactDatasetSource"]
    assert sources[1].uri == "/my data/tiny"


def test_where_a_run_comes_from(runs, monkeypatch):
    """Would catch: a run without a source, commit or user in MLflow's own columns; a user without a name, as in a
    container, that ends the sync."""
    study = Study(runs, "origin", ["a"])
    study.log("a", [1])
    study.sync()
    expected = {"mlflow.source.name": "python -m raytrain.tune", "mlflow.source.type": "LOCAL"}
    expected |= {"mlflow.source.git.commit": "c0ffee", "mlflow.user": study.dir.owner()}
    for run in study.runs().values():
        assert expected.items() <= run.data.tags.items()
        assert run.info.user_id == study.dir.owner()

    def no_name(path):
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(Path, "owner", no_name)
    study = Study(runs, "nameless", ["a"])
    content = json.loads((study.dir / "study.json").read_text()) | {"git_commit": None}
    (study.dir / "study.json").write_text(json.dumps(content))
    study.log("a", [1])
    study.sync()
    assert not {"mlflow.user", "mlflow.source.git.commit"} & study.runs()["a"].data.tags.keys()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("stopped", "FINISHED"),
        ("interrupted", "KILLED"),
        ("diverged", "FAILED"),
        ("oom", "FAILED"),
        ("failed", "FAILED"),
    ],
)
def test_status(runs, status, expected):
    """Would catch: a failed trial shown as finished or without its reason; a reason that outlives the failure."""
    study = Study(runs, f"status-{status}", ["a"])
    study.end("a", status=status, reason="because")
    study.sync()
    assert study.runs()["a"].info.status == expected
    assert study.runs()["a"].data.tags["reason"] == "because"
    assert "rank" not in study.runs()["a"].data.metrics

    study.end("a", 2.0)  # tried again
    study.sync()
    assert study.runs()["a"].info.status == "FINISHED"
    assert study.runs()["a"].data.tags["reason"] == ""


def test_only_finite_numbers_are_metrics(runs):
    """Would catch: an infinite value, which the UI sorts to the top, or a boolean as a number."""
    study = Study(runs, "finite", ["a"])
    study.log("a", [1], grad_norm=float("inf"), compile=True, mfu=float("nan"))
    study.sync()
    assert study.runs()["a"].data.metrics == {"loss": 5.99, "learning_rate": 1e-3}


def test_more_than_one_batch(runs):
    """Would catch: a long log refused for its size, since MLflow takes 1,000 metrics at a time."""
    study = Study(runs, "long", ["a"])
    study.log("a", range(1200))
    study.sync()
    assert len(study.history("a", "loss")) == 1200


def test_a_new_study_of_an_old_name(runs):
    """Would catch: a study that overwrites the runs of a deleted one of the same name, or takes its lines as sent."""
    for created, steps in (("2025-01-01T00:00:00Z", [1, 2, 3]), ("2025-01-02T00:00:00Z", [1])):
        study = Study(runs, "again", ["a"], created)
        (study.dir / "trials" / "a" / "log.jsonl").unlink(missing_ok=True)
        study.log("a", steps)
        study.sync()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("again").experiment_id])
    lengths = [
        len(client.get_metric_history(run.info.run_id, "loss")) for run in found if run.data.tags["raytrain.trial"]
    ]
    assert sorted(lengths) == [1, 3]


def children(folder, experiment=None):
    """Of a finished study of tests.studies: its runs by trial; the parent is ""."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name(experiment or folder.name).experiment_id])
    return client, {run.data.tags["raytrain.trial"]: run for run in found}, len(found)


def test_gains_and_ranks_are_those_of_the_answer(runs):
    """Would catch: figures in MLflow that are not the report's, an interval with an infinite end, a gain for a run that
    has none, or one of the baseline's runs at another budget ranked."""
    failed = {"status": "oom", "val_loss": None, "train_flops": None, "reason": "CUDA out of memory"}
    folder = write_study(
        runs / "gains",
        frontier_budgets=(2.5e14, 5e14, 2e15),
        effect=lambda point: -0.02 * (point["norm_position"] == "pre"),
        results=lambda index: failed if index == 5 else {},
    )
    Uploader(folder).sync()
    _, found, _ = children(folder)
    names = ["rank", "hardware_rank"]
    names += [f"{kind}_gain{end}" for kind in ("compute", "hardware") for end in ("", "_low", "_high")]
    for row in answer(folder).table.to_dict("records"):
        expected = {name: float(row[name]) for name in names if pd.notna(row[name])}
        sent = found[row["trial"]].data.metrics
        assert {name: sent[name] for name in names if name in sent} == expected, row["trial"]
        assert all(math.isfinite(value) for value in sent.values())
        assert ("rank" in sent) == (row["status"] == "complete" and row["role"] != "frontier")
        assert found[row["trial"]].info.run_name == row["short_name"]
    assert not set(names) & found["t5"].data.metrics.keys()
    assert found[""].data.tags["mlflow.note.content"].startswith("norm_position=pre pays: 0.0")
    assert {"compute_gain_low", "hardware_gain_high"} <= found["t0"].data.metrics.keys()


def test_a_long_answer_is_cut_between_sentences(runs):
    """Would catch: a description beyond what a tag holds, which MLflow would cut in the middle of a figure."""
    failed = {"status": "oom", "val_loss": None, "train_flops": None, "reason": "out of memory " * 400}
    folder = write_study(runs / "told", results=lambda index: failed if index == 5 else {})
    Uploader(folder).sync()
    _, found, _ = children(folder)
    *kept, last = found[""].data.tags["mlflow.note.content"].split("\n\n")
    assert 0 < len(kept) < len(answer(folder).sentences)
    assert kept == [markdown(sentence) for sentence in answer(folder).sentences[: len(kept)]]
    assert last == "The rest is in the report."


def test_the_report_is_an_artifact_once(runs, monkeypatch):
    """Would catch: a report that is not in MLflow, sent anew at each sync, or left as it was when it was made again."""
    sent = []
    log_artifact = mlflow.MlflowClient.log_artifact

    def note(client, run, file, place):
        sent.append((file.rpartition("/")[2], place))
        log_artifact(client, run, file, place)

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", note)
    folder = write_study(runs / "reported", seeds=1, points=2)
    (folder / "report" / "pictures").mkdir(parents=True)
    for name in ("index.html", "pictures/effects.png"):
        (folder / "report" / name).write_text(name)
    Uploader(folder).sync()
    assert sent == [("study.json", None), ("index.html", "report"), ("effects.png", "report/pictures")]
    client, found, _ = children(folder)
    assert [file.path for file in client.list_artifacts(found[""].info.run_id, "report/pictures")] == [
        "report/pictures/effects.png"
    ]
    sent.clear()
    Uploader(folder).sync()
    assert not sent
    (folder / "report" / "index.html").write_text("made again")
    Uploader(folder).sync()
    assert sent == [("index.html", "report")]


def test_a_killed_and_resumed_study_has_each_run_once(runs):
    """Would catch: runs made anew by the driver that takes a study up, or by two that sync at once; a run left as
    RUNNING or KILLED after its trial was lost, paused at a rung, started again and ended."""
    study = Study(runs, "resumed", ["a", "b", "c"])
    study.log("a", [1])
    study.log("b", [1])
    first = study.sync()
    study.log("c", [1])
    second = study.sync()  # has found a and b; makes c
    JsonLog(study.dir / "trials" / "a" / "log.jsonl").write({"event": "pause", "rung": 0, "step": 2, "val_loss": 4.0})
    JsonLog(study.dir / "trials" / "b" / "log.jsonl").write({"event": "lost", "status": "lost"})
    first.sync()  # has not made c itself
    assert {run.info.status for run in children(study.dir)[1].values()} == {"RUNNING"}

    content = json.loads((study.dir / "study.json").read_text())
    (study.dir / "study.json").write_text(json.dumps(content | {"interrupted": True}))
    second.sync()
    assert {run.info.status for run in children(study.dir)[1].values()} == {"KILLED"}

    (study.dir / "study.json").write_text(json.dumps(content))
    for trial, status in (("a", "complete"), ("b", "stopped"), ("c", "lost")):
        study.log(trial, [3])
        study.end(trial, 2.0 if status != "lost" else None, status=status)
    study.sync()
    first.sync()
    _, found, count = children(study.dir)
    assert count == 4
    assert {trial: run.info.status for trial, run in found.items()} == {
        "": "FINISHED",
        "a": "FINISHED",
        "b": "FINISHED",
        "c": "FAILED",
    }
    assert study.history("a", "loss") == [(1, 5.99), (3, 5.97)]


def test_a_server_that_is_down(runs, monkeypatch):
    """Would catch: a traceback, instead of a line, from a study whose server went away."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    study = Study(runs, "down", ["a"])
    with pytest.raises(UserError, match=r"tracking_uri \(http://127.0.0.1:9\) does not take the results"):
        Uploader(study.dir, tracking_uri="http://127.0.0.1:9").sync()


@pytest.mark.parametrize("links", [True, False])
def test_a_database_is_whole_or_not_there(tmp_path, monkeypatch, links):
    """Would catch: a database left half made by a Ctrl-C, which MLflow never takes results into; none at all on a disk
    without hard links."""
    database = tmp_path / "mlflow.db"
    is_killed = True

    def client(tracking_uri):
        path = Path(tracking_uri.removeprefix("sqlite:///"))
        if path != database:
            path.write_text("half")
            if is_killed:
                raise KeyboardInterrupt
            path.write_text("whole")

    def no_link(source, target):
        raise OSError(errno.ENOTSUP, "no hard links")

    monkeypatch.setattr(uploader, "MlflowClient", client)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(KeyboardInterrupt):
        Uploader(tmp_path / "s").connect()
    assert list(tmp_path.iterdir()) == []
    is_killed = False
    Uploader(tmp_path / "s").connect()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert database.read_text() == "whole"


def test_a_database_that_another_study_makes_meanwhile(tmp_path, monkeypatch):
    """Would catch: its results thrown away, as ours takes its place."""
    database = tmp_path / "mlflow.db"

    def client(tracking_uri):
        if tracking_uri != f"sqlite:///{database}":
            database.write_text("theirs")
            Path(tracking_uri.removeprefix("sqlite:///")).write_text("ours")

    monkeypatch.setattr(uploader, "MlflowClient", client)
    Uploader(tmp_path / "s").connect()
    assert database.read_text() == "theirs"


def test_a_database_with_settings(tmp_path):
    """Would catch: settings of SQLite's taken for a part of the file's name."""
    Uploader(tmp_path / "s", f"sqlite:///{tmp_path}/mine.db?timeout=30").connect()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.db"]


def test_uris(tmp_path, monkeypatch):
    """Would catch: a relative database, which each of Ray's working directories would make anew; a wrong precedence."""
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri("runs", "sqlite:///mine.db") == f"sqlite:///{tmp_path}/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert resolve_uri("runs") == "http://host:5000"
    assert resolve_uri("runs", "sqlite:////elsewhere/mlflow.db") == "sqlite:////elsewhere/mlflow.db"


def test_the_ui_command_survives_a_shell():
    """Would catch: a database below a folder with a space in its name, which the printed command would not open."""
    words = shlex.split(ui_command("sqlite:////my runs/mlflow.db"))
    assert words == ["mlflow", "ui", "--backend-store-uri", "sqlite:////my runs/mlflow.db"]
    assert "http://host:5000" in ui_command("http://host:5000")


def test_one_function_that_came_through(runs):
    """Would catch: a study that no sync brings to MLflow, as all trials of all variants but one diverged."""
    diverged = {"status": "diverged", "val_loss": None}
    folder = write_study(
        runs / "one", axes={"bias": (False, True)}, results=lambda index: diverged if index > 1 else {}
    )
    Uploader(folder).sync()
    _, found, _ = children(folder)
    assert found[""].info.status == "FINISHED"
    assert "all trials with a loss are of one variant" in found[""].data.tags["mlflow.note.content"]
