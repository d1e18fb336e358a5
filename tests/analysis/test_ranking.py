import json
import math

import numpy as np
import pandas as pd
import pytest

from raytrain.analysis.noise import Means, Noise, declare_winner
from raytrain.analysis.ranking import budget_noise, loss_per_flop, places, programs, rank, read_study
from raytrain.analysis.simulate import unequal_ranks
from raytrain.errors import UserError


def table(*rows):
    common = {"status": "complete", "seed": 0, "vocab_size": 256, "budget_flops": 1e18, "train_flops": 10**18}
    return pd.DataFrame([common | row for row in rows])


def test_loss_per_flop():
    """Would catch: a wrong unit, sign or starting loss. ln 256 = 5.545177: 2.545177 nats over 2 EFLOP."""
    assert loss_per_flop(3.0, 256, 2e18) == pytest.approx(2.545177444479562 / 2, rel=1e-12)
    assert loss_per_flop(math.log(50304), 50304, 1e15) == 0


def test_best_first():
    """Would catch: a ranking upside down, or ratios that do not belong to their rows."""
    ranked = rank(
        table({"trial": "a", "val_loss": 3.0}, {"trial": "b", "val_loss": 2.0}, {"trial": "c", "val_loss": 2.5})
    )
    assert list(ranked["trial"]) == ["b", "c", "a"]
    assert list(ranked["rank"]) == [1, 2, 3]
    assert list(ranked["loss_per_flop"]) == pytest.approx([3.545177, 3.045177, 2.545177], abs=1e-6)


def test_no_credit_for_an_overshoot():
    """Would catch: 0.4% less compute than the budget ranked as 30 millinats of loss, at a vocabulary of 50,304."""
    ranked = rank(
        table(
            {"trial": "a", "val_loss": 3.0, "train_flops": 1.004e18, "hardware_flops": 2.008e18},
            {"trial": "b", "val_loss": 3.001, "train_flops": 0.996e18, "hardware_flops": 1.992e18},
        ).assign(vocab_size=50304)
    )
    assert list(ranked["trial"]) == ["a", "b"]
    assert list(ranked["rank"]) == list(ranked["hardware_rank"]) == [1, 2]


def test_ties_share_the_better_rank():
    """Would catch: equal results that are told apart by their order in the table."""
    ranked = rank(table(*({"val_loss": loss} for loss in (2.0, 3.0, 2.0, 2.5))))
    assert list(ranked["rank"]) == [1, 1, 3, 4]


@pytest.mark.parametrize(("share", "is_ok"), [(0.996, 1), (1.004, 1), (0.994, 0), (1.006, 0), (0.1, 0)])
def test_a_trial_off_the_budget_has_no_rank(share, is_ok):
    """Would catch: a trial that stopped early, and so has the best ratio by far, ranked first."""
    ranked = rank(
        table({"trial": "full", "val_loss": 2.0}, {"trial": "off", "val_loss": 2.9, "train_flops": share * 1e18})
    )
    off = ranked[ranked["trial"] == "off"].iloc[0]
    assert off["budget_ok"] == is_ok
    assert pd.isna(off["rank"]) != bool(is_ok)
    assert list(ranked["trial"]) == ["full", "off"]


def test_failures_are_last_and_unranked():
    """Would catch: a failed, diverged or unfinished trial among the ranked, or the best of the unranked behind them."""
    ranked = rank(
        table(
            {"trial": "failed", "status": "failed", "train_flops": None},
            {"trial": "running", "status": "running", "val_loss": 1.0},
            {"trial": "short", "val_loss": 1.5, "train_flops": 10**17},
            {"trial": "diverged", "status": "diverged"},
            {"trial": "good", "val_loss": 2.0},
        )
    )
    assert list(ranked["trial"])[:2] == ["good", "short"]
    assert list(ranked["rank"].isna()) == [False, True, True, True, True]


def test_hardware_flops_count_where_known():
    """Would catch: a hardware ratio from model FLOPs, or an error where the peak of the device is unknown."""
    half = table({"val_loss": 2.0, "hardware_flops": 4e18}, {"val_loss": 3.0})
    assert list(rank(half)["loss_per_hardware_flop"].round(6)) == pytest.approx(
        [3.545177 / 4, math.nan], nan_ok=True, abs=1e-6
    )
    assert rank(table({"val_loss": 2.0}))["loss_per_hardware_flop"].isna().all()


def test_flops_beyond_64_bits():
    """Would catch: an overflow at the 2e20 FLOPs of the 1.3b scale; a 64-bit integer ends at 9.2e18."""
    big = table({"val_loss": 2.0, "train_flops": 2 * 10**20, "budget_flops": 2 * 10**20})
    assert list(rank(big)["rank"]) == [1]


def seeds(**variants):
    """A table of variants with losses by seed, such as a=[2.0, 2.1]."""
    return table(
        *(
            {"trial": f"{name}{seed}", "hash": name, "seed": seed, "val_loss": loss, "mfu": 0.5, "hardware_flops": 2e18}
            for name, losses in variants.items()
            for seed, loss in enumerate(losses)
        )
    )


def test_the_seeds_of_a_function_are_one_entry():
    """Would catch: a lucky seed ahead of a better variant, seeds counted as rivals, or one variant's trials apart."""
    ranked = rank(seeds(lucky=[2.0, 3.0], steady=[2.4, 2.41], worst=[99.0, 99.01]))
    assert list(ranked["trial"]) == ["steady0", "steady1", "lucky0", "lucky1", "worst0", "worst1"]
    assert list(ranked["rank"]) == [1, 1, 1, 1, 3, 3]


def test_ties_within_the_noise_share_a_rank():
    """Would catch: a margin of another size. Three variants with 4 seeds each, all +-0.01: sd 0.01 sqrt(4 / 3), df 9.

    The studentized range of 3 means with 9 df is 3.948 (from tables), so the margin is 3.948 x 0.011547 / 2 = 0.0228.
    For the first place it is 3.143 x 0.011547 / sqrt(2) = 0.02566: the 98% one of Student's t with the 6 df of the two.
    """

    def ranks(*values):
        runs = seeds(**{name: [x - 0.01, x - 0.01, x + 0.01, x + 0.01] for name, x in zip("abc", values, strict=True)})
        return rank(runs.assign(seed=range(12)))["rank"].tolist()[::4]  # no two share a seed

    assert ranks(2.0, 3.0, 3.0227) == [1, 2, 2]
    assert ranks(2.0, 3.0, 3.0229) == [1, 2, 3]
    assert ranks(3.0, 3.0256, 4.0) == [1, 1, 3]
    assert ranks(3.0, 3.0257, 4.0) == [1, 2, 3]


def test_what_a_seed_does_to_all_is_no_noise():
    """Would catch: variants that share a rank as their seeds are far apart, in the same way for all of them; or, where
    one lacks a seed, a variant that is ahead by its luck with the others."""
    losses = {"a": [3.0, 3.5, 3.2], "b": [3.02, 3.521, 3.219], "c": [3.041, 3.54, 3.24]}
    assert list(rank(seeds(**losses))["rank"]) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    without = seeds(**losses)[lambda runs: runs["trial"] != "c1"]  # its mean is now the least
    ranked = rank(without)
    assert ranked.groupby("hash")["rank"].first().to_dict() == {"a": 1, "b": 2, "c": 3}


def means(values, runs, noise):
    """Groups of these means and numbers of runs, all of the same noise."""
    runs = np.array(runs)
    variances = 1 / runs[:, None] + 1 / runs
    dfs = np.full(variances.shape, float(noise.df))
    return Means(pd.Index(range(len(runs))), values, variances, noise, runs, noise.sd * np.sqrt(variances), dfs, None)


def test_a_chain_of_ties_is_not_one_tie():
    """Would catch: ranks shared from neighbour to neighbour, so that the first and the last of a long row are equal; or
    the middle one parted from a neighbour that it cannot be told from."""
    margin = 3.32 * 0.01 / 2  # q of 3 means with 1,000 df
    assert places(means(-np.array([0, -0.7, -1.4]) * margin, [4] * 3, Noise(0.01, 1000, "seeds"))).tolist() == [1, 1, 2]
    assert places(means(-np.array([0, -0.7, -0.9]) * margin, [4] * 3, Noise(0.01, 1000, "seeds"))).tolist() == [1, 1, 1]
    assert places(means(-np.array([-1.4, 0, -2.8]) * margin, [4] * 3, Noise(0.01, 1000, "seeds"))).tolist() == [2, 1, 3]


def test_what_a_rank_says_is_so():
    """Would catch: a rank above one with a higher mean, one that fewer entries are better than it says, or a lone first
    that the test for a winner does not find, or the reverse. Of entries with other numbers of runs too."""
    draws = np.random.default_rng(0)
    lone = 0
    for _ in range(300):
        values, runs = draws.normal(0, 0.01, 6), draws.integers(1, 6, 6)
        equals = means(-values, runs, Noise(0.005, 12, "seeds"))
        found = places(equals)
        by_value = found[np.argsort(-values)]
        assert (np.diff(by_value) >= 0).all()
        margins = 2.179 * 0.005 * np.sqrt(1 / runs[:, None] + 1 / runs)  # t: the least that a claim may rest on
        better = np.sum(values[:, None] - values > margins, axis=0)
        assert (found - 1 <= better).all()
        winner = declare_winner(equals)
        assert (np.count_nonzero(found == 1) == 1) == (winner is not None)
        lone += winner is not None
    assert 10 < lone < 200


@pytest.mark.parametrize("runs", [[3] * 20, [5] + [1] * 19, [4, 4], [1, 9, 9]])
def test_identical_configurations_share_a_rank(runs):
    """Would catch (A/A): the worst of twenty equals ranked behind the best, as a test of each pair by itself does.

    5% are allowed, and what the winner's own test adds to that (1% at most), plus 3 binomial sd of 500.
    """
    assert unequal_ranks(np.array(runs), replays=500) <= 0.06 + 3 * np.sqrt(0.05 * 0.95 / 500)


def test_without_replicates_the_order_is_strict():
    """Would catch: all ranks shared where no noise is known, or noise made up from one seed a variant."""
    once = seeds(a=[2.0], b=[2.001], c=[2.001])
    assert budget_noise(once) is None
    assert list(rank(once)["rank"]) == [1, 2, 2]


def test_two_backends_are_no_replicates():
    """Would catch: a noise of nearly nothing, from one seed trained with two attention kernels."""
    both = table(*({"hash": "a", "attention_backend": name, "val_loss": 2.0} for name in ("sdpa", "manual")))
    assert budget_noise(both) is None


def test_runs_for_the_frontier_have_no_rank():
    """Would catch: the baseline's runs at other budgets ranked, or in the noise of this one."""
    trials = seeds(a=[2.0, 2.1], b=[2.5, 2.6])
    more = seeds(a=[1.0, 9.0]).assign(role="frontier", trial=["f0", "f1"])
    ranked = rank(pd.concat([trials.assign(role=""), more], ignore_index=True)).set_index("trial")
    assert ranked.loc[["f0", "f1"], "rank"].isna().all()
    assert ranked.loc["a0", "rank"] == 1
    assert budget_noise(trials).sd == budget_noise(ranked).sd == pytest.approx(0.1 / np.sqrt(2))


def test_where_hardware_makes_another_order():
    """Would catch: a hardware rank from model FLOPs, a change of order that is not shown, an MFU that explains nothing.

    b has twice the MFU of a: behind a by its loss, before it by hardware FLOPs. c is last in both orders.
    """
    trials = seeds(a=[2.0, 2.001], b=[2.1, 2.101], c=[3.0, 3.001])
    trials.loc[trials["hash"] == "b", ["mfu", "hardware_flops"]] = [0.8, 1.25e18]
    ranked = rank(trials).set_index("trial")
    assert list(ranked["rank"]) == [1, 1, 2, 2, 3, 3]
    assert list(ranked["hardware_rank"]) == [2, 2, 1, 1, 3, 3]
    assert ranked.loc["a0", "rank_note"] == "rank 1, by hardware FLOPs 2: MFU 50.0%, 80.0% of those that pass it"
    assert ranked.loc["b1", "rank_note"] == "rank 2, by hardware FLOPs 1: MFU 80.0%, 50.0% of those that it passes"
    assert list(ranked.loc[["c0", "c1"], "rank_note"]) == ["", ""]


def test_no_hardware_rank_over_different_devices():
    """Would catch: of two variants with equal losses one ranked before the other, as it ran on a device that is easier
    to keep busy, or on fewer of them. What has no hardware FLOPs, as on a CPU, is not ranked by them anyway."""
    trials = seeds(a=[2.0, 2.001], b=[2.0, 2.001]).assign(device="NVIDIA H100", world_size=1)
    trials.loc[trials["hash"] == "b", "hardware_flops"] = 3e18
    assert list(rank(trials)["hardware_rank"]) == [1, 1, 2, 2]
    for column, value in (("device", "NVIDIA B200"), ("world_size", 8)):
        mixed = trials.assign(**{column: trials[column].where(trials["hash"] == "a", value)})
        ranked = rank(mixed)
        assert ranked["hardware_rank"].isna().all()
        assert not ranked["rank_note"].any()
        assert list(ranked["rank"]) == [1] * 4
        assert ranked["loss_per_hardware_flop"].notna().all()
        without = mixed.assign(hardware_flops=mixed["hardware_flops"].where(mixed["hash"] == "a"))
        assert list(rank(without).sort_values("trial")["hardware_rank"].dropna()) == [1, 1]


def test_the_clock_s_noise_is_in_the_hardware_rank():
    """Would catch: two variants told apart by hardware FLOPs on the strength of a clock that is off by a tenth."""
    trials = seeds(a=[2.0, 2.0001], b=[2.001, 2.0011])
    trials["hardware_flops"] = [1.0e18, 1.2e18, 1.1e18, 1.35e18]
    assert list(rank(trials)["rank"]) == [1, 1, 2, 2]
    assert list(rank(trials)["hardware_rank"]) == [1, 1, 1, 1]
    assert not rank(trials)["rank_note"].any()  # a shared place is no change of order


def test_a_loss_no_better_than_a_guess():
    """Would catch: a logarithm of a negative number, that makes the hardware ranks of all others NaN."""
    ranked = rank(seeds(bad=[6.0, 6.1], good=[2.0, 2.1], worse=[7.0, 7.1]))
    assert dict(zip(ranked["trial"], ranked["hardware_rank"], strict=True))["good0"] == 1
    assert ranked["hardware_rank"].notna().all()


def test_read_study(tmp_path):
    """Would catch: a budget flag read as what was spent, an axis left out, or a trial that has not begun left out."""
    config = {"architecture": {"bias": True, "vocab_size": 256}, "learning_rate": 1e-3, "tokens": 7, "seed": 1}
    trials = [
        {"id": name, "label": name, "labels": [name], "hash": name, "seed": 1, "config": config} for name in "abc"
    ]
    about = dict.fromkeys(("name", "space", "base", "scale", "created", "command", "git_commit"), "")
    about |= {"budget_flops": 10**18, "versions": {}, "trials": trials}
    about["counts"] = dict.fromkeys(("points", "programs", "variants", "trials"), 3)
    about["created"] = "2026-11-24T12:00:00+00:00"
    (tmp_path / "study.json").write_text(json.dumps(about))
    for name in "ab":
        (tmp_path / "trials" / name).mkdir(parents=True)
        (tmp_path / "trials" / name / "log.jsonl").touch()
    (tmp_path / "trials" / "a" / "result.json").write_text(
        json.dumps({"status": "complete", "val_loss": 2.0, "tokens": 9})
    )

    read = read_study(tmp_path).set_index("trial")
    assert list(read.index) == ["a", "b", "c"]
    assert list(read["status"]) == ["complete", "running", "waiting"]
    assert read.loc["a", "tokens"] == 9
    assert pd.isna(read.loc["b", "tokens"])
    assert bool(read.loc["c", "bias"])
    assert list(read["learning_rate"]) == [1e-3] * 3
    assert list(read["role"]) == [""] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "is incomplete: missing name, space, base"),
    ],
)
def test_not_a_study(tmp_path, text, message):
    """Would catch: a traceback for a folder that holds no study, or a file of that name that lacks what one says."""
    if text is not None:
        (tmp_path / "study.json").write_text(text)
    with pytest.raises(UserError, match=f"study.json {message}"):
        read_study(tmp_path)


def test_a_field_that_a_later_version_adds_parts_no_variant():
    """Would catch: a confirmation by a later version, whose runs have a field that those planned before do not, counted
    as runs of another variant than the one that they confirm."""
    table = pd.DataFrame(
        {"hash": ["a"] * 4, "z_loss": [math.nan, 0.0, 1e-4, 0.0], "optimizer": [math.nan] + ["adamw"] * 3}
    )
    assert programs(table).tolist() == [0, 0, 1, 0]
