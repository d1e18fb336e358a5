"""The training objective: next-token cross-entropy, and the padding that it leaves out."""

import torch
import torch.nn.functional as F
from torch import nn

PADDING = -100  # a target that counts nothing


class NextTokenLoss(nn.Module):
    """A language model with its loss, as the one module that is spread over ranks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """The sum, in nats, of the cross-entropy of every target that is not PADDING. A scalar, in fp32."""
        logits_BTV = self.model(tokens_BT)
        return F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=PADDING, reduction="sum"
        )
