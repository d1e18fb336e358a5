"""How a model is made: its weights on a device, with GPT-2's initialisation (Radford et al., 2019, section 2.3)."""

import torch
from torch import nn

from raytrain.architecture import Architecture
from raytrain.model.position import Rotary
from raytrain.model.transformer import Transformer

STD = 0.02


def build(arch: Architecture) -> Transformer:
    """A model with GPT-2's initialisation, on the default device (`with torch.device(...)`), in float32.

    The weights depend on `torch.manual_seed` and not on the attention backend.
    """
    with torch.device("meta"):  # no storage yet, so that each weight is drawn once
        model = Transformer(arch)
    model.to_empty(device=torch.get_default_device())
    init_weights(model)
    return model


def init_weights(model: Transformer) -> None:
    """Set every parameter and buffer of `model` anew, in place, whatever was there (as after `to_empty`).

    Matrices are normal(0, 0.02); those that write to the residual stream, of which there are 2 n_layer, are narrower
    by the square root of that. Biases are 0, norm weights 1. Tied weights are tied again. Each matrix is drawn once,
    in the order of `named_modules`, so the weights follow from `torch.manual_seed` and the shapes alone.
    """
    model.tie_weights()
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
        elif isinstance(module, Rotary):
            module.reset_buffers()
        elif module is model.head and model.arch.weight_tying:
            continue  # drawn as the embedding
        elif isinstance(module, nn.Linear | nn.Embedding):
            to_residual = name.endswith(("attention.output", "feed_forward.down"))
            nn.init.normal_(module.weight, std=STD / (2 * model.arch.n_layer) ** 0.5 if to_residual else STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
