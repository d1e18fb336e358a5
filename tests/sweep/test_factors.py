import json
from typing import Any

import pytest

from raytrain.analysis.trials import axes_of
from raytrain.sweep.planning import plan


@pytest.mark.parametrize(
    ("space", "more"),
    [
        ("presets", {}),
        ("presets", {"base": "llama", "frontier_budgets": (0.5, 2)}),
        ("full", {"max_trials": 40}),
        ("one_factor", {}),
        ({"axes": {"n_embd": [64, 96], "learning_rate": [1e-3, 2e-3], "bias": [False]}}, {"seeds": 2}),
        ({"presets": ["gpt2", "llama"], "axes": {"dropout": [0.0, 0.1]}}, {}),
        ({"normalization": ["layernorm_nobias", "rmsnorm"]}, {"tune": {"learning_rate": [1e-3, 2e-3, 4e-3]}}),
    ],
)
def test_the_plan_knows_its_factors(space: Any, more: dict[str, Any]) -> None:
    """Would catch factors in the plan that are not those its trials vary in: the truth is found by comparing them, as
    is done for a study that has none stored."""
    planned = plan(space, n_head=2, **more)
    study = {"trials": [trial.to_dict() for trial in planned.trials], "base": planned.base}
    described = json.loads(json.dumps(planned.to_dict()))
    found, baseline = axes_of(study | {name: described[name] for name in ("axes", "baseline")})
    assert (found, baseline) == (list(planned.factors), planned.factors)
    assert axes_of(study | described) == (found, baseline)
    assert len(found) > 0
