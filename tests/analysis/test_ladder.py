import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raytrain
from raytrain.accounting.flops import flops_per_token
from raytrain.analysis.answer import answer
from raytrain.analysis.ladder import Ladder, Mean, Scale, _estimate, ladder, text
from raytrain.analysis.noise import Noise
from raytrain.analysis.ranking import rank, read_study
from raytrain.analysis.trials import rung_table
from raytrain.analysis.worlds import ladder_readings
from raytrain.errors import UserError
from raytrain.report.sections import sections, write_report
from raytrain.sweep.planning import plan
from tests.analysis.conftest import noise_of

SIZES = {"s": 1e7, "m": 4e7, "l": 1.6e8}
SMALL = Noise(1e-6, 20, "seeds")


def loss(size: float, tokens: float) -> float:
    return 1.7 + 400 * size**-0.34 + 400 * tokens**-0.28


def climbs(gains: dict[str, float], shift: float = 0.0, noise: Noise = SMALL) -> Ladder:
    """Of a variant with these gains by scale; `shift` takes the baseline's longest runs off their surface."""
    scales = []
    for name, size in SIZES.items():
        parts = [Mean(size, p * size, loss(size, p * size) + shift * (p == 40), 3) for p in (10, 20, 40)]
        variants = {"v": Mean(size, 20 * size, loss(gains[name] * size, 20 * size), 3)} if name in gains else {}
        scales.append(Scale(name, parts, variants, noise))
    return ladder(scales, "xl", 1e9)


def test_a_gain_its_trend_and_its_projection() -> None:
    """Bug: the ratio of FLOPs of another number of tokens, a slope against size in place of ln size, or a projection to
    the largest size that was run."""
    found = climbs({name: 1.3 * (size / 1e7) ** -0.05 for name, size in SIZES.items()})
    climb = found.climbs["v"]
    for name, size in SIZES.items():
        assert climb.gains[name].value == pytest.approx(1.3 * (size / 1e7) ** -0.05, rel=5e-3)
    assert climb.trend.value == pytest.approx(-0.05, abs=3e-3)
    assert climb.projected.value == pytest.approx(1.3 * 100**-0.05, rel=0.01)
    told = found.describe()
    assert told[0].startswith("Promoted: v. The compute gain is above 1 at s, m and l (simultaneous 95%")
    assert "it shrinks with size (ln gain -0.05" in told[1]
    assert "projected to xl: 1.03 (95%" in told[1]


def test_who_is_promoted() -> None:
    """Bug: a variant promoted by one size, by a mean over sizes, or by the sizes at which it has a loss."""
    for gains in ({"s": 1.5, "m": 1.2, "l": 0.97}, {"s": 1.5, "m": 1.2}):
        found = climbs(gains)
        assert not found.climbs["v"].is_promoted
        assert found.describe()[0].startswith("Promoted: none of 1 variants.")
    assert "not known (no run has a loss) at l" in found.describe()[1]


def test_what_no_size_reaches() -> None:
    """Bug: a logarithm of a negative number, or infinity in a report, for a loss below what data leaves over."""
    found = climbs({"s": 1e9, "m": 1.2, "l": 1.2})
    assert found.climbs["v"].gains["s"].value is None
    assert not found.climbs["v"].is_promoted
    assert "not known (the loss is beyond what the baseline's surface reaches) at s" in found.describe()[1]
    assert not any(value in found.describe()[1].split() for value in ("inf", "nan"))


def test_losses_off_the_surface_widen_the_intervals() -> None:
    """Bug: intervals of the noise alone about a surface that the baseline's own losses are not on."""
    noise = Noise(1e-4, 20, "seeds")
    exact, bent = (climbs(dict.fromkeys(SIZES, 1.2), shift, noise) for shift in (0.0, 0.01))
    widths = [(one.climbs["v"].gains["l"].high or 9) - (one.climbs["v"].gains["l"].low or 0) for one in (exact, bent)]
    assert exact.misfit is not None
    assert exact.misfit > 0.05
    assert bent.misfit is not None
    assert bent.misfit < 0.01
    assert widths[1] > 3 * widths[0]
    assert "are not on a surface" in bent.describe()[-1]


def test_too_few_settings() -> None:
    """Bug: five coefficients through five settings, whose gains are arbitrary."""
    scale = Scale("s", [Mean(1e7, 1e8 * k, 1.0, 2) for k in range(1, 10)], {}, SMALL)
    with pytest.raises(UserError, match="two scales or more and 6 settings"):
        ladder([scale], "xl", 1e9)


@pytest.mark.parametrize("tokens", [0.65, 20.0, 100.0])
def test_a_parameter_efficiency_reads_the_same_whatever_the_tokens(tokens: float) -> None:
    """Bug: a gain of one size's frontier, which reads 1.2 as anything from 1.05 to infinity as tokens grow."""
    found = ladder_readings(tokens, replays=6)
    assert 1.15 < found["least"] <= found["most"] < 1.25
    assert found["coverage"] >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 6)
    assert found["an equal promoted"] == 0


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """A ladder as it is planned, whose runs have the losses of a world: a gain of tied weights, and best rates."""

    def make(gains: dict[str, float], *, without: str = "", **options: Any) -> Path:
        made = plan({"weight_tying": [False, True]}, base="llama", ladder="tiny,small", seeds=3, **options)
        described, trials = made.to_dict(), [trial.to_dict() for trial in made.trials]
        record = {"name": "l", "created": "x", "command": "", "git_commit": None, "versions": {}, "trials": trials}
        record |= {name: described[name] for name in ("space", "base", "scale", "budget_flops", "axes", "baseline")}
        record |= {name: described[name] for name in ("scheduler", "factors")} | {"counts": made.counts}
        folder = tmp_path / "l"
        folder.mkdir()
        (folder / "study.json").write_text(json.dumps(record | {"plan": described}))
        for trial in made.trials:
            config, size = trial.config, flops_per_token(trial.config.architecture).total
            gain = gains[config.scale] if config.architecture.weight_tying else 1.0
            exact = 1.0 + 60 * (gain * size) ** -0.3 + 300 * (config.train_flops / size) ** -0.35
            exact += 0.02 * np.log(config.learning_rate / {"tiny": 2e-3, "small": 1e-3}[config.scale]) ** 2
            result = {"status": "complete", "seed": config.seed, "vocab_size": 256, "train_flops": config.train_flops}
            result |= {"val_loss": exact + noise_of(trial.id, sd=0.0002), "hash": config.architecture.hash}
            if trial.config.scale != without:
                (folder / "trials" / trial.id).mkdir(parents=True)
                (folder / "trials" / trial.id / "result.json").write_text(json.dumps(result))
        return folder

    return make


def test_scales_are_compared_each_by_itself(study: Callable[..., Path]) -> None:
    """Bug: a ranking, an effect or a gain over trials of several scales, where the larger model always wins; or gains
    that are not those of the world."""
    folder = study({"tiny": 1.2, "small": 1 / 1.2})
    found = answer(folder)
    assert found.ladder is not None
    gains = found.ladder.climbs["weight_tying=True"].gains
    for name, truth in (("tiny", 1.2), ("small", 1 / 1.2)):
        gain = gains[name]
        assert gain.low is not None
        assert gain.high is not None
        assert gain.low < truth < gain.high
    assert found.sentences[0].startswith("Promoted: none of 1 variants.")
    firsts = rank(read_study(folder)).query("rank == 1").groupby("scale")["label"].unique()
    assert {scale: list(labels) for scale, labels in firsts.items()} == {
        "tiny": ["weight_tying=True"],
        "small": ["llama"],
    }
    effects = raytrain.load(folder).effects().set_index("scale")["estimate"]
    assert effects["tiny"] < 0 < effects["small"]
    by_trial = found.table.set_index("trial")["rank"]
    assert by_trial.equals(rank(read_study(folder)).set_index("trial")["rank"])
    with pytest.raises(UserError, match="study \\(l\\) is a ladder"):
        rung_table(folder)


def test_the_report_of_a_ladder(study: Callable[..., Path]) -> None:
    """Bug: two scales whose pictures have one name, or sections one link; a best learning rate over scales."""
    folder = study({"tiny": 1.2, "small": 1.2}, tune={"learning_rate": [5e-4, 1e-3, 2e-3, 4e-3]})
    found = answer(folder)
    ids = [one.id for one in sections(found)]
    assert len({*ids}) == len(ids)
    assert {"sizes", "ranking-tiny", "ranking-small", "rates-tiny", "rates-small", "answer-small"} < {*ids}
    assert found.sentences[0].startswith("Promoted: weight_tying=True.")
    for own, best in zip(found.scales, (2e-3, 1e-3), strict=True):
        assert own.tuned is not None
        assert own.tuned.variants["llama"].rate == pytest.approx(best, rel=0.05)
    files = write_report(folder)
    assert len({*files}) == len(files)
    assert "| weight_tying=True | 1.2" in files[1].read_text()


def test_a_ladder_that_is_not_over(study: Callable[..., Path]) -> None:
    """Bug: a traceback, or gains of one scale alone, while the larger scale still runs."""
    found = answer(study({"tiny": 1.2, "small": 1.2}, without="small"))
    assert found.sentences[0] == "No gains by size: no variant was completed with two seeds at scale small."
    assert found.sentences[1].startswith("At tiny: The winner of 2 variants")
    assert sections(found)


def test_an_open_interval_has_no_largest_number():
    """Would catch: 1.8e308, the largest number there is, printed as the bound of a gain that has none."""
    open_ended = _estimate(np.array([0.1, *([np.inf] * 5), *([-np.inf] * 5)]), 0.05)
    assert (open_ended.low, open_ended.high) == (None, None)
    assert text(open_ended) == "1.11 (95% unbounded to unbounded)"
