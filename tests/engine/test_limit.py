import pytest

from raytrain import tune
from raytrain.engine.limit import TimeLimit, read_time_limit
from raytrain.errors import UserError


@pytest.mark.parametrize(
    ("given", "seconds"), [("90", 90), (90, 90), ("90s", 90), ("1.5m", 90), ("4h", 14400), ("2d", 172800), (None, None)]
)
def test_a_time(given: str | float | None, seconds: float | None) -> None:
    """Would catch minutes that are read as seconds or months."""
    assert read_time_limit(given) == seconds


@pytest.mark.parametrize("given", ["", "0", "-5", "4 h", "4H", "1h30m", "nan", "inf", "1e3", "9" * 400, "h"])
def test_no_time(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a study that ends at once, or never, by a mistyped limit; and a traceback."""
    with pytest.raises(UserError, match="must be a number above 0, of seconds or with a unit"):
        read_time_limit(given)
    assert tune.main(["--plan", f"--time_limit={given}"]) == 2
    assert capsys.readouterr().err.startswith("error: time_limit (")


def test_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a limit that ends a study early, or one that has none."""
    now = 100.0
    monkeypatch.setattr("raytrain.engine.limit.time.monotonic", lambda: now)
    limit, none = TimeLimit(60.0, began=now), TimeLimit()
    now = 159.0
    assert not limit.is_over
    now = 160.0
    assert limit.is_over
    assert not none.is_over
