"""Matrix products of the blocks in fp8, each tensor with one scale that follows from its largest value.

The forward pass multiplies in e4m3, which has more digits, and gradients are in e5m2, which has more range
(Micikevicius et al., arXiv 2209.05433). Products come out in the dtype of what came in. The head, the norms and the
embeddings are left as they are.

Letters in names: M rows of the input (tokens), K its width, N that of the output.
"""

from typing import Any

import torch
from torch import Tensor, nn

from raytrain.config.run import FP8_MULTIPLE
from raytrain.model.feed_forward import SwiGLU


def convert(model: nn.Module) -> None:
    """Let every Linear in `model` multiply in fp8. Parameters stay as they are.

    All sides of its products must be multiples of `config.FP8_MULTIPLE`; a Linear with a side that is not, such as the
    gate of attention heads, stays as it is.
    """
    for module in model.modules():
        if isinstance(module, SwiGLU):
            module.linear = linear
        if isinstance(module, nn.Linear) and _is_fit(module):
            module.__class__ = Float8Linear


def _is_fit(module: nn.Linear) -> bool:
    is_plain = type(module).forward is nn.Linear.forward
    return is_plain and not (module.in_features % FP8_MULTIPLE or module.out_features % FP8_MULTIPLE)


class Float8Linear(nn.Linear):
    """nn.Linear in fp8: (..., K) to (..., N)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """As F.linear, in fp8."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        y_MN = _Product.apply(x.flatten(0, -2).to(dtype), weight_NK.to(dtype))  # type: ignore[no-untyped-call]
        y = y_MN.unflatten(0, x.shape[:-1])
        out: Tensor = y if bias_N is None else y + bias_N.to(dtype)
        return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor) -> Tensor:
        x, weight = _scaled(x_MK, torch.float8_e4m3fn), _scaled(weight_NK, torch.float8_e4m3fn)
        ctx.save_for_backward(*x, *weight)
        return _multiply(*x, *weight, x_MK.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x_MK, x_scale, weight_NK, weight_scale = ctx.saved_tensors
        (gradient_MN,) = gradients
        y_MN, y_scale = _scaled(gradient_MN, torch.float8_e5m2)
        for_x = _multiply(y_MN, y_scale, weight_NK.t().contiguous(), weight_scale, gradient_MN.dtype)
        for_weight = _multiply(y_MN.t().contiguous(), y_scale, x_MK.t().contiguous(), x_scale, gradient_MN.dtype)
        return for_x, for_weight


def _scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` in fp8, its largest value at the dtype's largest; and the factor that undoes it, a scalar in fp32."""
    largest = x.abs().amax().float().clamp(min=1e-12)
    limit = torch.finfo(dtype).max
    return (x.float() * (limit / largest)).clamp(-limit, limit).to(dtype), largest / limit


def _multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b.T, where the rows of both are contiguous: the one layout that the kernels take."""
    fast = a.dtype == b.dtype == torch.float8_e4m3fn  # adds up in less than fp32, which the forward pass bears
    return torch._scaled_mm(a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast)
