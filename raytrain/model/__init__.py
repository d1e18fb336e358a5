"""The model of every architecture, in plain torch.nn: no parallelism, no compilation, no data.

Read `transformer.py` first. `build(arch)` gives an initialised model.
"""

from raytrain.model.build import build, init_weights
from raytrain.model.transformer import Transformer

__all__ = ["Transformer", "build", "init_weights"]
