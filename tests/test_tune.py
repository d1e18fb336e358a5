import shlex
from pathlib import Path

import numpy as np
import pytest

from raytrain import train, tune


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--flops -1", "flops (-1.0) must be above 0"),
        ("--max_iters 10 --tokens 5", "Give one of max_iters, tokens, flops"),
        ("--data /nowhere", "/nowhere"),
        ("--space nowhere", "Available: full, modern, one_factor, presets, quickstart"),
        ("--base lama", "Did you mean llama?"),
        ("--n_embd 100 --n_head 12", "n_embd (100) must be divisible by n_head (12)"),
        ("--space full --normalization rmsnorm", "normalization (rmsnorm) is an axis of space full"),
        ("--preset llama", "--base"),
        ("--max_trials 0", "max_trials (0) must be 1 or more"),
        ("--seeds 0", "seeds (0) must be 1 or more"),
        ("--gpus_per_trial 3", "global_batch (1024 tokens: 8 sequences) must be divisible over 3 ranks"),
        ("--micro_batch 3", "micro_batch (3) must divide the 8 sequences of a rank's step; try 2"),
        ("--parallel single --workers_per_trial 2", "parallel 'single' runs on one rank, but there are 2"),
        ("--seed 99999999999999999999999", "must be below 2^63"),
        ("--init_from /nowhere", "init_from (/nowhere) is no folder"),
        ("--frontier_budgets 1,x", "--frontier_budgets: '1,x' must be numbers with commas between"),
        ("--keep_models bets", "Unknown keep_models: 'bets'. Available: none, best, all. Did you mean best?"),
        ("--experiment ''", "experiment ('') must have 1 to 500 characters"),
        ("--max_trial 3", "Did you mean --max_trials?"),
        ("config/arch_gpt2.py", "Did you mean --base gpt2 --scale 124m?"),
        ("--use_fsdp=True", "Unknown argument: --use_fsdp. Did you mean --parallel fsdp?"),
        ("--wandb_log=True", "Leave it out: a run is logged in its folder, and a sweep in MLflow too."),
        ("--micro_batch auto --trials_per_gpu 2", "micro_batch (auto) has a GPU to itself while it tries"),
    ],
)
def test_mistakes(flags: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Would catch a mistake that surfaces as a traceback, or only once Ray is up or a folder was made."""
    runs = tmp_path / "runs"
    assert tune.main([*shlex.split(flags), "--runs", str(runs)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not runs.exists()


@pytest.mark.parametrize("name", ["w?at", "100%41"])
def test_a_folder_that_mlflow_s_address_cannot_name(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch results that go to a database `w` beside the folder, or nowhere, once all trials have run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tune.main(["--runs", str(tmp_path / name), "--max_iters", "1"]) == 2
    assert f"{name}) has a '?' or '%' in its path" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("axis", ["flops: [1e12]", "max_iters: [5, 6]", "seed: [1, 2]"])
def test_what_cannot_be_an_axis(axis: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Would catch a space whose trials have different budgets, so that the ranking would be by budget."""
    space = tmp_path / "space.yaml"
    space.write_text(f"axes: {{{axis}}}")
    assert tune.main(["--space", str(space), "--plan"]) == 2
    assert f"{axis.split(':')[0]} cannot be an axis" in capsys.readouterr().err


def test_a_file_of_flags_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a --config that a sweep ignores, and a relative path that a trial looks for in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens").mkdir()
    for split in ("train", "val"):
        (tmp_path / "tokens" / f"{split}.bin").write_bytes(bytes(2000))
    Path("run.yaml").write_text("data: tokens\nlearning_rate: 0.5\nvocab_size: 64\n")
    plan = tune._plan(tune._parser().parse_args(["--config", "run.yaml", "--learning_rate", "0.25"]))
    config = plan.trials[0].config
    assert (config.data, config.learning_rate) == (str(tmp_path / "tokens"), 0.25)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--resume s --seeds 3", "seeds (3) cannot be combined with --resume"),
        ("--resume s --learning_rate 1", "learning_rate (1) cannot be combined with --resume"),
        ("--follow_up s --seeds 3", "seeds (3) cannot be combined with --follow_up"),
        ("--follow_up s --plan", "Unknown follow_up in {runs}: 's'. Available: none."),
        ("--follow_up s --resume s", "follow_up (s) cannot be combined with --resume"),
        ("--resume s", "Unknown resume in {runs}: 's'. Available: none."),
        ("--resume ../s", "Unknown resume in {runs}: '../s'"),
        (f"--resume {'a' * 300}", "Unknown resume in {runs}: 'aaa"),
        ("--scheduler asha", "Unknown scheduler: 'asha'. Available: none, halving"),
        ("--factor 1", "factor (1) must be 2 or more"),
        ("--frontier_budgets -1", "must be above 0 and finite"),
        ("--frontier_budgets x", "frontier_budgets"),
        ("--scheduler halving --max_iters 5", "too few to end within 0.1%"),
        ("--scheduler halving --rung_decay 0.1", "goes with schedule wsd"),
        ("--trials_per_gpu 2 --gpus_per_trial 2", "trials_per_gpu (2) shares one GPU"),
    ],
)
def test_mistakes_about_schedulers_and_resuming(
    flags: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Would catch a study that goes on as another than it was planned, and rungs found out to be impossible later."""
    assert tune.main([*flags.split(), "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert words.format(runs=tmp_path / "runs") in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", ["tune --plan", "train"])
def test_tokens_outside_the_vocabulary(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Would catch a plan for data that no trial can be trained on: each would fail, once Ray has started."""
    for split in ("train", "val"):
        np.arange(50_000, 50_257).astype("<u2").tofile(tmp_path / f"{split}.bin")
    main = {"tune --plan": tune.main, "train": train.main}[command]
    flags = [*command.split()[1:], "--data", str(tmp_path), "--vocab_size", "50256", "--runs", str(tmp_path / "runs")]
    assert main(flags) == 2
    assert "vocab_size (50256) must be above 50256, the largest token of the data" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
