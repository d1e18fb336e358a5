"""Runs compiled before they start."""

import json
import os
import signal
import subprocess
import sys

import pytest

from raytrain.engine.ending import adopting_orphans
from raytrain.training.precompile import Precompiler, serve

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


@pytest.mark.usefixtures("registry")
def test_a_run_that_cannot_be_compiled_is_passed_over(tiny_run, monkeypatch):
    """Catches a process that dies of one run and compiles none of those after it, and one without plugins, to which
    every run of theirs is no run."""
    compiled = []
    monkeypatch.setattr("raytrain.training.precompile.precompile", compiled.append)
    plain = tiny_run(preset="llama").to_dict()
    other = plain | {"architecture": plain["architecture"] | {"normalization": "plain"}}
    source = "from torch import nn\nfrom raytrain import plugins\nplugins.norm('plain')(nn.Identity)\n"
    jobs = ["not a run\n"] + [
        json.dumps({"config": config, "plugins": plugins})
        for config, plugins in ((plain, {}), (other, {}), (other, {"plain.py": source}))
    ]
    answers = list(serve(jobs))
    assert [answer.partition(":")[0] for answer in answers] == ["JSONDecodeError", "", "UserError", ""]
    assert [config.architecture.normalization for config in compiled] == ["rmsnorm", "plain"]


def test_a_process_that_died_is_replaced():
    """Catches a study that hangs, or is told of it, when the system kills a process for its memory."""
    precompiler = Precompiler()
    assert precompiler.compile({}, {}).startswith("UserError")
    os.kill(precompiler._process.pid, signal.SIGKILL)
    assert precompiler.compile({}, {}) == "the process died"
    assert precompiler.compile({}, {}).startswith("UserError")
    precompiler.close()
    assert precompiler._process.poll() is not None


def test_a_process_ends_with_the_one_that_started_it():
    """Catches processes that compile on, or wait for ever, where the driver of a study was killed."""
    lines = ("from raytrain.training.precompile import Precompiler", "print(Precompiler()._process.pid, flush=True)")
    start = "\n".join((*lines, "input()"))
    with adopting_orphans():
        parent = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        os.waitpid(pid, 0)  # an orphan, and so ours now: this returns when it has ended
