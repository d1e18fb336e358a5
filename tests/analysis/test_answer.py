import json

import numpy as np
import pytest

from raytrain import tune
from raytrain.analysis.answer import answer
from tests.analysis.conftest import noise_of
from tests.studies import BUDGET, no_effect, write_study

LOSSES = {"llama": 1.7, "hybrid": 1.9, "openai_gpt2": 2.24, "gpt2": 2.29}


@pytest.fixture
def presets(tmp_path):
    """The space `presets` as `raytrain.tune` plans it, with two seeds, and losses that were never trained."""
    plan = tune._plan(tune._parser().parse_args(["--space", "presets", "--seeds", "2"]))
    described, trials = plan.to_dict(), [trial.to_dict() for trial in plan.trials]
    study = {key: described[key] for key in ("space", "base", "scale", "budget_flops", "axes", "baseline", "scheduler")}
    study |= {"name": "presets", "counts": plan.counts, "versions": {}, "command": "", "git_commit": None}
    study |= {"created": "2026-11-24T12:00:00+00:00", "plan": described, "trials": trials}
    (tmp_path / "study.json").write_text(json.dumps(study))
    for trial in trials:
        result = {"status": "complete", "hash": trial["hash"], "seed": trial["seed"], "vocab_size": 256}
        result |= {"val_loss": LOSSES[trial["labels"][0]] + trial["seed"] % 2 / 100, "train_flops": plan.budget_flops}
        folder = tmp_path / "trials" / trial["id"]
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_presets_differ_in_many_axes_at_once(presets):
    """Would catch: a study of presets taken for one of a single variant, or an effect of an axis read from it."""
    found = answer(presets)
    assert {"norm_position", "position_encoding", "ffn_type"} <= {*found.axes}
    assert found.sentences[0].startswith("The winner of 4 variants is llama, team: val_loss 1.7050 over 2 seeds")
    assert "No main effect can be estimated, because the runs differ in several axes at once." in found.sentences
    assert not any(word in told for told in found.sentences for word in ("costs", "saves", "pays", "nan"))
    assert sum("holds at learning rate 0.001 alone" in told for told in found.told.findings) == 1


def test_a_lone_survivor_is_no_winner(make_study):
    """Would catch: a study whose scheduler left one trial called one of a single variant, or its survivor a winner."""
    study = make_study(axes={"norm_position": ["post", "pre"]}, rungs=(2e14,))
    for seed in (0, 1):
        study.add({"norm_position": "post"}, rungs=[3.5 + seed / 100], seed=seed, status="stopped")
        study.add({"norm_position": "pre"}, 3.0 + seed / 100, rungs=[3.2 + seed / 100], seed=seed)
    first, *others = answer(study.write()).sentences
    assert first.startswith("No winner: of 2 variants norm_position=pre alone came to the end of the budget")
    assert any(told.startswith("norm_position=pre pays: 0.300") for told in others)


def test_survivors_are_told_from_all(make_study):
    """Would catch: the winner of those that the scheduler kept called the winner of the whole space."""
    study = make_study(axes={"normalization": ["layernorm", "layernorm_nobias", "rmsnorm"]}, rungs=(2e14,))
    for seed in (0, 1):
        study.add({"normalization": "layernorm"}, rungs=[3.5 + seed / 100], seed=seed, status="stopped")
        study.add({"normalization": "rmsnorm"}, 2.0 + seed / 100, rungs=[3.2], seed=seed)
        study.add({"normalization": "layernorm_nobias"}, 3.0 + seed / 100, rungs=[3.2], seed=seed)
    told = answer(study.write()).sentences[0]
    assert told.startswith(
        "The winner of 2 variants that came to the end of the budget (1 did not) is normalization=rmsnorm: "
    )


def ffn_study(make_study, *, standard: float, layernorm: float):
    """Two axes with three seeds each, which the FFN costs `standard` nats and LayerNorm `layernorm`."""
    study = make_study(
        base="llama", axes={"ffn_type": ["swiglu", "standard"], "normalization": ["rmsnorm", "layernorm"]}
    )
    for ffn in ("swiglu", "standard"):
        for norm in ("rmsnorm", "layernorm"):
            for seed in range(3):
                loss = 2 + standard * (ffn == "standard") + layernorm * (norm == "layernorm")
                loss += noise_of(ffn, norm, seed, sd=0.003)
                study.add({"ffn_type": ffn, "normalization": norm}, loss, seed=seed)
    return answer(study.write())


def test_the_finding_comes_first_in_the_direction_of_what_is_better(make_study):
    """Would catch: an answer that begins with what is open, names the loser alone, or hides SiLU in "standard"."""
    found = ffn_study(make_study, standard=0.2, layernorm=0.0)
    first, *_ = found.told.findings
    assert first.startswith("ffn_type=swiglu pays: 0.2")
    assert first.endswith(" against standard (silu), averaged over the other axes.")
    assert any(told.startswith("Undecided: normalization=layernorm against rmsnorm (") for told in found.told.findings)
    assert found.winner.startswith("No winner: 2 of 4 variants share rank 1 (")
    assert found.told.findings.index(found.winner) > 0
    reverse = ffn_study(make_study, standard=-0.2, layernorm=0.0)
    assert reverse.told.findings[0].startswith("ffn_type=standard (silu) pays: 0.19")
    assert " against swiglu," in reverse.told.findings[0]


def test_a_winner_comes_before_the_effects(make_study):
    """Would catch: the variant to take told after all else."""
    found = ffn_study(make_study, standard=0.2, layernorm=0.1)
    assert found.sentences[0].startswith("The winner of 4 variants is ")
    assert [told.split(" pays")[0] for told in found.sentences[1:3]] == ["ffn_type=swiglu", "normalization=rmsnorm"]


def test_equal_functions(tmp_path):
    """Would catch (A/A): a winner or an effect where there is none, or no word of it."""
    found = answer(write_study(tmp_path / "equal", effect=no_effect, seeds=3))
    assert found.sentences[0].startswith("No winner: no difference between any two of 12 variants stands out")
    assert any(told.startswith("No difference stands out; effects are known to") for told in found.sentences)


def test_noise_that_differs_is_told(make_study):
    """Would catch: one sd for a steady and a shaky variant, without a word; or a word where the sds are equal."""
    for shaky in (1, 30):
        study = make_study(f"x{shaky}", axes={"norm_position": ["pre", "post"]})
        for seed in range(8):
            study.add({"norm_position": "pre"}, 3 + noise_of("pre", seed, sd=0.002), seed=seed)
            study.add({"norm_position": "post"}, 3 + noise_of("post", seed, sd=0.002 * shaky), seed=seed)
        told = [
            told for told in answer(study.write()).sentences if told.startswith("The noise differs between variants")
        ]
        assert len(told) == (shaky > 1)
        assert all(one.index("for norm_position=pre") < one.index("for norm_position=post") for one in told)


def test_the_baseline_has_a_gain_of_one_at_every_budget(tmp_path):
    """Would catch: gains against another frontier than the baseline's, or a gain where nothing tells one."""
    folder = write_study(
        tmp_path / "gains",
        effect=lambda point: -0.5 * (point["position_encoding"] == "none"),
        frontier_budgets=(2.5e14, 5e14, 2e15),
        seeds=3,
    )
    found = answer(folder)
    table = found.table
    is_base = (table["role"] == "frontier") | (table["label"] == "gpt2")
    assert len(table[is_base].groupby("train_flops")) == 4
    assert np.allclose(table.loc[is_base, "compute_gain"], 1, atol=0.03)
    assert (table.loc[is_base, "compute_gain_low"] < 1).all()
    assert (table.loc[is_base, "compute_gain_high"] > 1).all()
    beyond = table["position_encoding"] == "none"
    assert table.loc[beyond, "compute_gain"].isna().all()
    assert table.loc[beyond, "compute_gain_reason"].str.contains("below the baseline's").all()
    assert any(f"Without a gain: {beyond.sum() // 3} (val_loss" in told for told in found.sentences)


def test_a_gain_that_vanishes_over_rungs(make_study):
    """Would catch: rungs that are no budgets, the FLOPs of a branch left out, or a trend with the wrong sign. The gain
    is 1.5 at the end, and e^-0.2 less of it for each factor e of FLOPs."""
    rungs, spent = (1e14, 3e14), np.array([1.25e14, 3.75e14, BUDGET])
    losses = {"post": 2 + 30 * spent**-0.09}
    losses["pre"] = 2 + 30 * (1.5 * (spent / BUDGET) ** -0.2 * spent) ** -0.09
    study = make_study(axes={"norm_position": ["post", "pre"]}, rungs=rungs)
    for seed in range(4):
        for place, (*scores, last) in losses.items():
            off = noise_of(place, seed, sd=1e-4)
            point = {"norm_position": place, "schedule": "wsd", "rung_decay": 0.25}
            study.add(point, last + off, rungs=[score + off for score in scores], seed=seed)
    found = answer(study.write())
    (row,) = found.trends.to_dict("records")
    assert row["slope"] == pytest.approx(-0.2, abs=0.01)
    assert row["low"] < row["slope"] < row["high"] < 0
    assert any("the gain of norm_position=pre" in told and "shrinks (-0.2" in told for told in found.sentences)


def test_one_function_that_came_through(tmp_path):
    """Would catch: a study without an answer, as all trials of all variants but one diverged."""
    diverged = {"status": "diverged", "val_loss": None}
    found = answer(
        write_study(tmp_path / "one", axes={"bias": (False, True)}, results=lambda index: diverged if index > 1 else {})
    )
    assert found.effects is None
    assert found.sentences[0].startswith("No winner: of 2 variants gpt2 alone came to the end of the budget")
    assert "No effects: all trials with a loss are of one variant." in found.sentences
    assert "2 diverged: bias=True." in found.sentences


@pytest.mark.parametrize(
    ("change", "devices"),
    [
        ({"device": "NVIDIA B200", "world_size": 8}, "1 x NVIDIA H200, 8 x NVIDIA B200"),
        ({"world_size": 2}, "1 x NVIDIA H200, 2 x NVIDIA H200"),
        ({}, None),
    ],
)
def test_no_hardware_figures_over_different_devices(change, devices, tmp_path):
    """Would catch: a rank, a gain or a change of places that is the devices', told as the variant's; or one withheld
    from a study on one kind of device."""
    budgets = (2.5e14, 5e14, 2e15)
    folder = write_study(
        tmp_path / "s", frontier_budgets=budgets, results=lambda index: change if index == 3 else {}, seeds=3
    )
    found = answer(folder)
    assert found.table["hardware_rank"].isna().all() == bool(devices)
    assert found.table["hardware_gain"].isna().all() == bool(devices)
    assert found.table["compute_gain"].notna().any()
    told = " ".join(found.sentences)
    reason = f"trials had different devices ({devices})"
    assert (f"No rank by hardware FLOPs: {reason}." in told) == bool(devices)
    assert ("the hardware FLOPs that the baseline would need" in told) != bool(devices)
    if devices:
        assert set(found.table["hardware_gain_reason"]) == {f"hardware FLOPs cannot be compared: {reason}"}
    assert ("different devices (NVIDIA B200, NVIDIA H200): what those do to a loss" in told) == ("device" in change)


def test_losses_of_different_dtypes_are_told(make_study):
    """Would catch: a variant in float32 against one in bfloat16 without a word; or a word where that is the axis."""
    for axes, is_told in (({"norm_position": ["post", "pre"]}, True), ({"precision": ["bf16", "fp32"]}, False)):
        study = make_study(next(iter(axes)), axes=axes)
        ((axis, levels),) = axes.items()
        for level, dtype in zip(levels, ("bfloat16", "float32"), strict=True):
            for seed in (0, 1):
                study.add({axis: level}, 3 + seed / 100, seed=seed, dtype=dtype)
        told = [told for told in answer(study.write()).sentences if "compute dtypes (bfloat16, float32)" in told]
        assert bool(told) == is_told
