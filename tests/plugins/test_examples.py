"""The example plugins end to end: planned, swept with two seeds on this machine, and reported with their effect."""

import json
from pathlib import Path

import pytest

from raytrain import tune
from raytrain.report.__main__ import main as report
from raytrain.rundir.folders import read_json

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = "--n_layer 2 --n_head 2 --n_embd 16 --block_size 32 --global_batch 256 --eval_tokens 512 --compile False"
SMALL += " --flops 6e9 --learning_rate 1e-2"  # enough to leave the plateau of token frequencies


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("example", "effect", "part"),
    [("dyt_norm", "normalization=dyt", "DyT"), ("value_residual", "value_residual=True", "VRes")],
)
def test_an_example_from_plan_to_report(example, effect, part, ray_here, tmp_path, capsys, monkeypatch):
    """Catches: a plugin that does not reach a lane; a trial whose level no reader knows; an effect that no report has;
    a resume that goes on with another source."""
    monkeypatch.chdir(tmp_path)
    flags = ["--space", f"{EXAMPLES / example}.yaml", *SMALL.split(), "--seeds", "2"]
    assert tune.main([*flags, "--plan"]) == 0
    assert "4 -> 4 -> 4" in capsys.readouterr().out

    assert tune.main([*flags, "--name", "study", "--tracking_uri", f"sqlite:///{tmp_path}/mlflow.db"]) == 0
    folder = tmp_path / "runs" / "study"
    study = read_json(folder / "study.json")
    results = [read_json(path) for path in folder.glob("trials/*/result.json")]
    assert [result["status"] for result in results] == ["complete"] * 8
    assert sum(part in result["name"] for result in results) == 4
    assert list(study["plugins"]) == [f"{example}.py"]
    assert (folder / "plugins" / f"{example}.py").read_text() == (EXAMPLES / f"{example}.py").read_text()
    with_it = [trial["config"].get("plugins", ()) for trial in study["trials"]]
    assert sorted(len(records) for records in with_it) == [0] * 4 + [1] * 4

    capsys.readouterr()
    assert report(["study"]) == 0
    assert effect.replace("=", " ") in (folder / "report" / "summary.md").read_text().replace("=", " ")

    changed = json.loads((folder / "study.json").read_text().replace(study["plugins"][f"{example}.py"], "0" * 64))
    (folder / "study.json").write_text(json.dumps(changed))
    assert tune.main(["--resume", "study", "--plugin", str(EXAMPLES / f"{example}.py")]) == 2
    assert f"its sha256 was {'0' * 64}, and is {study['plugins'][f'{example}.py']} now" in capsys.readouterr().err
