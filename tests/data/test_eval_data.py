import numpy as np
import pytest

from raytrain.config.resolve import read_value
from raytrain.data.eval_data import open_eval_data
from raytrain.errors import UserError
from raytrain.tune import main

SIZES = {"block_size": 32, "eval_tokens": 1024, "vocab_size": 256}


@pytest.fixture
def flat(tmp_path):
    """`flat(token, tokens)`: a folder of nanoGPT's files that hold one token alone."""

    def make(token, tokens=4096):
        folder = tmp_path / f"flat{token}-{tokens}"
        folder.mkdir()
        for split in ("train", "val"):
            np.full(tokens, token, "<u2").tofile(folder / f"{split}.bin")
        return str(folder)

    return make


@pytest.fixture
def bpe(tmp_path):
    """A prepared folder whose tokenizer is not the default corpus's."""
    from raytrain.data.__main__ import main as data

    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.txt").write_text(f"the {number} and the other " * 50)
    flags = ["--vocab_size", "300", "--val_fraction", "0.5"]
    assert not data(["prepare", str(tmp_path / "text"), "--out", str(tmp_path / "bpe"), "--tokenizer", "bpe", *flags])
    return str(tmp_path / "bpe")


def test_what_does_not_fit_is_one_line_that_names_the_set(flat, bpe, tmp_path):
    """Catches a loss on tokens that mean other things, and a mistake that shows at the first evaluation."""
    for place, expected in (
        (str(tmp_path / "nowhere"), r"eval_data other: Unknown data: .*nowhere.* is no folder"),
        (flat(300), r"eval_data other: The data holds token 300, outside vocab_size \(256\)"),
        (flat(7, tokens=20), r"eval_data other: The validation split has 20 tokens, block_size \(32\)"),
        (bpe, r"eval_data other: its tokenizer \(bpe-286-.*\) is not that of the training data \(bytes\)"),
    ):
        with pytest.raises(UserError, match=expected) as error:
            open_eval_data((("same", "stdlib"), ("other", place)), "stdlib", **SIZES)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"its vocabulary \(286\) is larger than vocab_size \(256\)"):
        open_eval_data((("other", bpe),), flat(5), **SIZES)


def test_a_plan_refuses_what_no_trial_could_read(flat, capsys):
    """Catches a sweep of which every trial fails at its first evaluation."""
    run = ["--space", "presets", "--plan", "--eval_data"]
    assert main([*run, f"other={flat(300)}"]) == 2
    assert "eval_data other: The data holds token 300" in capsys.readouterr().err
    assert not main([*run, f"other={flat(7)},self=stdlib"])


def test_a_space_may_name_the_sets_and_a_flag_replaces_them(flat, tmp_path, monkeypatch):
    """Catches sets in a space file that are ignored, or lost where trials run in another working directory."""
    from raytrain import tune

    monkeypatch.chdir(tmp_path)
    flat(7), flat(8)
    space = tmp_path / "space.yaml"
    space.write_text("base: llama\naxes: {bias: [false, true]}\neval_data: {seven: flat7-4096}\n")
    for flags, expected in (
        ([], {"seven": "flat7-4096"}),
        (["--eval_data", "eight=flat8-4096"], {"eight": "flat8-4096"}),
    ):
        plan = tune._plan(tune._parser().parse_args(["--space", str(space), *flags]))
        wanted = {name: str(tmp_path / folder) for name, folder in expected.items()}
        assert {dict(trial.config.eval_data) == wanted for trial in plan.trials} == {True}


def test_names_and_folders_are_read_from_text_and_from_a_mapping():
    """Catches a comma or a mapping read as one name, and a name that no metric could have."""
    assert read_value("eval_data", "a=x/y, b=z") == read_value("eval_data", {"a": "x/y", "b": "z"})
    assert read_value("eval_data", None) == read_value("eval_data", "none") == ()
    for wrong in ("a", "=x", "a=", ["a"], {"a": 3}, 7):
        with pytest.raises(UserError, match="must be name=folder"):
            read_value("eval_data", wrong)
