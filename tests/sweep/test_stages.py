import copy
from typing import Any

import pytest

from raytrain.config.run import TrainConfig
from raytrain.sweep.planning import plan
from raytrain.sweep.stages import Stage, changed, due, fresh_seeds, run_again, with_stage


def trials(**options: Any) -> list[dict[str, Any]]:
    return [
        trial.to_dict() for trial in plan({"ffn_type": ["standard", "swiglu"], "bias": [True, False]}, **options).trials
    ]


def test_a_stage_is_added_once_and_changes_nothing_else():
    """Catches trials that a stage replaces, and a count that forgets them."""
    study = {"trials": trials(), "counts": {"trials": 4, "points": 4}, "grows": [{"stage": "confirm", "seeds": 2}]}
    before = copy.deepcopy(study)
    again = [
        run_again(study["trials"][0], seed, stage="confirm", role="confirm") for seed in fresh_seeds(study["trials"], 2)
    ]
    grown = with_stage(study, Stage("confirm", again, "because", {"seeds": 2}))
    assert study == before
    assert grown["trials"][:4] == before["trials"]
    assert [trial["seed"] for trial in grown["trials"][4:]] == [1338, 1339]
    assert len({trial["id"] for trial in grown["trials"]}) == 6
    assert grown["counts"] == {"trials": 6, "points": 4}
    names = [trial["id"] for trial in again]
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
    template = trials(**rungs)[1] | {"folder": "s3://b/study/trials/" + trials(**rungs)[1]["id"]}
    again = run_again(template, 4000, stage="confirm", role="confirm")
    assert again["folder"] == f"s3://b/study/trials/{again['id']}"
    assert (again["stage"], again["role"], again["like"]) == ("confirm", "confirm", template["id"])
    config = TrainConfig.from_dict(again["config"])
    assert config == TrainConfig.from_dict(template["config"]).replace(seed=4000, rungs=(), rung_decay=0.0)
    assert {key for key in again if again[key] != template.get(key)} == {
        "id", "seed", "config", "stage", "role", "folder", "like",
    }  # fmt: skip
    # Of checkpoints that were for pauses alone there are none.
    assert "folder" not in run_again(trials(flops=4e12)[0] | {"folder": "x/y"}, 1, stage="confirm", role="confirm")


@pytest.mark.parametrize("d_ff", [None, 200])
def test_a_variant_that_did_not_run_is_that_of_the_space(d_ff):
    """Catches a width that stays the base's where the space would follow the FFN, a dead level, and a wrong hash: each
    variant made from the base is the one that the space has."""
    base, *others = trials(d_ff=d_ff)
    for wanted in others:
        made = changed(base, wanted["levels"])
        keys = ("hash", "config", "levels")
        assert [made[key] for key in keys] == [wanted[key] for key in keys]


def test_a_recipe_may_change_too():
    """Catches a learning rate that is taken for a field of the architecture, and two variants with one folder."""
    (template, *_) = trials()
    made = changed(template, {"learning_rate": 4e-3})
    assert made["config"] == template["config"] | {"learning_rate": 4e-3}
    assert made["hash"] == template["hash"]
    assert made["id"] != template["id"]
    assert made["label"] == "learning_rate=0.004"
