"""An ablation engine for GPT-style language models. Importing it loads neither torch nor ray nor mlflow."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain.accounting.flops import flops_per_token, parameter_count
    from raytrain.architecture import Architecture, preset
    from raytrain.config.run import TrainConfig
    from raytrain.presets import list_presets

__all__ = ["Architecture", "TrainConfig", "flops_per_token", "list_presets", "parameter_count", "preset"]

# Imported on first use, so that `python -m raytrain.presets` and the like find their own module unloaded.
_HOMES = {
    "Architecture": "architecture",
    "TrainConfig": "config.run",
    "__version__": "version",
    "flops_per_token": "accounting.flops",
    "list_presets": "presets",
    "parameter_count": "accounting.flops",
    "preset": "architecture",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"raytrain.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'raytrain' has no attribute {name!r}")
