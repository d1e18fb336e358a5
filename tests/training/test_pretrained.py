"""Weights that leave for Hugging Face, and come back."""

import json
import shutil

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file

from raytrain import export, generate
from raytrain.architecture import preset
from raytrain.data.tokenizer import ByteTokenizer, JsonTokenizer, train_bpe
from raytrain.model import build
from raytrain.training.loop import train
from raytrain.training.pretrained import load_run, save_hugging_face
from tests.studies import write_study


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
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("def ").input_ids == list(b"def ")
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


def test_a_prompt_that_is_no_utf_8(run, capsys):
    """Would catch: a traceback for a prompt with bytes of another encoding, as a shell passes them on."""
    assert generate.main([str(run), "--prompt", "caf\udce9", "--tokens", "1"]) == 0
    assert capsys.readouterr().out.startswith("caf\ufffd")


def test_what_has_no_counterpart_is_named_by_axis(tiny_run, tmp_path, capsys):
    """Catches an export that silently computes something else: post-norm is neither GPT-2 nor Llama there."""
    config = tiny_run(preset="gpt2", max_iters=1)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    train(config, folder=tmp_path)
    assert export.main([str(tmp_path), "--to", "huggingface", str(tmp_path / "out")]) == 2
    assert "norm_position pre (not post)" in capsys.readouterr().err


def given() -> JsonTokenizer:
    """As published ones are: it adds tokens, cuts and pads, and its end token is one among several special ones."""
    trained = tokenizers.Tokenizer.from_str(train_bpe(["the cat sat on the mat"] * 9, 280).to_json())
    trained.add_special_tokens(["<s>", "</s>"])
    trained.add_tokens(["sat on"])
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trained.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", None, [("<s>", 273), ("</s>", 274)]
    )
    trained.enable_truncation(5)
    trained.enable_padding(length=9)
    return JsonTokenizer(trained.to_str())


TEXTS = ["the cat sat on the\n\n\t mat,  caf\xe9 \u65e5\u672c \U0001f600", "<|endoftext|></s>\u0100", " .", ""]
TEXTS.append("".join(map(chr, range(1, 0x300))))


@pytest.mark.parametrize("make", [ByteTokenizer, lambda: train_bpe(TEXTS, 300), given], ids=["bytes", "bpe", "given"])
def test_an_exported_tokenizer_gives_our_ids(make, tmp_path):
    """Catches ids that differ from those of training: by tokens that are added, cut or cleaned up, by the text of a
    special token, or by bytes that are named in another order."""
    tokenizer = make()
    model = build(preset("llama", n_layer=1, n_head=2, n_embd=16, block_size=2048, vocab_size=tokenizer.vocab_size))
    save_hugging_face(model, tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)]
    assert theirs(TEXTS).input_ids == ids
    assert theirs.batch_decode(ids) == [tokenizer.decode(of_text) for of_text in ids]
    assert theirs.eos_token_id == tokenizer.end_of_document
    save_hugging_face(model, tmp_path, overwrite=True)
    assert not (tmp_path / "tokenizer.json").exists()


def test_hugging_face_stops_at_the_end_of_a_document(tmp_path):
    """Catches an export without the end token, whose text goes on to the longest length."""
    tokenizer = ByteTokenizer()
    model = build(preset("llama", n_layer=1, n_head=2, n_embd=32, block_size=32, vocab_size=256))
    with torch.no_grad():
        model.blocks[0].attention.output.weight.zero_()
        model.blocks[0].feed_forward.down.weight.zero_()  # so that the next token follows from the last one alone
        model.embedding.weight.normal_()
        for token, following in ((65, 66), (66, tokenizer.end_of_document)):
            model.head.weight[following] = 9 * model.embedding.weight[token]
    save_hugging_face(model, tmp_path, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    written = theirs.generate(torch.tensor([[65]]), do_sample=False, max_new_tokens=9)
    assert written.tolist() == [[65, 66, tokenizer.end_of_document]]
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == tokenizer.end_of_document


def test_a_configuration_that_is_not_the_checkpoints(run, tmp_path, capsys):
    """Would catch: a model of a billion layers, or of other axes, built of an edited config.json until memory ends."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["n_layer"] = 9_999
    (folder / "config.json").write_text(json.dumps(config))
    assert generate.main([str(folder)]) == 2
    assert "config.json is damaged: n_layer (9999) must be" in capsys.readouterr().err


@pytest.fixture
def study(tiny_run, tmp_path):
    """The folder of a study with the weights of one of its two trials, as a lane writes them."""
    folder = write_study(tmp_path / "runs" / "s", axes={"normalization": ("layernorm",)}, seeds=2)
    config = tiny_run(max_iters=2, preset="openai_gpt2", checkpoint_interval=None)
    for trial in ("t0", "t1"):
        (folder / "trials" / trial / "config.json").write_text(json.dumps(config.to_dict()))
    result = train(config, weights=folder / "trials" / "t1")
    assert result["weights"] == "step-00000002"
    names = {f"model.model.{name}" for name, _ in build(config.architecture).named_parameters()}
    assert load_file(next(folder.rglob("*.safetensors"))).keys() == names  # no optimizer state
    return folder


def test_a_trial_of_a_study_can_be_used(study, tmp_path, capsys, monkeypatch):
    """Catches weights that only a run's own checkpoint gives, other weights than those at the end, and a trial that its
    study's name, path or folder does not lead to."""
    texts = []
    for given in ("s/t1", str(study / "trials" / "t1"), f"{study}/t1"):
        assert generate.main([given, "--runs", str(study.parent), "--tokens", "9"]) == 0
        texts.append(capsys.readouterr().out)
    monkeypatch.chdir(study / "trials")
    assert generate.main(["t1", "--tokens", "9"]) == 0
    assert {*texts, capsys.readouterr().out} == {texts[0]}
    assert export.main(["s/t1", "--runs", str(study.parent), "--to", "huggingface", str(tmp_path / "out")]) == 0
    config, _ = load_run(study / "trials" / "t1")
    reports = []
    train(config.replace(max_iters=1, learning_rate=1e-12, init_from=str(tmp_path / "out")), reports.append)
    after = []
    train(config, after.append)
    losses = [next(report["val_loss"] for report in own if report["event"] == "eval") for own in (reports, after[-2:])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_trial_without_weights_names_the_flags(study, capsys):
    """Catches a user who is told that there is no checkpoint, and not how the next sweep keeps one."""
    models = {"models": {"keep": "best", "kept": {"t1": "rank 1"}}}
    (study / "study.json").write_text(json.dumps(json.loads((study / "study.json").read_text()) | models))
    for given, said in (
        ("s/t0", ("no whole checkpoint and no weights", "--keep_models all", "--checkpoint_interval N")),
        ("s", ("run (s) is a study: give one of its trials, s/t1 (rank 1)",)),
        ("s/t9", ("Unknown trial of s: 't9'. Available: t0, t1.",)),
        ("nowhere/t1", ("run (nowhere/t1) is not a run folder",)),
    ):
        assert generate.main([given, "--runs", str(study.parent)]) == 2
        err = capsys.readouterr().err
        assert all(words in err for words in said), err
        assert err.count("\n") == 1
    (next(study.rglob("*.safetensors"))).write_bytes(b"torn")
    assert generate.main(["s/t1", "--runs", str(study.parent)]) == 2
    assert "is damaged (sha256 differs)" in capsys.readouterr().err
