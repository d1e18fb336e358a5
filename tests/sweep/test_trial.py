import copy
import dataclasses
import json

import pytest

from raytrain.sweep.planning import plan
from raytrain.sweep.trial import AssignedTrial, assign


def test_to_assign_a_trial_leaves_the_plan_as_it_was():
    """Catches a device or a folder that is written into the plan, and so into whatever else is run from it; a secret
    that comes into study.json; a folder for a trial that keeps nothing, and none for one that is to pause."""
    options = {"scheduler": "halving", "flops": 4e12, "checkpoint_interval": None, "frontier_budgets": (0.5, 0.75)}
    planned = plan({"bias": [True, False]}, seeds=2, **options)
    before = copy.deepcopy(planned)
    assigned = [assign(trial, on_gpus=False, storage="s3://key:secret@bucket/s") for trial in planned.trials]
    assert planned == before
    for trial, own in zip(planned.trials, assigned, strict=True):
        assert own.config == trial.config.replace(device="cpu")
        assert own.folder == (None if trial.role else f"s3://bucket/s/{trial.id}")
        folder = {"folder": own.folder} if own.folder else {}
        assert own.to_dict() == trial.to_dict() | {"config": own.config.to_dict()} | folder
        assert AssignedTrial.from_dict(json.loads(json.dumps(own.to_dict()))) == own
        for one in (trial, own, trial.config):
            with pytest.raises(dataclasses.FrozenInstanceError):
                one.config = one.device = None
    assert assign(planned.trials[0], on_gpus=True, storage="/runs").config == planned.trials[0].config
