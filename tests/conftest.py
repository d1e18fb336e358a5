"""Shared by all tests: a cache of their own, one thread, and runs of a second."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from raytrain.accounting.flops import flops_per_token
from raytrain.axes import plugin, registered, restore
from raytrain.config.resolve import resolve
from raytrain.config.run import TrainConfig
from raytrain.plugins.derive import counted


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The default corpus is built once, in a place of the tests' own. One thread, so that sums have one order."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["RAYTRAIN_CACHE"] = str(folder)
    torch.set_num_threads(1)
    yield folder
    del os.environ["RAYTRAIN_CACHE"]


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before, loaded = registered(), dict(plugin.LOADED)
    yield
    restore(before)
    plugin.LOADED.clear()
    plugin.LOADED.update(loaded)
    flops_per_token.cache_clear()
    counted.cache_clear()


@pytest.fixture(scope="session")
def tiny_run() -> Callable[..., TrainConfig]:
    """`tiny_run(preset="llama", max_iters=20)`: a run of a second or so, any field changed."""

    def make(**changes: object) -> TrainConfig:
        small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "global_batch": 512, "eval_tokens": 1024}
        stop = {} if {"max_iters", "tokens", "flops"} & changes.keys() else {"max_iters": 20}
        config, _ = resolve([("test", small | stop | {"log_interval": 1} | changes)], data_vocab_size=256)
        return config

    return make


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray for all tests, as starting one takes seconds; with a study's settings, as a lane may take a minute."""
    import ray  # here: most tests need none of it

    from raytrain.engine.cluster import _RAY_ENVIRONMENT

    for variable, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()
