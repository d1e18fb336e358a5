"""A run that dies goes on as if it had not."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raytrain.errors import UserError
from raytrain.training.evaluate import Evaluator
from raytrain.training.loop import train
from raytrain.training.manifest import newest
from raytrain.training.storage import open_storage
from tests.ranks import Ranks, read_losses, write_losses

STEPS = 16


@pytest.fixture(scope="module")
def config(tiny_run):
    return tiny_run(preset="llama", dropout=0.1, max_iters=STEPS, checkpoint_interval=3, eval_interval=4)


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory) -> dict[tuple[int, str], dict[int, float]]:
    """The losses of a run that nobody disturbs, by world size and strategy."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    losses = {}
    for size, strategy in ((1, "single"), (2, "ddp"), (2, "zero1"), (2, "fsdp")):
        out = folder / f"{size}-{strategy}.jsonl"
        assert Ranks(size, write_losses, config.replace(parallel=strategy), out).join() == [0] * size
        losses[size, strategy] = read_losses(out)
    return losses


def committed(folder: Path) -> int:
    """The step of the newest checkpoint on disk."""
    manifest, _ = newest(open_storage(folder))
    return manifest["state"]["step"] if manifest else 0


def wait_for_step(ranks: Ranks, out: Path, step: int) -> None:
    """Until `step` is in the log, or the run has ended."""
    while any(process.is_alive() for process in ranks.processes):
        if out.exists() and f'"step": {step},' in out.read_text():
            return
        ranks.processes[0].join(0.002)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("point", range(12))
def test_a_killed_run_resumes_bitwise(config, uninterrupted, tmp_path, size, point):
    """Catches lost optimizer state, a replayed or skipped batch, other dropout, and a half-written checkpoint in use.

    kill -9 at a random step, in a random place of it: of one worker of two, or of all. Evaluations fall between
    checkpoints and upon them (steps 4, 8, 12; 3, 6, 9, 12, 15): FSDP shows its root's parameters whole after one.
    """
    strategy = "single" if size == 1 else ("ddp", "zero1", "fsdp")[point % 3]
    config = config.replace(parallel=strategy)
    draw = random.Random(1000 * size + point)
    out = tmp_path / "log.jsonl"
    ranks = Ranks(size, write_losses, config, out, tmp_path)
    wait_for_step(ranks, out, draw.randint(1, STEPS - 2))
    ranks.processes[0].join(draw.random() * 0.02)
    draw.choice(ranks.processes).kill()
    ranks.kill()
    kept = committed(tmp_path)
    assert Ranks(size, write_losses, config, out, tmp_path).join() == [0] * size
    reports = [json.loads(line) for line in out.read_text().splitlines()]
    starts = [report for report in reports if report["event"] == "start"]
    assert starts[-1]["first_step"] == kept
    assert read_losses(out) == uninterrupted[size, strategy]  # and steps that were run twice gave the same twice
    end = reports[-1]
    assert (end["event"], end["steps"], end["train_flops"]) == ("end", STEPS, config.train_flops)


def test_another_strategy_and_world_size_goes_on_unbroken(config, uninterrupted, tmp_path):
    """Catches shards saved or loaded at the wrong place: ddp on 2, then fsdp on 1, zero1 on 2, fsdp on 2, single."""
    legs = [("ddp", 2, 4), ("fsdp", 1, 7), ("zero1", 2, 10), ("fsdp", 2, 13), ("single", 1, STEPS)]
    plain = config.replace(architecture=config.architecture.replace(dropout=0.0), checkpoint_interval=1)
    write_losses(plain, tmp_path / "expected.jsonl")
    out = tmp_path / "log.jsonl"
    for strategy, size, until in legs:
        work = (train_until, plain.replace(parallel=strategy), out, tmp_path, until)
        assert Ranks(size, *work).join() == [0] * size
    losses = read_losses(out)
    assert losses == pytest.approx(read_losses(tmp_path / "expected.jsonl"), rel=1e-5)


def train_until(config, out: Path, folder: Path, step: int) -> None:
    """Train in `folder`, and stop after `step`, as if preempted, with a checkpoint."""
    seen: list[int] = []

    def on_report(report) -> None:
        if report["event"] == "step":
            seen.append(report["step"])
            with out.open("a") as file:
                print(json.dumps(report), file=file)

    train(config, on_report, folder, interrupted=lambda: len(seen) > 0 and seen[-1] >= step - 1)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """A run's folder with two checkpoints, at 15 and 16."""
    folder = tmp_path_factory.mktemp("finished")
    train(config, folder=folder)
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000015", "step-00000016"]
    return folder


@pytest.mark.parametrize("point", range(50))
def test_every_truncation_is_detected_named_and_passed_over(config, finished, tmp_path, point):
    """Catches a checkpoint that is trusted by its name: any file of it cut at any byte, or removed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    draw = random.Random(point)
    victim = draw.choice(sorted((tmp_path / "checkpoints" / "step-00000016").iterdir()))
    content = victim.read_bytes()
    if point == 0:
        victim.unlink()
    else:
        victim.write_bytes(content[: draw.randrange(len(content))])
    reports: list[dict] = []
    result = train(config, reports.append, tmp_path)
    assert reports[0]["checkpoint"] == "step-00000015"
    assert reports[0]["damaged_checkpoints"][0].startswith("step-00000016: ")
    assert (result["status"], result["steps"]) == ("complete", STEPS)


def test_a_flipped_bit_is_detected(config, finished, tmp_path):
    """Catches a check of sizes alone."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for victim in (tmp_path / "checkpoints" / "step-00000016").iterdir():
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    manifest, damaged = newest(open_storage(tmp_path))
    assert manifest["name"] == "step-00000015"
    assert len(damaged) == 1


def test_a_tensor_file_beside_the_manifests_is_damage(config, finished, tmp_path):
    """Catches weights that a planted file silently replaces: the reader takes the tensors of every file there is."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (shard,) = (tmp_path / "checkpoints" / "step-00000016").glob("*.safetensors")
    save_file({name: torch.zeros_like(t) for name, t in load_file(shard).items()}, shard.with_name("z.safetensors"))
    manifest, damaged = newest(open_storage(tmp_path))
    assert manifest["name"] == "step-00000015"
    assert damaged == ["step-00000016: z.safetensors is not in its manifest"]


def test_another_format_is_refused_in_one_line(config, finished, tmp_path):
    """Catches a later version's checkpoint that is read as ours, or passed over as damaged while a run goes back."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / "step-00000016" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1,', '"format": 99,'))
    with pytest.raises(UserError, match=r"^checkpoint step-00000016 in .*: format \(99\) is not 1, which this reads$"):
        train(config, folder=tmp_path)
    assert len(list(path.parent.parent.iterdir())) == 2


def test_the_best_checkpoint_outlives_newer_ones(tiny_run, tmp_path, monkeypatch):
    """Catches a best checkpoint that rotation deletes, and checkpoints that pile up."""
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.6, 2.7, 2.8, 2.9])
    monkeypatch.setattr(Evaluator, "loss", lambda *_: next(losses))
    train(tiny_run(max_iters=8, eval_interval=1, checkpoint_interval=1, keep_checkpoints=2), folder=tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000007", "step-00000008"]


def test_another_run_in_the_folder_is_refused_by_field(config, finished):
    """Catches a resume that silently mixes two experiments."""
    with pytest.raises(UserError, match=r"its learning_rate is 0.001, not 0.1; resume with the same"):
        train(config.replace(learning_rate=0.1), folder=finished)


def test_a_refusal_names_what_differs_and_nothing_else(config, finished):
    """Would catch: two architectures printed whole, in which a reader has to look for the one field that differs."""
    other = config.replace(seed=7, architecture=config.architecture.replace(n_layer=3))
    with pytest.raises(UserError, match=r"run: its n_layer is 2, not 3, its seed is 1337, not 7; resume") as error:
        train(other, folder=finished)
    assert "n_embd" not in str(error.value)


def test_a_finished_run_trains_no_step_again(config, finished):
    """Catches a resume at the end that repeats the last step, or has no result."""
    reports: list[dict] = []
    result = train(config, reports.append, finished)
    assert [report["event"] for report in reports] == ["start", "end"]
    assert (result["status"], result["steps"]) == ("complete", STEPS)
    assert result["val_loss"] > 0


def test_the_speed_of_a_resumed_run_is_that_of_all_of_it(config, tmp_path):
    """Catches MFU and hardware FLOPs of the last process alone, or none when it had nothing left to train."""
    fast = config.replace(peak_tflops=100.0)
    seen: list[int] = []

    def count(report) -> None:
        seen.append(report.get("step", 0))

    first = train(fast, count, tmp_path, interrupted=lambda: seen[-1] == 10)
    assert (first["status"], first["steps"]) == ("interrupted", 11)
    second = train(fast, folder=tmp_path)
    again = train(fast, folder=tmp_path)
    for name in ("tokens_per_second", "mfu", "hardware_flops", "train_seconds"):
        assert again[name] == second[name] > 0
    steps = first["train_seconds"] / first["steps"], second["train_seconds"] / second["steps"]
    assert second["train_seconds"] > first["train_seconds"]
    assert min(steps) / 3 < second["step_seconds"] < max(steps) * 3


def test_a_late_checkpoint_is_not_best_by_an_older_loss(tiny_run, tmp_path):
    """Catches "the best" that is judged by the loss of other weights: evaluated at 6 and 12, saved at 5, 10 and 12."""
    train(tiny_run(max_iters=12, eval_interval=6, checkpoint_interval=5, keep_checkpoints=1), folder=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000012"]


@pytest.mark.parametrize(
    "axes",
    [
        {"qk_norm": True, "value_embeddings": True, "attention_window": (8, "full"), "attention_gate": "head"},
        {"ffn_type": "moe", "norm_position": "sandwich", "logit_softcap": 10.0, "z_loss": 1e-3},
    ],
    ids=str,
)
def test_an_optional_axis_resumes_bitwise(tiny_run, tmp_path, axes):
    """Catches state of a newer axis, or of Muon, that no checkpoint has."""
    config = tiny_run(preset="llama", max_iters=10, checkpoint_interval=4, dropout=0.1, optimizer="muon", **axes)
    whole = train(config)
    steps: list[int] = []
    train(config, lambda r: steps.append(r["step"]) if r["event"] == "step" else None, tmp_path, lambda: len(steps) > 5)
    assert committed(tmp_path) < 10
    assert train(config, folder=tmp_path)["val_loss"] == whole["val_loss"]
