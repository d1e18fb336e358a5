"""CUDA graphs: many launches as one, where kernels are so small that launching them takes longer than running them.

A step becomes three replays: the passes of a micro-batch, the clipping of the gradients, and the update; the last not
for a plugin's optimizer whose groups have no `capturable`, which torch's optimizers say that they can with. Everything
that they touch lies at fixed addresses: the inputs, the gradients, the weights and the optimizer's state. Dropout draws
anew at each replay, from the seed that `torch.manual_seed` set last, as it does without.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from raytrain.accounting.flops import flops_per_token
from raytrain.config.run import TrainConfig
from raytrain.training.parallel import World, clip_gradients, uses_compile

# A GPU at 400 TFLOP/s takes 2.5 ms for so many model FLOPs; launching the kernels of one layer's passes takes as long.
MOST_FLOPS = 1e12


def are_worth_it(config: TrainConfig, world: World, micro_batch: int) -> bool:
    """Whether launches dominate the passes of a micro-batch of so many sequences: by a layer's size, on one GPU.

    Not where `compile` is off: then everything is to run as it is written. Nor where all is recomputed, which sets the
    state of generators, as no graph can.
    """
    arch = config.architecture
    flops = micro_batch * flops_per_token(arch).per_sequence / arch.n_layer
    is_alone = world.device.type == "cuda" and world.strategy == "single"
    is_plain = config.activation_checkpointing != "full"
    return is_alone and is_plain and flops <= MOST_FLOPS and uses_compile(config, world)


class Replay:
    """Calls `work` as it is once, which compiles and allocates; captures it the second time; replays it from then on.

    `work` takes and returns nothing: it reads and writes tensors that stay where they are.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self._work, self._stream = work, torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._has_run = False

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        elif self._has_run:
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread pins the memory of the next batches meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._work()
            self._graph = graph
            graph.replay()  # capturing runs nothing
        else:
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                self._work()
            current.wait_stream(self._stream)
            self._has_run = True


class GraphedStep:
    """The parts of an optimizer step of a model on one GPU, as replays. The gradients stay allocated between steps."""

    def __init__(self, loss_model: nn.Module, optimizer: torch.optim.Optimizer, world: World, limit: float) -> None:
        self._model, self._optimizer, self._world, self._limit = loss_model, optimizer, world, limit
        self._parameters = [p for p in loss_model.parameters() if p.requires_grad]
        self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._inputs: tuple[Tensor, Tensor] | None = None
        scalar = functools.partial(torch.zeros, (), device=world.device)
        self._factor, self._loss, self._norm, self._rate = scalar(), scalar(), scalar(), scalar()
        self._replay_passes = Replay(self._passes, world.device)
        self._replay_clip = Replay(self._clip, world.device)
        self._replay_update = Replay(self._update, world.device)
        self._updates_in_graph = all("capturable" in group for group in optimizer.param_groups)

    def passes(self, tokens_BT: Tensor, targets_BT: Tensor, factor: float) -> Tensor:
        """Add the gradients of `factor` times the loss; returns the loss, which the next call overwrites."""
        if self._inputs is None:
            self._inputs = torch.empty_like(tokens_BT), torch.empty_like(targets_BT)
        for fixed, given in zip(self._inputs, (tokens_BT, targets_BT), strict=True):
            fixed.copy_(given, non_blocking=True)
        self._factor.fill_(factor)
        self._attach()
        self._replay_passes()
        return self._loss

    def clip(self) -> Tensor:
        """As parallel.clip_gradients; the next call overwrites the norm."""
        self._replay_clip()
        return self._norm

    def update(self, learning_rate: float) -> None:
        """Take the optimizer's step, as a replay where the optimizer can be captured, and set the gradients to zero."""
        if self._updates_in_graph:
            self._rate.fill_(learning_rate)
            self._replay_update()
            return
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.drop()

    def drop(self) -> None:
        """Set the gradients to zero."""
        torch._foreach_zero_(self._gradients)

    def _attach(self) -> None:
        if self._parameters[0].grad is not self._gradients[0]:
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient

    def _passes(self) -> None:
        assert self._inputs is not None
        world = self._world
        with torch.autocast(world.device.type, world.dtype, enabled=world.dtype != torch.float32):
            loss = self._model(*self._inputs)
        (loss * self._factor).backward()
        self._loss.copy_(loss.detach())

    def _clip(self) -> None:
        self._norm.copy_(clip_gradients(self._parameters, self._limit, self._world))

    def _update(self) -> None:
        with _capturable(self._optimizer, self._rate):
            self._optimizer.step()
        torch._foreach_zero_(self._gradients)


@contextlib.contextmanager
def _capturable(optimizer: torch.optim.Optimizer, rate: Tensor) -> Iterator[None]:
    """Inside, the optimizer reads its learning rate from the tensor `rate`, and may be captured."""
    groups = optimizer.param_groups
    before = [(group["lr"], group["capturable"]) for group in groups]
    for group in groups:
        group["lr"], group["capturable"] = rate, True
    yield
    for group, (lr, capturable) in zip(groups, before, strict=True):
        group["lr"], group["capturable"] = lr, capturable
