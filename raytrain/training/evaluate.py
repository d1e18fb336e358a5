"""Validation loss on a fixed set of windows."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from raytrain.config.run import TrainConfig
from raytrain.data import Dataset, Tokens, validation_windows
from raytrain.data.loader import check_vocabulary
from raytrain.training.objective import PADDING
from raytrain.training.parallel import World


class Evaluator:
    """Evaluates on the same `eval_tokens` tokens of the validation split each time, whatever the world size."""

    def __init__(self, tokens: Tokens, config: TrainConfig, world: World, batch: int) -> None:
        self._tokens, self._world, self._batch = tokens, world, batch
        self._block_size, self._vocab_size = config.architecture.block_size, config.architecture.vocab_size
        self._starts = validation_windows(tokens, self._block_size, max(1, config.eval_tokens // self._block_size))

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """The mean cross-entropy in nats per token. A collective; `model` is a NextTokenLoss, spread or not."""
        world = self._world
        mine = self._starts[world.rank :: world.size]
        rounds = math.ceil(math.ceil(len(self._starts) / world.size) / self._batch)  # equal on all ranks
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        model.eval()
        for index in range(rounds):
            starts = mine[index * self._batch : (index + 1) * self._batch]
            padded = np.resize(starts if len(starts) else self._starts[:1], self._batch)  # one shape: one compilation
            windows = self._tokens.read(padded, self._block_size + 1)
            check_vocabulary(windows, self._vocab_size)
            sequences = torch.from_numpy(windows)
            tokens, targets = sequences[:, :-1].contiguous(), sequences[:, 1:].clone()
            targets[len(starts) :] = PADDING
            with torch.autocast(world.device.type, world.dtype, enabled=world.dtype != torch.float32):
                total += model(tokens.to(world.device), targets.to(world.device)).double()
        model.train()
        return world.sum(total).item() / (len(self._starts) * self._block_size)


class Evaluations:
    """What a run is evaluated on: the validation split of its data, and its further sets by name.

    All are read in batches of one shape, so they share one compiled model.
    """

    def __init__(
        self, dataset: Dataset, further: Mapping[str, Dataset], config: TrainConfig, world: World, batch: int
    ) -> None:
        self._last_step = config.total_steps
        self._interval = config.eval_interval or math.ceil(self._last_step / config.evaluations)
        sets = {"": dataset} | {f"_{name}": other for name, other in further.items()}
        self._sets = {
            ending: (Evaluator(there.val, config, world, batch), there.val_bytes_per_token)
            for ending, there in sets.items()
        }

    def are_due(self, step: int) -> bool:
        """Whether to evaluate after so many steps."""
        return step % self._interval == 0 or step == self._last_step

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """val_loss and val_bpb, and those of each set with its name behind (`val_loss_NAME`). A collective."""
        return self._named({ending: evaluator.loss(model) for ending, (evaluator, _) in self._sets.items()})

    def of_nothing(self) -> dict[str, float]:
        """The same, all NaN: of a model that diverged."""
        return self._named(dict.fromkeys(self._sets, math.nan))

    def _named(self, losses: Mapping[str, float]) -> dict[str, float]:
        return {
            f"{metric}{ending}": value
            for ending, loss in losses.items()
            for metric, value in evaluation(loss, self._sets[ending][1]).items()
        }


def evaluation(loss: float, bytes_per_token: float | None) -> dict[str, float]:
    """val_loss in nats per token; and val_bpb, bits per byte of text, where the data has the length of its tokens."""
    metrics = {"val_loss": loss}
    if bytes_per_token:
        metrics["val_bpb"] = bits_per_byte(loss, bytes_per_token)
    return metrics


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """`loss` in nats per token as bits per byte of text, which is comparable across tokenizers."""
    return loss / math.log(2) / bytes_per_token
