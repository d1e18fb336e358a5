"""An ablation engine for GPT-style language models. Importing it loads neither torch nor ray nor mlflow.

    plan = raytrain.plan({"normalization": ["layernorm", "rmsnorm"]}, base="llama", seeds=3, flops=1e13)
    study = raytrain.run(plan, name="norms")
    print(study.ranking())

docs/python.md has the whole of it.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from raytrain.accounting.flops import flops_per_token, parameter_count
    from raytrain.api import Study, load, resume, run
    from raytrain.architecture import Architecture, preset
    from raytrain.config.run import TrainConfig
    from raytrain.errors import Command, UserError
    from raytrain.model.build import build
    from raytrain.presets import list_presets
    from raytrain.sweep.plan import Plan
    from raytrain.sweep.planning import plan
    from raytrain.sweep.space import Space, load_space
    from raytrain.train import configure
    from raytrain.version import __version__ as __version__

    class _Train(Protocol):
        """`raytrain.train`, the module of that command, which is a function too."""

        main: Command

        def __call__(
            self, config: TrainConfig, *, runs: str | Path = "runs", name: str | None = None
        ) -> dict[str, Any]:
            """Train `config` in a new folder of `runs`: see `raytrain.train.run`."""

    train: _Train

__all__ = [
    "Architecture",
    "Plan",
    "Space",
    "Study",
    "TrainConfig",
    "UserError",
    "build",
    "configure",
    "flops_per_token",
    "list_presets",
    "load",
    "load_space",
    "parameter_count",
    "plan",
    "preset",
    "resume",
    "run",
    "train",
]

# Where each name is from. Imported on first use, so that `python -m raytrain.presets` and the like find their own
# module unloaded, and nothing heavy is loaded that is not used.
_HOMES = {
    "Architecture": "architecture",
    "Plan": "sweep.plan",
    "Space": "sweep.space",
    "Study": "api",
    "TrainConfig": "config.run",
    "UserError": "errors",
    "__version__": "version",
    "build": "model.build",
    "configure": "train",
    "flops_per_token": "accounting.flops",
    "list_presets": "presets",
    "load": "api",
    "load_space": "sweep.space",
    "parameter_count": "accounting.flops",
    "plan": "sweep.planning",
    "preset": "architecture",
    "resume": "api",
    "run": "api",
}


def __getattr__(name: str) -> Any:
    if name == "train":  # a module that can be called
        return importlib.import_module("raytrain.train")
    if name in _HOMES:
        return getattr(importlib.import_module(f"raytrain.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'raytrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
