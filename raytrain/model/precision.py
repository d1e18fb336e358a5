"""Where autocast's dtype is wanted before autocast itself would cast."""

import torch
from torch import Tensor


def autocast(x: Tensor) -> Tensor:
    """`x` in autocast's dtype where autocast is on, and as it is elsewhere."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
