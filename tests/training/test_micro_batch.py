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


@pytest.mark.parametrize("strategy", ["single", "ddp", "zero1", "fsdp"])
def test_trying_leaves_the_run_as_it_was(tiny_run, strategy):
    """Catches gradients or random state of the tries in the first step, under each strategy's hooks."""
    config = tiny_run(preset="gpt2", dropout=0.1, max_iters=3, global_batch=256, parallel=strategy)
    auto, fixed = [], []
    result = train(config.replace(micro_batch="auto", seed=5), auto.append)
    train(config.replace(micro_batch=result["micro_batch"], seed=5), fixed.append)
    losses = [[r["loss"] for r in run if r["event"] == "step"] for run in (auto, fixed)]
    assert losses[0] == losses[1]


def test_a_resumed_run_keeps_its_micro_batch(tiny_run, speeds, tmp_path):
    """Catches a run that goes on with other sums, and other masks, where another size is the fastest now."""
    table, tried = speeds
    table |= {1: (10.0, 0), 2: (18.0, 0), 4: (10.0, 0)}
    config = tiny_run(micro_batch="auto", dropout=0.1, max_iters=6, checkpoint_interval=3, global_batch=128)
    whole = []
    train(config, whole.append)
    train(config, lambda report: None, tmp_path, lambda: True)
    table[2] = (1.0, 0)
    module_key = module._key
    module._key = lambda *arguments: module_key(*arguments) | {"machine": "another"}
    try:
        resumed = []
        assert train(config, resumed.append, tmp_path)["micro_batch"] == 2
    finally:
        module._key = module_key
    losses = [{r["step"]: r["loss"] for r in run if r["event"] == "step"} for run in (whole, resumed)]
    assert losses[1].items() <= losses[0].items()
    assert 6 in losses[1]
    assert tried == [1, 2, 4]


def test_what_memory_will_not_hold_is_not_tried():
    """Catches a search that ends in an out-of-memory error."""
    assert module._fits([(4, 20.0)], 8, 90.0)
    assert not module._fits([(4, 50.0)], 8, 90.0)
    assert module._fits([(4, 30.0), (8, 50.0)], 16, 90.0)
    assert not module._fits([(4, 30.0), (8, 55.0)], 16, 90.0)
