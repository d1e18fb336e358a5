"""How much device memory a run will take, before anything starts. Pure.

Of each rank, with P parameters, S ranks that share what a strategy shards, and N tokens in a micro-batch:

    weights, gradients     4 P bytes each (fp32), over S under fsdp
    AdamW's moments        8 P, over all ranks under zero1, over S under fsdp
    ddp and zero1          8 P more: gradient buckets, as measured
    of a layer what its backward pass reads, in b bytes a number (2 under bf16 and fp8, else 4):

        b N (D             what comes in         + D             the first norm's output
           + E (H + 2 K)   queries, keys, values + E (H + K)     under rope: queries and keys before it
           + D             what attention puts out
           + D             between the halves    + D             the second norm's output
           + 2 F           before and after the activation; 3 F under swiglu)

    selective              without the norms' outputs and what follows the activation
    full                   keeps b N D a layer, and one layer's activations at a time
    while it goes back     one layer's gradients of its widest activations, b N 2 F or 3 F
    the head               the logits of a chunk, 4 V D twice (its gradient, and the sum of the chunks'), b N D

Fragments and kernels' workspaces are not in it. docs/benchmarks.md sets it beside what was measured.
"""

import math

from raytrain.accounting.bill import layer_parts
from raytrain.accounting.flops import parameter_count
from raytrain.architecture import Architecture
from raytrain.axes import Span, total

HEAD_CHUNK_BYTES = 1 << 30  # of logits at a time: as fast as all at once, and little beside the activations


def peak_memory(
    architecture: Architecture,
    micro_batch: int,
    *,
    precision: str = "bf16",
    parallel: str = "single",
    world_size: int = 1,
    shard_size: int | None = None,
    checkpointing: str = "none",
) -> float:
    """Bytes of one rank at its peak, with `micro_batch` sequences a pass. `checkpointing` is that of activations."""
    arch, parameters = architecture, parameter_count(architecture)["total"]
    shards = shard_size or world_size
    if parallel == "fsdp":
        state = 16 * parameters / shards + 4 * parameters / arch.n_layer  # and one layer, gathered
    else:
        moments = 8 * parameters / (world_size if parallel == "zero1" else 1)
        state = 8 * parameters + moments + (0 if parallel == "single" else 8 * parameters)
    number = 4 if precision == "fp32" else 2
    tokens = micro_batch * arch.block_size
    stream = number * tokens * arch.n_embd
    parts = layer_parts(arch, Span(arch.block_size))
    layer = 2 * stream + number * tokens * total(parts, "kept")
    if checkpointing == "selective":
        layer -= number * tokens * total(parts, "recomputed")
    layers = arch.n_layer * stream + layer if checkpointing == "full" else arch.n_layer * layer
    widest = number * tokens * total(parts, "kept", "ffn")
    head = min(number * tokens * arch.vocab_size, HEAD_CHUNK_BYTES) + 8 * arch.vocab_size * arch.n_embd + stream
    return math.fsum((state, layers, widest, head))
