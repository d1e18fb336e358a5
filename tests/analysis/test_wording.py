import pytest

from raytrain.analysis.wording import digits, signed_with_interval, with_interval


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1767, 0.2009, 3),
        (-0.0174, 0.0034, 3),
        (0.5, 1.5, 3),
        (0.2978, 0.2996, 4),
        (0.00002, 0.00018, 5),
        (0.0004, 0.0244, 4),
        (1, 1, 3),
    ],
)
def test_digits(low: float, high: float, expected: int) -> None:
    """Would catch: digits that the interval does not allow, or an end shown as 0.000 that is clear of zero."""
    assert digits(low, high) == expected


def test_figures_keep_their_order_and_sign() -> None:
    """Would catch: an interval turned round with its sign, or an undecided one without it."""
    assert with_interval(-0.1888, -0.2009, -0.1767) == "0.189 nats (95% 0.177 to 0.201)"
    assert with_interval(0.1888, 0.1767, 0.2009) == "0.189 nats (95% 0.177 to 0.201)"
    assert signed_with_interval(-0.00697, -0.0174, 0.0034) == "-0.007 nats, 95% -0.017 to +0.003"
