"""Rungs: steps that end at equal FLOPs, and scores that leave the trunk as it was."""

import itertools
import json

import pytest

from raytrain.accounting.flops import flops_per_token
from raytrain.errors import UserError
from raytrain.training.loop import train
from tests.ranks import Ranks, write_losses


@pytest.fixture(scope="module")
def halved(tiny_run):
    """1,010.5 sequences' worth of FLOPs, with a rung at about half; any field changed."""

    def make(**changes):
        per_sequence = flops_per_token(tiny_run(preset=changes.get("preset", "gpt2")).architecture).per_sequence
        wsd = {"schedule": "wsd", "warmup_fraction": 0.0}
        return tiny_run(flops=1010.5 * per_sequence, rungs=(505.3 * per_sequence,), log_interval=1, **(wsd | changes))

    return make


def reports_of(config, pause_at=None, folder=None):
    reports = []

    def on_report(report):
        reports.append(report)
        return report["event"] == "rung" and report["rung"] == pause_at

    result = train(config, on_report, folder)
    return result, reports


def losses(reports):
    return {report["step"]: report["loss"] for report in reports if report["event"] == "step"}


@pytest.mark.parametrize("preset", ["gpt2", "llama", "openai_gpt2"])
def test_steps_end_at_the_rung_and_no_sequence_is_lost(halved, preset):
    """Would catch rungs rounded to whole steps, of which architectures take different FLOPs, and sequences that are
    trained twice or never around one."""
    config = halved(preset=preset)
    result, reports = reports_of(config)
    (rung,) = [report for report in reports if report["event"] == "rung"]
    assert rung["train_flops"] == pytest.approx(config.rungs[0], rel=1e-3)
    assert (rung["step"], result["steps"]) == (32, 64)
    assert abs(result["train_flops"] - config.flops) <= flops_per_token(config.architecture).per_sequence / 2
    spans = [config.span(step) for step in range(config.total_steps)]
    assert spans[0][0] == 0
    assert all(first + count == after for (first, count), (after, _) in itertools.pairwise(spans))
    assert sum(count for _, count in spans) == config.total_sequences
    assert {count for _, count in spans} == {16, 505 - 31 * 16, config.total_sequences - 505 - 31 * 16}


@pytest.mark.parametrize("rung_decay", [0.0, 0.1])
def test_a_paused_run_goes_on_as_if_it_had_not_been(halved, tmp_path, rung_decay):
    """Would catch weights, moments, data or dropout that a pause loses or a branch leaks into the trunk, and a rung
    that a run which was killed at it never reports."""
    config = halved(dropout=0.1, rung_decay=rung_decay, checkpoint_interval=None)
    plain, expected = reports_of(halved(dropout=0.1))
    first, before = reports_of(config, pause_at=0, folder=tmp_path)
    again, said = reports_of(config, pause_at=0, folder=tmp_path)
    last, after = reports_of(config, folder=tmp_path)
    rungs = [[r for r in reports if r["event"] == "rung"] for reports in (before, said, after)]
    assert [len(reports) for reports in rungs] == [1, 1, 1]
    assert len({reports[0]["val_loss"] for reports in rungs}) == 1
    assert (first["status"], again["status"], last["status"]) == ("paused", "paused", "complete")
    assert first["val_loss"] == again["val_loss"] == rungs[0][0]["val_loss"]
    assert losses(said) == {}
    assert losses(before) | losses(after) == losses(expected)
    assert last["val_loss"] == plain["val_loss"]
    assert (last["decay_flops"] > 0) == (rung_decay > 0)


def test_the_score_is_the_loss_of_a_run_that_ended_there(halved):
    """Would catch a branch with another schedule, data or length than a run of its own whose budget is the rung's and
    the decay's."""
    config = halved(rung_decay=0.1)
    _, reports = reports_of(config)
    (rung,) = [report for report in reports if report["event"] == "rung"]
    branch = round(0.1 * 505)
    per_sequence = flops_per_token(config.architecture).per_sequence
    assert rung["decay_flops"] == branch * per_sequence
    own = config.replace(flops=float((505 + branch) * per_sequence), rung_decay=0.0)
    steps = own.total_steps - own.rung_steps[0]
    result, _ = reports_of(own.replace(decay_fraction=steps / own.total_steps))
    assert result["val_loss"] == rung["val_loss"]


@pytest.mark.parametrize("parallel", ["fsdp", "zero1"])
def test_branches_on_two_ranks(halved, tmp_path, parallel):
    """Would catch a trunk that goes on with a branch's gathered parameters (FSDP keeps the root's after an evaluation),
    or with the moments of another rank."""
    config = halved(rung_decay=0.1, parallel=parallel)
    _, alone = reports_of(config.replace(parallel="single"))
    out = tmp_path / "two.jsonl"
    assert Ranks(2, write_losses, config, out).join() == [0, 0]
    two = [json.loads(line) for line in out.read_text().splitlines()]
    assert losses(two) == pytest.approx(losses(alone), rel=1e-5)
    scores = [[r["val_loss"] for r in reports if r["event"] == "rung"] for reports in (alone, two)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": (2e9, 1e9)}, "must ascend"),
        ({"rungs": (1e30,)}, "below the budget"),
        ({"rungs": (1e8,)}, "too few to end within 0.1%"),
        ({"rung_decay": 0.1, "schedule": "cosine"}, "goes with schedule wsd"),
        ({"rung_decay": 2.0}, r"rung_decay \(2.0\) must be from 0 to 1"),
    ],
)
def test_mistakes(halved, changes, message):
    """Would catch rungs that no trial can meet, and a score after a decay that cosine has no way back from."""
    with pytest.raises(UserError, match=message):
        halved().replace(**changes)
