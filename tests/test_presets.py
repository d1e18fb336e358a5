import json
import subprocess
import sys

import pytest

from raytrain.architecture import AXES
from raytrain.presets import list_presets, main, preset_table

NAMES = ["gpt2", "llama", "team", "hybrid", "openai_gpt2", "modern", "custom"]


def test_list_presets():
    """Would catch: a preset that is not listed, or one without a note."""
    assert list(list_presets()) == NAMES
    assert all(list_presets().values())


def test_published_figures():
    """Would catch: wrong counts. GPT-2 124M has 124,439,808 parameters at V=50257 and 854,654,976 FLOPs at 50304.

    47 rows of padding of 768 numbers each make up the difference in parameters.
    """
    rows = {row["preset"]: row for row in preset_table("124m")}
    assert rows["openai_gpt2"]["parameters"] == 124_439_808 + 47 * 768
    assert rows["openai_gpt2"]["flops_per_token"] == 875_166_695_424 // 1024
    assert rows["llama"]["flops_per_token"] == rows["gpt2"]["flops_per_token"]  # three matrices at 8/3 are two at 4


def test_json(capsys):
    """Would catch: output that is not JSON alone, or a row that lacks an axis."""
    assert main(["--json", "--scale", "tiny"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["preset"] for row in rows] == NAMES
    assert all(set(AXES) <= row.keys() for row in rows if row["preset"] != "custom")
    assert rows[1]["name"] == "4L-3H-96D-RoPE-RMS-SwiGLU-PreNorm"


def test_table(capsys):
    """Would catch: the two GPT-2s not told apart, custom left out, or a line that an 80-column terminal cuts off."""
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "124,372,992" in out
    assert "OpenAI's is openai_gpt2" in out
    assert "give all nine" in out
    assert "…" not in out


@pytest.mark.parametrize("scale", ["124M", "huge"])
def test_unknown_scale(capsys, scale):
    """Would catch: a traceback for a mistyped scale."""
    assert main(["--scale", scale]) == 2
    assert capsys.readouterr().err.startswith(f"error: Unknown scale: '{scale}'. Available: tiny, small, 124m")


def test_output_to_a_reader_that_leaves():
    """Would catch: a traceback from `raytrain.presets | head -1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "raytrain.presets"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        run.stdout.close()
        assert run.stderr.read() == b""
