"""Where compiled code is kept: what lies there is run, so no other user may write to it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raytrain.config.run import TrainConfig
from raytrain.errors import UserError
from raytrain.training.loop import train

# Prepares a model as a run does, after its import of torch's compiler, and compiles one kernel.
COMPILE = """
import torch
import torch._dynamo
from raytrain.config.resolve import resolve
from raytrain.model.build import build
from raytrain.training import parallel
from raytrain.training.objective import NextTokenLoss

small = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32, "global_batch": 64, "max_iters": 1}
config, _ = resolve([("test", small | {"compile": True, "device": "cpu"})], data_vocab_size=256)
with parallel.join_world(config) as world:
    parallel.parallelize(NextTokenLoss(build(config.architecture)), config, world)
    torch.compile(lambda x: (x.sin() + 1).sum())(torch.ones(64))
"""


def test_nothing_compiled_is_in_the_folder_for_temporary_files(tmp_path: Path) -> None:
    """Would catch code and precompiled headers in a predictable folder there, which another user can make first."""
    places = {"TMPDIR": str(tmp_path / "tmp"), "RAYTRAIN_CACHE": str(tmp_path / "cache")}
    (tmp_path / "tmp").mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment | places)
    assert [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()] == []
    inductor = tmp_path / "cache" / "compiled" / "inductor"
    assert list(inductor.rglob("*.so"))
    assert list((inductor / "precompiled_headers").iterdir())
    for folder in (inductor, inductor.parent, inductor.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_others_can_write_to_stops_a_run_that_compiles(
    tiny_run: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a run that executes what another user planted; and one stopped for a cache that it has no use for."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "open"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UserError, match=r"^TORCHINDUCTOR_CACHE_DIR .* others can write"):
        train(tiny_run(max_iters=1, compile=True))
    if not torch.cuda.is_available():
        assert train(tiny_run(max_iters=1))["status"] == "complete"


def test_keys_do_not_depend_on_the_order_of_imports(tiny_run):
    """Would catch: a process that imports torch after other modules, as a lane of Ray does, finding nothing of what
    another compiled: the key of the cache holds a pickle that names the first module to have imported torch."""
    script = (
        "import pickle, sys, types; first = sys.modules['first'] = types.ModuleType('first')\n"
        "import torch; first.torch = torch\n"
        "from torch import nn; from raytrain.config.resolve import resolve; from raytrain.training import parallel\n"
        "before = pickle.dumps(torch.contiguous_format)\n"
        "config, _ = resolve([('test', {'compile': True, 'device': 'cpu', 'max_iters': 1})], data_vocab_size=256)\n"
        "from raytrain.model import build; from raytrain.training.objective import NextTokenLoss\n"
        "with parallel.join_world(config) as world:\n"
        "    parallel.parallelize(NextTokenLoss(build(config.architecture), 0.0), config, world)\n"
        "after = pickle.dumps(torch.contiguous_format)\n"
        "assert b'first' in before and b'first' not in after\n"
        "assert pickle.loads(after) is torch.contiguous_format"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
