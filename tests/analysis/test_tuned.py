"""Studies that tune the learning rate: real tables, folders with known losses, and simulated worlds."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raytrain import compare
from raytrain.analysis.answer import answer
from raytrain.analysis.plateau import mark_plateaus, variants_of
from raytrain.analysis.simulate_rates import NOISE_SD, studies
from raytrain.analysis.tuned import tuned_effects
from raytrain.report.sections import write_report

from .conftest import BUDGET, noise_of

REFERENCE = Path(__file__).parent / "reference"
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def least(rates, losses):
    """The least loss of the parabola in ln rate, by numpy's own least squares."""
    c, b, a = np.polyfit(np.log(rates), losses, 2)
    return a - b**2 / (4 * c)


def cpu_table():
    base = {"ffn_type": "swiglu", "position_encoding": "rope", "normalization": "rmsnorm", "weight_tying": False}
    table = pd.read_csv(REFERENCE / "real_lr_cpu.csv")
    points = pd.DataFrame([base | json.loads(change) for change in table["change"]])
    return table.join(points).assign(seed=1337, status="complete"), base


def h100_table():
    base = {"norm_position": "pre", "normalization": "rmsnorm", "position_encoding": "rope"}
    table = pd.read_csv(REFERENCE / "real_lr_h100.csv")
    groups = variants_of(table, [*base, "learning_rate"])
    return mark_plateaus(table, groups, unigram_loss=3.328), base


def test_real_runs_on_a_cpu():
    """Would catch: effects read at one rate. Weight tying and SwiGLU differ from the base most at rates that suit them:
    the expected values are those of numpy's parabolas over the rates within a factor of five of each variant's best."""
    table, base = cpu_table()
    number = pd.Series(pd.factorize(table["change"])[0])
    found = tuned_effects(table, list(base), base, number, ["learning_rate"])
    effects = found.effects.set_index("effect")

    def expected(change):
        own = table[table["change"] == change]
        best = own.loc[own["val_loss"].idxmin(), "learning_rate"]
        near = own[np.abs(np.log(own["learning_rate"] / best)) <= math.log(5)]
        return least(near["learning_rate"], near["val_loss"])

    for name, change in (
        ("weight_tying=True", '{"weight_tying": true}'),
        ("ffn_type=standard", '{"ffn_type": "standard"}'),
        ("position_encoding=none", '{"position_encoding": "none"}'),
    ):
        assert effects.loc[name, "estimate"] == pytest.approx(expected(change) - expected("{}"), abs=1e-9)
    assert found.levels["ffn_type", "standard"].rate > 1.5 * found.levels["ffn_type", "swiglu"].rate
    assert effects["standard_error"].isna().all(), "one seed shows no noise"


def test_real_runs_on_an_h100():
    """Would catch: post-norm's plateau at 3e-3 in its curve; an effect that is a bound, given as known; and the +0.47
    nats that the rate 3e-4 alone shows."""
    table, base = h100_table()
    assert (table["status"] == "plateau").sum() == 7
    number = table.groupby(list(base)).ngroup()
    rope = table[table["position_encoding"] == "rope"].reset_index(drop=True)
    found = tuned_effects(
        rope[rope["normalization"] == "rmsnorm"].reset_index(drop=True),
        ["norm_position"],
        base,
        number[(table["position_encoding"] == "rope") & (table["normalization"] == "rmsnorm")].reset_index(drop=True),
        ["learning_rate"],
        shared=3e-4,
    )

    def three(norm_position):
        own = rope[(rope["normalization"] == "rmsnorm") & (rope["norm_position"] == norm_position)]
        own = own[own["learning_rate"] < 5e-3]
        return least(own["learning_rate"], own["val_loss"])

    assert found.effects["estimate"].tolist() == pytest.approx([three("post") - three("pre")])
    assert found.shared["estimate"].tolist() == pytest.approx([0.471], abs=1e-3)
    assert 0.05 < found.effects["estimate"].iloc[0] < 0.15
    whole = tuned_effects(table, list(base), base, number, ["learning_rate"]).effects.set_index("effect")
    assert whole.loc["norm_position=post", "bound"] == "at most"
    assert not whole["is_clear"].any()


def loss_of(tied, rate):
    """Tied: best at 4e-3. Untied: best at 1e-3, worse there by 0.02, and less in need of the right rate."""
    best, floor, curvature = (4e-3, 3.00, 0.05) if tied else (1e-3, 3.02, 0.02)
    return floor + curvature * math.log2(rate / best) ** 2


@pytest.fixture
def tuned_study(make_study):
    def build(loss=loss_of, rates=RATES, seeds=2, shared=1e-3, frontier=(), **results):
        study = make_study(axes={"weight_tying": [False, True]}, base="llama")
        for tied in (False, True):
            for place, rate in enumerate(rates):
                for seed in range(seeds * place, seeds * place + seeds):
                    value = loss(tied, rate) + noise_of(tied, rate, seed, sd=0.001)
                    point = {"weight_tying": tied, "learning_rate": rate}
                    study.add(point, value, seed=seed, **results.get(f"{rate:g}", {}))
        for multiple in frontier:
            for place, rate in enumerate(rates):
                for seed in range(seeds * place, seeds * place + seeds):
                    value = frontier_loss(multiple, rate) + noise_of("frontier", multiple, rate, seed, sd=0.0005)
                    point = {"weight_tying": False, "learning_rate": rate}
                    study.add(point, value, seed=seed, flops=multiple * BUDGET, role="frontier")
        for trial in study.trials:
            label = "weight_tying=True" if trial["config"]["architecture"]["weight_tying"] else "llama"
            if trial.get("role"):
                label = f"llama at {trial['config']['flops'] / BUDGET:g} x the budget"
            trial |= {"label": label, "labels": [label]}
        tuning = {"levels": {"learning_rate": list(rates)}, "recipe": {"learning_rate": shared}, "spreads": False}
        return study.write(
            plan={"tuning": tuning}, counts={**dict.fromkeys(("points", "programs", "variants"), 2), "trials": 20}
        )

    return build


def frontier_loss(multiple, rate):
    """The baseline's: its best rate falls as the budget grows."""
    best = 1e-3 * multiple**-0.5
    return 2 + 1.02 * multiple**-0.1 + 0.02 * math.log2(rate / best) ** 2


def test_an_effect_that_changes_its_sign(tuned_study):
    """Would catch: the effect at the recipe's rate told as that of the variant; a rank of rates against each other; and
    a headline that does not say at which rates it holds."""
    folder = tuned_study()
    found = answer(folder)
    assert found.sentences[0].startswith("The winner of 2 variants at own best learning rates is weight_tying=True")
    told = "At own best learning rates weight_tying=True saves 0.0"
    assert any(sentence.startswith(told) and "with the other sign" in sentence for sentence in found.sentences)
    assert found.tuned.effects["estimate"].tolist() == pytest.approx([-0.02], abs=0.002)
    assert found.tuned.shared["estimate"].tolist() == pytest.approx([-0.02 + 0.2], abs=0.003)
    assert found.tuned.levels["weight_tying", True].rate == pytest.approx(4e-3, rel=0.05)
    assert found.tuned.levels["weight_tying", False].twice[0] == pytest.approx(0.02, abs=0.002)
    ranked = found.table[found.table["rank"].notna()]
    assert ranked.groupby("label")["learning_rate"].unique().map(list).to_dict() == {
        "weight_tying=True": [4e-3], "llama": [1e-3],
    }  # fmt: skip
    assert ranked.set_index("label")["rank"].to_dict() == {"weight_tying=True": 1, "llama": 2}
    assert len(found.table) == 20
    summary = write_report(folder)[1].read_text()
    assert "## Learning rates" in summary
    assert "nats at 0.001 alone" in summary


def test_an_optimum_at_the_edge_is_a_bound(tuned_study):
    """Would catch: "costs" said of a variant that was best at the last rate tried, where a higher one may help it."""
    found = answer(tuned_study(lambda tied, rate: 3.1 + 0.02 * math.log2(rate / (6e-2 if tied else 1e-3)) ** 2))
    assert found.tuned.effects["bound"].tolist() == ["at most"]
    assert found.tuned.effects["estimate"].iloc[0] > 0.1
    assert not found.tuned.effects["is_clear"].any()
    assert any(
        "weight_tying=True is best at the highest learning rate tried (0.008): the range is too low" in sentence
        for sentence in found.sentences
    )
    assert not any("At own best learning rates weight_tying=True costs" in sentence for sentence in found.sentences)


def test_diverged_rates_bound_the_range(tuned_study):
    """Would catch: a study in which a rate diverges for all called one whose range is too low, or taken down by it."""
    folder = tuned_study(lambda tied, rate: loss_of(False, rate) - 0.01 * tied, **{"0.008": {"status": "diverged"}})
    found = answer(folder)
    assert found.tuned.effects["estimate"].tolist() == pytest.approx([-0.01], abs=0.002)
    assert found.tuned.levels["weight_tying", True].edge == "inside"
    assert any(sentence.startswith("4 diverged: llama at learning_rate=0.008") for sentence in found.sentences)


def test_a_frontier_of_own_best_rates(tuned_study):
    """Would catch: a frontier through all rates, or through the recipe's, at budgets whose best rate is another."""
    found = answer(tuned_study(lambda tied, rate: frontier_loss(1.3 if tied else 1, rate), frontier=(0.25, 0.5, 2)))
    for multiple in (0.25, 0.5, 1, 2):
        assert found.frontier.loss(multiple * BUDGET) == pytest.approx(2 + 1.02 * multiple**-0.1, abs=0.002)
    gains = found.table[found.table["rank"].notna()].set_index("label")["compute_gain"]
    assert gains["weight_tying=True"].iloc[0] == pytest.approx(1.3, rel=0.05)
    assert gains["llama"].iloc[0] == pytest.approx(1, rel=0.05)


def test_a_design_over_rates_gives_each_level_its_own_best():
    """Would catch: levels compared at one rate, or a level's optimum that takes the other axes' along. Exact losses, so
    the estimates are those of the averaged parabolas."""
    rows = []
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for rate in (5e-4, 1e-3, 2e-3):
            u = math.log2(rate / 1e-3)
            loss = 3 + 0.05 * a + 0.02 * b + (-0.02 * a + 0.01 * b) * u + (0.03 + 0.02 * a) * u**2
            rows.append({"a": a, "b": b, "learning_rate": rate, "val_loss": loss, "seed": 0, "status": "complete"})
    table = pd.DataFrame(rows)
    found = tuned_effects(
        table, ["a", "b"], {"a": 0, "b": 0}, pd.Series(0, table.index), ["learning_rate"], spreads=True
    )
    low, high = 3.01 - 0.005**2 / (4 * 0.03), 3.06 - 0.015**2 / (4 * 0.05)
    effects = found.effects.set_index("effect")["estimate"]
    assert effects["a=1"] == pytest.approx(high - low)
    assert found.shared.set_index("effect")["estimate"]["a=1"] == pytest.approx(0.05)
    assert found.levels["a", 1].rate == pytest.approx(1e-3 * 2 ** (0.015 / (2 * 0.05)))


def test_compare_says_at_which_rates(tuned_study, make_study, capsys):
    """Would catch: differences at one rate told without it; and the worse rates of a tuned study in its differences."""
    folder = tuned_study()
    for result in folder.glob("trials/*/result.json"):
        trial = next(
            t for t in json.loads((folder / "study.json").read_text())["trials"] if t["id"] == result.parent.name
        )
        (result.parent / "config.json").write_text(json.dumps(trial["config"]))
    assert compare.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "each variant of a tuned study at the learning rate tried that is nearest to its own best" in shown
    compare.main([str(folder), "--json"])
    rows = {row["value"]: row for row in json.loads(capsys.readouterr().out)["effects"]}
    assert rows[True]["runs_with"] == rows[True]["runs_without"] == 2
    one = next(iter(folder.glob("trials/*0.001*s2")))
    compare.main([str(path) for path in folder.glob("trials/*0.001*") if path != one] + [str(one)])
    assert "each variant of a tuned study" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "least_coverage"),
    [
        ({}, 0.92),
        ({"seed_sd": NOISE_SD}, 0.92),
        ({"seed_sd": NOISE_SD, "unequal": 10.0}, 0.92),
        ({"skew": 0.35}, 0.92),
        ({"trials": 40, "by_level": True}, 0.92),
    ],
)
def test_coverage_at_own_best_rates(options, least_coverage):
    """Would catch: intervals of the least value of a fitted curve that take the shape, the rate or the seeds for known.
    benchmarks/coverage.py has more of each."""
    found = studies(60, np.array(RATES) / 2, **options)
    assert least_coverage <= found["coverage"] <= 0.995
    assert found["wrong_sign"] <= 0.05
