"""Models under lm-evaluation-harness, against the model's own forward pass, a token at a time. Without a network."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from raytrain import evaluate, train
from raytrain.data.tokenizer import ByteTokenizer, train_bpe
from raytrain.model import build
from raytrain.training.pretrained import load_newest
from raytrain.training.sampling import sample

pytest.importorskip("lm_eval")
from raytrain.training.harness import HarnessLM

BLOCK = 32
QUESTIONS = [
    {"question": "def main", "choices": ["():", "zzzz", " = 1"], "answer": 0},
    {"question": "import" * 9, "choices": [" os", " \u00fc" * 30, "\n"], "answer": 1},
]
TEXTS = ["import os\n" * 12, "x", "\u00e9t\u00e9 \U0001f600"]
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
metadata: {{version: 3.0}}
"""
ROLLING = """
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}, {{metric: byte_perplexity}}]
metadata: {{version: 1.0}}
"""
WRITTEN = """
task: local_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{text}}}}"
generation_kwargs: {{until: ["NEVER"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for name, text in (("choice", CHOICE), ("text", ROLLING), ("writing", WRITTEN)):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_run):
    """The folder of a complete run of bytes, three steps long."""
    runs = tmp_path_factory.mktemp("runs")
    train.run(tiny_run(preset="llama", max_iters=3, checkpoint_interval=0), runs=runs, name="a")
    return runs / "a"


@pytest.fixture(scope="module")
def models(tiny_run):
    """By tokenizer: the language model for the harness, its model and its tokenizer. Of large weights, so uneven."""
    out = {}
    for name, tokenizer in (("bytes", ByteTokenizer()), ("bpe", train_bpe(["import os", "def main"] * 9, 280))):
        torch.manual_seed(0)
        arch = tiny_run(preset="llama").architecture.replace(vocab_size=tokenizer.vocab_size + 8)
        model = build(arch).eval()
        for parameter in model.parameters():
            parameter.data.mul_(5)
        out[name] = HarnessLM(model, tokenizer, batch_size=3), model, tokenizer
    return out


def ids(tokenizer, text):
    return tokenizer.encode_batch([text])[0].tolist()


@torch.no_grad()
def by_hand(model, seen, scored):
    """The log-likelihood of `scored` after `seen`, and whether that is the likeliest: each token alone."""
    total, greedy = 0.0, True
    for place in range(len(scored)):
        logits = model(torch.tensor([seen + scored[:place]]))[0, -1].double()
        total += float(logits.log_softmax(-1)[scored[place]])
        greedy &= int(logits.argmax()) == scored[place]
    return total, greedy


def request(*arguments):
    return SimpleNamespace(args=arguments)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_loglikelihoods_are_the_model_s_own(models, kind):
    """Catches a shift by one token, a padded row that changes others, a context cut at its end, and order lost."""
    lm, model, tokenizer = models[kind]
    first = tokenizer.decode(sample(model, torch.tensor(ids(tokenizer, "def")), 1, 0, 1, None)[-1:].tolist())
    pairs = [("def main", "():"), ("", "import"), ("a", " b"), ("import " * 20, "os"), ("def", first), ("x ", "y")]
    found = lm.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    for (context, scored), (score, greedy) in zip(pairs, found, strict=True):
        whole = ids(tokenizer, context + scored)
        seen = ids(tokenizer, context.rstrip()) or [tokenizer.end_of_document]
        tail = whole[len(seen) :] if context else whole
        expected, likeliest = by_hand(model, seen[-(BLOCK + 1 - len(tail)) :], tail)
        assert score == pytest.approx(expected, rel=1e-5)
        assert greedy == likeliest
    assert len({round(score, 3) for score, _ in found}) == len(pairs)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_document_is_scored_once_in_windows(models, kind):
    """Catches tokens beyond block_size that are dropped or counted twice, and a document without its beginning."""
    lm, model, tokenizer = models[kind]
    for text, score in zip(TEXTS, lm.loglikelihood_rolling([request(text) for text in TEXTS]), strict=True):
        tokens = ids(tokenizer, text)
        expected = 0.0
        for begin in range(0, len(tokens), BLOCK):
            part = tokens[begin : begin + BLOCK]
            # The last window is as long as the others where there is text before it.
            before = [tokenizer.end_of_document, *tokens][max(0, begin + len(part) - BLOCK) : begin + 1]
            expected += by_hand(model, before, part)[0]
        assert score == pytest.approx(expected, rel=1e-5)
    long = "ab" * BLOCK
    ((score, _),) = lm.loglikelihood([request("c", long)], disable_tqdm=True)
    assert math.isfinite(score)


def test_what_is_written_greedily_is_what_generate_writes(models):
    """Catches another model, prompt or window than `raytrain.generate`'s; and stop texts that are kept, or ignored."""
    lm, model, tokenizer = models["bytes"]
    written = sample(model, torch.tensor(ids(tokenizer, "def ")), 60, 0, 1, None)[4:].tolist()
    if tokenizer.end_of_document in written:
        written = written[: written.index(tokenizer.end_of_document)]
    expected = tokenizer.decode([token for token in written if token < tokenizer.vocab_size])
    (found,) = lm.generate_until([request("def ", {"until": [], "max_gen_toks": 60})])
    assert found == expected
    assert len(expected) > 3
    stop = expected[2]
    (cut,) = lm.generate_until([request("def ", {"until": [stop], "max_gen_toks": 60})])
    assert cut == expected[: expected.index(stop)]


def test_the_command_leaves_its_numbers(run, tasks, capsys):
    """Catches a result that is another task's, or of other weights than the newest checkpoint's."""
    names = "local_choice,local_text,local_writing"
    assert evaluate.main([str(run), "--tasks", names, "--task_path", str(tasks)]) == 0
    out = capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    assert found["step"] == 3
    assert found["tasks"]["local_choice"]["version"] == 3.0
    assert found["tasks"]["local_text"]["documents"] == len(TEXTS)
    config, model, _ = load_newest(run)
    lm = HarnessLM(model, ByteTokenizer(), 1)
    total = sum(lm.loglikelihood_rolling([request(text) for text in TEXTS]))
    bits = -total / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert found["tasks"]["local_text"]["metrics"]["bits_per_byte"]["value"] == pytest.approx(bits)
    assert f"{bits:.4f}" in out
    right = 0
    for line in QUESTIONS:
        pairs = [request(line["question"], " " + choice) for choice in line["choices"]]
        scores = [score for score, _ in lm.loglikelihood(pairs, disable_tqdm=True)]
        right += scores.index(max(scores)) == line["answer"]
    assert found["tasks"]["local_choice"]["metrics"]["acc"]["value"] == right / len(QUESTIONS)
    assert "MLflow" not in out
    assert config.total_steps == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--tasks local_chioce", "Did you mean local_choice?"),
        ("--tasks local_choice --limit 0", "limit (0) must be 1 or above"),
        ("--tasks ,", "tasks (',') must name one task or more"),
        ("--tasks local_choice --tracking_uri sqlite:///x.db", "goes with a study's trial"),
    ],
)
def test_mistakes_are_one_line(run, tasks, capsys, flags, said):
    """Catches a traceback of lm_eval's in answer to a task that is not there, and an evaluation begun in vain."""
    assert evaluate.main([str(run), "--task_path", str(tasks), *flags.split()]) == 2
    err = capsys.readouterr().err
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err


def test_without_the_extra_a_line_says_how_to_get_it(run, capsys, monkeypatch):
    """Catches a traceback where lm_eval is not installed."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "raytrain.training.harness")
    monkeypatch.delattr("raytrain.training.harness")
    assert evaluate.main([str(run), "--tasks", "a"]) == 2
    assert capsys.readouterr().err == "error: evaluate needs lm_eval: pip install 'raytrain[evaluate]'\n"
