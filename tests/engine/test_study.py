import contextlib
import copy
import dataclasses
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import rich.console
from mlflow import MlflowClient

import raytrain.tracking.uploader
from raytrain import generate, tune
from raytrain.config.resolve import resolve
from raytrain.engine import place, study
from raytrain.engine.cluster import Lanes
from raytrain.engine.job import LaneShape
from raytrain.engine.journal import Sync
from raytrain.engine.limit import TimeLimit
from raytrain.errors import UserError
from raytrain.rundir.folders import check_name
from raytrain.rundir.log import JsonLog, read_log
from raytrain.sweep import planning
from raytrain.sweep.estimate import ResourceRequest
from raytrain.sweep.halving import Halving
from raytrain.sweep.plan import Plan, make_plan
from raytrain.sweep.schedule import LOST_RETRIES
from raytrain.sweep.space import Space, expand
from raytrain.sweep.trial import PlannedTrial, assign, trials_of
from tests.studies import write_study


def make(seeds: int) -> Plan:
    """A plan of one variant with `seeds` seeds from 1 on."""
    space = Space("test", "llama", {"norm_position": ("pre",)})
    expansion = expand(space, lambda values: resolve([("test", {"seed": 1, **values})], data_vocab_size=256)[0])
    budget = expansion.candidates[0].config.train_flops
    return make_plan(space, expansion, budget_flops=budget, scale="tiny", seeds=seeds)


def fake_train(raises: int, dies: int) -> Callable[..., Any]:
    """The seed `raises` raises, `dies` kills its process. Made in here, so that it travels to the lanes by value."""

    def train(
        config: Any, on_report: Callable[..., bool], folder: Path | None, interrupted: Callable[[], bool]
    ) -> None:
        facts = {"train_flops": config.train_flops, "tokens_per_second": 9.0, "mfu": 0.5, "pid": os.getpid()}
        on_report({"event": "start", "pid": os.getpid(), "startup_seconds": 0.0})
        if config.seed == raises:
            raise RuntimeError("bad luck")
        if config.seed == dies:
            os._exit(1)
        on_report({"event": "step", "step": 1, "loss": 2.5, **facts})
        result = {"train_loss": 2.5, "val_loss": 2.0 + config.seed, **facts}
        on_report({"event": "eval", "step": 1, **result})
        on_report({"event": "end", "status": "complete", "vocab_size": 256, "train_seconds": 0.1, **result})

    return train


def one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one lane the order of trials is that of the plan."""

    def plan_lanes(trials: Sequence[PlannedTrial], *args: Any, **kwargs: Any) -> Lanes:
        return Lanes({trial.id: LaneShape() for trial in trials}, {LaneShape(): 1}, {})

    monkeypatch.setattr(study, "plan_lanes", plan_lanes)


def test_sweep_with_failures(
    ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a process a trial, a failed or killed trial that ends the sweep or is recorded as another, a study
    that shows nothing of how far it is, trials that MLflow does not get, and a plan that the run edits."""
    one_lane(monkeypatch)
    monkeypatch.setattr("raytrain.engine.view._LINE_SECONDS", 0.0)
    plan = make(seeds=6)
    before = copy.deepcopy(plan)
    first, raises, third, dies, *_ = order = [trial.config.seed for trial in plan.trials]
    code = study.run_study(plan, runs=tmp_path, name="s", train=fake_train(raises, dies))
    out = capsys.readouterr().out

    results, pids = {}, {}
    for trial in plan.trials:
        folder = tmp_path / "s" / "trials" / trial.id
        results[trial.config.seed] = json.loads((folder / "result.json").read_text())
        starts = [report["pid"] for report in read_log(folder / "log.jsonl") if report["event"] == "start"]
        pids[trial.config.seed] = starts[0] if starts else None
        on_cpu = {"device": "cpu"}  # what the sweep decided, not what it was told
        assert json.loads((folder / "config.json").read_text()) == trial.to_dict()["config"] | on_cpu
    assert code == 0
    assert plan == before
    assigned = [assign(trial, on_gpus=False, storage=str(tmp_path / "s" / "trials")) for trial in before.trials]
    assert trials_of(json.loads((tmp_path / "s" / "study.json").read_text())) == assigned
    assert {seed: result["status"] for seed, result in results.items()} == {
        **dict.fromkeys(order, "complete"), raises: "failed", dies: "lost",
    }  # fmt: skip
    assert results[raises]["reason"] == "RuntimeError: bad luck"
    assert results[raises]["hash"] == plan.trials[0].config.architecture.hash
    assert pids[first] == pids[raises] == pids[third] != os.getpid()
    assert len({pids[seed] for seed in order[4:]} - {pids[first]}) == 1
    events = read_log(tmp_path / "s" / "events.jsonl")
    assert sum(event["event"] == "lost" for event in events) == LOST_RETRIES
    assert "of 6 trials ended" in out
    assert "bad luck" in out
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in out
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("test")  # the space's name
    assert experiment is not None
    assert f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=ranking" in out
    assert len(client.search_runs([experiment.experiment_id])) == 1 + 6


def test_trials_of_several_sizes(ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch lanes of one size that wait for ever for those of another, a trial on a lane of the wrong size, one
    that can never be placed and holds up the rest, and a study that ends without its report."""

    def train(config: Any, on_report: Any, folder: Any, interrupted: Any) -> None:
        import torch.distributed

        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        on_report({"event": "start", "startup_seconds": 0.0})
        facts = {"val_loss": float(config.seed), "vocab_size": 256, "train_flops": config.train_flops}
        on_report({"event": "end", "status": "complete", "world_size": ranks, **facts})

    plan = make(seeds=5)
    workers = dict(zip((trial.id for trial in plan.trials), (None, 2, None, 2, 99), strict=True))
    trials = tuple(dataclasses.replace(trial, workers=workers[trial.id]) for trial in plan.trials)
    assert study.run_study(dataclasses.replace(plan, trials=trials), runs=tmp_path, name="m", train=train) == 0
    results = {trial: json.loads((tmp_path / "m" / "trials" / trial / "result.json").read_text()) for trial in workers}
    assert [results[trial].get("world_size") for trial in workers] == [1, 2, 1, 2, None]
    *_, misfit = results.values()
    assert misfit["status"] == "failed"
    assert misfit["reason"] == "too large for the cluster: 99 ranks need a CPU each, and Ray has 2 CPUs"
    index = tmp_path / "m" / "report" / "index.html"
    assert index.exists()
    assert str(index) in capsys.readouterr().out


def test_interrupted_before_tune_listens(
    ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a Ctrl-C that is answered by a traceback, and a study of which nobody says how to go on."""

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "_tune", interrupt)
    assert study.run_study(make(seeds=1), runs=tmp_path, name="i") == 130
    said = capsys.readouterr().out
    assert "interrupted: 1 of 1 trials have not ended" in said
    assert f"resume with: python -m raytrain.tune --resume i --runs {tmp_path}" in said
    left = json.loads((tmp_path / "i" / "study.json").read_text())
    assert left["interrupted"] is True
    assert left["lanes"]["gpus_per_trial"] == 0  # also where it is taken up with GPUs
    monkeypatch.setattr(study, "study_lock", interrupt)
    assert study.resume_study("i", runs=tmp_path) == 130
    assert "resume with: python -m raytrain.tune --resume i" in capsys.readouterr().out


def patient_train(place: Path) -> Callable[..., Any]:
    """The seed 1 completes; others train until they are stopped. Each notes its end in `place`. Made in here, to travel
    by value."""

    def train(config: Any, on_report: Callable[..., bool], folder: Any, interrupted: Callable[[], bool]) -> None:
        import time

        facts = {"train_flops": config.train_flops, "val_loss": 2.0, "vocab_size": 256}
        on_report({"event": "start", "startup_seconds": 0.0})
        step, stop = 0, False
        if config.seed > 1:
            on_report({"event": "eval", "step": 0, "val_loss": 3.0})  # which the driver gets at once
        while config.seed > 1 and not stop:
            step += 1
            stop = on_report({"event": "step", "step": step, "loss": 2.5}) or interrupted()
            time.sleep(0.01)
        (place / f"{config.seed}-{'stopped' if stop else 'done'}").touch()
        on_report({"event": "end", "status": "interrupted" if stop else "complete", **facts})

    return train


def test_a_time_limit(
    ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a trial that starts after the limit, one under way that is killed and not asked to stop, a study that
    is said to be interrupted or over, one without a report, and one that a resume finds over."""
    one_lane(monkeypatch)
    plan = make(seeds=4)
    plan = dataclasses.replace(plan, trials=tuple(sorted(plan.trials, key=lambda trial: trial.config.seed)))
    second = tmp_path / "s" / "trials" / plan.trials[1].id / "log.jsonl"
    monkeypatch.setattr(TimeLimit, "is_over", property(lambda self: self.seconds is not None and second.exists()))
    code = study.run_study(plan, runs=tmp_path, name="s", time_limit=5400.0, train=patient_train(tmp_path))
    said = capsys.readouterr()
    assert code == 124
    assert "time limit: ending the trials" in said.err
    sentence = "The time limit of 90 min ended the study: 2 of 4 trials did not run, and 1 was cut short."
    assert f"time limit: {sentence}\nresume with: python -m raytrain.tune --resume s --runs {tmp_path}" in said.out
    assert "interrupted: " not in said.out
    assert sorted(path.name for path in tmp_path.glob("[0-9]-*")) == ["1-done", "2-stopped"]
    assert sentence in (tmp_path / "s" / "report" / "summary.md").read_text()
    left = json.loads((tmp_path / "s" / "study.json").read_text())
    assert left["time_limit"] == 5400.0
    assert left["interrupted"] is True
    assert study.resume_study("s", runs=tmp_path, train=fake_train(-1, -1)) == 0
    left = json.loads((tmp_path / "s" / "study.json").read_text())
    assert not left.keys() & {"time_limit", "interrupted"}
    assert sentence not in (tmp_path / "s" / "report" / "summary.md").read_text()


def test_a_time_limit_before_any_loss(
    ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a traceback where there is nothing to report yet."""
    monkeypatch.setattr(TimeLimit, "is_over", True)
    assert study.run_study(make(seeds=2), runs=tmp_path, name="s", time_limit=1.0, train=fake_train(-1, -1)) == 124
    assert "The time limit of 1 s ended the study: " in (tmp_path / "s" / "report" / "summary.md").read_text()
    assert "Traceback" not in capsys.readouterr().out


class NoSync(contextlib.AbstractContextManager["NoSync"]):
    """Sends nothing to MLflow."""

    uri = ui = link = None

    def __init__(self, *args: Any) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor MLflow."""
    one_lane(monkeypatch)
    monkeypatch.setattr(study, "ray_started", lambda *_, **__: contextlib.nullcontext(True))
    monkeypatch.setattr(study, "Sync", NoSync)


def finished(folder: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
    """A study that has ended, to be taken up without Ray and MLflow."""
    without_ray(monkeypatch)
    monkeypatch.setattr(study, "recorded_fingerprints", lambda *args: {})  # made up
    write_study(folder, lanes=dataclasses.asdict(ResourceRequest()), **given)
    for result in folder.glob("trials/*/result.json"):
        event = {"event": "end", "trial": result.parent.name, "status": json.loads(result.read_text())["status"]}
        JsonLog(folder / "events.jsonl").write(event)


@pytest.mark.parametrize(
    ("seeds", "told", "title"),
    [
        (1, "but the noise is not known", "(no variant has two seeds: chance may have made this order)"),
        (2, "No winner: ", "(a shared rank: no difference beyond the noise)"),
    ],
)
def test_the_end_says_what_the_ranking_is_worth(
    seeds: int,
    told: str,
    title: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Would catch a ranking of one seed a variant shown as one beyond the noise, or without the answer's own word."""
    finished(tmp_path / "s", monkeypatch, seeds=seeds)
    assert study.resume_study("s", runs=tmp_path) == 0
    out = capsys.readouterr().out
    assert out.index(told) < out.index(f"Loss bought per model FLOP, best first {title}")


def test_a_ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a study.json of a ladder that its answer cannot be made of, trials of two scales in one ranking, or
    an end that states no gains by size."""

    def run(session: Any, record: Any, *args: Any, **kwargs: Any) -> None:
        while (segment := record.schedule.next()) is not None:
            record.begin(segment)
            config = record.trials[segment.trial].to_dict()["config"]
            loss = 3 + 1e8 / config["flops"] ** 0.7 + 0.3 * (config["scale"] == "tiny") + config["seed"] % 2 / 1e5
            facts = {"val_loss": loss - config["architecture"]["bias"] / 100, "vocab_size": 256}
            facts |= {"status": "complete", "train_flops": config["flops"]}
            record.take(segment.trial, {"event": "end", "time": 1.0} | facts, "lane")

    without_ray(monkeypatch)
    monkeypatch.setattr(study, "_tune", run)
    made = planning.plan({"bias": [False, True]}, base="llama", ladder="tiny,small")
    assert study.run_study(made, runs=tmp_path, name="l") == 0
    out = capsys.readouterr().out
    assert "ladder      tiny, small: trials are compared within a scale" in out
    assert "bias=True: compute gain 1." in out
    assert re.findall("^ *(tiny|small) +([12]) +(bias=True|llama) ", out, re.MULTILINE) == [
        (scale, str(rank), name) for scale in ("tiny", "small") for rank, name in ((1, "bias=True"), (2, "llama"))
    ]
    assert (tmp_path / "l" / "report" / "effects_small.png").exists()


def test_a_study_elsewhere_is_resumed_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a path looked for under --runs, or a study that is then said to be elsewhere."""
    finished(tmp_path / "elsewhere" / "s", monkeypatch)
    assert study.resume_study(str(tmp_path / "elsewhere" / "s"), runs=tmp_path / "runs") == 0
    assert f"folder      {tmp_path / 'elsewhere' / 's'}" in capsys.readouterr().out


def test_one_function_that_came_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a traceback in place of the ranking, as all trials of all variants but one diverged."""
    diverged = {"status": "diverged", "val_loss": None}
    results = {"axes": {"bias": (False, True)}, "results": lambda index: diverged if index > 1 else {}}
    finished(tmp_path / "s", monkeypatch, **results)
    assert study.resume_study("s", runs=tmp_path) == 0
    assert "No winner: of 2 variants gpt2 alone came to the end" in capsys.readouterr().out


def test_ctrl_c_in_the_last_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a study that has ended and is called interrupted, since the user did not wait for MLflow."""

    class Impatient(Sync):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._thread = self  # type: ignore[assignment]

        def join(self, timeout: float) -> None:
            raise KeyboardInterrupt

    finished(tmp_path / "s", monkeypatch)
    monkeypatch.setattr(study, "Sync", Impatient)
    assert study.resume_study("s", runs=tmp_path) == 0
    out = capsys.readouterr().out
    assert "MLflow sync incomplete: the last sync was interrupted" in out
    assert f"send the rest later with: python -m raytrain.track sync s --runs {tmp_path}" in out
    assert "resume with" not in out


def test_interrupted_while_what_was_lost_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a Ctrl-C that is called a success, and a time that is called the study's while it is not over."""

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    lost = {"status": "lost", "val_loss": None}
    finished(tmp_path / "s", monkeypatch, results=lambda index: lost if index == 1 else {})
    monkeypatch.setattr(study, "_tune", interrupt)
    assert study.resume_study("s", runs=tmp_path) == 130
    out = capsys.readouterr().out
    assert "resume with: python -m raytrain.tune --resume s" in out
    assert "planned " not in out


def test_ray_s_death_leaves_no_trial_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch trials called running, in tables and in MLflow, by a study whose process has ended with Ray."""

    def die(code: int) -> None:
        raise SystemExit(code)

    @contextlib.contextmanager
    def watching_a_dead_ray(on_death: Callable[[], None]) -> Iterator[None]:
        on_death()
        yield

    lost = {"status": "lost", "val_loss": None}
    finished(tmp_path / "s", monkeypatch, results=lambda index: lost if index == 1 else {})
    monkeypatch.setattr(study.tune, "Tuner", lambda *args, **kwargs: None)
    monkeypatch.setattr(study, "watching_ray", watching_a_dead_ray)
    monkeypatch.setattr(os, "_exit", die)
    with pytest.raises(SystemExit, match="130"):
        study.resume_study("s", runs=tmp_path)
    assert "interrupted: Ray died on this machine\nresume with: " in capsys.readouterr().out
    assert json.loads((tmp_path / "s" / "study.json").read_text())["interrupted"] is True


def test_resumed_where_a_trial_fits_in_no_lane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a trial that is failed for good since the study was taken up on a smaller cluster; and one that is
    said to run when nobody works on it."""
    folder = tmp_path / "s"
    finished(folder, monkeypatch, results=lambda index: {"status": None} if index == 1 else {})
    (folder / "trials" / "t1").mkdir(exist_ok=True)
    (folder / "trials" / "t1" / "log.jsonl").touch()
    names = [trial["id"] for trial in json.loads((folder / "study.json").read_text())["trials"]]
    shapes = {name: LaneShape() for name in names if name != "t1"}
    lanes = Lanes(shapes, {LaneShape(): 1}, {"t1": "it needs 8 ranks"})
    monkeypatch.setattr(study, "plan_lanes", lambda *args, **kwargs: lanes)
    assert study.resume_study("s", runs=tmp_path) == 130
    out = capsys.readouterr().out
    assert "it needs 8 ranks" in out
    assert f"interrupted: 1 of {len(names)} trials have not ended" in out
    assert "running" not in out
    assert not (folder / "trials" / "t1" / "result.json").exists()


def test_a_space_s_file_may_be_called_anything() -> None:
    """Would catch a study of `my sweep.yaml` that is refused for a name which nobody gave it."""
    name = place.study_name(dataclasses.replace(make(1), space="my sweep?"))
    assert name.startswith("my_sweep_-")
    assert check_name(name) == name


def test_the_estimate_beside_what_it_took() -> None:
    """Would catch seconds of lanes of several sizes divided by one count of lanes, and cores compared as GPUs."""
    planned = {"plan": {"estimate": {"seconds": 1800.0, "devices": 2, "device": "core"}}}
    table = pd.DataFrame({"trial": ["t0", "t1", "misfit"], "train_seconds": [1800.0, 3600.0, float("nan")]})
    one, two = LaneShape(1, 0, 2), LaneShape(2, 0, 1)
    lanes = Lanes({"t0": one, "t1": two}, {one: 1, two: 1}, {"misfit": ""})
    said = "planned     about 1 core-hours of training; it took"
    assert study._against_estimate(planned, table, lanes) == f"{said} 3 core-hours"
    half, two = LaneShape(1, 0.5, 1), LaneShape(2, 1, 4)
    lanes = Lanes({"t0": half, "t1": two}, {half: 2, two: 1}, {"misfit": ""})
    assert study._against_estimate(planned, table, lanes) == f"{said} 2.25 GPU-hours"


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a traceback once Ray is up, as another driver took the name meanwhile or --runs cannot be written;
    and a name that is taken by a folder without its study, as the driver died between two writes."""
    place.make_folder(tmp_path / "s", {"name": "s"}, {})
    assert json.loads((tmp_path / "s" / "study.json").read_text()) == {"name": "s"}
    with pytest.raises(UserError, match=rf"name \(s\) is taken in {tmp_path}"):
        place.make_folder(tmp_path / "s", {"name": "other"}, {})
    with pytest.raises(UserError, match="Not a directory"):
        place.make_folder(tmp_path / "s" / "study.json" / "t", {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["s"]

    def die(path: Path, content: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        place.make_folder(tmp_path / "u", {}, {})
    assert not (tmp_path / "u").exists()


def pausing_train(config: Any, on_report: Any, folder: str, interrupted: Any) -> None:
    """Two rungs, then the end; its position is a file in `folder`. The loss is the seed. As the loop does, it says
    again what it found at the rung that it goes on from: who wanted to know may not have heard."""
    from pathlib import Path

    position = Path(folder) / "position"
    position.parent.mkdir(parents=True, exist_ok=True)
    begin = int(position.read_text()) if position.exists() else 0
    facts = {"val_loss": float(config.seed), "vocab_size": 256}
    on_report({"event": "start", "first_step": begin})
    for rung in range(max(0, begin - 1), 2):
        stop = on_report({"event": "rung", "rung": rung, **facts})
        position.write_text(str(rung + 1))
        if stop:
            on_report({"event": "end", "status": "paused", "train_flops": 10 * (rung + 1), **facts})
            return
    on_report({"event": "end", "status": "complete", "train_flops": config.train_flops, **facts})


def test_rungs(ray_here: None, tmp_path: Path) -> None:
    """Would catch other survivors than the rule's, trials that begin anew after a pause, a lane that is taken down or
    hangs while a rung waits for the other, and a stopped trial without a rank or its place in MLflow."""
    plan = make(seeds=6)
    budget = float(plan.budget_flops)
    rungs = (budget / 4, budget / 2)
    # Halving keeps or stops all seeds of a variant together, so each seed is named as a variant of its own.
    trials = tuple(
        dataclasses.replace(t, id=f"v{t.config.seed}-s{t.config.seed}", config=t.config.replace(rungs=rungs))
        for t in plan.trials
    )
    plan = dataclasses.replace(plan, trials=trials, halving=Halving(2, rungs, 0.0))
    assert study.run_study(plan, runs=tmp_path, name="h", train=pausing_train) == 0
    statuses, starts = {}, {}
    for trial in plan.trials:
        folder = tmp_path / "h" / "trials" / trial.id
        statuses[trial.config.seed] = json.loads((folder / "result.json").read_text())["status"]
        reports = read_log(folder / "log.jsonl")
        starts[trial.config.seed] = [report["first_step"] for report in reports if report["event"] == "start"]
    # 6 -> 3 -> 2, the lowest seeds.
    assert statuses == {**dict.fromkeys((1, 2), "complete"), **dict.fromkeys((3, 4, 5, 6), "stopped")}
    assert starts == {1: [0, 1, 2], 2: [0, 1, 2], 3: [0, 1], 4: [0], 5: [0], 6: [0]}
    lanes = {event["trial"] for event in read_log(tmp_path / "h" / "events.jsonl") if event["event"] == "lost"}
    assert lanes == set()


def test_real_sweep_as_json(ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch trials of unequal budgets or one and the same model, anything but JSON on stdout, and a lane that
    real training cannot run in."""
    small = "--n_layer 1 --n_head 2 --n_embd 32 --block_size 32 --global_batch 256 --eval_tokens 256 --eval_interval 9"
    small += " --max_iters 120 --learning_rate 1e-2"
    flags = f"--space presets {small} --json --name r --concurrent 1 --runs {tmp_path} --device cpu"
    code = tune.main(flags.split())
    shown = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [trial["status"] for trial in shown["trials"]] == ["complete"] * 4
    assert len({trial["val_loss"] for trial in shown["trials"]}) == 4
    budget = json.loads((tmp_path / "r" / "study.json").read_text())["budget_flops"]
    assert [trial["train_flops"] for trial in shown["trials"]] == pytest.approx([budget] * 4, rel=0.005)
    assert [trial["rank"] for trial in shown["trials"]] == [1, 2, 3, 4]
    base = next(trial["trial"] for trial in shown["trials"] if trial["short_name"].startswith("gpt2"))
    weights = {path.parents[2].name for path in (tmp_path / "r" / "trials").glob("*/weights/*/manifest.json")}
    assert weights == {shown["trials"][0]["trial"], base}
    assert generate.main([f"r/{base}", "--runs", str(tmp_path), "--tokens", "1"]) == 0
    spent = shown["lane_seconds"]
    assert (spent["lanes"], spent["segments"]) == (1, 4)
    assert 0 <= spent["engine_median"] <= spent["turnaround_median"]
    measured = [spent[kind] for kind in ("start", "first_steps", "steady", "evaluation", "set_up", "checkpoints")]
    assert min(measured) > 0  # each is measured: the end is saved too
    assert sum(measured) < spent["wall"]
    with pytest.raises(UserError, match="taken"):
        study.run_study(make(seeds=1), runs=tmp_path, name="r")


def test_mlflow_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an error of MLflow's that ends a sweep, or that the user never learns of."""

    class Down:
        uri = "http://nowhere"

        def __init__(self, *args: object) -> None:
            pass

        def sync(self) -> None:
            raise UserError("tracking_uri (http://nowhere) does not take the results")

    monkeypatch.setattr(raytrain.tracking.uploader, "Uploader", Down)
    console = rich.console.Console(file=io.StringIO(), width=300)
    with Sync(tmp_path / "s", None, console):
        pass
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "does not take the results" in said
    assert f"send the rest later with: python -m raytrain.track sync s --runs {tmp_path}" in said


def dies_once(marker: Path) -> Callable[..., Any]:
    """Training in which rank 1 is killed at its eighth step, the first time. Made in here, to travel by value."""

    def train(config: Any, on_report: Any, folder: Any, interrupted: Callable[[], bool]) -> Any:
        import os
        import signal

        import torch.distributed

        from raytrain.training.loop import train

        steps: list[int] = []

        def kill_or_not() -> bool:
            steps.append(1)
            if torch.distributed.get_rank() == 1 and len(steps) == 8 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return interrupted()

        return train(config, on_report, folder, kill_or_not)

    return train


def test_killed_worker_changes_nothing(ray_here: None, tmp_path: Path) -> None:
    """Would catch a lane of two ranks that does not come back, or a trial that starts over or goes on as another:
    fsdp on two workers, one of them killed, must end with the losses that it would have had."""
    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "global_batch": 512, "eval_tokens": 512}
    values = {"seed": 1, "parallel": "fsdp", "checkpoint_interval": 3, "log_interval": 1, "max_iters": 12, **small}
    space = Space("test", "llama", {"norm_position": ("pre",)})
    expansion = expand(space, lambda v: resolve([("test", {**values, **v})], data_vocab_size=256)[0])
    budget = expansion.candidates[0].config.train_flops
    request = ResourceRequest(workers_per_trial=2)
    plan = make_plan(space, expansion, budget_flops=budget, scale="tiny", seeds=1, request=request)
    losses = {}
    for name, marker in (("whole", tmp_path), ("killed", tmp_path / "marker")):  # a marker that exists: nobody dies
        assert study.run_study(plan, runs=tmp_path, name=name, train=dies_once(marker)) == 0
        reports = read_log(tmp_path / name / "trials" / plan.trials[0].id / "log.jsonl")
        losses[name] = {r["step"]: r["loss"] for r in reports if r["event"] == "step"}
        assert reports[-1]["status"] == "complete"
        assert reports[-1]["world_size"] == 2
    starts = [report["first_step"] for report in reports if report["event"] == "start"]
    assert starts in ([0, 3], [0, 6])  # whether the checkpoint of step 6 was written by the kill at step 8 is chance
    assert losses["killed"] == losses["whole"]


def test_no_secret_is_printed_or_stored(
    ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch keys of a storage or a tracking server in study.json, Tune's files, a log or the output; a lane that
    does not get them; and a resumed study that does without."""
    storage = "s3://KEYID:TOPSECRET@bucket/sweep?region=x&session_token=TOPSECRET"

    def train(config: Any, on_report: Any, folder: str, interrupted: Any) -> None:
        on_report({"event": "start", "startup_seconds": 0.0})
        # Not compared as a whole: what is written here lies in Tune's pickle of this function.
        assert folder.count("@bucket/sweep/") == folder.count("session_token=") == 1, "the lane has no keys"
        if config.seed == 1 and "resumed" not in os.environ:
            raise ConnectionError(f"gloo/ cannot reach {folder} with {folder[-9:]}")
        facts = {"val_loss": 2.0, "train_loss": 2.0, "vocab_size": 256, "train_flops": config.train_flops}
        on_report({"event": "end", "status": "complete", **facts})

    monkeypatch.setattr(study, "check_hosts", lambda *args, **kwargs: None)  # there is no such bucket
    tracking = "http://me:TOPSECRET@127.0.0.1:9"
    assert (
        study.run_study(make(seeds=2), runs=tmp_path, name="s", storage=storage, tracking_uri=tracking, train=train)
        == 0
    )
    out = capsys.readouterr().out
    shown = "http://***@127.0.0.1:9"
    assert f"track sync s --runs {tmp_path} --tracking_uri '{shown}'" in out
    texts = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path for path, text in texts.items() if b"TOPSECRET" in text or b"KEYID" in text] == []
    assert "SECRET" not in out
    statuses = {json.loads(text)["status"] for path, text in texts.items() if path.name == "result.json"}
    assert statuses == {"complete", "lost"}
    left = json.loads((tmp_path / "s" / "study.json").read_text())
    assert left["trials"][0]["folder"] == f"s3://bucket/sweep/{left['trials'][0]['id']}?region=x"

    with pytest.raises(UserError, match=r"storage \(s3://other/\) is not where the study keeps its checkpoints"):
        study.resume_study("s", runs=tmp_path, storage="s3://other/")
    assert study.resume_study("s", runs=tmp_path, storage=storage, tracking_uri=tracking, train=train) == 0


def test_how_to_resume_with_secrets(tmp_path: Path) -> None:
    """Would catch a resume line with a password in it, one that sends the rest of a study to another MLflow, and one
    that does not work and does not say why."""
    console = rich.console.Console(file=io.StringIO())
    secret = "s3://K:TOPSECRET@b/p"
    session = study.Session(tmp_path / "s", console, secret, "http://host:5000")
    line = session.how_to_resume()
    assert line.startswith(
        f"resume with: python -m raytrain.tune --resume s --runs {tmp_path} --tracking_uri http://host"
    )
    assert "--storage 's3://***@b/p'" in line
    assert line.endswith("(with the secrets, which are not stored, in place of ***)")
    assert study.Session(tmp_path / "s", console, "s3://b/p").how_to_resume().endswith(str(tmp_path))
