"""Folders of studies that never ran, as the engine leaves them, for tests of what reads them."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raytrain import architecture
from raytrain.accounting.flops import flops_per_token
from raytrain.config.run import TrainConfig

BUDGET = 10**15
AXES: dict[str, tuple[Any, ...]] = {
    "norm_position": ("post", "pre"),
    "position_encoding": ("learned_absolute", "rope", "none"),
    "normalization": ("layernorm_nobias", "rmsnorm"),
}


def no_effect(_point: Mapping[str, Any]) -> float:
    return 0.0


def write_study(
    folder: Path,
    *,
    axes: Mapping[str, Sequence[Any]] = AXES,
    effect: Callable[[Mapping[str, Any]], float] = no_effect,
    seeds: int = 2,
    noise_sd: float = 0.002,
    points: int | None = None,
    frontier_budgets: Sequence[float] = (),
    results: Callable[[int], Mapping[str, Any]] = lambda _: {},
    mfu: bool = True,
    label: str = "",
    **study: Any,
) -> Path:
    """A study of all combinations of `axes` (or the first `points` of them), the first the base, in `folder`.

    The loss of a run is 3.0 + 0.1 ln(BUDGET / FLOPs), its point's `effect`, and noise. `results(i)` replaces fields of
    the i-th trial's result.json; a field of None is left out, and with "status" None there is no such file.
    """
    draws = np.random.default_rng(0)
    baseline = {axis: levels[0] for axis, levels in axes.items()}
    grid = [dict(zip(axes, levels, strict=True)) for levels in itertools.product(*axes.values())][:points]
    runs = [(point, seed, float(BUDGET), "") for point in grid for seed in range(seeds)]
    runs += [(baseline, seed, budget, "frontier") for budget in frontier_budgets for seed in range(max(2, seeds))]
    trials = []
    for index, (point, seed, flops, role) in enumerate(runs):
        arch = architecture.preset("gpt2", **(architecture.SCALES["tiny"] | {"vocab_size": 256} | point))
        config = TrainConfig(architecture=arch, flops=flops, seed=seed)
        changes = [f"{axis}={level}" for axis, level in point.items() if level != baseline[axis]]
        name = label + (" ".join(changes) or "gpt2")
        trial = {"id": f"t{index}", "label": name, "labels": [name], "hash": arch.hash, "seed": seed}
        trials.append(trial | {"config": config.to_dict()} | ({"role": role} if role else {}))
        speed = 0.3 + 0.1 * (point.get("normalization") == "rmsnorm") + draws.normal(0, 0.001)
        result = {"status": "complete", "name": arch.name, "hash": arch.hash, "seed": seed, "vocab_size": 256}
        result |= {"val_loss": 3.0 + 0.1 * np.log(BUDGET / flops) + effect(point) + draws.normal(0, noise_sd)}
        result |= {"train_flops": int(flops), "tokens": int(flops) // flops_per_token(arch).total, "world_size": 1}
        result |= {"tokens_per_second": 1e6 * speed, "train_seconds": 60.0, "device": "NVIDIA H200"}
        result |= {"data_fingerprint": "f00dcafe"}
        result |= {"mfu": speed, "hardware_flops": flops / speed} if mfu else {}
        result |= results(index)
        if result["status"] is not None:
            (folder / "trials" / trial["id"]).mkdir(parents=True)
            text = json.dumps({key: value for key, value in result.items() if value is not None})
            (folder / "trials" / trial["id"] / "result.json").write_text(text)
    counts = {"points": len(grid), "programs": len(grid), "variants": len(grid), "trials": len(trials)}
    estimate = {
        "seconds": 3600.0,
        "lanes": 8,
        "basis": "8 x NVIDIA H200 of this machine at an assumed MFU of 40% of 989 TFLOP/s",
    }
    plan = {"total_flops": sum(round(flops) for _, _, flops, _ in runs), "estimate": estimate}
    plan |= {"flops_per_token": {"least": 10, "most": 11, "ratio": 1.1, "least_label": "gpt2", "most_label": "other"}}
    content = {"name": folder.name, "space": "small", "base": "gpt2", "scale": "tiny", "git_commit": "c0ffee" * 6}
    content |= {"created": "2026-11-24T12:00:00+00:00", "command": "python -m raytrain.tune --space small --seeds 2"}
    content |= {"budget_flops": BUDGET, "counts": counts, "versions": {"python": "3.11", "torch": "2.13"}}
    content |= {"scheduler": {"name": "none"}, "plan": plan, "baseline": baseline}
    content |= {"axes": {axis: list(levels) for axis, levels in axes.items()}, "trials": trials}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(content | study))
    return folder
