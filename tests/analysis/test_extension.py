"""The rates that a tuned study adds."""

import math

import pytest

from raytrain.analysis.extension import extend
from raytrain.analysis.ranking import read_study
from raytrain.rundir.folders import read_study_json

from .conftest import noise_of

RATES = (1e-3, 2e-3, 4e-3)


@pytest.fixture
def decided(make_study):
    """The stage of a study of two variants with these best rates."""

    def decide(untied, tied, *, rates=RATES, tuned=True, **results):
        study = make_study(axes={"weight_tying": [False, True]}, base="llama")
        for is_tied, best in ((False, untied), (True, tied)):
            for place, rate in enumerate(rates):
                for seed in (2 * place, 2 * place + 1):
                    loss = 3 + 0.02 * math.log2(rate / best) ** 2 + noise_of(is_tied, rate, seed, sd=0.0005)
                    study.add({"weight_tying": is_tied, "learning_rate": rate}, loss, seed=seed,
                                     **results.get(f"{rate:g}", {}))  # fmt: skip
                    study.trials[-1] |= {"tuned": {"learning_rate": rate}} if tuned else {}
        tuning = {"levels": {"learning_rate": list(rates)}, "recipe": {"learning_rate": 1e-3}, "spreads": False}
        folder = study.write(plan={"tuning": tuning} if tuned else {})
        return extend(read_study_json(folder), read_study(folder))

    return decide


def test_a_variant_at_the_edge_gets_the_next_rate(decided):
    """Would catch: a rate added for variants that do not need it, at another ratio, or with seeds that were used."""
    stage = decided(2e-3, 3e-2)
    assert stage.name == "extend"
    assert [(t.config.learning_rate, t.config.seed, t.role) for t in stage.trials] == [
        (8e-3, 6, "extend"), (8e-3, 7, "extend"),
    ]  # fmt: skip
    assert all(trial.config.architecture.weight_tying for trial in stage.trials)
    assert [trial.tuned for trial in stage.trials] == [{"learning_rate": 8e-3}] * 2
    assert len({trial.id for trial in stage.trials}) == 2
    assert "1 of 2 variants were best at 0.004, the last learning rate tried, and run at 0.008 too." in stage.reason


def test_both_ends(decided):
    """Would catch: one end alone, or seeds of one new rate used at the other."""
    stage = decided(2e-4, 3e-2)
    assert [(t.config.learning_rate, t.config.seed) for t in stage.trials] == [
        (5e-4, 6), (5e-4, 7), (8e-3, 8), (8e-3, 9),
    ]  # fmt: skip


def test_nothing_to_add(decided):
    """Would catch: rates added without end, or beyond one that diverges."""
    assert decided(2e-3, 2.5e-3) is None
    assert decided(2e-3, 2.5e-3, rates=(1e-3, 2e-3, 4e-3, 8e-3), **{"0.008": {"status": "diverged"}}) is None
    assert decided(2e-3, 3e-2, tuned=False) is None
