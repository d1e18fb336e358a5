"""The parts of an architecture: what the model is made of, with what each piece costs. Pure: no torch.

FLOPs, parameters and memory are sums over these, so a new level states its costs once, where it is declared.
"""

from raytrain.architecture import Architecture
from raytrain.axes import Part, Span


def model_parts(arch: Architecture, span: Span) -> list[Part]:
    """What the model has once."""
    embedding = Part(group="embedding", name="embedding", parameters=arch.vocab_size * arch.n_embd)
    return [embedding, *(part for _, level in arch.levels() for part in level.per_model(arch, span))]


def layer_parts(arch: Architecture, span: Span) -> list[Part]:
    """What each layer has."""
    return [part for _, level in arch.levels() for part in level.per_layer(arch, span)]


def parts(arch: Architecture, span: Span) -> list[tuple[int, Part]]:
    """Every part, with how many the model has of it."""
    once = [(1, part) for part in model_parts(arch, span)]
    return once + [(arch.n_layer, part) for part in layer_parts(arch, span)]
