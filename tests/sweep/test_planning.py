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
