"""A study that grows, without Ray: the journal, the schedule and the decision, and a kill between any two writes."""

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raytrain.analysis.answer import answer
from raytrain.engine import journal
from raytrain.engine.journal import StudyJournal
from raytrain.engine.stages import next_follow_up, next_stage, plan_follow_up
from raytrain.errors import UserError
from raytrain.rundir.folders import read_study_json
from raytrain.rundir.log import JsonLog, read_log
from raytrain.sweep.plan import Plan
from raytrain.sweep.planning import plan
from raytrain.sweep.stages import growing
from raytrain.sweep.trial import trials_of

AXES = {"norm_position": ["pre", "post"], "weight_tying": [False, True], "bias": [False, True]}


class Killed(BaseException):
    """The driver is gone."""


class Writes:
    """Counts what the driver writes; kills it before write number `last`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.last = 0, -1
        write, write_json = JsonLog.write, journal.write_json
        monkeypatch.setattr(JsonLog, "write", lambda log, report: self.note() or write(log, report))
        monkeypatch.setattr(journal, "write_json", lambda *args: self.note() or write_json(*args))

    def note(self) -> None:
        if self.count == self.last:
            raise Killed
        self.count += 1


def make(folder: Path, *, axes: dict[str, list[Any]] = AXES, **options: Any) -> Plan:
    """study.json of a plan, as the engine writes it."""
    planned = plan(axes, base="llama", **options)
    described = planned.to_dict()
    content = {"name": folder.name, "space": "axes", "base": "llama", "scale": "tiny", "git_commit": None}
    content |= {"created": "2026-11-25T12:00:00+00:00", "command": "", "budget_flops": planned.budget_flops}
    content |= {"counts": planned.counts, "versions": {}, "scheduler": planned.scheduler, "grows": planned.grows}
    content |= {"axes": described["axes"], "baseline": described["baseline"], "plan": described}
    folder.mkdir()
    trials = [trial.to_dict() for trial in planned.trials]
    (folder / "study.json").write_text(json.dumps(content | {"trials": trials}))
    return planned


def loss(trial: dict[str, Any]) -> float:
    """Post-norm is worst, tying best, and a little of a seed's own."""
    arch = trial["config"]["architecture"]
    return 3 + 0.1 * (arch["norm_position"] == "post") - 0.05 * arch["weight_tying"] + trial["seed"] % 7 / 1000


def drive(folder: Path, loss: Callable[[dict[str, Any]], float] = loss) -> StudyJournal:
    """One driver, on one lane, until all is over."""
    study = read_study_json(folder)
    record = StudyJournal(folder, trials_of(study), study["scheduler"], lambda: next_stage(folder))
    while (segment := record.schedule.next()) is not None:
        record.begin(segment)
        trial = record.trials[segment.trial].to_dict()
        budget = trial["config"]["flops"]
        report = {"event": "end", "time": 1.0, "vocab_size": 256, "val_loss": loss(trial)}
        if segment.rung is None:
            record.take(segment.trial, report | {"status": "complete", "train_flops": budget}, "lane")
        else:
            record.take(segment.trial, report | {"status": "paused", "train_flops": budget / 4}, "lane")
    return record


@pytest.mark.parametrize("options", [{"confirm": 2}, {"confirm": 1, "scheduler": "halving", "flops": 4e12}])
def test_a_kill_between_any_two_writes_loses_and_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Catches a stage that is lost, decided otherwise or added twice after a kill, and a trial that runs twice."""
    make(tmp_path / "whole", **options)
    writes = Writes(monkeypatch)
    assert drive(tmp_path / "whole").schedule.is_over
    whole, total = read_study_json(tmp_path / "whole"), writes.count
    (stage,) = whole["stages"]
    assert len(stage["trials"]) == 3 * options["confirm"]
    # From a little before the last trial of the first stage ends to the end.
    for last in range(total // 2, total):
        folder = tmp_path / f"killed{last}" / "whole"
        folder.parent.mkdir()
        make(folder, **options)
        writes.count, writes.last = 0, last
        with pytest.raises(Killed):
            drive(folder)
        writes.last = -1
        assert drive(folder).schedule.is_over
        assert read_study_json(folder) == whole
        events = read_log(folder / "events.jsonl")
        ends = Counter(event["trial"] for event in events if event["event"] == "end")
        assert ends == dict.fromkeys([trial["id"] for trial in whole["trials"]], 1)
        assert [event["trials"] for event in events if event["event"] == "stage"] == [stage["trials"]]
        first = next(place for place, event in enumerate(events) if event["event"] == "stage")
        assert all(e["trial"] in stage["trials"] for e in events[first + 1 :] if e["event"] == "begin")


def test_leader_runner_up_and_baseline_run_again(tmp_path: Path) -> None:
    """Catches a confirmation of other variants, with seeds that were used before, or of unequal seeds."""
    planned = make(tmp_path / "s", confirm=3, seeds=2)
    drive(tmp_path / "s")
    study = read_study_json(tmp_path / "s")
    (stage,) = study["stages"]
    added = {trial["id"]: trial for trial in study["trials"] if trial.get("role") == "confirm"}
    places = {fact["place"]: fact for fact in stage["chosen"]}
    assert [places[place]["levels"]["norm_position"] for place in ("leader", "runner_up")] == ["pre", "pre"]
    assert places["leader"]["levels"]["weight_tying"]
    assert places["runner_up"]["levels"]["weight_tying"]
    assert places["baseline"]["is_baseline"]
    assert [trial["seed"] for trial in added.values()] == 3 * [1339, 1340, 1341]
    assert len(added) == 9 == planned.confirming
    assert {fact: [added[name]["hash"] for name in places[fact]["trials"]] for fact in places} == {
        fact: 3 * [places[fact]["hash"]] for fact in places
    }
    drive(tmp_path / "s")  # a study that is over stays as it is
    assert read_study_json(tmp_path / "s") == study


def test_a_study_that_tunes_confirms_each_at_its_own_best_rate(tmp_path: Path) -> None:
    """Catches a confirmation at the recipe's rate, or one that is recorded under another rate than it ran at."""
    make(tmp_path / "s", confirm=2, tune={"learning_rate": [5e-4, 1e-3, 2e-3]})
    drive(tmp_path / "s")
    study = read_study_json(tmp_path / "s")
    added = [trial for trial in study["trials"] if trial.get("role") == "confirm"]
    assert len({trial["id"] for trial in added}) == 6
    assert all(trial["tuned"]["learning_rate"] == trial["config"]["learning_rate"] for trial in added)
    assert all(f"-lr{trial['config']['learning_rate']:g}-s{trial['seed']}" in trial["id"] for trial in added)


def test_a_study_whose_best_rate_is_the_last_adds_another_and_then_confirms(tmp_path: Path) -> None:
    """Catches a study that does not go beyond its rates, goes on without end, or confirms before it has."""
    make(tmp_path / "s", confirm=1, tune={"learning_rate": [5e-4, 1e-3, 2e-3]}, tune_extend=True, seeds=2)
    content = json.loads((tmp_path / "s" / "study.json").read_text())
    tuning = {"levels": {"learning_rate": [5e-4, 1e-3, 2e-3]}, "recipe": {"learning_rate": 1e-3}, "spreads": False}
    (tmp_path / "s" / "study.json").write_text(json.dumps(content | {"plan": {"tuning": tuning}}))
    drive(tmp_path / "s", lambda trial: loss(trial) - 0.05 * math.log(trial["config"]["learning_rate"]))
    study = read_study_json(tmp_path / "s")
    assert [stage["name"] for stage in study["stages"]] == ["extend", "extend", "confirm"]
    added = [trial for trial in study["trials"] if trial.get("role") == "extend"]
    assert {trial["config"]["learning_rate"] for trial in added} == {4e-3, 8e-3}
    assert len(added) == len({trial["id"] for trial in added}) == 2 * 2 * len({trial["hash"] for trial in added})
    first = {trial["seed"] for trial in study["trials"] if not trial.get("role")}
    assert not first & {trial["seed"] for trial in added}


def test_what_was_lost_is_tried_again_before_a_stage_is_decided(tmp_path: Path) -> None:
    """Catches a leader chosen without the trials that a new driver is to try again."""
    make(tmp_path / "s", confirm=1)
    study = read_study_json(tmp_path / "s")
    record = StudyJournal(tmp_path / "s", trials_of(study), study["scheduler"])
    while (segment := record.schedule.next()) is not None:
        record.begin(segment)
        record.lane_died(segment.trial, "lost", "the lane died")
    assert next_stage(tmp_path / "s") is None  # nothing to tell apart
    drive(tmp_path / "s")
    assert len(read_study_json(tmp_path / "s")["stages"]) == 1


def test_without_results_there_is_no_stage_and_the_study_is_over(tmp_path: Path) -> None:
    """Catches a study that waits for ever for a confirmation of nothing."""
    make(tmp_path / "s", confirm=2)
    study = read_study_json(tmp_path / "s")
    record = StudyJournal(tmp_path / "s", trials_of(study), study["scheduler"], lambda: next_stage(tmp_path / "s"))
    while (segment := record.schedule.next()) is not None:
        record.begin(segment)
        record.take(segment.trial, {"event": "end", "time": 1.0, "status": "diverged", "reason": "loss nan"}, "lane")
    assert record.schedule.is_over
    assert "stages" not in read_study_json(tmp_path / "s")


def test_a_suspected_triple_is_followed_up(tmp_path: Path) -> None:
    """Would catch a follow-up of other axes or combinations, of seeds that were used, of a study that suspects nothing,
    or whose runs join the effects that made the suspicion; and an answer that does not state what it showed."""
    three = ("norm_position", "weight_tying", "bias")
    axes = {"normalization": ["rmsnorm", "layernorm"], "position_encoding": ["rope", "none"]}
    folder = tmp_path / "s"

    def apart(trial: dict[str, Any]) -> float:
        return 3 + int(hashlib.sha256(trial["id"].encode()).hexdigest()[:6], 16) / 16**6 / 100

    def together(trial: dict[str, Any]) -> float:
        arch = trial["config"]["architecture"]
        return apart(trial) - 0.2 * (arch["norm_position"] == "post" and arch["weight_tying"] and arch["bias"])

    make(folder, axes=AXES | axes, seeds=2, independent_seeds=True)
    drive(folder, apart)
    with pytest.raises(UserError, match="nothing to settle: no three axes are suspected"):
        next_follow_up(folder)
    shutil.rmtree(folder)
    make(folder, axes=AXES | axes, seeds=2, independent_seeds=True)
    with pytest.raises(UserError, match="follow_up needs a study that is over; 64 of its trials"):
        next_follow_up(folder)
    drive(folder, together)
    before = answer(folder)
    assert "24 fresh runs, 3 of each of their 8 combinations" in plan_follow_up(folder)

    study = read_study_json(folder)
    (folder / "study.json").write_text(json.dumps(growing(study, "follow_up")))
    for told, world in (("confirm that they act together", together), ("do not show", apart)):
        drive(folder, world)
        study = read_study_json(folder)
        added = [trial for trial in study["trials"] if trial.get("role") == "follow_up"][-24:]
        assert set(study["stages"][-1]["axes"]) == set(three)
        cells = Counter(tuple(trial["config"]["architecture"][axis] for axis in three) for trial in added)
        assert sorted(cells.values()) == [3] * 8
        assert {trial["config"]["architecture"]["normalization"] for trial in added} == {"rmsnorm"}
        assert len({trial["seed"] for trial in study["trials"]}) == len(study["trials"])
        after = answer(folder)
        assert after.effects is not None
        assert before.effects is not None
        assert after.effects.table.equals(before.effects.table)
        assert [text for text in after.sentences if text.startswith("Follow-up: 24 fresh runs")][-1].find(told) > 0
        (folder / "study.json").write_text(json.dumps(growing(study, "follow_up")))
