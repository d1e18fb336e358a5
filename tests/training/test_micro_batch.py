"""The choice of a micro-batch."""

import pytest

from raytrain.training import micro_batch as module
from raytrain.training.loop import train


@pytest.fixture
def speeds(monkeypatch):
    """Replaces trying by a table of (sequences/s, bytes), and notes what was tried."""
    table, tried = {}, []
    monkeypatch.setattr(module, "_try", lambda model, config, world, size: tried.append(size) or table[size])
    return table, tried


def chosen(config):
    return train(config)["micro_batch"]


def test_auto_takes_the_smallest_that_none_beats_and_keeps_it(tiny_run, speeds):
    """Catches a search that goes on when larger ones bring nothing, and one that is run for every trial."""
    table, tried = speeds
    table |= {1: (10.0, 0), 2: (18.0, 0), 4: (30.0, 0), 8: (30.1, 0), 16: (40.0, 0)}
    config = tiny_run(micro_batch="auto", max_iters=1)
    assert chosen(config) == 4
    assert tried == [1, 2, 4, 8]
    assert chosen(config.replace(seed=7)) == 4
    assert tried == [1, 2, 4, 8]
    assert chosen(config.replace(global_batch=256)) == 4
    assert tried == [1, 2, 4, 8] * 2


def test_the_global_batch_and_the_losses_stay(tiny_run, speeds):
    """Catches trying that leaves gradients or random state behind, and a batch that follows the micro-batch."""
    table, _ = speeds
    table |= {1: (10.0, 0), 2: (1.0, 0)}
    config = tiny_run(preset="llama", max_iters=5, seed=3)
    auto, fixed = [], []
    train(config.replace(micro_batch="auto"), auto.append)
    train(config.replace(micro_batch=1), fixed.append)
    losses = [[r["loss"] for r in run if r["event"] == "step"] for run in (auto, fixed)]
    assert losses[0] == losses[1]


def test_really_trying_leaves_the_run_as_it_was(tiny_run):
    """Catches gradients of the tries that go into the first step, here under ddp's hooks too."""
    config = tiny_run(preset="gpt2", dropout=0.1, max_iters=3, global_batch=1024)
    auto = []
    result = train(config.replace(micro_batch="auto"), auto.append)
    fixed = []
    train(config.replace(micro_batch=result["micro_batch"]), fixed.append)
    losses = [[r["loss"] for r in run if r["event"] == "step"] for run in (auto, fixed)]
    assert losses[0] == losses[1]


def test_what_memory_will_not_hold_is_not_tried(monkeypatch, tiny_run):
    """Catches a search that ends in an out-of-memory error."""

    class Device:
        type = "cuda"

    class World:
        device = Device()

    monkeypatch.setattr(module.torch.cuda, "get_device_properties", lambda device: type("P", (), {"total_memory": 100}))
    assert module._fits([(4, 20.0)], 8, World())
    assert not module._fits([(4, 50.0)], 8, World())
    assert module._fits([(4, 30.0), (8, 50.0)], 16, World())
    assert not module._fits([(4, 30.0), (8, 55.0)], 16, World())
