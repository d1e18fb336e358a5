"""CUDA graphs: what can be said of them without a GPU."""

import pytest
import torch

from raytrain.config.resolve import resolve
from raytrain.training import graphs
from raytrain.training.parallel import World


@pytest.mark.parametrize(
    ("changes", "strategy", "micro_batch", "are"),
    [
        ({"scale": "124m"}, "single", 8, True),  # 1.47 times as fast with them on an H200
        ({"scale": "124m"}, "single", 64, False),  # as fast without
        ({"scale": "small"}, "single", 128, True),  # 1.46
        ({"scale": "tiny"}, "single", 64, True),
        ({"scale": "tiny"}, "ddp", 64, False),
        ({"scale": "tiny", "compile": False}, "single", 64, False),
        ({"scale": "tiny", "activation_checkpointing": "full"}, "single", 64, False),
    ],
)
def test_graphs_are_for_what_launches_bound(changes, strategy, micro_batch, are):
    """Catches a bound by the whole model, under which a deep one with small micro-batches ran at two thirds."""
    config, _ = resolve([("test", {"preset": "llama", "max_iters": 1} | changes)], data_vocab_size=256)
    world = World(0, 1, torch.device("cuda"), strategy, torch.bfloat16)
    assert graphs.are_worth_it(config, world, micro_batch) == are
