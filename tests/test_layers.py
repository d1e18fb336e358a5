"""The import rules of the design: each layer imports only what is below it."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "raytrain"
HEAVY = ("torch", "ray", "mlflow")
UPPER = ("raytrain.training", "raytrain.engine", "raytrain.tracking", "raytrain.analysis")

# What a module, or any module below it, must not import.
FORBIDDEN = {
    **dict.fromkeys(
        ("architecture", "errors", "files", "flops", "hardware", "interrupts"),
        (*HEAVY, "numpy", "pandas", "raytrain.model", *UPPER),
    ),
    **dict.fromkeys(("space", "training.config"), (*HEAVY, "numpy", "pandas")),
    **dict.fromkeys(("design", "factorial", "halving", "plan"), HEAVY),
    "model": ("ray", "mlflow", "raytrain.data", *UPPER),
    "data": (*HEAVY, "raytrain.model", *UPPER),
    "training": ("ray", "mlflow", "raytrain.engine", "raytrain.tracking", "raytrain.analysis", "raytrain.space"),
    "analysis": (*HEAVY, "raytrain.model", "raytrain.data", "raytrain.engine", "raytrain.tracking"),
    "tracking": ("torch", "ray", "raytrain.engine", "raytrain.model", "raytrain.data"),
}
ONLY = {"ray": "engine", "mlflow": "tracking"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imports(path):
    """Full names of what a file imports, inside functions too; `from a import b` counts as a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what they import"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def is_in(module, layer):
    return module == layer or module.startswith(f"{layer}.")


@pytest.mark.parametrize(("module", "path"), [pytest.param(*found, id=found[0]) for found in modules()])
def test_layer(module, path):
    """Would catch: a model that knows of the loop, a loop that knows of Ray, a pure module that loads torch."""
    forbidden = {name for layer, names in FORBIDDEN.items() if is_in(module, layer) for name in names}
    forbidden |= {name for name, layer in ONLY.items() if not is_in(module, layer)}
    wrong = {name for name in imports(path) if any(is_in(name, layer) for layer in forbidden)}
    assert not wrong, f"raytrain.{module} must not import {', '.join(sorted(wrong))}"


def test_the_rules_name_modules_that_exist():
    """Would catch: a rule that holds for nothing, after a module was renamed."""
    present = {module for module, _ in modules()}
    for layer in {*FORBIDDEN, *ONLY.values()}:
        assert any(is_in(module, layer) for module in present), layer


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("raytrain", ("torch", "ray", "mlflow", "pandas")),
        ("raytrain.space", ("torch", "ray", "mlflow", "pandas")),
        ("raytrain.train", ("ray", "mlflow")),
        ("raytrain.tracking.log", ("torch", "ray", "mlflow")),
        ("raytrain.compare", ("torch", "ray", "mlflow")),
    ],
)
def test_runs_without(module, absent):
    """Would catch: a command that needs a package it has no use for, through whatever imports it imports."""
    block = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {module}"
    subprocess.run([sys.executable, "-c", block], check=True, cwd=PACKAGE.parent)


def test_a_driver_loads_no_torch():
    """Would catch: a sweep that waits for torch, which lanes alone use, or for MLflow, which a thread imports."""
    script = "import sys, raytrain.engine.study; sys.exit(len({'torch', 'mlflow'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PACKAGE.parent)


def test_every_package_is_shipped():
    """Would catch: a new subpackage, or the search spaces, left out of the wheel: pyproject lists packages by name."""
    setup = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"raytrain", *(f"raytrain.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py"))}
    assert set(setup["packages"]) == folders | {"raytrain.search_spaces"}
    assert setup["package-dir"] == {"raytrain.search_spaces": "search_spaces"}
