"""Weights that leave for Hugging Face, and come back."""

import json

import pytest
import torch
import transformers

from raytrain import export, generate
from raytrain.training.loop import train
from raytrain.training.pretrained import load_run


@pytest.fixture(scope="module", params=["llama", "openai_gpt2"])
def run(request, tiny_run, tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_run(preset=request.param, max_iters=3)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    train(config, folder=folder)
    return folder


def test_exported_weights_give_the_same_logits_and_start_a_run(run, tiny_run, tmp_path):
    """Catches weights that `transformers` loads with some missing, an --init_from that is ignored, and an export that
    replaces another without being told to."""
    assert export.main([str(run), "--to", "huggingface", str(tmp_path)]) == 0
    assert export.main([str(run), "--to", "huggingface", str(tmp_path)]) == 2  # it holds a model now
    assert export.main([str(run), "--to", "huggingface", str(tmp_path), "--overwrite"]) == 0
    config, model = load_run(run)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() < 1e-4
    reports = []
    train(config.replace(init_from=str(tmp_path), max_iters=1, learning_rate=1e-12), reports.append)
    first = next(report for report in reports if report["event"] == "eval")
    again = []
    train(config, again.append, run)  # complete: nothing is trained, its evaluation stands
    assert first["val_loss"] == pytest.approx(again[-1]["val_loss"], rel=1e-5)


def test_generated_text_follows_from_the_seed(run, capsys):
    """Catches sampling from a global generator, or from weights that were not loaded."""
    texts = []
    for seed in ("1", "1", "2"):
        assert generate.main([str(run), "--prompt", "def ", "--tokens", "20", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("def ")


def test_what_has_no_counterpart_is_named_by_axis(tiny_run, tmp_path, capsys):
    """Catches an export that silently computes something else: post-norm is neither GPT-2 nor Llama there."""
    config = tiny_run(preset="gpt2", max_iters=1)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    train(config, folder=tmp_path)
    assert export.main([str(tmp_path), "--to", "huggingface", str(tmp_path / "out")]) == 2
    assert "norm_position pre (not post)" in capsys.readouterr().err
