"""The softmax and its gradient on a GPU: one read of the logits from memory and one write.

A program takes a row in two passes. So few rows are on their way at a time (two a multiprocessor) that the second pass
finds its row in the L2 cache: 264 rows of 50,304 in bf16 are 27 MB. Each lane adds up its own columns, and lanes meet
once a row: meeting at every block, as the usual running maximum wants it, takes longer than the memory does.
"""

import math

import torch
import triton
import triton.language as tl

_BLOCK = 8192  # columns at a time: more would take the registers of which two programs have just enough
_WARPS = 32  # as many as a program can have
LOG2_E = tl.constexpr(math.log2(math.e))  # the hardware has exp2


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

    # exp(x - reference) stays finite as long as no logit is 88 above the largest of the first block, `reference`.
    x = tl.load(logits + lanes, mask=lanes < COLUMNS, other=-float("inf")).to(tl.float32)
    reference = tl.max(x, axis=0)
    tops, sums = x, tl.exp2((x - reference) * LOG2_E)
    for start in range(BLOCK, COLUMNS, BLOCK):
        x = tl.load(logits + start + lanes, mask=start + lanes < COLUMNS, other=-float("inf")).to(tl.float32)
        tops = tl.maximum(tops, x)
        sums += tl.exp2((x - reference) * LOG2_E)
    top = tl.max(tops, axis=0)
    if top > reference + 60:  # rare: once more, with the row's own largest
        reference, sums = top, tl.zeros_like(sums)
        for start in range(0, COLUMNS, BLOCK):
            x = tl.load(logits + start + lanes, mask=start + lanes < COLUMNS, other=-float("inf")).to(tl.float32)
            sums += tl.exp2((x - reference) * LOG2_E)
    log_total = reference + tl.log(tl.sum(sums, axis=0))
    tl.store(losses + row, tl.where(counts, log_total - at_target, 0.0))

    if WANTS_GRADIENT:
        for start in range(0, COLUMNS, BLOCK):
            mask = start + lanes < COLUMNS
            x = tl.load(logits + start + lanes, mask=mask, other=0.0).to(tl.float32)
            gradient = tl.exp2((x - log_total) * LOG2_E) - tl.where(start + lanes == target, 1.0, 0.0)
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
