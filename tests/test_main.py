import importlib.util

import pytest

from raytrain.__main__ import COMMANDS, main


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a command that is listed and not there, and arguments that do not reach it."""
    assert all(importlib.util.find_spec(f"raytrain.{name}") for name in COMMANDS)
    assert main(["presets", "--scale", "nowhere"]) == 2
    assert "scale" in capsys.readouterr().err
    assert main(["tune", "--plan", "--space", "quickstart"]) == 0
    assert capsys.readouterr().out.startswith("space       quickstart")
    assert main(["tain"]) == 2
    assert "Did you mean train?" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("raytrain ")
