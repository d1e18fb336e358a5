"""The recipes of CONTRIBUTING.md, applied as they stand to a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from raytrain.architecture import PRESETS, preset

ROOT = Path(__file__).parents[1]
RECIPES = dict(re.findall(r"(?s)\n## (Add [^\n]+)\n(.*?)(?=\n## |\Z)", (ROOT / "CONTRIBUTING.md").read_text()))

# Each ends with an error if the recipe left anything out.
CHECKS = {
    "Add a level": """
        from raytrain.accounting.flops import flops_per_token, parameter_count
        from raytrain.architecture import preset
        from raytrain.model import build
        from tests.accounting.test_flops import counted

        sizes = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 8, "vocab_size": 13}
        arch = preset("llama", **sizes, normalization="scalenorm")
        model = build(arch)
        assert model.blocks[0].attention_norm.length.item() == 4  # sqrt(16)
        assert parameter_count(arch)["norm"] == 5  # two in each layer, and the last
        assert parameter_count(arch)["total"] == sum(p.numel() for p in model.parameters())
        flops = flops_per_token(arch)
        assert (8 * flops.forward, flops.per_sequence) == counted(arch, 8, "meta")
        assert arch.name == "2L-4H-16D-RoPE-Scale-SwiGLU-PreNorm", arch.name
        main(["--normalization", "scalenorm"])
    """,
    "Add an axis": """
        import torch
        from raytrain.architecture import PRESETS, preset
        from raytrain.model import build
        from raytrain.sweep.planning import plan

        before = HASHES
        assert {name: preset(name).hash for name, axes in PRESETS.items() if axes} == before
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 13}
        scaled = preset("llama", **sizes, embedding_scale="sqrt")
        assert scaled.hash != preset("llama", **sizes).hash
        assert "ScaledEmb" in scaled.name, scaled.name
        torch.manual_seed(0)
        model, plain = build(scaled), build(preset("llama", **sizes))
        plain.load_state_dict(model.state_dict())
        with torch.no_grad():
            plain.embedding.weight *= 4  # sqrt(16): the head is not tied
        tokens = torch.arange(8)[None]
        torch.testing.assert_close(model(tokens), plain(tokens))
        open("scales.yaml", "w").write("base: llama\\naxes:\\n  embedding_scale: [none, sqrt]\\nvary: all\\n")
        assert plan("scales.yaml").variants == 2
        main(["--embedding_scale", "sqrt"])
    """,
    "Add a metric": """
        import json, math
        from pathlib import Path
        from raytrain.analysis.ranking import rank, read_study
        from raytrain.tracking.numbers import numbers
        from tests.studies import write_study

        main(["--name", "run"])
        result = json.loads(Path("runs/run/result.json").read_text())
        assert math.isclose(result["val_bits"], result["val_loss"] / math.log(2))
        assert "val_bits" in numbers(result)
        write_study(Path("study"), results=lambda index: {"val_bits": 1.0 + index})
        assert set(rank(read_study("study"))["val_bits"]) >= {1.0, 2.0}
    """,
}
RUN = """
from raytrain import train

def main(flags):
    size = "--preset llama --n_layer 2 --n_head 2 --n_embd 16 --block_size 16 --global_batch 64 --eval_tokens 64"
    code = train.main([*size.split(), "--max_iters", "2", "--compile", "False", "--device", "cpu", *flags])
    assert not code
"""


def apply(block: str, root: Path) -> None:
    """Write a block of code where its first line puts it."""
    place, _, code = block.partition("\n")
    if file := re.fullmatch(r"# at the end of (\S+)", place):
        path = root / file[1]
        path.write_text(f"{path.read_text()}\n\n{code}")
        return
    file = re.fullmatch(r"# in (\S+), after the (line|block) with (.+)", place)
    assert file, f"{place!r} names no place"
    path = root / file[1]
    lines = path.read_text().splitlines(keepends=True)
    (number,) = (number for number, line in enumerate(lines) if file[3] in line)
    indent = len(lines[number]) - len(lines[number].lstrip())
    if file[2] == "block":  # up to the line that closes it
        number = next(n for n in range(number, len(lines)) if len(lines[n]) - len(lines[n].lstrip()) < indent)
        indent = len(lines[number]) - len(lines[number].lstrip())
    if lines[number].endswith(",\n"):  # an entry among others
        code = f"{code.rstrip()},\n"
    lines.insert(number + 1, textwrap.indent(code, " " * indent))
    path.write_text("".join(lines))


def test_every_recipe_is_checked() -> None:
    """Would catch a recipe that nothing follows."""
    assert RECIPES.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", CHECKS)
def test_recipe(name: str, tmp_path: Path, cache: Path) -> None:
    """Would catch a recipe that leaves out a step, or code that has moved away from it."""
    shutil.copytree(ROOT / "raytrain", tmp_path / "raytrain", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("tests", "search_spaces"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    blocks = re.findall(r"(?s)```python\n(.*?)```", RECIPES[name])
    assert blocks
    for block in blocks:
        apply(block, tmp_path)
    hashes = {name: preset(name).hash for name, axes in PRESETS.items() if axes}
    check = f"HASHES = {hashes!r}\n{RUN}\n{textwrap.dedent(CHECKS[name])}"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
