"""How much device memory a run will take, before anything starts. Pure.

Of each rank, with P parameters, S ranks that share what a strategy shards, and N tokens in a micro-batch:

    weights, gradients     4 P bytes each (fp32), over S under fsdp
    AdamW's moments        8 P, over all ranks under zero1, over S under fsdp
    ddp and zero1          8 P more: gradient buckets, as measured
    activations of a layer that its backward pass reads, in b bytes a number (2 under bf16 autocast, else 4):

        b N (D   the first norm's output        + E (H + 2 K)   queries, keys, values
           + D   what attention puts out        + D             the second norm's output
           + F   before the activation, twice under swiglu)
        4 N 4 D  fp32: the residual stream before each half, and what each half adds

    the head               b N V: the logits, which their gradient replaces
    recomputation          keeps 4 N D a layer, and one layer's activations at a time

What a compiled kernel recomputes (activations, products) is not kept. Fragments and kernels' workspaces are not in it.
docs/benchmarks.md sets it beside eleven measured runs: 6% under to 9% over, and 22% over in the smallest.
"""

import math

from raytrain.architecture import Architecture
from raytrain.flops import parameter_count


def peak_memory(
    architecture: Architecture,
    micro_batch: int,
    *,
    precision: str = "bf16",
    parallel: str = "single",
    world_size: int = 1,
    shard_size: int | None = None,
    recompute: bool = False,
) -> float:
    """Bytes of one rank at its peak, with `micro_batch` sequences a pass."""
    arch, parameters = architecture, parameter_count(architecture)["total"]
    shards = shard_size or world_size
    if parallel == "fsdp":
        state = 16 * parameters / shards + 4 * parameters / arch.n_layer  # and one layer, gathered
    else:
        moments = 8 * parameters / (world_size if parallel == "zero1" else 1)
        state = 8 * parameters + moments + (0 if parallel == "single" else 8 * parameters)
    number = 4 if precision == "fp32" else 2
    tokens = micro_batch * arch.block_size
    widths = 3 * arch.n_embd + arch.head_dim * (arch.n_head + 2 * arch.kv_heads)
    widths += arch.ffn_width * (2 if arch.ffn_type == "swiglu" else 1)
    stream = 4 * tokens * arch.n_embd
    layer = number * tokens * widths + 4 * stream
    if arch.attention_backend == "manual":
        layer += 2 * number * micro_batch * arch.n_head * arch.block_size**2  # scores and weights
    layers = arch.n_layer * stream + layer if recompute else arch.n_layer * layer
    head = number * tokens * arch.vocab_size
    return math.fsum((state, layers, head))
