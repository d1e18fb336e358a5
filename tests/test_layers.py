"""The import rules of the design: each layer imports only what is below it, and there are no circles."""

import ast
import graphlib
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "raytrain"

# From the bottom up. A module imports its own layer and those above it in this list, never one further down.
# "top" are the modules beside the packages that are no commands.
LAYERS = (
    ("version", "interrupts", "tables", "uris"),
    ("errors",),
    ("axes", "rundir"),
    ("architecture",),
    ("accounting", "data"),
    ("config", "kernels"),
    ("model",),
    ("plugins",),
    ("sweep",),
    ("training", "analysis"),
    ("report",),
    ("tracking",),
    ("engine",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
COMMANDS = len(LAYERS)  # the level of what is in no layer: the commands

# What a package must not import, though it is below it or no part of raytrain.
HEAVY = ("torch", "ray", "mlflow")
FORBIDDEN = {
    **dict.fromkeys(
        ("architecture", "axes", "errors", "interrupts", "uris", "version", "rundir"), (*HEAVY, "numpy", "pandas")
    ),
    **dict.fromkeys(("accounting", "config"), (*HEAVY, "numpy", "pandas")),
    "sweep": HEAVY,
    "sweep.space": (*HEAVY, "numpy", "pandas"),
    "data": HEAVY,
    "model": ("ray", "mlflow"),
    "training": ("ray", "mlflow", "raytrain.sweep"),
    "analysis": HEAVY,
    "report": HEAVY,
    "tracking": ("torch", "ray"),
}
ONLY = {"ray": "engine", "mlflow": "tracking", "triton": "kernels", "lm_eval": "training.harness"}

# Files over 400 lines, each with its reason in docs/decisions.md.
LONG = {"analysis/answer.py", "report/sections.py"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"), path


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


def level(module):
    return LEVEL.get(module.split(".")[0], COMMANDS)


@pytest.mark.parametrize(("module", "path"), [pytest.param(*found, id=found[0]) for found in modules()])
def test_layer(module, path):
    """Would catch: a model that knows of the loop, a loop that knows of Ray, a pure module that loads torch."""
    forbidden = {name for layer, names in FORBIDDEN.items() if is_in(module, layer) for name in names}
    forbidden |= {name for name, layer in ONLY.items() if not is_in(module, layer)}
    wrong = {name for name in imports(path) if any(is_in(name, layer) for layer in forbidden)}
    assert not wrong, f"raytrain.{module} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(("module", "path"), [pytest.param(*found, id=found[0]) for found in modules()])
def test_no_import_goes_up(module, path):
    """Would catch: a layer that needs one above it, so that neither can be read or changed alone."""
    ours = {name.removeprefix("raytrain.") for name in imports(path) if name.startswith("raytrain.")}
    upward = {name for name in ours if level(name) > level(module) and name.split(".")[0] in packages_and_modules()}
    assert module == "raytrain" or path.parent == PACKAGE or not upward, f"raytrain.{module} imports {sorted(upward)}"


def packages_and_modules():
    return {module.split(".")[0] for module, _ in modules()}


def test_no_circles():
    """Would catch: two modules that import one another, of which neither can be read first."""
    names = {module for module, _ in modules()}
    graph = {
        module: {name.removeprefix("raytrain.") for name in imports(path)} & names - {module}
        for module, path in modules()
        if module != "__init__"
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_the_rules_name_modules_that_exist():
    """Would catch: a rule that holds for nothing, after a module was renamed."""
    present = {module for module, _ in modules()}
    for layer in {*FORBIDDEN, *ONLY.values(), *LEVEL}:
        assert any(is_in(module, layer) for module in present), layer


def test_files_are_short_enough_to_read():
    """Would catch: a file that grows a second subject. Those in LONG tell one long story each."""
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for _, path in modules()}
    assert {path for path, lines in lengths.items() if lines > 400} <= LONG


def test_the_layout_is_documented():
    """Would catch: a package, or a file over 400 lines, without its place and reason in docs/decisions.md."""
    layout = (PACKAGE.parent / "docs" / "decisions.md").read_text().split("## The layout")[1].split("\n## ")[0]
    for name in {name for names in LAYERS for name in names} | LONG:
        assert f"`{name}`" in layout, name


def test_functions_are_short_enough_to_read():
    """Would catch: functions that grow, change by change, until none can be read at once."""
    functions = (
        node.end_lineno - node.lineno + 1
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    )
    assert statistics.median(functions) <= 8


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("raytrain", ("torch", "ray", "mlflow", "pandas")),
        ("raytrain.sweep.space", ("torch", "ray", "mlflow", "pandas")),
        ("raytrain.train", ("ray", "mlflow")),
        ("raytrain.rundir.log", ("torch", "ray", "mlflow")),
        ("raytrain.compare", ("torch", "ray", "mlflow")),
        ("raytrain.watch", ("torch", "ray", "mlflow", "pandas")),
        ("raytrain.engine.watching", ("ray", "mlflow")),
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
