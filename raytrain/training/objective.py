"""The training objective: next-token cross-entropy, and the padding that it leaves out."""

import torch
from torch import nn

from raytrain.kernels.linear_cross_entropy import PADDING, linear_cross_entropy
from raytrain.model import Transformer

__all__ = ["PADDING", "NextTokenLoss"]


class NextTokenLoss(nn.Module):
    """A language model with its loss, as the one module that is spread over ranks.

    `evaluates_as_it_trains`: without gradients, the model still runs as if it had them, so that a compiled one needs
    no second compilation.
    """

    def __init__(self, model: Transformer, z_loss: float = 0.0) -> None:
        super().__init__()
        self.model, self.z_loss = model, z_loss
        self.evaluates_as_it_trains = False

    def forward(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """The sum, in nats, of the cross-entropy of every target that is not PADDING. A scalar, in fp32.

        In training its gradient is that of the auxiliary losses too, for as many tokens, but its value is not: so the
        losses of two models compare.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.evaluates_as_it_trains):
            hidden_BTD, carry = self.model.states(tokens_BT)
        loss = self.head_loss(hidden_BTD, targets_BT)
        extra = self.model.auxiliary_loss(hidden_BTD, targets_BT, carry) if self.training else None
        return loss if extra is None else loss + targets_BT.numel() * (extra - extra.detach())

    def head_loss(self, hidden_BTD: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """The head and the cross-entropy of hidden states that are already computed."""
        softcap, hidden_ND = self.model.arch.logit_softcap, hidden_BTD.flatten(0, 1)
        return linear_cross_entropy(
            hidden_ND, self.model.head.weight, targets_BT.flatten(), softcap=softcap, z_loss=self.z_loss
        )
