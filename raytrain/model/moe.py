"""A mixture of experts in place of the feed-forward network: each token goes to a few of many.

Letters in names: B batch, T sequence, N tokens, D n_embd, F width of an expert, X experts, A active ones of a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.model.activations import silu_product
from raytrain.model.feed_forward import SwiGLU
from raytrain.model.hooks import Carry, add_loss
from raytrain.model.linear import STD, Linear, residual_std
from raytrain.model.precision import autocast


class Experts(nn.Module):
    """SwiGLU experts, of which a token goes to the `n_expert_active` that its router scores highest; their outputs are
    summed by the softmax of those scores (Jiang et al., arXiv 2401.04088). No token is dropped. `n_shared_expert` more
    serve every token (DeepSeekMoE, arXiv 2401.06066). None has biases. (B, T, D) to (B, T, D).

    In training, `moe_balance` times a load-balancing loss is added: that of Switch (arXiv 2101.03961, equation 4), of
    each sequence, so that it does not depend on how a batch is split (DeepSeek-V3, arXiv 2412.19437, equation 17).
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.experts, self.active, self.balance = arch.n_expert, arch.n_expert_active, arch.moe_balance
        self.down_std = residual_std(arch)
        width, inner = arch.n_embd, arch.ffn_width
        self.router = Linear(width, arch.n_expert, bias=False)
        self.gate_up = nn.Parameter(torch.empty(arch.n_expert, width, 2 * inner))
        self.down = nn.Parameter(torch.empty(arch.n_expert, inner, width))
        shared = arch.n_shared_expert
        self.shared = SwiGLU(arch, width=shared * inner, bias=False) if shared else None

    def reset_parameters(self) -> None:
        nn.init.normal_(self.gate_up, std=STD)
        nn.init.normal_(self.down, std=self.down_std)

    def forward(self, x_BTD: Tensor, carry: Carry) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        with torch.autocast(x_ND.device.type, enabled=False):  # a rounded score may choose another expert
            scores_NX = self.router(x_ND.to(self.router.weight.dtype))
        best_NA, chosen_NA = scores_NX.topk(self.active, dim=-1)
        if self.training and self.balance:
            sequences = x_BTD.shape[:2]
            imbalance = load_imbalance(scores_NX.unflatten(0, sequences), chosen_NA.unflatten(0, sequences))
            add_loss(carry, self.balance * imbalance)
        y_NAD = self._of_chosen(x_ND, chosen_NA)
        y_ND = (y_NAD * self._shares(scores_NX, best_NA).type_as(y_NAD).unsqueeze(-1)).sum(dim=1)
        y_BTD = y_ND.view_as(x_BTD)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD, carry)

    def _shares(self, scores_NX: Tensor, best_NA: Tensor) -> Tensor:
        """The softmax over a token's chosen experts; over all, if it has one: else its router would learn nothing."""
        if self.active > 1:
            return best_NA.softmax(dim=-1)
        return (best_NA - scores_NX.logsumexp(dim=-1, keepdim=True)).exp()

    def _of_chosen(self, x_ND: Tensor, chosen_NA: Tensor) -> Tensor:
        """What each token's chosen experts make of it, by products of all tokens of an expert at once."""
        expert_M = chosen_NA.flatten()
        order_M = expert_M.argsort(stable=True)  # an expert's tokens side by side
        ends_X = F.one_hot(expert_M, self.experts).sum(dim=0).cumsum(dim=0).to(torch.int32)
        gate_up = grouped(x_ND[order_M // self.active], self.gate_up, ends_X)
        y_MD = grouped(silu_product(gate_up), self.down, ends_X)
        y_NAD: Tensor = y_MD[order_M.argsort()].unflatten(0, chosen_NA.shape)
        return y_NAD


def grouped(x_ND: Tensor, weight_XDF: Tensor, ends_X: Tensor) -> Tensor:
    """Rows up to the first of `ends_X` by the first matrix, those up to the next by the next, and so on: (N, F)."""
    if x_ND.is_meta:  # where nobody knows whose rows are whose: as many FLOPs
        return x_ND @ weight_XDF[0]
    x_ND, weight_XDF = autocast(x_ND), autocast(weight_XDF)
    if x_ND.is_cuda and x_ND.dtype == torch.bfloat16:
        return F.grouped_mm(x_ND, weight_XDF, offs=ends_X)
    pieces = x_ND.tensor_split(ends_X[:-1].cpu().long())
    return torch.cat([piece @ weight for piece, weight in zip(pieces, weight_XDF, strict=True)])


def load_imbalance(scores_BTX: Tensor, chosen_BTA: Tensor) -> Tensor:
    """X sum_x f_x P_x, with f_x the part of a sequence's choices that fell on expert x and P_x its mean softmax there;
    the mean over sequences. 1 where all is even."""
    experts = scores_BTX.size(-1)
    chosen_BX = F.one_hot(chosen_BTA.flatten(1), experts).to(scores_BTX.dtype).mean(dim=1)
    return experts * (chosen_BX * scores_BTX.softmax(dim=-1).mean(dim=1)).sum(dim=-1).mean()
