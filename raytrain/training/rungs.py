"""The loss at a rung, as it would be had the run ended there.

In mid-schedule the loss predicts little: rankings change once the learning rate decays (arXiv 2509.02046). So
under wsd a branch leaves the trunk at the rung, decays over `rung_decay` of the rung's FLOPs, is evaluated, and is
thrown away. (The WSD-S schedule of arXiv 2410.05192 continues from the branch. Here the trunk must be that of a run
without rungs.) With `rung_decay` 0 the trunk itself is evaluated.
"""

import math

from torch import nn
from torch.distributed.fsdp import FSDPModule

from raytrain.accounting.flops import flops_per_token
from raytrain.config.run import TrainConfig
from raytrain.training.batches import Batches
from raytrain.training.checkpoint import Checkpointer, State
from raytrain.training.evaluate import Evaluations
from raytrain.training.optimizer import learning_rate
from raytrain.training.parallel import World
from raytrain.training.step import Stepper


def branch_spans(config: TrainConfig, sequences: int) -> list[tuple[int, int]]:
    """The steps of the branch that leaves the trunk after `sequences` sequences, in the form of `TrainConfig.span`."""
    length = max(1, round(config.rung_decay * sequences))
    batch = config.batch_sequences
    return [(sequences + done, min(batch, length - done)) for done in range(0, length, batch)]


def score(
    model: nn.Module,
    stepper: Stepper,
    batches: Batches,
    evaluations: Evaluations,
    checkpoints: Checkpointer,
    state: State,
    config: TrainConfig,
    world: World,
) -> dict[str, float]:
    """The evaluation at the rung that the run is at; all NaN if the branch diverges. A collective.

    The trunk is as it was afterwards, to the last bit; `state.decay_flops` has grown by what the branch spent.
    """
    if not config.rung_decay:
        return evaluations(model)
    trunk = checkpoints.snapshot()
    spans = branch_spans(config, state.sequences)
    floor = config.min_lr_fraction * config.learning_rate
    top = learning_rate(config, state.step)
    micro_batches = batches.stream(spans)
    diverged = False
    for number, (_, sequences) in enumerate(spans):
        loss = world.sum(stepper.gradients(micro_batches, sequences, state.step, number)).item()
        norm = stepper.clip().item()
        if diverged := not (math.isfinite(loss) and math.isfinite(norm)):
            stepper.drop()
            break
        stepper.update(floor + (top - floor) * (len(spans) - number) / len(spans))  # as wsd's own decay
    evaluation = evaluations.of_nothing() if diverged else evaluations(model)
    checkpoints.put_back(trunk, state.step)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # else the root continues with the branch's parameters, gathered for the evaluation
    state.decay_flops += sum(count for _, count in spans) * flops_per_token(config.architecture).per_sequence
    return evaluation
