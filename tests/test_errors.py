import io
import sys
from pathlib import Path

import pytest

from raytrain.errors import command


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a traceback of `generate` for a character that PYTHONIOENCODING=ascii or an old terminal lacks."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert command(lambda argv: print("caf\xe9 \u65e5"))([]) == 0
    out.flush()
    assert out.buffer.getvalue() == b"caf\\xe9 \\u65e5\n"  # type: ignore[attr-defined]


def test_a_name_too_long_for_any_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a traceback where a flag's value has more characters than a file's name may, whoever looks for it."""
    assert command(lambda argv: Path("a" * 300).stat())([]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith("is no path: File name too long\n")
