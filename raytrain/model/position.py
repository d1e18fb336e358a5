"""Position encodings. Each acts at one of two places: on the embedded tokens, or on the queries and keys.

Letters in names: B batch, T sequence, D n_embd, N any number of heads, E head width.
"""

import torch
from torch import Tensor, nn

from raytrain.architecture import Architecture
from raytrain.axes import AXES, load
from raytrain.model.linear import Embedding


class Position(nn.Module):
    """No position encoding: only the causal mask distinguishes places."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()

    def embed(self, x_BTD: Tensor) -> Tensor:
        """What happens to the embedded tokens."""
        return x_BTD

    def rotate(self, qk_BTNE: Tensor) -> Tensor:
        """What happens to the queries and keys of every layer. Same shape and dtype as given."""
        return qk_BTNE


class LearnedAbsolute(Position):
    """A learned vector per place, added to the token's (GPT-2)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.embedding = Embedding(arch.block_size, arch.n_embd)

    def embed(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.embedding.weight[: x_BTD.size(1)]


class Rotary(Position):
    """RoPE (Su et al., arXiv 2104.09864), with the halves paired as in Hugging Face's Llama: feature i with i + E/2.

    Below a `rope_fraction` of 1 the first features of a head are turned, as if they were all (GPT-NeoX), and the others
    left as they are.
    """

    cos_TE: Tensor
    sin_TE: Tensor

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.theta, self.turned = arch.rope_theta, round(arch.rope_fraction * arch.head_dim)
        for name in ("cos_TE", "sin_TE"):  # the angles of the two halves are the same, so half of E is kept
            table = torch.empty(arch.block_size, self.turned // 2, dtype=torch.float32)
            self.register_buffer(name, table, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill the tables: angle[t, i] = t x theta^(-2i/E), in float32."""
        places, half = self.cos_TE.shape
        device = self.cos_TE.device
        frequency_E = 1.0 / self.theta ** (torch.arange(half, dtype=torch.float32, device=device) / half)
        angle_TE = torch.arange(places, dtype=torch.float32, device=device)[:, None] * frequency_E
        self.cos_TE.copy_(angle_TE.cos())
        self.sin_TE.copy_(angle_TE.sin())

    def rotate(self, qk_BTNE: Tensor) -> Tensor:
        cos_T1E, sin_T1E = (table[: qk_BTNE.size(1), None] for table in (self.cos_TE, self.sin_TE))
        first, second = qk_BTNE[..., : self.turned].chunk(2, dim=-1)
        # Under autocast q and k come in bf16 and the tables lift the products to float32; only the result is rounded.
        turned = torch.cat((first * cos_T1E - second * sin_T1E, second * cos_T1E + first * sin_T1E), dim=-1)
        if self.turned == qk_BTNE.size(-1):
            return turned.type_as(qk_BTNE)
        return torch.cat((turned.type_as(qk_BTNE), qk_BTNE[..., self.turned :]), dim=-1)


def make_position(arch: Architecture) -> Position:
    """The architecture's position encoding, one for all layers."""
    position: Position = load(AXES["position_encoding"].level(arch.position_encoding).make)(arch)
    return position
