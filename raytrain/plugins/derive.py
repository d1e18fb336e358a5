"""What a plugin's level costs where it declares nothing: the whole model on the meta device, less what is declared."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from raytrain.architecture import Architecture
from raytrain.axes import AXES, Part, Shape, Span, total
from raytrain.errors import UserError

_GROUPS = {"ffn_type": "ffn", "attention": "attention", "position_encoding": "position"}


@dataclasses.dataclass(frozen=True)
class Derived:
    """The parts of level `value` of `axis`, counted for each architecture anew, so that they are exact at every size.

    FLOPs are counted with T keys for each query: where they depend on the span, the causal ones are the same.
    """

    axis: str
    value: Any

    def __call__(self, shape: Shape, span: Span) -> Iterator[Part]:
        assert isinstance(shape, Architecture)
        arch = _plain(shape, self.axis)
        flops, parameters = counted(arch, span.tokens)
        known = _declared(arch, Span(span.tokens), self.axis)
        group = _GROUPS.get(self.axis, self.axis)
        yield Part(
            group=group,
            name=f"{group}_{self.value}",
            parameters=parameters - total(known, "parameters"),
            flops=flops - total(known, "flops"),
        )


def _plain(arch: Architecture, axis: str) -> Architecture:
    """`arch` with every other level that is derived put back to one that is declared."""
    derived = [name for name, level in arch.levels() if name != axis and isinstance(level.per_model, Derived)]
    usual = {name: next(iter(AXES[name].levels)) if AXES[name].is_required else AXES[name].default for name in derived}
    return arch.replace(**usual)


def _declared(arch: Architecture, span: Span, but: str) -> list[Part]:
    """All parts of the model but those of one axis."""
    levels = [level for name, level in arch.levels() if name != but]
    once = [part for level in levels for part in level.per_model(arch, span)]
    layer = [part for level in levels for part in level.per_layer(arch, span)]
    embedding = Part(group="embedding", name="embedding", parameters=arch.vocab_size * arch.n_embd)
    return [embedding, *once, *(layer * arch.n_layer)]


@functools.lru_cache(maxsize=1024)
def counted(arch: Architecture, tokens: int) -> tuple[int, int]:
    """Forward FLOPs per token, and parameters, of a model that is built on the meta device and run there.

    Raises UserError if the FLOPs of a sequence are no multiple of its tokens.
    """
    import torch  # here: a sweep's driver needs it for this alone
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from raytrain.model import Transformer

    with torch.device("meta"):
        model = Transformer(arch).eval()
        inputs = torch.zeros(1, tokens, dtype=torch.int64)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs)
    flops = counter.get_total_flops()
    if flops % tokens:
        raise UserError(f"{arch.name}: {flops} FLOPs of a sequence of {tokens} tokens are no whole number a token")
    return flops // tokens, sum(parameter.numel() for parameter in model.parameters())


def width_parameters(make: Callable[..., Any]) -> Callable[[int], int]:
    """How many parameters a norm of a width has, counted once a width."""

    @functools.cache
    def count(width: int) -> int:
        import torch

        from raytrain.architecture import preset

        with torch.device("meta"):
            return sum(parameter.numel() for parameter in make(width, preset("llama")).parameters())

    return count
