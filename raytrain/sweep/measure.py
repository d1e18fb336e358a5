"""How fast a device trains, for a plan's estimate: measured once, in a process of its own, and kept."""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from raytrain.axes import plugin
from raytrain.config.run import TrainConfig, flat
from raytrain.errors import UserError
from raytrain.rundir.cache import kept
from raytrain.rundir.folders import read_json
from raytrain.sweep.estimate import Machine
from raytrain.version import __version__

_STEPS = 12  # without the first ones, which compile
_TIMEOUT = 600.0


def measured_rate(config: TrainConfig, *, now: bool) -> float | None:
    """Model FLOP/s of one device (GPU, or CPU core) that trains `config`; None if it was never measured here.

    With `now` it is measured if it was not: a few steps in a process of their own. Raises UserError if they fail.
    """
    machine = Machine.here()
    gpus = machine.gpus if config.device != "cpu" else ()
    speed = ("precision", "micro_batch", "compile", "global_batch", "activation_checkpointing")
    key = {name: getattr(config, name) for name in speed}
    key |= {
        "program": config.architecture.program().to_dict(),
        **plugin.digests(config.plugins),
        "device": gpus[:1] or f"{machine.cores} cores",
    }
    key |= {"torch": importlib.metadata.version("torch"), "raytrain": __version__}
    rate = kept("speed", key)
    if rate is None and now:
        rate = kept("speed", key, _measure(config) / (1 if gpus else machine.cores))
    return rate


def _measure(config: TrainConfig) -> float:
    """Model FLOP/s of this machine's one GPU, or all of its CPU cores."""
    short = config.replace(
        flops=None, max_iters=_STEPS, rungs=(), rung_decay=0.0, eval_tokens=config.architecture.block_size,
        eval_data=(), log_interval=_STEPS, stats_interval=0, checkpoint_interval=None, parallel="auto",
    )  # fmt: skip
    values = {k: v for k, v in flat(short.to_dict()).items() if k not in ("rungs", "plugins")}
    with tempfile.TemporaryDirectory(prefix="raytrain-") as folder:
        (Path(folder) / "run.yaml").write_text(json.dumps({"preset": "custom"} | values))  # JSON is YAML
        plugins = [f"--plugin={loaded.path}" for loaded in plugin.LOADED.values()]
        command = [sys.executable, "-m", "raytrain.train", "--config", f"{folder}/run.yaml", "--runs", folder]
        done = subprocess.run([*command, *plugins, "--name", "run"], capture_output=True, text=True, timeout=_TIMEOUT)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise UserError(f"measure: the steps that were to be timed failed: {' '.join(last)}")
        result = read_json(Path(folder) / "run" / "result.json")
    return float(result["tokens_per_second"] * result["flops_per_token"])
