"""The gradient of silu(gate) * up on a GPU: each number is read once and written once."""

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

BLOCK = 2048  # columns of one program


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(gate_up, product_gradient, gradient, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    place = 2 * row * width + columns
    gate = tl.load(gate_up + place, mask=inside).to(tl.float32)
    up = tl.load(gate_up + place + width, mask=inside).to(tl.float32)
    outer = tl.load(product_gradient + row * width + columns, mask=inside).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    number = gradient.dtype.element_ty
    tl.store(gradient + place, (outer * up * (sigmoid + silu * (1 - sigmoid))).to(number), mask=inside)
    tl.store(gradient + place + width, (outer * silu).to(number), mask=inside)


@triton_op("raytrain::silu_product_gradient", mutates_args=())
def silu_product_gradient(gate_up: torch.Tensor, product_gradient: torch.Tensor) -> torch.Tensor:
    """The gradient for `gate_up` (..., 2F), of that for the product (..., F)."""
    width = product_gradient.size(-1)
    gate_up, product_gradient = gate_up.contiguous(), product_gradient.contiguous()
    gradient = torch.empty_like(gate_up)
    grid = (product_gradient.numel() // width, triton.cdiv(width, BLOCK))
    wrap_triton(_gradient)[grid](gate_up, product_gradient, gradient, width, BLOCK)
    return gradient
