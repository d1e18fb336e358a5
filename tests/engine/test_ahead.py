"""Programs that are compiled before lanes come to them."""

import logging
from typing import Any

import pytest
import ray

from raytrain.config.resolve import resolve
from raytrain.config.run import TrainConfig
from raytrain.engine.ahead import Ahead, Programs, ahead_of, how_many
from raytrain.engine.cluster import Lanes
from raytrain.engine.job import LaneShape
from raytrain.sweep.estimate import Machine
from raytrain.sweep.trial import AssignedTrial


def trial(name: str, **values: Any) -> AssignedTrial:
    config, _ = resolve([("test", {"max_iters": 1} | values)], data_vocab_size=256)
    return AssignedTrial(name, (name,), config)


def test_no_two_compile_the_same() -> None:
    """Would catch a lane that compiles what a process does while there is other work, or takes a trial whose program is
    not ready while there are others; and seeds or learning rates that are compiled again."""
    norms = {"a": "rmsnorm", "b": "layernorm", "c": "layernorm_nobias"}
    trials = [trial(name, preset="llama", normalization=norm) for name, norm in norms.items()]
    trials += [trial("a2", preset="llama", seed=2, learning_rate=2e-3, dropout=0.0)]
    trials += [trial("d", preset="llama", global_batch=4096)]
    programs = Programs(trials)
    assert programs.claim() == trials[0]
    programs.begun("a")
    programs.begun("b")  # by lanes that are yet to start: whoever is idle may compile that too
    assert programs.claim() == trials[1]
    assert [programs.order(name) for name in ("a", "c", "d")] == [0, 0, 0]
    programs.ended("a")
    assert sorted("dcba", key=programs.order) == ["a", "d", "c", "b"]  # ready, wanted, wanted, taken
    assert programs.order("a2") == programs.order("a")
    programs.begun("c")
    assert programs.claim() == trials[4]
    programs.compiled("d")
    assert programs.order("d") < programs.order("c")
    assert programs.claim() is None
    assert programs.order("of a later stage") == programs.order("d")


def test_processes_fit_beside_the_lanes() -> None:
    """Would catch a trial that runs out of a GPU's memory, and so changes its micro-batch, for what is compiled."""
    machine = Machine(("NVIDIA H100 80GB HBM3",) * 2, 80e9, 32, 256e9)
    assert how_many(11, 8, 2e9, machine) == 11
    assert how_many(11, 8, 8e9, machine) == 2 * (7 - 4)  # each needs 11e9, and each GPU has four lanes
    assert how_many(11, 2, 40e9, machine) == 0
    assert how_many(-3, 2, 1e9, machine) == 0
    assert how_many(11, 8, 0.0, Machine((), 0.0, 32, 40e9)) == 4


def test_nothing_is_compiled_ahead_where_it_could_change_a_run(ray_here: None) -> None:
    """Would catch processes on CPUs whose cores all train, or beside runs that try how much memory is free."""
    gpu, cpu = {LaneShape(gpus=0.25): 4}, {LaneShape(cpus=1): 1}
    compiled, tried = trial("a", preset="llama", compile=True), trial("a", preset="llama", micro_batch="auto")
    for trials, counts, most in (
        ([compiled], cpu, None),
        ([compiled], gpu, 0),
        ([trial("a", preset="llama")], cpu, 2),
        ([tried], gpu, None),
        ([compiled], {LaneShape(workers=2, gpus=1): 1}, None),
    ):
        assert ahead_of(trials, Lanes({}, counts, {}, most)).programs.claim() is None
    assert ahead_of([compiled], Lanes({}, cpu, {}, 2)).programs.claim() == compiled


def test_a_study_goes_on_whatever_becomes_of_its_processes(
    ray_here: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a program that nobody compiles any more and that no lane takes, a thread that ends with an error on
    the screen, and processes that outlive the study."""
    programs = Programs([trial("a", preset="llama"), trial("b", preset="gpt2")])
    monkeypatch.setattr(TrainConfig, "to_dict", lambda run: {})  # which is no run
    node = ray.get_runtime_context().get_node_id()
    with caplog.at_level(logging.DEBUG, "raytrain.engine.ahead"), Ahead(programs, [(node, 1, 1)], 0.0) as ahead:
        ahead._thread.join(60)
        assert not ahead._thread.is_alive()
    assert [record.levelname for record in caplog.records] == ["DEBUG"] * 2
    assert "compiled ahead: b UserError" in caplog.text
    programs.ended("c")
    assert [programs.order(name) for name in "ab"] == [0, 0]
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(ahead._actors[0].processes.remote())
