import json
from pathlib import Path
from typing import Any

import pytest

from raytrain.engine import trial
from raytrain.engine.job import Job


class FakeLane:
    """Takes a job and ends it at once."""

    is_broken = False

    def __init__(self, *args: Any) -> None:
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def take(self, seconds: float) -> list[dict[str, Any]]:
        return [{"event": "end", "status": "complete"}]


def config(name: str) -> dict[str, Any]:
    return {"trial": {"shape": "{}"}, "job": json.dumps({"config": {"name": name}})}


def test_a_segment_begins_at_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a segment that two lanes train at once: until its first step Tune may move it to another lane, and
    takes down the one that it was meant for without a word. And one that each step begins anew."""
    monkeypatch.setattr("raytrain.engine.lane.Lane", FakeLane)
    made = trial.Trial(config("a"), storage=None)
    lane: Any = made._lane
    assert lane.jobs == []
    assert made.step()["is_over"]
    assert made.step()["is_over"]
    assert lane.jobs == [Job({"name": "a"})]
    made.reset_config(config("b"))
    assert lane.jobs == [Job({"name": "a"})]
    assert made.step()["is_over"]
    assert lane.jobs == [Job({"name": "a"}), Job({"name": "b"})]
