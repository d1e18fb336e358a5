"""An ablation engine for GPT-style language models. Importing it loads neither torch nor ray nor mlflow."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain.architecture import Architecture, preset
    from raytrain.flops import flops_per_token, parameter_count
    from raytrain.presets import list_presets
    from raytrain.training.config import TrainConfig

__all__ = ["Architecture", "TrainConfig", "flops_per_token", "list_presets", "parameter_count", "preset"]

# Imported on first use, so that `python -m raytrain.presets` and the like find their own module unloaded.
_HOMES = {
    "Architecture": "architecture",
    "TrainConfig": "training.config",
    "flops_per_token": "flops",
    "list_presets": "presets",
    "parameter_count": "flops",
    "preset": "architecture",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return importlib.metadata.version("raytrain")
        except importlib.metadata.PackageNotFoundError:  # run from a working tree
            return "unknown"
    if name in _HOMES:
        return getattr(importlib.import_module(f"raytrain.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'raytrain' has no attribute {name!r}")
