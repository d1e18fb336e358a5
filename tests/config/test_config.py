import argparse
import json
import re

import pytest

from raytrain.architecture import PRESETS
from raytrain.config.flags import add_flags
from raytrain.config.predecessor import GONE, RENAMED, hint_for_argument
from raytrain.config.resolve import RECIPES, fields, read_file, read_flags, read_value, resolve
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError

SEQUENCE = 128  # tokens, of the tiny scale


def run(*layers, **options):
    config, _ = resolve([(f"layer {index}", values) for index, values in enumerate(layers)], **options)
    return config


def flags(*argv):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser)
    return read_flags(parser.parse_args(argv))


def test_flags_beat_the_file_beats_the_defaults(tmp_path):
    """Would catch: a file that overrides a flag, a preset that overrides either, or a source that is not the winner."""
    path = tmp_path / "run.yaml"
    path.write_text("preset: llama\nscale: small\nnormalization: layernorm\nlearning_rate: 5e-4\nseed: 3\n")
    given = flags("--normalization=rmsnorm", "--seed", "4")
    config, source = resolve([("file", read_file(str(path))), ("flags", given)], data_vocab_size=256)

    arch = config.architecture
    assert (arch.position_encoding, source["position_encoding"]) == ("rope", "preset llama")
    assert (arch.normalization, source["normalization"]) == ("rmsnorm", "flags")
    assert (config.learning_rate, source["learning_rate"]) == (5e-4, "file")
    assert (config.seed, source["seed"]) == (4, "flags")
    assert (arch.n_layer, source["n_layer"]) == (6, "scale small")
    assert (arch.vocab_size, source["vocab_size"]) == (256, "data")
    assert (config.beta2, source["beta2"]) == (0.95, "default")
    assert source.keys() == set(fields())


@pytest.mark.parametrize("preset", ["gpt2", "llama", "team", "hybrid", "openai_gpt2"])
def test_any_axis_overrides_any_preset(preset):
    """Would catch: an override that is ignored in silence, as the predecessor's were."""
    for axis, value in {"norm_position": "post", "bias": "True", "dropout": "0.2", "activation": "relu"}.items():
        assert str(getattr(run({"preset": preset, axis: value}).architecture, axis)) == value


def test_every_field_is_a_flag():
    """Would catch: a field that the command line cannot set; `--name=value` read unlike `--name value`."""
    for field in fields():
        assert flags(f"--{field}=1") == flags(f"--{field}", "1") == {field: "1"}
    assert flags() == {}


@pytest.mark.parametrize(
    ("field", "given", "value"),
    [
        ("max_iters", "100", 100),
        ("max_iters", "1e3", 1000),
        ("max_iters", 5.0, 5),
        ("tokens", "10000000000000001", 10**16 + 1),  # beyond a float's 53 bits
        ("max_iters", "none", None),
        ("flops", "1e18", 1e18),
        ("flops", None, None),
        ("learning_rate", "3e-4", 3e-4),  # YAML reads this one as text, for want of a dot
        ("dropout", 0, 0.0),
        ("bias", "False", False),
        ("bias", False, False),
        ("weight_tying", "true", True),
        ("compile", "None", None),
        ("compile", "False", False),
        ("data", "none", "none"),
        ("n_kv_head", "None", None),
        ("position_encoding", "none", "none"),
    ],
)
def test_text_is_read_as_the_field_s_type(field, given, value):
    """Would catch: `--compile False` taken for true, or a number left as text."""
    read = read_value(field, given)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"normalization": "rmsnrm"}, "Unknown norm type: 'rmsnrm'. Available: layernorm, .*. Did you mean rmsnorm?"),
        ({"preset": "lama"}, "Unknown preset: 'lama'. Available: gpt2, .*. Did you mean llama?"),
        ({"scale": "124M"}, "Unknown scale: '124M'. Available: tiny, small, 124m, 350m, 1.3b. Did you mean 124m?"),
        ({"schedule": "cosin"}, "Unknown schedule: 'cosin'. Available: cosine, wsd. Did you mean cosine?"),
        ({"parallel": "fdsp"}, "Unknown parallel: 'fdsp'.* Did you mean fsdp?"),
        ({"preset": "custom", "bias": True}, "needs all nine axes; missing: normalization, activation, .*, dropout"),
        ({"n_embd": 100, "n_head": 12}, r"n_embd \(100\) must be divisible by n_head \(12\); try 10 or 20"),
        ({"bias": "maybe"}, r"bias \('maybe'\) must be True or False$"),
        ({"compile": "maybe"}, r"compile \('maybe'\) must be True or False or none"),
        ({"max_iters": "ten"}, r"max_iters \('ten'\) must be a whole number"),
        ({"max_iters": 1.5}, r"max_iters \(1.5\) must be a whole number"),
        ({"max_iters": True}, r"max_iters \(True\) must be a whole number"),
        ({"learning_rate": "nan"}, r"learning_rate \('nan'\) must be a number"),
        ({"seed": "none"}, r"seed \('none'\) must be a whole number"),
        ({"seed": "9" * 5000}, r"seed \('9+\.\.\.9+'\) must be a whole number"),
        ({"seed": 10**5000}, r"seed \(a number of thousands of digits\) must be a whole number"),
        ({"global_batch": 2**64}, r"global_batch \(18446744073709551616\) must be below 2\^63"),
        ({"seed": [1]}, r"seed \(\[1\]\) must be a whole number"),
        ({"data": None}, r"data \(None\) must be text"),
        ({"data": True}, r"data \(True\) must be text"),
        ({"rungs": "1e12,none"}, r"rungs \('none'\) must be a number"),
        ({"rungs": {"a": 1}}, r"rungs .* must be a number"),
        ({"rungs": [1e12] * 101}, "rungs has 101 values, and may have 100"),
        ({"n_embd": 1_000_000_007}, r"n_embd \(1000000007\) must be divisible by n_head \(3\); try 1"),
        ({"flops": -1}, r"flops \(-1.0\) must be above 0"),
        ({"max_iters": 0}, r"max_iters \(0\) must be above 0"),
        ({"max_iters": 10, "flops": 1e12}, "Give one of max_iters, tokens.* flops; given: max_iters 10, flops 1"),
        ({"flops": "none"}, "Give one of max_iters, tokens.* flops; given: none"),
        ({"flops": 1}, "less than one sequence of 128 tokens"),
        ({"learning_rate": 0}, r"learning_rate \(0.0\) must be above 0"),
        ({"weight_decay": -0.1}, r"weight_decay \(-0.1\) must be 0 or above"),
        ({"beta2": 1.5}, r"beta2 \(1.5\) must be from 0 to 1"),
        ({"keep_checkpoints": 0}, r"keep_checkpoints \(0\) must be 1 or more"),
        ({"micro_batch": "many"}, r"micro_batch \('many'\) must be a whole number"),
        ({"activation_checkpointing": "some"}, "Unknown activation_checkpointing: 'some'.* none, selective, full"),
        ({"activation_checkpointing": "selective", "compile": False}, r"\('selective'\) is the compiler's doing"),
        ({"precision": "fp8", "d_ff": 100}, r"precision \('fp8'\) needs d_ff \(100\) to be a multiple of 16; try bf16"),
        ({"global_batch": 1000}, r"global_batch \(1000\) must be a multiple of block_size \(128\); try 1024"),
    ],
)
def test_mistakes(values, message):
    """Would catch: a traceback, or a line without the field, its value and what is allowed."""
    with pytest.raises(UserError, match=message) as caught:
        run(values)
    assert "\n" not in str(caught.value)


def test_ways_to_say_none_and_yes():
    """Would catch: `--rungs none` that ends in a TypeError, and YAML's `yes`, which is text now, refused for a flag."""
    assert run({"rungs": "none"}).rungs == run({"rungs": None}).rungs == ()
    assert run({"bias": "yes"}).architecture.bias
    assert run({"compile": "off"}).compile is False


def test_a_huge_batch_is_refused_at_once():
    """Would catch: a search through 10^15 numbers for a divisor to suggest."""
    config = run({"global_batch": 128 * 10**15, "tokens": 10**18, "micro_batch": 7})
    with pytest.raises(UserError, match=r"micro_batch \(7\) must divide the 10{15} sequences .*; try 8"):
        config.check_ranks(1)


def test_a_vocabulary_below_the_data_s():
    """Would catch: tokens that index past the embedding."""
    with pytest.raises(UserError, match=r"vocab_size \(255\) must be at least the data's vocabulary \(256\)"):
        run({"vocab_size": 255}, data_vocab_size=256)
    assert run({}, data_vocab_size=257).architecture.vocab_size == 320
    assert run({"scale": "124m"}, data_vocab_size=256).architecture.vocab_size == 50304


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("a: [1", "is not YAML: line 1, column 6: expected ',' or ']'"),
        ("- gpt2", "must be a mapping of field to value, not a list"),
        ("learning_rat: 1", "Unknown field in .*: 'learning_rat'.* Did you mean learning_rate?"),
    ],
)
def test_files_that_will_not_do(tmp_path, text, message):
    """Would catch: a traceback for a wrong path, or a misspelt field that is passed over."""
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_file(str(path))
    assert "\n" not in str(caught.value)


def test_an_empty_file(tmp_path):
    """Would catch: an error for a file of comments alone."""
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert read_file(str(tmp_path / "run.yaml")) == {}


def test_budgets_agree():
    """Would catch: one budget that ends at another place when it is given as steps, tokens or FLOPs.

    3.5 steps of 8 sequences are 28 sequences; the last step is half full.
    """
    size = {"global_batch": 8 * SEQUENCE}
    by_tokens = run(size | {"tokens": 28 * SEQUENCE})
    assert (by_tokens.total_sequences, by_tokens.total_steps, by_tokens.batch_sequences) == (28, 4, 8)
    assert run(size | {"flops": by_tokens.train_flops}).total_sequences == 28
    assert run(size | {"max_iters": 3}).total_sequences == 24
    assert by_tokens.train_flops == 28 * run(size | {"tokens": SEQUENCE}).train_flops


def test_a_block_size_that_the_recipe_s_batch_does_not_fit():
    """Would catch: `--block_size 100` alone refused, for a batch that nobody asked for; or the user's batch changed."""
    assert run({"block_size": 100}).global_batch % 100 == 0
    assert run({"block_size": 4 * RECIPES["tiny"]["global_batch"]}).batch_sequences == 1
    with pytest.raises(UserError, match="must be a multiple of block_size"):
        run({"block_size": 100, "global_batch": 1024})


def test_plain_values_and_back():
    """Would catch: a run that changes on its way between processes."""
    config = run({"preset": "llama", "n_kv_head": 1, "tokens": 10**16 + 1, "compile": False})
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (
        TrainConfig.from_dict(config.to_dict() | {"activation_checkpointing": False}) == config
    )  # as it was once written


def test_what_the_predecessor_s_arguments_are_here():
    """Would catch: a hint that is itself unknown here, such as a flag or a preset that was renamed."""
    files = [hint_for_argument(f"config/arch_{name}.py").removeprefix("Did you mean ")[:-1] for name in PRESETS]
    for meant in {*RENAMED.values(), *files}:
        flag, *value = meant.split()[:2]
        assert flag[2:] in (*fields(), "preset", "config", "runs", "name")
        if flag not in ("--config", "--runs", "--name") and value:
            run(flags(flag, *value))
    for flag in (flag for why in GONE.values() for flag in re.findall(r"--(\w+)", why)):
        assert flag in fields()
    assert (
        hint_for_argument("config/train_gpt2.py")
        == hint_for_argument("--n_head")
        == hint_for_argument("use_fsdp")
        == ""
    )


def test_no_name_of_the_predecessor_s_is_one_of_ours():
    """Would catch: a hint that is never shown, as the name is a field here."""
    assert not {*RENAMED, *GONE} & {*fields(), "preset"}
    assert not RENAMED.keys() & GONE.keys()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("arch_preset: gpt2", "Did you mean preset?"),
        ("use_fsdp: true", "Did you mean parallel: fsdp?"),
        ("gradient_accumulation_steps: 40", "Did you mean global_batch?"),
        ("out_dir: out", "Give --runs on the command line."),
        ("wandb_log: true", "Leave it out: a run is logged in its folder, and a sweep in MLflow too."),
    ],
)
def test_what_the_predecessor_s_fields_are_here(tmp_path, text, hint):
    """Would catch: a hint that fits a command line and no file, or that the nearest spelling displaces."""
    path = tmp_path / "run.yaml"
    path.write_text(f"block_size: 128\nmax_iters: 5\n{text}\n")
    with pytest.raises(UserError) as caught:
        read_file(str(path))
    assert str(caught.value).endswith(hint)


def test_custom_starts_from_a_preset_that_the_file_names(tmp_path):
    """Would catch: axes of a file that its own preset overrides, whichever comes first."""
    path = tmp_path / "custom.yaml"
    path.write_text("weight_tying: true\npreset: llama\nnormalization: layernorm\n")
    arch = run(read_file(str(path))).architecture
    assert (arch.weight_tying, arch.normalization, arch.ffn_type) == (True, "layernorm", "swiglu")
