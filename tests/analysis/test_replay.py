import itertools
import json
import time

import numpy as np
import pytest

from raytrain.analysis.replay import record, replay
from raytrain.analysis.simulate import coverage, rung_survival, study_table, truths, variants
from raytrain.errors import UserError
from raytrain.replay import main
from raytrain.sweep.factorial import Model
from tests.studies import write_study

CUBE = [dict(zip("abc", levels, strict=True)) for levels in itertools.product((0, 1), repeat=3)]


def table(losses, seeds=1, sd=0.0, rungs=(1e14, 4e14)):
    return study_table(CUBE, np.asarray(losses), np.random.default_rng(0), seeds=seeds, rungs=rungs, noise_sd=sd)


@pytest.fixture(scope="module")
def study():
    """The 720 variants with 20 seeds each."""
    points, draws = variants(), np.random.default_rng(0)
    losses, _ = truths(Model(points, points[0]), points, 1, draws)
    return study_table(points, losses[:, 0], draws, seeds=20)


def test_the_d_optimal_design_covers_resolves_and_wins():
    """Bug: intervals too narrow or too wide (93 to 97% must hold the truth), other half-widths than the plan promised,
    or a winner no better than the best run of the full grid."""
    found = coverage(trials=128, replays=1000)
    for suffix in ("", "_interactions"):
        assert 0.93 <= found[f"coverage{suffix}"] <= 0.97
        assert found[f"half_width{suffix}_over_promised"] == pytest.approx(1, abs=0.1)
    assert found["regret_model"] <= found["regret_grid"] / 2


def test_the_best_survive_exact_rungs():
    """Bug: rungs in steps, which favour whoever has spent more FLOPs. Binomial sd of 500 x 4: 0.01."""
    assert rung_survival("flops", 500) >= 0.75
    assert rung_survival("steps", 500) == pytest.approx(0.33, abs=0.05)
    assert rung_survival("flops", 500, spread=0) == rung_survival("steps", 500, spread=0)


def test_a_replay_without_noise_by_hand():
    """Bug: FLOPs of trials that were not run, a regret against another point than the best, trials of another rung."""
    losses = [3.0, 2.5, 2.8, 2.9, 3.1, 3.2, 2.4, 2.7]
    everything = replay(record(table(losses)), "full", replays=3)
    assert (everything.trials, everything.flops, everything.seconds) == (8, 8 * 4e14, 8 * 40.0)
    assert everything.regret_observed == 0
    one_at_a_time = replay(record(table(losses)), "one_at_a_time", replays=3)
    assert (one_at_a_time.trials, one_at_a_time.flops) == (4, 4 * 4e14)
    assert one_at_a_time.regret_observed == pytest.approx(0.1)  # 000, 001, 010 and 100: 2.5 against 2.4
    assert one_at_a_time.coverage is None  # no degrees of freedom, no intervals


def test_halving_by_hand():
    """Bug: survivors paid for at the first rung, stopped trials at the last, or a winner among the stopped."""
    found = replay(record(table([3.0, 2.5, 2.8, 2.9, 3.1, 3.2, 2.4, 2.7])), "full", "halving", factor=4, replays=3)
    assert found.flops == 6 * 1e14 + 2 * 4e14
    assert found.regret_observed == 0
    assert found.regret_model is None
    late = table([3.0, 2.5, 2.8, 2.9, 3.1, 3.2, 2.4, 2.7])  # the seventh point is best, but only at the last rung
    late.loc[(late["a"] + late["b"] == 2) & (late["c"] == 0) & (late["rung"] == 0), "val_loss"] = 9.0
    assert replay(record(late), "full", "halving", replays=3).regret_observed == pytest.approx(0.1)


def test_halving_over_three_rungs_by_hand():
    """Bug: trials stopped at the second rung paid as if at the first or the last."""
    rows = table([3.0, 2.5, 2.8, 2.9, 3.1, 3.2, 2.4, 2.7], rungs=(1e14, 2e14, 4e14))
    found = replay(record(rows), "full", "halving", factor=2, replays=3)
    assert found.flops == 4 * 1e14 + 2 * 2e14 + 2 * 4e14
    assert found.seconds == 4 * 10 + 2 * 20 + 2 * 40


def test_effects_are_those_of_the_rung_that_all_reach():
    """Bug: effects under halving from a rung that few trials reached, or from the first where none was stopped."""
    rows = table([3.0] * 8, seeds=4, sd=0.01)
    rows.loc[rows["rung"] == 0, "val_loss"] = 3.5  # no noise at the first rung
    assert replay(record(rows), "full", "halving", seeds=3, replays=20).half_width == pytest.approx(0, abs=1e-9)
    assert replay(record(rows), "full", seeds=3, replays=20).half_width > 0.005


def test_the_best_model_finds_what_no_run_showed():
    """Bug: the model's winner sought among the runs alone."""
    losses = [3 - 0.1 * point["a"] - 0.1 * point["b"] - 0.1 * point["c"] for point in CUBE]
    found = replay(record(table(losses)), "one_at_a_time", replays=3)
    assert found.regret_observed == pytest.approx(0.2)
    assert found.regret_model == pytest.approx(0)


def test_diverged_trials_lose_and_leave_the_rest_sound():
    """Bug: NaN that wins a rung, or that makes every effect of a replay NaN; FLOPs spent after a divergence."""
    rows = table([3.0, 2.5, 2.8, 2.9, 3.1, 3.2, 2.4, 2.7], seeds=4, sd=0.01)
    dead = (rows["a"] == 1) & (rows["b"] == 1) & (rows["c"] == 0) & (rows["seed"] < 2)
    rows.loc[dead, "status"] = "diverged"
    rows = rows.assign(val_loss=rows["val_loss"].mask(dead))[~(dead & (rows["rung"] == 1))]
    found = replay(record(rows), "full", seeds=3, base_seeds=3, replays=200)
    assert found.coverage > 0.8
    assert found.flops == pytest.approx(21 * 4e14 + 3 * (4e14 + 1e14) / 2, rel=0.01)
    halved = replay(record(rows), "full", "halving", factor=8, replays=50)
    assert halved.regret_observed < 0.1


def test_replays_of_a_study_agree_with_its_truth(study):
    """Bug: intervals that do not cover, or a random fraction as good as the D-optimal one."""
    chosen = replay(record(study), "d_optimal", trials=128, replays=100)
    chance = replay(record(study), "random", trials=128, replays=100)
    assert 0.93 <= chosen.coverage <= 0.97
    assert 0.93 <= chosen.coverage_interactions <= 0.97
    assert chosen.half_width < 0.8 * chance.half_width
    assert chosen.regret_model < chosen.regret_observed


def test_the_command_prints_a_thousand_replays(study, tmp_path, capsys):
    """Bug: replays one at a time (1,000 must take less than 60 s), or a replay that its seed does not repeat."""
    study.to_parquet(tmp_path / "study.parquet")
    start = time.perf_counter()
    outputs = []
    for _ in range(2):
        command = [str(tmp_path / "study.parquet"), "--design", "one_at_a_time", "--seeds", "5", "--json"]
        assert main(command) == 0
        outputs.append(capsys.readouterr().out)
    assert time.perf_counter() - start < 60
    assert outputs[0] == outputs[1]
    found = json.loads(outputs[0])
    assert (found["replays"], found["trials"]) == (1000, 65)
    assert main([*command[:-1], "--scheduler", "halving", "--replays", "10"]) == 0
    assert "regret_observed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--design", "ful"], "Did you mean full?"),
        (["--scheduler", "asha"], "Unknown scheduler: 'asha'. Available: none, halving"),
        (["--design", "d_optimal"], "design d_optimal needs --trials N"),
        (["--replays", "-3"], "replays (-3) must be 1 or more"),
        (["--replays", "0"], "replays (0) must be 1 or more"),
        (["--seed", "-1"], "seed (-1) must be 0 or more"),
        (["--factor", "1"], "factor (1) must be 2 or more"),
        (["--seeds", "0"], "seeds (0) must be 1 or more"),
        (["--base", "8"], "base (8) must be the number of a point, 0 to 7"),
        (["--base", "-1"], "base (-1) must be the number of a point, 0 to 7"),
    ],
)
def test_mistakes_are_one_line(flags, message, tmp_path, capsys):
    """Bug: a traceback for a mistyped flag or a file that is no table; a number that makes no sense taken for another,
    as the last point for a base of -1."""
    table([3.0] * 8).to_parquet(tmp_path / "study.parquet")
    assert main([str(tmp_path / "study.parquet"), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("place", "message"), [("none/t.parquet", "none/t.parquet) cannot be"), (".", ") cannot be")])
def test_a_table_that_cannot_be_written(place, message, tmp_path, capsys):
    """Bug: a traceback for a table in a folder that is none, or a folder in place of a file."""
    study = write_study(tmp_path / "s", seeds=1)
    assert main([str(tmp_path / place), "--export", str(study)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_tables_that_cannot_be_replayed(tmp_path, capsys):
    """Bug: a KeyError for a missing column; stopped trials replayed as if they had diverged."""
    assert main([str(tmp_path / "none.parquet")]) == 2
    (tmp_path / "text.parquet").write_text("no parquet")
    assert main([str(tmp_path / "text.parquet")]) == 2
    (tmp_path / "study.json").write_text("{}")
    assert main([str(tmp_path)]) == 2
    assert main(["a" * 300]) == 2
    assert capsys.readouterr().err.count("\n") == 4
    with pytest.raises(UserError, match="missing: rung"):
        record(table([3.0] * 8).drop(columns="rung"))
    with pytest.raises(UserError, match="8 rows of stopped trials"):
        record(table([3.0] * 8).assign(status=lambda rows: np.where(rows["rung"] == 0, "stopped", "complete")))
