"""One optimizer step: the gradients of a global batch, then the update; as one launch each where the model is small."""

import collections
import hashlib
import math
from collections.abc import Iterator

import torch
from torch import nn

from raytrain.config.run import TrainConfig
from raytrain.training import graphs, parallel
from raytrain.training.batches import Batches
from raytrain.training.checkpoint import State
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
        self._clip_at = config.grad_clip or math.inf
        self._graphed: graphs.GraphedStep | None = None
        if graphs.are_worth_it(config, world, batches.micro_batch):
            self._graphed = graphs.GraphedStep(model, optimizer, world, self._clip_at)

    @property
    def warm_up_steps(self) -> int:
        """The first steps of a process, which hold what is done once: compilation, and capture."""
        return 1 if self._graphed is None else 2

    def gradients(self, micro_batches: MicroBatches, sequences: int, *seed_of: int) -> torch.Tensor:
        """Gather the gradients of the mean loss over the next `sequences` sequences of all ranks' `micro_batches`.

        Returns this rank's sum of the loss. Dropout follows from the numbers `seed_of` and the run's seed alone, so
        that a resumed run draws the same.
        """
        world, micro_steps = self._world, self._batches.micro_steps(sequences)
        _seed(dropout_seed(self._config.seed, *seed_of, world.rank), world.device)
        n_tokens = sequences * self._config.architecture.block_size
        loss = torch.zeros((), device=world.device)
        factor = world.size / n_tokens  # replicas average their gradients; wanted is the mean over the global batch
        for micro_step in range(micro_steps):
            tokens, targets = next(micro_batches)
            if self._graphed is not None:
                loss += self._graphed.passes(tokens, targets, factor)
                continue
            with parallel.accumulate(self._model, last=micro_step + 1 == micro_steps):
                with torch.autocast(world.device.type, world.dtype, enabled=world.dtype != torch.float32):
                    micro_loss = self._model(tokens, targets)
                (micro_loss * factor).backward()
            loss += micro_loss.detach()
        return loss

    def clip(self) -> torch.Tensor:
        """Clip the gradients at the run's `grad_clip`; returns their norm before."""
        if self._graphed is not None:
            return self._graphed.clip()
        return parallel.clip_gradients(self._parameters, self._clip_at, self._world)

    def update(self, learning_rate: float) -> None:
        """Change the weights by the gradients, and drop those."""
        if self._graphed is not None:
            self._graphed.update(learning_rate)
            return
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.drop()

    def drop(self) -> None:
        """Drop the gradients."""
        if self._graphed is not None:
            self._graphed.drop()
            return
        self._optimizer.zero_grad(set_to_none=True)


class Outcomes:
    """The outcomes of the steps of a run, read into its `state`: on a GPU a step late, so that it never waits for this
    process. `interruptions` counts the ranks that were interrupted, over all steps."""

    def __init__(self, config: TrainConfig, world: World, state: State) -> None:
        self._config, self._world, self._state = config, world, state
        self._unread: collections.deque[_Outcome] = collections.deque()
        self._lag = 1 if world.device.type == "cuda" else 0  # steps
        self.interruptions = 0.0

    def add(self, step: int, loss_sum: torch.Tensor, norm: torch.Tensor, *, is_interrupted: bool) -> None:
        """Step number `step` of this rank: its sum of the loss, the gradients' norm before clipping. A collective."""
        sums = torch.zeros(2, device=self._world.device)
        sums[0], sums[1] = loss_sum, float(is_interrupted)
        self._unread.append(_Outcome(step, self._world.sum(sums), norm))
        if is_interrupted and self._world.size == 1:  # there is nothing for ranks to agree on
            self._lag = 0

    def read(self, *, everything: bool) -> bool:
        """Read all outcomes, but on a GPU not the last, unless for `everything`, or if a rank was interrupted.

        Returns False at a loss or a gradient norm that is not finite; the state is then as before that step, but for
        these two.
        """
        state = self._state
        while len(self._unread) > (0 if everything or self.interruptions else self._lag):
            outcome = self._unread.popleft()
            loss_sum, interrupted_ranks, state.grad_norm = outcome.read()
            self.interruptions += interrupted_ranks
            first, count = self._config.span(outcome.step)
            state.train_loss = loss_sum / (count * self._config.architecture.block_size)
            if not (math.isfinite(state.train_loss) and math.isfinite(state.grad_norm)):
                state.step, state.sequences = outcome.step, first
                return False
        return True


class _Outcome:
    """The outcome of step number `step`. On a GPU it takes a while to arrive, and reading it waits.

    `sums` are the loss over all tokens of all ranks, and how many ranks were interrupted; `norm` is the gradients'.
    """

    def __init__(self, step: int, sums: torch.Tensor, norm: torch.Tensor) -> None:
        self.step = step
        self._values = torch.cat((sums, norm.reshape(1))).to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if sums.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> tuple[float, float, float]:
        """The sum of the loss, the number of interrupted ranks, and the norm."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, interruptions, norm = self._values.tolist()
        return loss, interruptions, norm


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of `device`. torch.manual_seed takes a millisecond, for devices not there."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def dropout_seed(seed: int, *numbers: int) -> int:
    """A seed of its own for every (step, rank) of a run, and every (step, branch's step, rank)."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, (seed, *numbers))).encode()).digest()[:7])
