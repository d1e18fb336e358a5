import io
import sys

import pytest

from raytrain.errors import command


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a traceback of `generate` for a character that PYTHONIOENCODING=ascii or an old terminal lacks."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert command(lambda argv: print("caf\xe9 \u65e5"))([]) == 0
    out.flush()
    assert out.buffer.getvalue() == b"caf\\xe9 \\u65e5\n"  # type: ignore[attr-defined]
