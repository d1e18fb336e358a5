import itertools

import numpy as np
import pandas as pd
import pytest

from raytrain.analysis.confirmation import after_halving, at_own_best, in_order, on_surface
from raytrain.sweep.design import choose

AXES = {"a": (0, 1), "b": (0, 1, 2), "c": (0, 1)}
GRID = [dict(zip(AXES, levels, strict=True)) for levels in itertools.product(*AXES.values())]
BASE = GRID[0]


def true_loss(point):
    return 3 - 0.021 * point["a"] - 0.013 * point["b"] + 0.03 * point["c"] - 0.02 * point["a"] * (point["b"] == 2)


def test_the_model_finds_a_leader_that_never_ran():
    """Catches a leader among the runs alone, where a design leaves the best variant to the model."""
    best = min(GRID, key=true_loss)
    runs = [point for point in GRID if point != best]
    order = in_order(runs, [true_loss(point) for point in runs], BASE, GRID)
    assert order.basis == "fitted model"
    assert list(order.points) == sorted(GRID, key=true_loss)
    gaps = np.subtract(order.losses, order.losses[0])
    assert gaps == pytest.approx([true_loss(point) - true_loss(best) for point in order.points], abs=1e-9)


def test_with_replicates_of_all_the_means_decide():
    """Catches a model's bias where it is not needed: a triple interaction makes one variant best that no pair shows."""
    special = {"a": 1, "b": 0, "c": 1}
    runs = [point for point in GRID for _ in range(2)]
    losses = [true_loss(point) - 0.2 * (point == special) + 0.001 * (n % 2) for n, point in enumerate(runs)]
    order = in_order(runs, losses, BASE, GRID)
    assert order.basis == "mean of its runs"
    assert order.points[0] == special
    once = in_order(runs[::2], losses[::2], BASE, GRID)
    assert once.basis == "fitted model"
    alone = in_order(runs[:2], losses[:2], BASE, GRID)
    assert (alone.basis, alone.points) == ("mean of its runs", [BASE])  # a model of one variant says nothing


def test_the_order_does_not_depend_on_that_of_the_runs():
    """Catches a resume that decides otherwise since its table is in another order."""
    losses = [3.0] * len(GRID)
    order = in_order(GRID, losses, BASE, GRID)
    back = in_order(GRID[::-1], losses, BASE, GRID[::-1])
    assert list(order.points) == list(back.points)


def test_after_halving_those_that_came_furthest_lead():
    """Catches a trial that a rung stopped, whose loss there is that of fewer FLOPs, before one that went on; and one
    seed that went on counted together with one that did not."""
    runs = [GRID[0], GRID[0], GRID[1], GRID[2], GRID[3]]
    order = after_halving(runs, [2.0, 3.1, 2.5, 3.2, 3.0], [4e12, 1e12, 4e12, 1e12, 1e12])
    assert order.points == [GRID[0], GRID[1], GRID[3], GRID[2]]
    assert order.losses == [2.0, 2.5, 3.0, 3.2]


def test_each_variant_leads_by_its_own_best_learning_rate():
    """Catches a leader by the mean over rates, or at a shared one, where a variant's own best lies elsewhere; and a
    confirmation at another rate than that."""
    best = {0: 1e-3, 1: 4e-3}
    rates = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
    runs = [{"a": level, "b": 0, "c": 0} for level in best for _ in rates]
    tuned = [{"learning_rate": rate} for _ in best for rate in rates]
    losses = [
        3.0 - 0.01 * run["a"] + 0.05 * np.log(own["learning_rate"] / best[run["a"]]) ** 2
        for run, own in zip(runs, tuned, strict=True)
    ]
    order = at_own_best(runs, losses, list(range(len(runs))), tuned)
    assert [point["a"] for point in order.points] == [1, 0]
    assert order.losses == pytest.approx([2.99, 3.0], abs=1e-6)
    assert [setting["learning_rate"] for setting in order.tuned] == pytest.approx([4e-3, 1e-3], rel=1e-3)
    means = {level: np.mean(losses[6 * level : 6 * level + 6]) for level in best}
    assert means[0] < means[1]  # by the mean over rates the other one would lead


def test_a_design_over_rates_leads_by_the_fitted_surface():
    """Catches the variant that happened to run at its best rate as the leader, and a leader that never ran passed over:
    a design gives a variant a rate or two, and exact losses give the surface exactly."""
    rates = [5e-4, 1e-3, 2e-3, 4e-3]

    def curve(point, rate):
        u = np.log2(rate / 1e-3) - 0.5 - 0.5 * point["a"] + 0.4 * point["c"]
        return 3 - 0.03 * point["a"] - 0.01 * point["b"] * (1 - point["a"]) + 0.02 * point["c"] + 0.05 * u**2

    def best_rate(point):
        return 1e-3 * 2 ** (0.5 + 0.5 * point["a"] - 0.4 * point["c"])

    candidates = [{**point, "learning_rate": rate} for point in GRID for rate in rates]
    design = choose(candidates, "d_optimal", trials=40, tuned="learning_rate", base=1)
    leader = min(GRID, key=lambda point: curve(point, best_rate(point)))
    runs = [point for point in (candidates[index] for index, _ in design.trials) if not point.items() >= leader.items()]
    table = pd.DataFrame(runs).assign(val_loss=[curve(run, run["learning_rate"]) for run in runs], status="complete")
    order = on_surface(table, list(AXES), BASE, GRID)
    expected = {tuple(point.values()): curve(point, best_rate(point)) for point in GRID}
    found = {tuple(point[axis] for axis in AXES): loss for point, loss in zip(order.points, order.losses, strict=True)}
    assert found == pytest.approx(expected, abs=1e-9)
    assert order.points[0] == leader
    assert [setting["learning_rate"] for setting in order.tuned] == pytest.approx(
        [best_rate(point) for point in order.points], rel=1e-3
    )
    assert dict(table.loc[table["val_loss"].idxmin(), list(AXES)]) != leader
