"""Several validation sets in one run."""

import json

import numpy as np
import pytest
import torch
import torch._dynamo.utils
import torch.nn.functional as F

from raytrain.config.run import TrainConfig
from raytrain.data import Loader, open_dataset, validation_windows
from raytrain.errors import UserError
from raytrain.model import build
from raytrain.training.loop import train
from tests.ranks import Ranks, write_losses


@pytest.fixture
def other(tmp_path):
    """nanoGPT's files: 4,097 tokens of validation, drawn from 20 of the vocabulary."""
    for split, tokens in (("train", 4096), ("val", 4097)):
        np.random.default_rng(len(split)).integers(60, 80, tokens).astype("<u2").tofile(tmp_path / f"{split}.bin")
    return str(tmp_path)


def test_each_set_has_its_own_loss_and_the_runs_own_stays(tiny_run, other):
    """Catches a set that is evaluated on another's windows, and one that changes what the run learns: after one step
    of plain PyTorch the mean over all windows of each set, in nats per token."""
    config = tiny_run(
        preset="openai_gpt2", max_iters=1, warmup_fraction=0, min_lr_fraction=1.0, eval_tokens=10**6,
        eval_data=f"self=stdlib,other={other}",
    )  # fmt: skip
    reports = []
    result = train(config, reports.append)
    alone = train(config.replace(eval_data=()))
    assert result["val_loss_self"] == result["val_loss"] == alone["val_loss"]
    assert result["val_bpb_self"] == result["val_bpb"]
    assert "val_bpb_other" not in result  # how long its tokens are is not known
    assert result["data_fingerprint_other"] == open_dataset(other).fingerprint

    torch.manual_seed(config.seed)
    model = build(config.architecture)
    groups = [{"params": [p for p in model.parameters() if (p.dim() > 1) == is_matrix]} for is_matrix in (True, False)]
    adamw = torch.optim.AdamW(
        [groups[0], groups[1] | {"weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1
    )
    first = torch.from_numpy(Loader(open_dataset("stdlib").train, 32, config.seed, 256).sequences(np.arange(16)))
    F.cross_entropy(model(first[:, :-1]).flatten(0, 1), first[:, 1:].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adamw.step()
    val = torch.from_numpy(np.fromfile(f"{other}/val.bin", "<u2").astype(np.int64))
    with torch.no_grad():
        expected = F.cross_entropy(model(val[:-1].view(128, 32)).flatten(0, 1), val[1:]).item()
    assert result["val_loss_other"] == pytest.approx(expected, rel=1e-6)
    (evaluation,) = [report for report in reports if report["event"] == "eval"]
    assert evaluation["val_loss_other"] == result["val_loss_other"]


def test_the_start_has_the_loss_of_token_frequencies_alone(tiny_run):
    """Catches a plateau that cannot be told: a run that has learned nothing is above it, one that trained is below."""
    config = tiny_run(preset="llama", max_iters=300, learning_rate=4e-3)
    result = train(config)
    untrained = train(config.replace(max_iters=1))
    tokens = open_dataset("stdlib")
    counts = np.bincount(tokens.train.read(np.array([0]), len(tokens.train))[0], minlength=256)
    starts = validation_windows(tokens.val, 32, 32)
    targets = tokens.val.read(starts + 1, 32).ravel()
    expected = -np.log((counts + 0.5) / (counts.sum() + 128))[targets].mean()
    assert result["unigram_loss"] == untrained["unigram_loss"] == pytest.approx(expected, rel=1e-9)
    assert result["val_loss"] < result["unigram_loss"] < untrained["val_loss"]


def test_further_sets_compile_nothing_more(tiny_run, other):
    """Catches batches of another shape for a further set: minutes of compilation on a large model."""

    def graphs(eval_data):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        train(tiny_run(preset="llama", max_iters=2, compile=True, eval_data=eval_data))
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    assert graphs({}) == graphs({"self": "stdlib", "other": other}) > 0


def test_two_processes_evaluate_the_same_windows(tiny_run, other, tmp_path):
    """Catches windows of a further set that depend on the world size, or that a rank counts twice."""
    config = tiny_run(max_iters=1, eval_tokens=1056, parallel="ddp", eval_data=f"other={other}")
    assert Ranks(2, write_losses, config, tmp_path / "two.jsonl").join() == [0, 0]
    write_losses(config, tmp_path / "one.jsonl")
    two, one = (json.loads((tmp_path / f"{name}.jsonl").read_text().splitlines()[-1]) for name in ("two", "one"))
    assert one["event"] == "end"
    assert two["val_loss_other"] == pytest.approx(one["val_loss_other"], rel=1e-6)
    assert two["unigram_loss"] == one["unigram_loss"]


def test_a_mistake_shows_before_the_first_step(tiny_run, tmp_path):
    """Catches a run that trains for hours and fails at its first evaluation."""
    reports = []
    with pytest.raises(UserError, match="eval_data other: Unknown data"):
        train(tiny_run(eval_data={"other": str(tmp_path / "nowhere")}), reports.append)
    assert not reports


@pytest.mark.parametrize("name", ["2x", "a b", "", "a-b"])
def test_a_name_that_no_metric_can_have_is_refused(tiny_run, name):
    """Catches names that MLflow or a column of a table would not take."""
    with pytest.raises(UserError, match="eval_data"):
        tiny_run(eval_data={name: "stdlib"})


def test_a_config_survives_json(tiny_run, other):
    """Catches sets that are lost between study.json and the trial, and runs of before there were any."""
    config = tiny_run(eval_data=f"other={other}")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    old = {name: value for name, value in config.to_dict().items() if name != "eval_data"}
    assert TrainConfig.from_dict(old) == config.replace(eval_data=())
