"""Where autocast's dtype is wanted before autocast itself would cast."""

import torch
from torch import Tensor


def autocast(x: Tensor) -> Tensor:
    """`x` in autocast's dtype where autocast is on, and as it is elsewhere (the meta device has none)."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
