"""The head and the cross-entropy in one: the logits of all tokens never exist at once.

Some tokens at a time, the forward pass computes their logits, the loss, and at once the gradients for the hidden states
and for the head's weight, which do not depend on what comes after but for a factor. The backward pass only applies
that factor. So nothing is computed twice, and the matrix products are as many as without (the idea is that of Wijmans
et al., arXiv 2411.09009, and of Hsu et al., arXiv 2410.10989).

Letters in names: N tokens, D n_embd, V vocab_size.
"""

import math
from typing import Any

import torch
from torch import Tensor

from raytrain.accounting import memory

PADDING = -100  # a target that counts nothing


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, softcap: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """The sum, in nats, of the cross-entropy of `hidden @ weight.T` at every target that is not PADDING.

    With `softcap` c the logits are c tanh(logits / c) (Gemma 2, arXiv 2408.00118). With `z_loss` the gradient, not the
    value, is that of the sum plus z_loss x log^2 of the softmax's denominator (PaLM, arXiv 2204.02311, section 5).

    A scalar in fp32. Matrix products run in autocast's dtype where it is on, and the weight's gradient is summed in
    fp32. Under no_grad nothing but the loss is computed.
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
    with torch.autocast(device, enabled=False):
        out: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_ND, weight_VD, targets_N, dtype, torch.is_grad_enabled(), softcap, z_loss
        )
        return out


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        dtype: torch.dtype,
        wants_gradient: bool,
        softcap: float,
        z_loss: float,
    ) -> Tensor:
        weight = weight_VD.to(dtype)
        loss = hidden_ND.new_zeros((), dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden_ND, dtype=dtype) if wants_gradient else None
        weight_gradient = None
        for rows in _chunks(len(targets_N), weight.size(0) * dtype.itemsize):
            hidden = hidden_ND[rows].to(dtype)
            logits = hidden @ weight.t()
            loss += softmax_gradient_(logits, targets_N[rows], wants_gradient, softcap, z_loss)
            if hidden_gradient is not None:
                torch.mm(logits, weight, out=hidden_gradient[rows])
                weight_gradient = _add_product(weight_gradient, logits.t(), hidden)
            del logits  # before the next ones are made
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0]
        hidden_dtype, weight_dtype = ctx.dtypes
        hidden, weight = ctx.saved_tensors
        return (hidden * factor).to(hidden_dtype), (weight * factor).to(weight_dtype), *(None,) * 5


def _chunks(tokens: int, bytes_per_token: int) -> list[slice]:
    """Equal parts of the tokens with about HEAD_CHUNK_BYTES of logits each, in whole tiles of a matrix product."""
    parts = math.ceil(tokens * bytes_per_token / memory.HEAD_CHUNK_BYTES)
    size = math.ceil(tokens / parts / 128) * 128
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b in fp32."""
    if a.dtype == torch.float32 or not a.is_cuda:  # elsewhere a product of bf16 comes in bf16
        return (a @ b).float() if total is None else total.add_(a @ b)
    if total is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


def softmax_gradient_(
    logits_NV: Tensor, targets_N: Tensor, wants_gradient: bool, softcap: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """The summed cross-entropy in fp32; in the place of the logits, if wanted, its gradient for them.

    A row whose target is PADDING has no loss and a gradient of zero. With x the logits, c the cap, l = c tanh(x / c),
    p = softmax(l) and Z = logsumexp(l): the gradient for l is p (1 + 2 z_loss Z) less 1 at the target, and
    dl/dx = 1 - (l / c)^2.
    """
    if logits_NV.is_cuda:
        from raytrain.kernels.softmax import softmax_gradient_ as fused

        return fused(logits_NV, targets_N, PADDING, wants_gradient, softcap, z_loss)
    counts_N1 = (targets_N != PADDING).unsqueeze(1)
    targets_N1 = targets_N.clamp(min=0).unsqueeze(1)
    l_NV = logits_NV.float().div_(softcap).tanh_().mul_(softcap) if softcap else logits_NV
    log_p_NV = torch.log_softmax(l_NV, dim=-1, dtype=torch.float32)
    log_p_N1 = log_p_NV.gather(1, targets_N1)
    loss = -(log_p_N1 * counts_N1).sum()
    if wants_gradient:
        gradient_NV = log_p_NV.exp_()
        if z_loss:
            gradient_NV *= 1 + 2 * z_loss * (l_NV.gather(1, targets_N1) - log_p_N1)  # the difference is Z
        gradient_NV.scatter_add_(1, targets_N1, gradient_NV.new_full((1, 1), -1.0).expand_as(targets_N1))
        if softcap:
            gradient_NV *= l_NV.div_(softcap).square_().neg_().add_(1)
        logits_NV.copy_(gradient_NV.mul_(counts_N1))
    return loss
