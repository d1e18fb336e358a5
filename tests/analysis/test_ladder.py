import numpy as np
import pytest

from raytrain.analysis.ladder import climb, fit_surface
from raytrain.analysis.noise import Noise
from raytrain.analysis.worlds import ladder_readings
from raytrain.errors import UserError

SIZES = np.array([1e7, 4e7, 1.6e8])
SMALL = Noise(1e-6, 20, "seeds")


def loss(n, d):
    return 1.7 + 400 * n**-0.34 + 400 * d**-0.28


@pytest.fixture(scope="module")
def surface():
    n, d = np.repeat(SIZES, 3), 20 * np.repeat(SIZES, 3) * np.tile([0.5, 1, 2], 3)
    return fit_surface(n, d, loss(n, d), SMALL)


def test_a_gain_its_trend_and_its_projection(surface):
    """Bug: the ratio of FLOPs of another number of tokens, a slope against size in place of ln size, or a projection to
    the largest size that was run."""
    gains = 1.3 * (SIZES / SIZES[0]) ** -0.05
    found = climb(surface, SIZES, 20 * SIZES, loss(gains * SIZES, 20 * SIZES), [3] * 3, 1e9)
    assert [gain.value for gain in found.gains] == pytest.approx(gains, rel=5e-3)
    assert found.trend.value == pytest.approx(-0.05, abs=3e-3)
    assert found.projected.value == pytest.approx(1.3 * 100**-0.05, rel=0.01)
    assert found.goes_on
    assert "It advances: above 1 at every size" in found.describe(1e9)


def test_who_goes_on(surface):
    """Bug: a variant promoted by one size, or by a mean over sizes."""
    gains = np.array([1.5, 1.2, 0.97])
    found = climb(surface, SIZES, 20 * SIZES, loss(gains * SIZES, 20 * SIZES), [3] * 3, 1e9)
    assert not found.goes_on
    assert "does not advance" in found.describe(1e9)


def test_what_no_size_reaches(surface):
    """Bug: a logarithm of a negative number, or infinity in a report, for a loss below what data leaves over."""
    found = climb(surface, SIZES, 20 * SIZES, np.full(3, 1.0), [3] * 3, 1e9)
    assert all(gain.value is None and gain.reason for gain in found.gains)
    assert not found.goes_on
    assert "not known" in found.describe(1e9)


def test_too_few_settings():
    """Bug: five coefficients through five settings, whose gains are arbitrary."""
    n = np.repeat(SIZES[:1], 9)
    with pytest.raises(UserError, match="two sizes or more and 6 settings"):
        fit_surface(n, np.arange(1.0, 10), np.arange(9.0), SMALL)


@pytest.mark.parametrize("tokens", [0.65, 20.0, 100.0])
def test_a_parameter_efficiency_reads_the_same_whatever_the_tokens(tokens):
    """Bug: a gain of one size's frontier, which reads 1.2 as anything from 1.05 to infinity as tokens grow."""
    found = ladder_readings(tokens, replays=12)
    assert 1.15 < found["least"] <= found["most"] < 1.25
    assert found["coverage"] >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 12)
    assert found["an equal goes on"] <= 0.05
