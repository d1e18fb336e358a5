"""What version 0.1 wrote, and every later one reads: runs, a study, hashes and weights (`tests/fixtures/v0_1`)."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from raytrain import compare, generate, train, tune
from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.accounting.memory import peak_memory
from raytrain.architecture import Architecture, from_dict, preset
from raytrain.config.run import TrainConfig
from raytrain.model import build
from raytrain.report.__main__ import main as report
from raytrain.rundir.folders import read_json

OLD = Path(__file__).parent / "fixtures" / "v0_1"
RECORDS = [json.loads(line) for line in (OLD / "architectures.jsonl").read_text().splitlines()]
# As they were recorded: precision, strategy, ranks, checkpointing of activations.
RUNS = (
    ("bf16", "single", 1, "none"),
    ("fp32", "ddp", 2, "selective"),
    ("fp8", "zero1", 4, "full"),
    ("bf16", "fsdp", 2, "selective"),
)


def arch_of(record: dict) -> Architecture:
    given = dict(record["given"])
    return preset(given.pop("preset"), **given) if "preset" in given else from_dict(given)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs in the working directory; their data, a relative path, is there too."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    for file in folder.rglob("*.json"):  # a study keeps absolute paths
        file.write_text(file.read_text().replace("/fixture/", f"{folder}/"))
    monkeypatch.chdir(folder)
    return folder


def test_hashes_names_and_costs_are_those_of_before():
    """Catches: an axis that enters the hash at its default, or a cost that moved: old results would not be found, or
    would be ranked by other FLOPs."""
    for record in RECORDS:
        arch = arch_of(record)
        assert (arch.hash, arch.name) == (record["hash"], record["name"]), record["given"]
        assert flops_per_token(arch).components() == record["full"]
        assert flops_per_token(arch, attention="causal").total == record["causal"]
        assert parameter_count(arch) == record["parameters"]
        memory = [
            peak_memory(arch, 3, precision=precision, parallel=parallel, world_size=size, checkpointing=checkpointing)
            for precision, parallel, size, checkpointing in RUNS
        ]
        assert memory == record["memory"]


def test_weights_are_those_of_before():
    """Catches: a draw that is added, lost, reordered or scaled, which moves every loss of a seed."""
    for record in RECORDS:
        if "weights" not in record:  # too large to build
            continue
        torch.manual_seed(7)
        digest = hashlib.sha256()
        for name, tensor in sorted(build(arch_of(record)).state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        assert digest.hexdigest()[:16] == record["weights"], record["given"]


def test_a_config_round_trips():
    """Catches: an old config that reads as another run, or that is written with what it did not say."""
    values = read_json(OLD / "run" / "config.json")
    config = TrainConfig.from_dict(values)
    assert config.architecture.to_dict() == values["architecture"]
    assert config.identity() == values


def test_compare_reads_an_old_run_and_an_old_study(old: Path, capsys: pytest.CaptureFixture[str]):
    """Catches: "missing axis" for a run of before there was that axis, or a run that pairs with nothing."""
    assert compare.main(["run", "study", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    losses = {row["folder"]: row["val_loss"] for row in found["runs"]}
    assert len(losses) == 9
    assert losses["run"] == read_json(old / "run" / "result.json")["val_loss"]
    assert {row["axis"]: row["pairs"] for row in found["effects"]} == {"normalization": 4, "ffn_type": 4}


def test_report_reads_an_old_study(old: Path, capsys: pytest.CaptureFixture[str]):
    """Catches: a stored study that a later report cannot read, or reads with other axes."""
    assert report(["study", "--runs", "."]) == 0
    summary = (old / "study" / "report" / "summary.md").read_text()
    assert "normalization" in summary
    assert "ffn_type" in summary


def test_generate_reads_an_old_checkpoint(old: Path, capsys: pytest.CaptureFixture[str]):
    """Catches: a parameter that was renamed, so that old weights load no more."""
    assert generate.main(["run", "--prompt", "The ", "--tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("The ")


def test_an_old_run_goes_on_to_the_same_loss(old: Path):
    """Catches: a checkpoint that resumes as another run, or with other weights, moments or data."""
    assert train.main(["--resume", "interrupted"]) == 0
    ours, theirs = (read_json(old / run / "result.json") for run in ("interrupted", "run"))
    assert (ours["hash"], ours["steps"]) == (theirs["hash"], theirs["steps"])
    assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-6)


@pytest.mark.usefixtures("ray_here")
def test_an_old_study_goes_on(old: Path):
    """Catches: a journal or a plan of before that a later version cannot take up; a trial that is run twice."""
    name = "1L-2H-16D-RoPE-RMS-SILU-PreNorm-f91bc5-s1337"
    before = (old / "study" / "trials" / name / "result.json").read_text()
    shutil.rmtree(old / "study" / "trials" / name)
    events = (old / "study" / "events.jsonl").read_text().splitlines()
    kept = [line for line in events if not (name in line and '"end"' in line)]
    (old / "study" / "events.jsonl").write_text("\n".join(kept) + "\n")
    others = sorted((old / "study" / "trials").glob("*/result.json"))
    stamps = {path: path.stat().st_mtime_ns for path in others}
    assert tune.main(["--resume", "study", "--runs", ".", "--tracking_uri", f"sqlite:///{old}/mlflow.db"]) == 0
    after = read_json(old / "study" / "trials" / name / "result.json")
    assert after["val_loss"] == pytest.approx(json.loads(before)["val_loss"], rel=1e-6)
    assert {path: path.stat().st_mtime_ns for path in others} == stamps
