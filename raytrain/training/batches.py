"""Which sequences a rank trains on, and when. A pure function of (seed, step, micro-step, rank): no state to resume."""

import collections
import concurrent.futures
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from raytrain.data import Loader
from raytrain.training.objective import PADDING
from raytrain.training.parallel import World

_PREFETCH = 2  # micro-batches read ahead


class Batches:
    """The training batches of one rank.

    Sequence k of a step's global batch goes to rank k % W, so every strategy and world size trains on the same
    global batches. All micro-batches have one shape: a step that ends at a rung or at the end of the run may hold fewer
    sequences, and its missing places have PADDING for targets.
    """

    def __init__(self, loader: Loader, micro_batch: int, world: World) -> None:
        """`micro_batch` is in sequences of one rank."""
        self._loader, self.micro_batch, self._world = loader, micro_batch, world

    def micro_steps(self, sequences: int) -> int:
        """Micro-batches of a step of so many sequences, equal on every rank; none is padding everywhere."""
        return -(-sequences // (self.micro_batch * self._world.size))

    def stream(self, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(tokens (B, T), targets (B, T)) of every micro-batch of the steps in `spans`, read ahead by a thread.

        A span is a step's first sequence and how many it has: see `TrainConfig.span`.
        """
        jobs = ((span, micro_step) for span in spans for micro_step in range(self.micro_steps(span[1])))
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            ahead = collections.deque(pool.submit(self._load, *job) for job in itertools.islice(jobs, _PREFETCH))
            while ahead:
                tokens, targets = ahead.popleft().result()
                ahead.extend(pool.submit(self._load, *job) for job in itertools.islice(jobs, 1))
                device = self._world.device
                yield tokens.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    def _load(self, span: tuple[int, int], micro_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        (first, count), world = span, self._world
        place = (micro_step * self.micro_batch + np.arange(self.micro_batch)) * world.size + world.rank
        is_padding = place >= count
        place[is_padding] = 0
        sequences = torch.from_numpy(self._loader.sequences(first + place))
        tokens, targets = sequences[:, :-1].contiguous(), sequences[:, 1:].clone()
        targets[torch.from_numpy(is_padding)] = PADDING
        if world.device.type == "cuda":
            tokens, targets = tokens.pin_memory(), targets.pin_memory()
        return tokens, targets
