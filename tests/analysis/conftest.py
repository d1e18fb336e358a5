"""Study folders as the engine writes them, of trials that were never trained: their losses are given."""

import json
import re
import zlib

import pytest

from raytrain import architecture
from raytrain.config.run import TrainConfig
from raytrain.rundir.log import JsonLog

BUDGET = 1e15


class Study:
    """`add` trials, then `write`. A point is fields of a run; the `rungs` of a trial are its losses there."""

    def __init__(self, folder, *, axes, base="gpt2", rungs=(), **about):
        self.folder, self.axes, self.base, self.rungs, self.about = folder, axes, base, tuple(rungs), about
        self.trials, self.ends = [], {}

    def config(self, point, flops):
        axes = {key: value for key, value in point.items() if key in architecture.AXES}
        rest = {key: value for key, value in point.items() if key not in axes}
        arch = architecture.preset(self.base, **(architecture.SCALES["tiny"] | {"vocab_size": 256} | axes))
        rungs = () if flops != BUDGET else self.rungs
        return TrainConfig(architecture=arch.program(), flops=flops, rungs=rungs, device="cpu", **rest)

    def add(self, point, loss=None, *, seed=0, flops=BUDGET, role=None, rungs=(), status=None, **result):
        """`loss` None and no `status`: a trial that has not ended."""
        config = self.config(point, flops).replace(seed=seed)
        label = " ".join(f"{axis}={level}" for axis, level in point.items()) or self.base
        name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{label}-{flops:.3g}-s{seed}{role or ''}")
        trial = {"id": name, "label": label, "labels": [label], "hash": config.architecture.hash, "seed": seed}
        self.trials.append(trial | {"config": config.to_dict()} | ({"role": role} if role else {}))
        log = JsonLog(self.folder / "trials" / name / "log.jsonl")
        log.write({"event": "start"})
        for rung, score in enumerate(rungs):
            report = {
                "event": "rung",
                "rung": rung,
                "train_flops": self.rungs[rung],
                "train_seconds": 10.0 * (rung + 1),
            }
            decayed = config.rung_decay * sum(self.rungs[: rung + 1])
            log.write(report | {"val_loss": score, "eval_seconds": 1.0, "decay_flops": decayed})
        status = status or ("complete" if loss is not None else None)
        if status:
            spent = self.rungs[len(rungs) - 1] if status == "stopped" else flops
            ended = {
                "status": status,
                "train_flops": int(spent),
                "vocab_size": 256,
                "train_seconds": 100.0,
                "seed": seed,
            }
            ended |= {"rung": len(rungs) - 1} if status == "stopped" else {}
            loss = rungs[-1] if status == "stopped" else loss
            ended |= ({} if loss is None else {"val_loss": loss}) | result
            (self.folder / "trials" / name / "result.json").write_text(json.dumps(ended))
        return name

    def write(self, **about):
        hashes = {trial["hash"] for trial in self.trials}
        study = {"name": self.folder.name, "space": "test", "base": self.base, "scale": "tiny"}
        study |= {"created": "2025-01-01T00:00:00+00:00", "command": "", "git_commit": "", "versions": {}}
        counts = dict.fromkeys(("points", "programs", "variants"), len(hashes)) | {"trials": len(self.trials)}
        study |= {"budget_flops": BUDGET, "counts": counts}
        if self.axes is not None:
            study |= {"axes": self.axes, "baseline": {axis: levels[0] for axis, levels in self.axes.items()}}
            halving = {"name": "halving", "rungs": list(self.rungs), "keep": [1] * len(self.rungs)}
            study |= {"scheduler": halving if self.rungs else {"name": "none"}}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "study.json").write_text(json.dumps(study | self.about | about | {"trials": self.trials}))
        return self.folder


@pytest.fixture
def make_study(tmp_path):
    """`make_study(axes={...})`: a `Study` in a folder of its own."""
    return lambda name="study", **given: Study(tmp_path / name, **given)


def noise_of(*parts, sd=1.0):
    """A draw that is the same on every machine and in any order: of a hash of `parts`."""
    total = sum(zlib.crc32(f"{parts}-{i}".encode()) / 2**32 for i in range(12))
    return sd * (total - 6)
