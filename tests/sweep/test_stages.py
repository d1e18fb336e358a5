import copy
import json
from typing import Any

import pytest

from raytrain.sweep.planning import plan
from raytrain.sweep.stages import Stage, changed, due, fresh_seeds, run_again, with_stage
from raytrain.sweep.trial import AssignedTrial, assign, trials_of


def trials(**options: Any) -> list[AssignedTrial]:
    planned = plan({"ffn_type": ["standard", "swiglu"], "bias": [True, False]}, **options)
    return [assign(trial, on_gpus=True, storage="s3://b/study/trials") for trial in planned.trials]


def test_a_stage_is_added_once_and_changes_nothing_else():
    """Catches trials that a stage replaces, and a count that forgets them."""
    first = trials()
    study: dict[str, Any] = {"trials": [trial.to_dict() for trial in first], "counts": {"trials": 4, "points": 4}}
    study["grows"] = [{"stage": "confirm", "seeds": 2}]
    before = copy.deepcopy(study)
    again = [run_again(first[0], seed, stage="confirm", role="confirm") for seed in fresh_seeds(first, 2)]
    grown = with_stage(study, Stage("confirm", again, "because", {"seeds": 2}))
    assert study == before
    assert grown["trials"][:4] == before["trials"]
    assert [trial["seed"] for trial in grown["trials"][4:]] == [1338, 1339]
    assert len({trial["id"] for trial in grown["trials"]}) == 6
    assert trials_of(json.loads(json.dumps(grown))) == [*first, *again]
    assert grown["counts"] == {"trials": 6, "points": 4}
    names = [trial.id for trial in again]
    assert grown["stages"] == [{"name": "confirm", "trials": names, "reason": "because", "seeds": 2}]


def test_stages_follow_in_order_and_no_more_often_than_they_may():
    """Catches a stage that is decided twice, and one that goes back behind a later one."""
    extend, confirm = {"stage": "extend", "most": 2}, {"stage": "confirm"}

    def names(*done: str) -> list[str]:
        study = {"grows": [extend, confirm], "stages": [{"name": name} for name in done]}
        return [entry["stage"] for entry in due(study)]

    assert names() == names("extend") == ["extend", "confirm"]
    assert names("extend", "extend") == ["confirm"]
    assert names("confirm") == names("extend", "confirm") == []
    assert due({"trials": []}) == []  # a study of before there were any


def test_a_run_again_is_the_same_run_with_another_seed():
    """Catches a confirmation at other settings, into the checkpoints of the run before, or paused at a rung."""
    rungs = {"flops": 4e12, "rungs": (1e12,), "schedule": "wsd", "rung_decay": 0.1, "checkpoint_interval": 0}
    template = trials(**rungs)[1]
    again = run_again(template, 4000, stage="confirm", role="confirm")
    assert again.folder == f"s3://b/study/trials/{again.id}"
    assert (again.stage, again.role, again.like) == ("confirm", "confirm", template.id)
    assert again.config == template.config.replace(seed=4000, rungs=(), rung_decay=0.0)
    assert {key for key, value in vars(again).items() if value != vars(template)[key]} == {
        "id", "config", "stage", "role", "folder", "like",
    }  # fmt: skip
    # Of checkpoints that were for pauses alone there are none.
    paused = trials(flops=4e12, rungs=(1e12,))[0]
    assert paused.folder is not None
    assert run_again(paused, 1, stage="confirm", role="confirm").folder is None


@pytest.mark.parametrize("d_ff", [None, 200])
def test_a_variant_that_did_not_run_is_that_of_the_space(d_ff):
    """Catches a width that stays the base's where the space would follow the FFN, a dead level, and a wrong hash: each
    variant made from the base is the one that the space has."""
    base, *others = trials(d_ff=d_ff)
    for wanted in others:
        made = changed(base, wanted.levels)
        assert (made.hash, made.config, made.levels) == (wanted.hash, wanted.config, wanted.levels)


def test_a_recipe_may_change_too():
    """Catches a learning rate that is taken for a field of the architecture, and two variants with one folder."""
    (template, *_) = trials()
    made = changed(template, {"learning_rate": 4e-3})
    assert made.config == template.config.replace(learning_rate=4e-3)
    assert made.hash == template.hash
    assert made.id != template.id
    assert made.label == "learning_rate=0.004"
