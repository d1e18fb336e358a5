"""What `import raytrain` offers, on studies that never ran; tests/engine/test_examples.py runs one."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import raytrain
from raytrain.analysis.answer import answer
from raytrain.analysis.ranking import rank, read_study
from raytrain.config.run import TrainConfig
from raytrain.engine import study as engine
from tests.studies import write_study

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32, "global_batch": 256}
SMALL |= {"eval_tokens": 256, "max_iters": 3, "checkpoint_interval": None}


def python(script: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "first",
    [
        "import raytrain",
        "import raytrain.train",
        "from raytrain import train",
        "import raytrain.training.loop, raytrain; raytrain.load",
        "import raytrain.tune, raytrain; raytrain.plan",
    ],
)
def test_train_is_a_function_and_a_module(first: str) -> None:
    """Would catch `raytrain.train` that cannot be called once the command's module is imported, or the reverse."""
    script = f"{first}; import raytrain; from raytrain import train; import raytrain.train as again; "
    script += "print(callable(raytrain.train), callable(train.main), raytrain.train is train is again)"
    assert python(script).strip() == "True True True"


def test_importing_it_loads_nothing_heavy() -> None:
    """Would catch `import raytrain`, or a plan made in a notebook, that waits seconds for torch, Ray or MLflow."""
    script = "import sys, raytrain; raytrain.plan('presets'); raytrain.preset('llama'); raytrain.Architecture; "
    script += "print(sorted({'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules)))"
    assert python(script).strip() == "[]"


def test_every_name_is_there() -> None:
    """Would catch a name in __all__ whose home moved, and an installed package without its types."""
    for name in (*raytrain.__all__, "__version__"):
        assert getattr(raytrain, name) is not None
    assert set(raytrain.__all__) <= set(dir(raytrain))
    with pytest.raises(AttributeError, match="has no attribute 'training_run'"):
        raytrain.training_run  # noqa: B018
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "py.typed" in setup["package-data"]["raytrain"]
    assert (ROOT / "raytrain" / "py.typed").exists()


def test_a_study_as_tables(tmp_path: Path) -> None:
    """Would catch tables that are not those of the commands, or a column that the documentation names and none has."""
    folder = write_study(
        tmp_path / "runs" / "s", frontier_budgets=(1e14, 4e15), effect=lambda p: p["normalization"] == "rmsnorm"
    )
    study = raytrain.load("s", runs=tmp_path / "runs")
    assert study.folder == raytrain.load(folder).folder == folder
    assert (study.name, study.is_over, study.record["name"]) == ("s", True, "s")
    assert study.trials.equals(rank(read_study(folder)))
    for column in ("trial", "label", "seed", "status", "role", "normalization", "learning_rate", "val_loss", "rank"):
        assert column in study.trials
    found = answer(folder)
    assert study.answer().sentences == found.sentences
    ranking = study.ranking()
    assert list(ranking["rank"]) == sorted(ranking["rank"])
    assert len(ranking) == 12
    means = found.table[found.table["role"] == ""].groupby("hash")["val_loss"].mean()
    assert ranking.set_index("hash")["val_loss"].to_dict() == pytest.approx(means.to_dict(), rel=1e-12)
    effects = study.effects().set_index("effect")
    assert effects.loc["normalization=rmsnorm", "estimate"] == pytest.approx(1.0, abs=0.01)
    assert study.plot_effects().save(tmp_path / "effects")[1].read_bytes() == study.plot_effects()._repr_png_()
    assert study.report(tmp_path / "out") == tmp_path / "out" / "index.html"
    assert repr(study) == f"Study({str(folder)!r}: 28 trials, 28 complete)"


def test_a_study_without_effects(tmp_path: Path) -> None:
    """Would catch an empty table, or a traceback, in place of the reason."""
    study = raytrain.Study(write_study(tmp_path / "s", results=lambda _: {"status": None}))
    assert not study.is_over
    for method in (study.effects, study.plot_effects):
        with pytest.raises(raytrain.UserError, match="two trials or more with a loss"):
            method()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: raytrain.load("nothing"), "Unknown study in runs: 'nothing'"),
        (lambda: raytrain.Study("/nowhere"), "study.json cannot be read"),
        (lambda: raytrain.resume("nothing"), "Unknown study in runs: 'nothing'"),
        (lambda: raytrain.configure(learnig_rate=1), "Did you mean learning_rate?"),
        (lambda: raytrain.configure(preset="lama"), "Did you mean llama?"),
        (lambda: raytrain.configure(config="/nowhere.yaml"), "config (/nowhere.yaml) cannot be read"),
        (lambda: raytrain.configure(learning_rate="fast"), "learning_rate ('fast') must be a number"),
        (lambda: raytrain.configure(max_iters=3, tokens=5), "Give one of max_iters, tokens, flops"),
        (lambda: raytrain.preset("gpt2", normalization="rmsnrm"), "Did you mean rmsnorm?"),
        (lambda: raytrain.run(raytrain.plan("presets"), name="../up"), "name ('../up') may have letters"),
    ],
)
def test_mistakes_are_one_line(call: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a mistake that surfaces as a KeyError or TypeError from within, or leaves a folder behind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(raytrain.UserError) as raised:
        call()
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_train_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a run from Python that is not the command's, or whose files are not where it says."""
    config = raytrain.configure(preset="llama", normalization="layernorm", **SMALL)
    assert isinstance(config, TrainConfig)
    assert (config.architecture.normalization, config.architecture.ffn_type) == ("layernorm", "swiglu")
    result = raytrain.train(config, runs=tmp_path, name="a")
    assert result["folder"] == str(tmp_path / "a")
    assert result["status"] == "complete"
    flags = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    flags += ["--preset", "llama", "--normalization", "layernorm", "--runs", str(tmp_path), "--name", "b"]
    assert raytrain.train.main(flags) == 0
    runs = [raytrain.train.RunFolder(tmp_path / name) for name in "ab"]
    assert runs[0].config == runs[1].config
    assert runs[0].result["val_loss"] == runs[1].result["val_loss"]
    with pytest.raises(raytrain.UserError, match=r"name \(a\) is taken"):
        raytrain.train(config, runs=tmp_path, name="a")


@pytest.mark.parametrize(("code", "is_raised"), [(0, False), (1, False), (130, True), (143, True)])
def test_an_interrupted_study_interrupts_its_script(
    code: int, is_raised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a script that answers from half a study after Ctrl-C, or a study of failures that is hidden."""

    def run_study(plan: Any, *, name: str, runs: Path, **_: Any) -> int:
        write_study(runs / name)
        return code

    monkeypatch.setattr(engine, "run_study", run_study)
    plan = raytrain.plan("presets")
    if is_raised:
        with pytest.raises(KeyboardInterrupt):
            raytrain.run(plan, name="s", runs=tmp_path)
    else:
        assert raytrain.run(plan, name="s", runs=tmp_path).folder == tmp_path / "s"
