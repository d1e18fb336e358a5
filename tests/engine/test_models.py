import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import rich.console

from raytrain.config.resolve import resolve
from raytrain.engine.journal import StudyJournal
from raytrain.engine.models import LEADING, Model, Models, leading, settings
from raytrain.errors import UserError
from raytrain.sweep.trial import AssignedTrial
from tests.engine.test_journal import finish, start

CONFIG = resolve([("test", {"max_iters": 1, "checkpoint_interval": None})], data_vocab_size=256)[0]
NORMS = ("layernorm", "rmsnorm", "layernorm_nobias")


def trial(norm: str, seed: int, role: str = "", interval: int | None = None) -> AssignedTrial:
    arch = CONFIG.architecture.replace(normalization=norm)
    config = CONFIG.replace(architecture=arch, seed=seed, checkpoint_interval=interval)
    return AssignedTrial(f"{norm}-s{seed}", (norm,), config, role=role)


def study_of(trials: list[AssignedTrial], keep: str, storage: str | None = None) -> dict[str, Any]:
    return {
        **dict.fromkeys(("name", "space", "command", "created"), "s"),
        "base": "gpt2",
        "scale": "tiny",
        "git_commit": None,
        "budget_flops": 1.0,
        "versions": {},
        "models": settings(keep, storage),
        "counts": dict.fromkeys(("points", "programs", "variants", "trials"), len(trials)),
        "factors": {"normalization": "layernorm"},
        "trials": [trial.to_dict() for trial in trials],
    }


def take_up(folder: Path, trials: list[AssignedTrial], keep: str) -> tuple[Models, StudyJournal]:
    """A driver of the study in `folder`, which is made if it is not there."""
    folder.mkdir(exist_ok=True)
    study = study_of(trials, keep)
    (folder / "study.json").write_text(json.dumps(study))
    models = Models(folder, study)
    return models, StudyJournal(folder, trials, models=models)


def run_next(record: StudyJournal, losses: dict[str, float]) -> str:
    """What a lane does with the next trial: it writes its weights, then reports its end."""
    name = start(record)
    result: dict[str, Any] = {"status": "complete", "val_loss": losses[name]}
    if place := record.weights_of(name):
        (Path(place) / "weights" / "step-00000001").mkdir(parents=True)
        result["weights"] = "step-00000001"
    finish(record, name, **result)
    return name


def held(folder: Path) -> set[str]:
    return {path.parent.parent.name for path in folder.glob("trials/*/weights/step-*")}


def table(trials: list[AssignedTrial], ranks: dict[str, int]) -> pd.DataFrame:
    rows = [{"trial": trial.id, "rank": ranks.get(trial.id), "status": "complete"} for trial in trials]
    out = pd.DataFrame(rows).astype({"rank": "Int64"}).sort_values("rank", kind="stable")
    return out.assign(weights="step-00000001")


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_best_of_rank_1_and_of_the_baseline_stay(tmp_path: Path, *, is_killed: bool) -> None:
    """Catches the weights of the least loss where another variant has rank 1, the worse seed of one, those of the wrong
    variant as the baseline's, others left behind, and a driver that takes the study up and knows of none before it."""
    trials = [trial(norm, seed) for seed in (1, 2) for norm in NORMS]
    losses = dict(zip((t.id for t in trials), (2.0, 1.8, 1.5, 2.1, 1.7, 2.5), strict=True))
    models, record = take_up(tmp_path / "s", trials, "best")
    for _ in trials:
        run_next(record, losses)
        if is_killed:
            models, record = take_up(tmp_path / "s", trials, "best")
    out = io.StringIO()
    ranks = {"rmsnorm-s2": 1, "rmsnorm-s1": 1, "layernorm-s1": 2, "layernorm-s2": 2}
    models.settle(table(trials, ranks), record.trials, rich.console.Console(file=out, width=200))
    assert held(tmp_path / "s") == {"rmsnorm-s2", "layernorm-s1"}
    kept = json.loads((tmp_path / "s" / "study.json").read_text())["models"]["kept"]
    assert kept == {"rmsnorm-s2": "rank 1", "layernorm-s1": "rank 2, baseline"}
    assert f"model       rank 1: python -m raytrain.generate {tmp_path}/s/trials/rmsnorm-s2" in out.getvalue()


def test_without_ranks_the_least_loss_stays(tmp_path: Path) -> None:
    """Catches a study none of whose runs is ranked that keeps what the table has first, by no order of merit."""
    trials = [trial(norm, 1) for norm in NORMS]
    models, record = take_up(tmp_path / "s", trials, "best")
    for _ in trials:
        run_next(record, dict(zip((t.id for t in trials), (1.9, 2.0, 1.8), strict=True)))
    models.settle(table(trials, {}), record.trials, rich.console.Console(file=io.StringIO()))
    assert held(tmp_path / "s") == {"layernorm_nobias-s1", "layernorm-s1"}


def test_few_models_lie_on_the_disk_while_a_study_runs() -> None:
    """Catches a study of 128 models that fills the disk, one that drops the baseline's or a leader's, a mean over
    the weights that are left, and a variant that leads again and has lost its newest weights to some deleted before."""
    found = {
        f"v{n}-s{seed}": Model("tiny", f"v{n}", f"v{n}", n == 99, n + seed / 10) for n in range(128) for seed in (1, 2)
    }
    assert leading(found, found) == {f"v{n}-s1" for n in (0, 1, 2, 3, 99)}
    assert len(leading(found, found)) == LEADING + 1
    found["v0-s3"] = Model("tiny", "v0", "v0", False, 0.0)
    assert {"v0-s3", "v0-s1"} & leading(found, found) == {"v0-s3"}
    found["v4-s3"] = Model("tiny", "v4", "v4", False, -9.0)
    assert "v4-s3" in leading(found, found.keys() - {"v4-s1"})
    found["v4-s4"] = Model("tiny", "v4", "v4", False, 0.0)
    assert "v4-s4" in leading(found, found.keys() - {"v4-s1", "v4-s3"})


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("none", set()),
        ("best", {"layernorm-s1", "rmsnorm-s1"}),
        ("all", {"layernorm-s1", "rmsnorm-s1", "layernorm-s2"}),
    ],
)
def test_which_trials_write_weights(tmp_path: Path, keep: str, expected: set[str]) -> None:
    """Catches weights beside checkpoints that hold them, the frontier's runs of other budgets among the best, and none
    of all."""
    trials = [trial("layernorm", 1), trial("rmsnorm", 1), trial("layernorm", 2, role="frontier")]
    trials.append(trial("rmsnorm", 3, interval=0))
    _, record = take_up(tmp_path / "s", trials, keep)
    for _ in trials:
        run_next(record, {t.id: 1.0 for t in trials})
    assert held(tmp_path / "s") == expected
    assert Models(tmp_path, {"trials": []}).place(trials[0]) is None  # a study of an earlier version


def test_places_follow_the_study_and_its_storage(tmp_path: Path) -> None:
    """Catches a study that was moved and writes where it was, a storage that is not used, and a secret on disk."""
    planned = [trial("layernorm", 1)]
    assert (
        Models(tmp_path / "here", study_of(planned, "best")).place(planned[0]) == f"{tmp_path}/here/trials/layernorm-s1"
    )
    shared = study_of(planned, "best", str(tmp_path / "new" / "shared"))
    assert Path(str(Models(tmp_path, shared).place(planned[0]))).parent.is_dir()  # else no lane writes to it
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"storage \(.*file\) cannot be written"):
        settings("best", str(tmp_path / "file"))
    address = "s3://KEY:SECRET@bucket/runs?region=eu"
    study = study_of(planned, "all", address)
    assert Models(tmp_path, study, address).place(planned[0]) == "s3://bucket/runs/layernorm-s1?region=eu"
    assert "SECRET" not in json.dumps(study)


def test_why_no_model_is_kept_is_said(tmp_path: Path) -> None:
    """Catches a full disk, or nodes that do not share the study's folder, of which a study says nothing."""
    trials = [trial("layernorm", 1), trial("rmsnorm", 1)]
    models, record = take_up(tmp_path / "s", trials, "best")
    out = io.StringIO()
    rows = table(trials, {}).assign(weights=None, weights_lost=["No space left on device", None])
    models.settle(rows, record.trials, rich.console.Console(file=out, width=200))
    assert "model       not kept: No space left on device" in out.getvalue()
    assert f"1 trials ran where {tmp_path}/s/trials is not reached" in out.getvalue()
