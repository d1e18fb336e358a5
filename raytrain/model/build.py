"""How a model is made: its weights on a device. Every module sets its own, in `reset_parameters`."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.errors import UserError
from raytrain.model.transformer import Transformer

_POISON = 0xA5


def build(arch: Architecture) -> Transformer:
    """A model with initialised weights, on the default device (`with torch.device(...)`), in float32.

    The weights depend on `torch.manual_seed` and not on the attention backend. Raises UserError as `init_weights`.
    """
    with torch.device("meta"):  # no storage yet, so that each weight is drawn once
        model = Transformer(arch)
    model.to_empty(device=torch.get_default_device())
    init_weights(model)
    return model


def init_weights(model: Transformer) -> None:
    """Set every parameter and buffer of `model` anew, in place, whatever was there (as after `to_empty`).

    Each module's `reset_parameters` sets what is its own, submodules before the module that holds them; tied weights
    are tied again, and set by the first that has them. So weights follow from `torch.manual_seed` and the shapes alone.

    Raises UserError naming a parameter or buffer that no module set.
    """
    model.tie_weights()
    tensors = dict(_tensors(model, recurse=True))
    for tensor in tensors.values():
        _poison(tensor)
    done: set[Tensor] = set()
    for module in _inner_first(model):
        own = {tensor for _, tensor in _tensors(module, recurse=False)}
        reset: Callable[[], None] | None = getattr(module, "reset_parameters", None)
        if reset is not None and not (own and own <= done):  # else it is tied to what is set
            reset()
        done |= own
    for name, tensor in tensors.items():
        if _is_poisoned(tensor):
            path, _, own_name = name.rpartition(".")
            raise UserError(
                f"{type(model.get_submodule(path)).__name__} does not set its {own_name} ({name}): its "
                "reset_parameters must set every parameter and buffer of its own, in place"
            )


def _inner_first(module: nn.Module) -> Iterator[nn.Module]:
    """As `modules`, but each module after its submodules, so that it may set theirs too."""
    for child in module.children():
        yield from _inner_first(child)
    yield module


def _tensors(module: nn.Module, *, recurse: bool) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=recurse)
    yield from module.named_buffers(recurse=recurse)


def _poison(tensor: Tensor) -> None:
    """Fill with what no module would set: NaN, or in every byte the same odd number."""
    with torch.no_grad():
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.fill_(float("nan"))
        else:
            tensor.view(-1).view(torch.uint8).fill_(_POISON)


def _is_poisoned(tensor: Tensor) -> bool:
    """Whether any element is what `_poison` left."""
    if tensor.is_meta or not tensor.numel():
        return False
    if tensor.is_floating_point() or tensor.is_complex():
        values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        return bool(values.min().isnan())  # one pass; min() keeps a NaN
    whole = (tensor.reshape(-1, 1).view(torch.uint8) == _POISON).all(dim=1)
    is_byte = tensor.dtype in (torch.uint8, torch.int8)  # which may well have that value in some place
    return bool(whole.all() if is_byte else whole.any())
