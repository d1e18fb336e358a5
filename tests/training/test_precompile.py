"""Runs compiled before they start."""

import json
import os
import subprocess
import sys

from raytrain.training.precompile import Precompilers, serve

# In one process of its own, as what was compiled before in this one may change what the compiler looks for.
TRAIN_AFTER = """
import json, sys, torch
from torch._dynamo.utils import counters
from raytrain.config.run import TrainConfig
from raytrain.training.loop import train
from raytrain.training.precompile import precompile

config = TrainConfig.from_dict(json.loads(sys.argv[1]))
precompile(config)
torch._dynamo.reset()
counters.clear()
train(config)
print(json.dumps(counters["inductor"]))
"""


def test_a_precompiled_run_compiles_nothing(tiny_run, tmp_path):
    """Catches a warm-up of other graphs than the run's (another shape, mode or dtype), which saves no time at all."""
    config = json.dumps(tiny_run(preset="llama", n_layer=1, max_iters=2, compile=True).to_dict())
    private = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    command = [sys.executable, "-c", TRAIN_AFTER, config]
    done = subprocess.run(command, env=os.environ | private, check=True, capture_output=True, text=True)
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted["fxgraph_cache_hit"] > 0
    assert "fxgraph_cache_miss" not in counted


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
