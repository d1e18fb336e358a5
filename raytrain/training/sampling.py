"""Text from a model, a token at a time."""

import itertools
from collections.abc import Iterator

import torch

from raytrain.model import Transformer


@torch.no_grad()
def continuation(
    model: Transformer, prompt: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """The tokens (1,) that follow `prompt` (T,) on its device, without end, each seeing the last block_size tokens.

    At the temperature 0 each is the likeliest; else it is drawn from the `top_k` likeliest by `generator`.
    """
    tokens = prompt
    while True:
        logits_V = model(tokens[None, -model.arch.block_size :])[0, -1]
        if temperature == 0:
            following = logits_V.argmax()[None]
        else:
            likeliest = torch.topk(logits_V / temperature, min(top_k, len(logits_V)))
            choice = torch.multinomial(likeliest.values.softmax(-1), 1, generator=generator)
            following = likeliest.indices[choice]
        tokens = torch.cat([tokens, following])
        yield following


def sample(
    model: Transformer, prompt: torch.Tensor, n_tokens: int, temperature: float, top_k: int, generator: torch.Generator
) -> torch.Tensor:
    """`prompt` (T,) followed by `n_tokens` sampled ones; see `continuation`."""
    following = continuation(model, prompt, temperature, top_k, generator)
    return torch.cat([prompt, *itertools.islice(following, n_tokens)])
