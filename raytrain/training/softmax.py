"""The softmax and its gradient on a GPU: one read of the logits from memory and one write.

A program takes a row in two passes. So few rows are on their way at a time (two a multiprocessor) that the second pass
finds its row in the L2 cache: 264 rows of 50,304 in bf16 are 27 MB.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 8192  # columns at a time: more would take the registers of which two programs have just enough
_WARPS = 32  # as many as a program can have


@triton.jit
def _softmax_gradient(  # type: ignore[no-untyped-def]
    logits,
    targets,
    losses,
    stride,
    padding,
    COLUMNS: tl.constexpr,
    WANTS_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    counts = target != padding
    target = tl.where(counts, target, 0)
    at_target = tl.load(logits + target).to(tl.float32)
    lanes = tl.arange(0, BLOCK)

    top = -float("inf")  # the largest so far, and the sum of exp(x - top)
    total = 0.0
    for start in range(0, COLUMNS, BLOCK):
        x = tl.load(logits + start + lanes, mask=start + lanes < COLUMNS, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, axis=0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), axis=0)
        top = higher
    log_total = top + tl.log(total)
    tl.store(losses + row, tl.where(counts, log_total - at_target, 0.0))

    if WANTS_GRADIENT:
        for start in range(0, COLUMNS, BLOCK):
            mask = start + lanes < COLUMNS
            x = tl.load(logits + start + lanes, mask=mask, other=0.0).to(tl.float32)
            gradient = tl.exp(x - log_total) - tl.where(start + lanes == target, 1.0, 0.0)
            gradient = tl.where(counts, gradient, 0.0)
            tl.store(logits + start + lanes, gradient.to(logits.dtype.element_ty), mask=mask)


def softmax_gradient_(logits_NV: torch.Tensor, targets_N: torch.Tensor, padding: int, wants: bool) -> torch.Tensor:
    """As `head.softmax_gradient_`, for rows that are contiguous."""
    rows, columns = logits_NV.shape
    losses_N = torch.empty(rows, dtype=torch.float32, device=logits_NV.device)
    block = min(_BLOCK, triton.next_power_of_2(columns))
    warps = min(_WARPS, max(4, block // 256))
    _softmax_gradient[(rows,)](
        logits_NV, targets_N, losses_N, logits_NV.stride(0), padding, columns, wants, block, num_warps=warps
    )
    return losses_N.sum()
