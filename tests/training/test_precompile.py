"""Runs compiled before they start."""

import json

import torch
from torch._dynamo.utils import counters

from raytrain.training.loop import train
from raytrain.training.precompile import Precompilers, precompile, serve


def test_a_precompiled_run_compiles_nothing(tiny_run, tmp_path, monkeypatch):
    """Catches a warm-up of other graphs than the run's (another shape, mode or dtype), which saves no time at all."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = tiny_run(preset="llama", n_layer=1, max_iters=2, compile=True)
    precompile(config)
    torch._dynamo.reset()
    counters.clear()
    train(config)
    assert counters["inductor"]["fxgraph_cache_hit"] > 0
    assert counters["inductor"]["fxgraph_cache_miss"] == 0


def test_a_run_that_cannot_be_compiled_is_passed_over(tiny_run, monkeypatch):
    """Catches a process that dies of one run and compiles none of those after it."""
    compiled = []
    monkeypatch.setattr("raytrain.training.precompile.precompile", compiled.append)
    config = tiny_run(preset="llama")
    serve(["not a run\n", json.dumps(config.to_dict()) + "\n"])
    assert compiled == [config]


def test_the_processes_end_when_they_are_closed(tiny_run):
    """Catches compilers that outlive their lane, and a lane that dies with one of them."""
    processes = Precompilers(1)
    (process,) = processes._processes
    processes.close()
    assert process.poll() is not None
    processes.submit(tiny_run(preset="llama"))
