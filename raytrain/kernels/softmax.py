"""The softmax and its gradient on a GPU: one read of the logits from memory and one write.

A program takes row after row, each in two passes. So few rows are on their way at a time that the second pass finds its
row in the L2 cache. Each lane adds up its own columns, and lanes meet once a row: meeting at every block, as the usual
running maximum wants it, takes longer than the memory does.
"""

import math

import torch
import triton
import triton.language as tl

PROGRAMS = 2  # a multiprocessor
BLOCK = 4096  # columns at a time
WARPS = 16
LOG2_E = tl.constexpr(math.log2(math.e))  # the hardware has exp2


@triton.jit
def _over_cap(x, softcap):  # type: ignore[no-untyped-def]
    """tanh(x / softcap): a capped logit over its cap. Where exp is infinite it is 1."""
    return 1 - 2 / (tl.exp2(x * (2 * LOG2_E / softcap)) + 1)


@triton.jit  # type: ignore[untyped-decorator]
def _load(logits, columns, softcap, COLUMNS: tl.constexpr, CAPS: tl.constexpr):  # type: ignore[no-untyped-def]
    x = tl.load(logits + columns, mask=columns < COLUMNS, other=-float("inf")).to(tl.float32)
    if CAPS:
        x = tl.where(columns < COLUMNS, softcap * _over_cap(x, softcap), -float("inf"))
    return x


@triton.jit  # type: ignore[untyped-decorator]
def _softmax_gradient(  # type: ignore[no-untyped-def]
    logits,
    targets,
    losses,
    rows,
    stride,
    padding,
    softcap,
    z_loss,
    COLUMNS: tl.constexpr,
    CAPS: tl.constexpr,
    WANTS_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lanes = tl.arange(0, BLOCK)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        line = logits + tl.cast(row, tl.int64) * stride
        target = tl.load(targets + row)
        counts = target != padding
        target = tl.where(counts, target, 0)
        at_target = tl.load(line + target).to(tl.float32)
        if CAPS:
            at_target = softcap * _over_cap(at_target, softcap)

        # exp(x - reference) stays finite while no logit is 88 above `reference`, the largest of the first block.
        x = _load(line, lanes, softcap, COLUMNS, CAPS)
        reference = tl.max(x, axis=0)
        tops, sums = x, tl.exp2((x - reference) * LOG2_E)
        for start in range(BLOCK, COLUMNS, 2 * BLOCK):
            x = _load(line, start + lanes, softcap, COLUMNS, CAPS)
            y = _load(line, start + BLOCK + lanes, softcap, COLUMNS, CAPS)
            tops = tl.maximum(tops, tl.maximum(x, y))
            sums += tl.exp2((x - reference) * LOG2_E) + tl.exp2((y - reference) * LOG2_E)
        top = tl.max(tops, axis=0)
        if top > reference + 60:  # rare: once more, with the row's own largest
            reference, sums = top, tl.zeros_like(sums)
            for start in range(0, COLUMNS, BLOCK):
                sums += tl.exp2((_load(line, start + lanes, softcap, COLUMNS, CAPS) - reference) * LOG2_E)
        log_total = reference + tl.log(tl.sum(sums, axis=0))
        tl.store(losses + row, tl.where(counts, log_total - at_target, 0.0))

        if WANTS_GRADIENT:
            weight = 1 + 2 * z_loss * log_total
            for start in range(0, COLUMNS, BLOCK):
                columns = start + lanes
                x = _load(line, columns, softcap, COLUMNS, CAPS)
                gradient = weight * tl.exp2((x - log_total) * LOG2_E)
                gradient = tl.where(counts, gradient - tl.where(columns == target, 1.0, 0.0), 0.0)
                if CAPS:
                    over = x * (1 / softcap)
                    gradient *= 1 - over * over
                tl.store(line + columns, gradient.to(logits.dtype.element_ty), mask=columns < COLUMNS)


def softmax_gradient_(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, padding: int, wants: bool, softcap: float, z_loss: float
) -> torch.Tensor:
    """As `linear_cross_entropy.softmax_gradient_`, for rows that are contiguous."""
    rows, columns = logits_NV.shape
    losses_N = torch.empty(rows, dtype=torch.float32, device=logits_NV.device)
    block = min(BLOCK, triton.next_power_of_2(columns))
    warps = min(WARPS, max(4, block // 256))
    _softmax_gradient[(min(rows, _programs(logits_NV.device)),)](
        logits_NV,
        targets_N,
        losses_N,
        rows,
        logits_NV.stride(0),
        padding,
        softcap,
        z_loss,
        columns,
        softcap > 0,
        wants,
        block,
        num_warps=warps,
    )
    return losses_N.sum()


def _programs(device: torch.device) -> int:
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
