"""`plan` as a Python user calls it; tests/test_tune.py tries the same mistakes as flags."""

import re
from pathlib import Path
from typing import Any

import pytest

from raytrain import tune
from raytrain.errors import UserError
from raytrain.sweep.planning import OPTIONS, plan
from raytrain.sweep.space import load_space

AXES = {"normalization": ("layernorm", "rmsnorm"), "learning_rate": [1e-3, 2e-3]}


def test_one_space_in_four_forms(tmp_path: Path) -> None:
    """Would catch a mapping, a path or a Space that gives other trials than the file's name does."""
    file = tmp_path / "axes.yaml"
    file.write_text("axes:\n  normalization: [layernorm, rmsnorm]\n  learning_rate: [1e-3, 2e-3]\n")
    spaces: list[Any] = [AXES, {"axes": AXES}, file, load_space(str(file))]
    plans = [plan(space, seeds=2, max_iters=20) for space in spaces]
    assert [one.to_dict()["trial_ids"] for one in plans] == [plans[0].to_dict()["trial_ids"]] * 4
    assert len(plans[0].trials) == 8


def test_same_plan_as_the_command() -> None:
    """Would catch an option that the command line reads, and the function does not, or the other way round."""
    flags = "--space presets --base llama --seeds 2 --max_trials 4 --scale tiny --learning_rate 2e-3 --concurrent 3"
    by_flags = tune._plan(tune._parser().parse_args(flags.split()))
    by_call = plan("presets", base="llama", seeds=2, max_trials=4, scale="tiny", learning_rate=2e-3, concurrent=3)
    assert by_flags == by_call
    assert set(OPTIONS) <= set(vars(tune._parser().parse_args([])))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": "2"}, "seeds ('2') must be a whole number"),
        ({"seeds": True}, "seeds (True) must be a whole number"),
        ({"concurrent": 0}, "concurrent (0) must be 1 or more"),
        ({"sedes": 2}, "Unknown argument: 'sedes'"),
        ({"learnig_rate": 1}, "Did you mean learning_rate?"),
        ({"preset": "llama"}, "a sweep varies around base"),
        ({"normalization": "rmsnorm"}, "normalization (rmsnorm) is an axis of space axes"),
        ({"frontier_budgets": ["x"]}, "frontier_budgets (['x']) must be above 0"),
        ({"config": "/nowhere.yaml"}, "config (/nowhere.yaml) cannot be read"),
        ({"space": {}}, "Space axes is empty"),
        ({"space": {"normalisation": ["rmsnorm"]}}, "Unknown axis in space axes: 'normalisation'"),
        ({"space": {"normalization": "rmsnorm"}}, "must be a list of levels"),
        ({"space": load_space("presets"), "base": "llama"}, "base (llama) cannot change that of a Space (gpt2)"),
        ({"max_iters": 0}, "max_iters (0) must be above 0"),
        ({"space": "presets", "design": "random"}, "design random needs --trials N"),
    ],
)
def test_mistakes(arguments: dict[str, Any], words: str) -> None:
    """Would catch a mistake in a notebook that surfaces as a TypeError from within, or is ignored."""
    with pytest.raises(UserError) as raised:
        plan(**({"space": AXES} | arguments))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_seeds_and_fields_of_a_space() -> None:
    """Would catch a space's own seeds or fields that are ignored, or that win over what the call gives."""
    space = {"base": "llama", "axes": {"normalization": ["rmsnorm"]}, "seeds": 2, "run": {"max_iters": 30}}
    one = plan(space)
    assert (len(one.trials), round(one.trials[0].config.learning_rate, 6)) == (2, 1e-3)
    assert one.budget_flops == plan(space, max_iters=30).budget_flops == 3 * plan(space, max_iters=10).budget_flops
    assert len(plan(space, seeds=3).trials) == 3
    assert len(plan(space | {"seeds": None}).trials) == 1


def test_what_a_level_implies_and_what_is_fixed() -> None:
    """Would catch SwiGLU compared with a standard FFN without a word on the activation that this has."""
    text = str(plan({"ffn_type": ["swiglu", "standard"], "bias": [False, True]}, base="llama", max_iters=10))
    assert "compares    ffn_type: swiglu, standard (silu); bias: False, True" in text
    fixed = next(line for line in text.splitlines() if line.startswith("fixed"))
    assert "normalization rmsnorm" in fixed
    assert "learning_rate 0.001" in fixed
    assert not any(f" {name} " in fixed for name in ("activation", "ffn_type", "bias"))
    both = str(plan({"ffn_type": ["swiglu", "standard"], "activation": ["gelu", "relu"]}, base="llama", max_iters=10))
    assert "standard (" not in both


def test_a_plan_for_another_machine() -> None:
    """Would catch a plan for B200s with the speed, the memory or the number of this machine's devices."""
    flops = 16 * 3600 * 0.4 * 2250e12  # an hour of 16 B200s at the MFU assumed of GPUs
    shown = plan("quickstart", seeds=4, flops=flops / 16, on="16xB200", price=2.5, gpus_per_trial=1)
    cost = shown.estimate
    assert (cost.lanes, cost.devices, cost.device, cost.memory_limit) == (16, 16, "GPU", 180e9)
    assert cost.seconds == pytest.approx(3600, rel=1e-3)
    assert "price       about 40.00, at 2.5 a GPU-hour" in str(shown)
    assert plan("quickstart", on="64xcpu", max_iters=1).estimate.devices == 64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on": "16xB2000"}, "Unknown device in on: 'B2000'"),
        ({"on": "B200"}, "on (B200) must be a number of devices and their name"),
        ({"on": "8xH100", "measure": True}, "measure times steps on this machine"),
        ({"price": -1.0}, "price (-1) must be 0 or more"),
    ],
)
def test_bad_costs(options: dict[str, object], words: str) -> None:
    """Would catch a plan for this machine in the place of the one that was asked about."""
    with pytest.raises(UserError, match=re.escape(words)):
        plan("quickstart", **options)  # type: ignore[arg-type]


LADDER: dict[str, Any] = {"space": {"weight_tying": [False, True]}, "base": "llama", "ladder": "small,tiny"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ladder": "tiny"}, "ladder (tiny) must have two scales or more"),
        ({"ladder": ["tiny", "tiny"]}, "ladder (tiny,tiny) must have two scales or more"),
        ({"ladder": "tiny,smal"}, "Unknown scale in ladder: 'smal'"),
        ({"ladder": 3}, "ladder (3) must be a list of scales"),
        ({"ladder": "tiny,124m"}, "different vocabularies (256 at tiny, 50,304 at 124m)"),
        ({"scale": "small"}, "scale ('small') cannot be combined with ladder (tiny,small)"),
        ({"n_embd": 64}, "n_embd (64) cannot be combined with ladder"),
        ({"space": {"n_layer": [2, 3]}}, "n_layer, an axis of space axes, cannot be combined with ladder"),
        ({"scheduler": "halving"}, "scheduler ('halving') cannot be combined with ladder"),
        ({"rungs": [1e12]}, "rungs ([1000000000000.0]) cannot be combined with ladder"),
        ({"design": "full"}, "design ('full') cannot be combined with ladder"),
        ({"max_trials": 3}, "max_trials (3) cannot be combined with ladder"),
        ({"confirm": 3}, "confirm (3) cannot be combined with ladder"),
        ({"flops": 1e13}, "flops (10000000000000.0) cannot be combined with tokens_per_parameter (20)"),
        ({"ladder": (), "max_iters": 5, "tokens_per_parameter": 2}, "max_iters (5) cannot be combined with tokens_per"),
        ({"tokens_per_parameter": 0}, "tokens_per_parameter (0) must be above 0 and finite"),
        ({"project_to": "2b"}, "Unknown scale in project_to: '2b'"),
        ({"ladder": (), "project_to": "124m"}, "project_to (124m) goes with a ladder"),
    ],
)
def test_mistakes_about_a_ladder(arguments: dict[str, Any], words: str) -> None:
    """Would catch a ladder that ignores what it was told, or compares trials that are not comparable."""
    with pytest.raises(UserError) as raised:
        plan(**(LADDER | arguments))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("stop", "value"), [("max_iters", 100), ("tokens", 100_000), ("flops", 1e12)])
def test_tokens_per_parameter_take_the_place_of_a_budget_below(stop: str, value: float, tmp_path: Path) -> None:
    """Would catch a space, or a file, whose budget has the flag refused, or stands against it."""
    axes = {"axes": {"weight_tying": [False, True]}, "base": "llama"}
    (tmp_path / "run.yaml").write_text(f"{stop}: {value}\n")
    wanted = plan(axes, tokens_per_parameter=2)
    spaces = [plan(axes | {"run": {stop: value}}, tokens_per_parameter=2)]
    spaces.append(plan(axes, config=tmp_path / "run.yaml", tokens_per_parameter=2))
    assert all(made.budget_flops == wanted.budget_flops for made in spaces)
    assert all(trial.config.flops == wanted.budget_flops for made in spaces for trial in made.trials)


def test_a_ladder_is_a_study_at_each_scale(tmp_path: Path) -> None:
    """Would catch a scale with another's budget or recipe, other variants or seeds at one scale than at the other, a
    baseline with too few settings for its surface, and a sum that leaves out a scale."""
    made = plan(**LADDER, seeds=2, tokens_per_parameter=10, project_to="124m")
    alone = {scale: plan(**LADDER | {"ladder": ()}, seeds=2, tokens_per_parameter=10, scale=scale,
                         frontier_budgets=(0.5, 2)) for scale in ("tiny", "small")}  # fmt: skip
    assert [trial.to_dict() for trial in made.trials] == [
        trial.to_dict() for one in alone.values() for trial in one.trials
    ]
    assert made.total_flops == sum(one.total_flops for one in alone.values())
    for one in alone.values():
        assert one.budget is not None
        assert one.budget.tokens_per_parameter == pytest.approx(10, rel=1e-4)
        assert one.trials[0].config.flops == pytest.approx(
            one.budget.flops_per_token * 10 * one.budget.parameters, rel=1e-4
        )
    text = str(made)
    assert "tiny        492,384 parameters (the base), 10 tokens a parameter: 4,923,904 tokens in 4,809 steps" in text
    count = 12 * (4 * 768**2 + 3 * 768 * 2048) + 25 * 768 + 2 * 256 * 768  # blocks, norms, embedding and head
    assert f"projected to 124m ({count:,} parameters)" in text
    assert made.to_dict()["ladder"]["project_to"]["parameters"] == count
    space = tmp_path / "ladder.yaml"
    space.write_text("base: llama\naxes: {weight_tying: [false, true]}\nladder: [tiny, small]\n")
    ids = plan(space, seeds=2, tokens_per_parameter=10).to_dict()["trial_ids"]
    assert ids == made.to_dict()["trial_ids"]
