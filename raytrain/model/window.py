"""Causal attention within a window: a query attends to itself and to the w - 1 tokens before it.

Letters in names: B batch, T sequence, H heads, E head width, C chunks of w tokens, W the window w.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def windowed(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, window: int, dropout: float) -> Tensor:
    """By chunks of `window` queries, each of which sees its own chunk and the one before: 2 w keys a query, and any of
    PyTorch's kernels that take a mask. What is computed beyond the window is no model FLOPs.
    """
    tokens = q_BHTE.size(2)
    missing = -tokens % window
    q_BHCWE, k_BHCWE, v_BHCWE = (
        F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, window)) for x in (q_BHTE, k_BHTE, v_BHTE)
    )
    keys, values = _with_chunk_before(k_BHCWE), _with_chunk_before(v_BHCWE)
    mask = _mask(q_BHCWE.size(2), window, q_BHTE.device)
    query, key, value = (x.flatten(0, 1) for x in (q_BHCWE, keys, values))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    whole: Tensor = out.unflatten(0, q_BHTE.shape[:2]).flatten(2, 3)
    return whole[:, :, :tokens]


def _with_chunk_before(x_BHCWE: Tensor) -> Tensor:
    before = F.pad(x_BHCWE, (0, 0, 0, 0, 1, 0))[:, :, :-1]
    return torch.cat((before, x_BHCWE), dim=3)


def _mask(chunks: int, window: int, device: torch.device) -> Tensor:
    """(C, W, 2 W): which of its own and the last chunk's keys a query sees; before the first chunk there are none."""
    query = torch.arange(window, device=device)[:, None]
    key = torch.arange(2 * window, device=device) - window
    near = (key <= query) & (key > query - window)
    first = torch.arange(chunks, device=device)[:, None, None] == 0
    return near & ~(first & (key < 0))


def windowed_manual(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, window: int, dropout: float) -> Tensor:
    """The same as it is written, with the w keys of each query side by side: products with nothing else, and slow."""
    keys, values = (F.pad(x, (0, 0, window - 1, 0)).unfold(2, window, 1) for x in (k_BHTE, v_BHTE))  # (B, H, T, E, W)
    scores = ((q_BHTE * q_BHTE.size(-1) ** -0.5).unsqueeze(-2) @ keys).squeeze(-2)
    place = torch.arange(q_BHTE.size(2), device=q_BHTE.device)[:, None]
    before_first = torch.arange(window, device=q_BHTE.device) < window - 1 - place
    weights = scores.masked_fill(before_first, float("-inf")).softmax(dim=-1).type_as(v_BHTE)
    return (values @ F.dropout(weights, dropout).unsqueeze(-1)).squeeze(-1)
