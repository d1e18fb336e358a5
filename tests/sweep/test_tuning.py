"""Tuned fields from the space file to the planned trials."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from raytrain import tune
from raytrain.errors import UserError
from raytrain.sweep.design import choose
from raytrain.sweep.factorial import LeastSquares, Model
from raytrain.sweep.plan import Plan
from raytrain.sweep.space import load_space
from raytrain.sweep.tuning import half_width

SPACE = """
base: llama
axes: {normalization: [rmsnorm, layernorm], weight_tying: [false, true]}
tune: {learning_rate: [1e-3, 3e-3, 3e-4]}
"""
RATES = (3e-4, 1e-3, 3e-3)


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.yaml"
    path.write_text(SPACE)
    return path


def make(space: Path, *arguments: str) -> Plan:
    return tune._plan(tune._parser().parse_args(["--space", str(space), *arguments]))


def test_a_space_with_tuned_fields(tmp_path: Path) -> None:
    """Would catch levels out of order, a range that is not read, and settings that leave a combination out."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "axes: {bias: [true, false]}\n"
        "tune: {learning_rate: {low: 1e-4, high: 1e-2, count: 3}, warmup_fraction: [0.2, 0.05]}"
    )
    found = load_space(str(path))
    assert found.tune == {"learning_rate": (1e-4, 1e-3, 1e-2), "warmup_fraction": (0.05, 0.2)}
    assert [tuple(setting.values()) for setting in found.settings] == [*itertools.product(*found.tune.values())]
    assert [*found.tuned({"learning_rate": ["1", "2", "3"]}).tune["learning_rate"]] == [1, 2, 3]
    path.write_text("axes: {bias: [true, false]}")
    assert load_space(str(path)).settings == [{}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{seed: [1, 2, 3]}", "Unknown field to tune in space .*: 'seed'. Available: learning_rate"),
        ("{grad_clip: [1, 2, 3]}", "Unknown field to tune"),
        ("{learning_rate: [1e-3, 2e-3]}", r"learning_rate \(0.001, 0.002\) must have 3 levels or more"),
        ("{learning_rate: [0, 1e-3, 2e-3]}", r"learning_rate \(0\) must be above 0"),
        ("{learning_rate: [1e-3, 1e-3, 2e-3]}", "Tuned field learning_rate .* has the level 0.001 twice"),
        ("{learning_rate: 1e-3}", "tuned field learning_rate .* must be a list of levels or a range"),
        ("{learning_rate: [a, b, c]}", "Tuned field learning_rate .*must be a number"),
        ("{weight_decay: [0, 0.1]}", "weight_decay in space .* cannot be both an axis"),
        ("[learning_rate]", "tune in space .* must be a mapping of field to levels"),
    ],
)
def test_tuned_fields_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    """Would catch a misspelt or empty list of levels that tunes nothing, and a field both ranked and tuned."""
    path = tmp_path / "s.yaml"
    path.write_text(f"axes: {{weight_decay: [0, 0.1], bias: [true, false]}}\ntune: {text}")
    with pytest.raises(UserError, match=message):
        load_space(str(path))


def test_every_variant_runs_at_every_rate_with_seeds_of_its_own(space: Path) -> None:
    """Would catch a rate that a variant misses, two trials in one folder, and the same seeds at every rate, which leave
    a variant with too few to tell noise by."""
    plan = make(space, "--seeds", "2", "--seed", "5")
    assert len(plan.trials) == len({trial.id for trial in plan.trials}) == 4 * 3 * 2
    runs = Counter((trial.config.architecture.hash, trial.config.learning_rate) for trial in plan.trials)
    assert set(runs.values()) == {2}
    assert {rate for _, rate in runs} == set(RATES)
    seeds = {(trial.config.architecture.hash, trial.config.learning_rate, trial.config.seed) for trial in plan.trials}
    assert {(rate, seed) for _, rate, seed in seeds} == {
        (3e-4, 5), (3e-4, 6), (1e-3, 7), (1e-3, 8), (3e-3, 9), (3e-3, 10),
    }  # fmt: skip
    trial = next(trial for trial in plan.trials if trial.config.learning_rate == 3e-3)
    assert "-lr0.003-s" in trial.id
    assert trial.to_dict()["tuned"] == {"learning_rate": 3e-3}
    assert "learning_rate" not in plan.axes
    assert "learning_rate" not in trial.levels


def test_the_plan_says_what_tuning_costs(space: Path) -> None:
    """Would catch a price that leaves out a rate, and a resolution that is that of runs at one rate."""
    plan, single = make(space, "--seeds", "2"), make(space, "--seeds", "2", "--tune", "learning_rate=1,2,3,4")
    assert plan.tuning is not None
    assert "3 x the runs and FLOPs of a study at one recipe (24 for 8" in str(plan)
    assert plan.total_flops == pytest.approx(24 * plan.budget_flops, rel=1e-3)
    assert "each at its own best, is known to about +-" in str(plan)
    assert len(single.trials) == 32
    assert json.loads(json.dumps(plan.to_dict()))["tuning"]["levels"] == {"learning_rate": list(RATES)}


def test_promised_half_width() -> None:
    """Would catch a promise that is not what least squares gives: simulated, optimum in the middle, equal noise."""
    draws = np.random.default_rng(0)
    rates, seeds, studies = np.array([1e-3, 2e-3, 4e-3, 8e-3]), 2, 4000
    x = np.repeat(np.log(rates) - np.log(rates).mean(), seeds)
    terms = np.vander(x, 3)
    widths = []
    for place in np.linspace(-0.5, 0.5, 21) * x.max():
        row = place ** np.array([2, 1, 0])
        estimates = row @ np.linalg.pinv(terms) @ (draws.normal(size=(len(x), studies, 2)) @ [1, -1])
        widths.append(estimates.std())
    expected = np.mean(widths) * scipy.stats.t.ppf(0.975, len(x) - 3)
    assert half_width(list(rates), seeds) == pytest.approx(expected, rel=0.02)
    assert half_width([1, 2, 3], 1) is None


def test_max_trials_keeps_whole_variants(space: Path) -> None:
    """Would catch a variant that is cut off in the middle of its rates."""
    plan = make(space, "--max_trials", "8")
    assert Counter(trial.config.architecture.hash for trial in plan.trials).most_common() == [
        (trial.config.architecture.hash, 3) for trial in {t.label: t for t in plan.trials}.values()
    ]
    with pytest.raises(UserError, match=r"max_trials \(2\) must be 3 or more"):
        make(space, "--max_trials", "2")


def test_frontier_runs_at_every_rate(space: Path) -> None:
    """Would catch a frontier whose budgets all have the recipe's rate, which is the best of none."""
    plan = make(space, "--frontier_budgets", "0.25,0.5")
    runs = Counter((t.config.flops, t.config.learning_rate) for t in plan.trials if t.role == "frontier")
    assert {rate for _, rate in runs} == set(RATES)
    assert set(runs.values()) == {2}
    assert len(runs) == 2 * 3  # the budget itself has the baseline's own runs


def test_options_that_do_not_go_with_tuning(space: Path) -> None:
    """Would catch rungs that stop a variant's worse rates, and a design that has no column for a tuned field."""
    for arguments, words in (
        (("--tune_extend", "--design", "d_optimal", "--trials", "24"), "tune_extend cannot be combined with design"),
        (("--scheduler", "halving"), r"tune \(learning_rate\) cannot be combined with scheduler halving"),
        (("--design", "d_optimal", "--trials", "30", "--tune", "weight_decay=0,1"), "spreads runs over learning_rate"),
    ):
        with pytest.raises(UserError, match=words):
            make(space, *arguments)


def test_designs_of_named_points_run_at_every_rate(space: Path) -> None:
    """Would catch a one-at-a-time design whose points have one rate each."""
    plan = make(space, "--design", "one_at_a_time", "--seeds", "2")
    runs = Counter((trial.label, trial.config.learning_rate) for trial in plan.trials)
    assert len(runs) == 3 * 3
    assert plan.design is not None
    assert len(plan.design.trials) == len(plan.trials) == 3 * (3 + 2 + 2)


def test_d_optimal_spreads_over_rates(space: Path) -> None:
    """Would catch a design with one rate, or with rates that cannot give each level a curve of its own; and a baseline
    whose replicates are not at the recipe's rate."""
    plan = make(space, "--design", "d_optimal", "--trials", "24")
    assert len(plan.trials) == 24
    assert plan.tuning is not None
    assert plan.tuning.spreads
    points = [dict(trial.levels) | dict(trial.tuned) for trial in plan.trials]
    model = Model(points, plan.baseline, tuned="learning_rate")
    assert model.size == LeastSquares(model.matrix(points)).rank == 1 + 2 + 1 + 2 * (1 + 2)
    base = Counter(t.config.learning_rate for t in plan.trials if not t.config.architecture.weight_tying
                   and t.config.architecture.normalization == "rmsnorm")  # fmt: skip
    assert base[1e-3] >= 3


def test_a_surface_gives_each_level_its_own_curve() -> None:
    """Would catch columns that tie two levels' optima or curvatures together: exact losses of known parabolas."""
    points = [{"a": a, "b": b, "rate": rate} for a in "xyz" for b in "pq" for rate in (0.1, 0.2, 0.4, 0.9)]
    optimum, curvature = {"x": 0.2, "y": 0.3, "z": 0.5}, {"x": 1.0, "y": 4.0, "z": 8.0}

    def loss(point: dict[str, object]) -> float:
        a = str(point["a"])
        away = math.log(float(str(point["rate"])) / optimum[a])
        return 3 + 0.1 * "xyz".index(a) + 0.3 * (point["b"] == "q") + curvature[a] * away**2

    model = Model(points, {"a": "x", "b": "p"}, tuned="rate")
    losses = np.array([loss(point) for point in points])
    coefficients = LeastSquares(model.matrix(points)).weights(np.eye(model.size)) @ losses
    for a in "xyz":
        constant, slope, bend = model.over_rates([point for point in points if point["a"] == a]) @ coefficients
        best = model.middle - model.reach * slope / (2 * bend)
        assert math.exp(best) == pytest.approx(optimum[a])
        assert bend / model.reach**2 == pytest.approx(curvature[a])
        assert constant - slope**2 / (4 * bend) == pytest.approx(3.15 + 0.1 * "xyz".index(a))
    assert {effect.axes for effect in model.effects} == {("a",), ("b",), ("a", "b")}
    assert model.pairs == [("a", "b")]


def test_d_optimal_needs_runs_for_the_curves() -> None:
    """Would catch a design that is too small for its columns, and says it is enough."""
    points = [{"a": a, "learning_rate": rate} for a in (0, 1) for rate in RATES]
    with pytest.raises(UserError, match=r"must be 8 or more for the 6 coefficients of .* and the curves in learning_"):
        choose(points, "d_optimal", trials=7, tuned="learning_rate", base=1)


def test_a_study_may_go_beyond_its_rates(space: Path) -> None:
    """Would catch a plan that confirms before the rates are found, and an extension of nothing."""
    plan = make(space, "--seeds", "2", "--tune_extend", "--confirm", "2")
    assert [entry["stage"] for entry in plan.grows] == ["extend", "confirm"]
    assert plan.tuning is not None
    assert plan.tuning.flops == pytest.approx(24 * plan.budget_flops, rel=1e-3)
    assert "8 runs for each if all do" in str(plan)
    assert make(space).grows == []
    space.write_text("axes: {bias: [true, false]}")
    with pytest.raises(UserError, match="tune_extend needs learning_rate among the tuned fields"):
        make(space, "--tune_extend")
