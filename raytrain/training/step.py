"""One optimizer step: the gradients of a global batch, then the update."""

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import nn

from raytrain.training import parallel
from raytrain.training.batches import Batches
from raytrain.training.config import TrainConfig
from raytrain.training.parallel import World

MicroBatches = Iterator[tuple[torch.Tensor, torch.Tensor]]


class Stepper:
    """Takes the steps of one run with its `model`, spread over `world`, and its `optimizer`."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, config: TrainConfig, world: World
    ) -> None:
        self._model, self._optimizer, self._batches = model, optimizer, batches
        self._config, self._world = config, world
        self._parameters = list(model.parameters())

    def gradients(self, micro_batches: MicroBatches, sequences: int, *seed_of: int) -> torch.Tensor:
        """Gather the gradients of the mean loss over the next `sequences` sequences of all ranks' `micro_batches`.

        Returns this rank's sum of the loss. Dropout follows from the numbers `seed_of` and the run's seed alone, so
        that a resumed run draws the same.
        """
        world, micro_steps = self._world, self._batches.micro_steps(sequences)
        torch.manual_seed(dropout_seed(self._config.seed, *seed_of, world.rank))
        n_tokens = sequences * self._config.architecture.block_size
        loss = torch.zeros((), device=world.device)
        for micro_step in range(micro_steps):
            tokens, targets = next(micro_batches)
            with parallel.accumulate(self._model, last=micro_step + 1 == micro_steps):
                with torch.autocast(world.device.type, world.dtype, enabled=world.dtype != torch.float32):
                    micro_loss = self._model(tokens, targets)
                # Replicas average their gradients; what is wanted is the mean over the global batch's tokens.
                (micro_loss * (world.size / n_tokens)).backward()
            loss += micro_loss.detach()
        return loss

    def clip(self) -> torch.Tensor:
        """Clip the gradients as the run says; returns their norm before."""
        return parallel.clip_gradients(self._parameters, self._config.grad_clip or math.inf, self._world)

    def update(self, learning_rate: float) -> None:
        """Change the weights by the gradients, and drop those."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.drop()

    def drop(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad(set_to_none=True)


def dropout_seed(seed: int, *numbers: int) -> int:
    """A seed of its own for every (step, rank) of a run, and every (step, branch's step, rank)."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, (seed, *numbers))).encode()).digest()[:7])
