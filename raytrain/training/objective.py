"""The training objective: next-token cross-entropy, and the padding that it leaves out."""

import torch
import torch.nn.functional as F
from torch import nn

from raytrain.model import Transformer

PADDING = -100  # a target that counts nothing


class NextTokenLoss(nn.Module):
    """A language model with its loss, as the one module that is spread over ranks."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """The sum, in nats, of the cross-entropy of every target that is not PADDING. A scalar, in fp32."""
        return self.head_loss(self.model.hidden(tokens_BT), targets_BT)

    def head_loss(self, hidden_BTD: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """The head and the cross-entropy. Apart, so that it can be compiled apart from the blocks."""
        logits_BTV = self.model.head(hidden_BTD)
        return F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=PADDING, reduction="sum"
        )
