import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from raytrain import configure, tune
from raytrain.engine import cluster as cluster_module
from raytrain.engine.cluster import _free_orphans, plan_lanes, ray_started, watching_ray
from raytrain.engine.ending import Ending
from raytrain.engine.job import LaneShape
from raytrain.errors import UserError
from raytrain.sweep.estimate import ResourceRequest
from raytrain.sweep.trial import PlannedTrial

ROOT = Path(__file__).parents[2]


@ray.remote(num_cpus=0)
class Holder:
    """An actor that makes a placement group, as the controller of a lane's ranks does."""

    def hold(self) -> str:
        self.group = ray.util.placement_group([{"CPU": 0.1}])
        ray.get(self.group.ready())
        return str(self.group.id.hex())


def test_what_a_dead_lane_holds_is_freed(ray_here: None) -> None:
    """Would catch a lane killed while it starts that keeps its GPUs, so that no other ever gets them; and one that
    lives, or Tune, whose groups are taken away."""
    dead, alive = Holder.remote(), Holder.remote()
    orphan, kept = ray.get([dead.hold.remote(), alive.hold.remote()])
    own = ray.util.placement_group([{"CPU": 0.1}])
    ray.get(own.ready())
    _free_orphans()
    states = {name: group["state"] for name, group in ray.util.placement_group_table().items()}
    assert [states[name] for name in (orphan, kept, own.id.hex())] == ["CREATED"] * 3
    ray.kill(dead)
    while states[orphan] != "REMOVED":
        _free_orphans()
        states = {name: group["state"] for name, group in ray.util.placement_group_table().items()}
    assert [states[name] for name in (kept, own.id.hex())] == ["CREATED"] * 2
    ray.util.remove_placement_group(own)
    ray.kill(alive)
    while states[kept] != "REMOVED":  # other tests want its CPU
        _free_orphans()
        states = {name: group["state"] for name, group in ray.util.placement_group_table().items()}


@pytest.mark.parametrize("deaf", [1, cluster_module._DEAF_WATCHES])
def test_the_watch_outlives_an_error(deaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a watch that ends at the first error, after which nobody frees what dead lanes hold, or says that Ray
    is dead; and a Ray that never answers again taken for one that lives."""
    calls: list[str] = []
    died = threading.Event()

    def nodes() -> list[dict[str, Any]]:
        calls.append("nodes")
        if calls.count("nodes") <= deaf:
            raise ConnectionError
        return [{"NodeID": "here", "Alive": calls.count("nodes") < deaf + 3}]

    def free_orphans() -> None:
        calls.append("free")
        raise ValueError

    class Context:
        def get_node_id(self) -> str:
            return "here"

    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(ray, "nodes", nodes)
    monkeypatch.setattr(cluster_module, "_free_orphans", free_orphans)
    monkeypatch.setattr(cluster_module, "_WATCH_SECONDS", 0.0)
    with watching_ray(died.set):
        assert died.wait(60)
    # Two watches with an answer and the third with that of a death; none, where ten in a row had no answer.
    answered = 3 if deaf < cluster_module._DEAF_WATCHES else 0
    assert calls.count("nodes") == deaf + answered
    assert calls.count("free") == calls.count("nodes") - 1


@pytest.mark.parametrize("error", [ConnectionError, ValueError, RuntimeError])
def test_an_address_where_there_is_no_cluster(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a traceback for the address of a dashboard, or of a cluster with another version of Ray."""

    def init(**kwargs: Any) -> None:
        raise error("not this one\nmore")

    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # of the Ray that other tests share
    with pytest.raises(UserError, match=r"^RAY_ADDRESS \(http://127.0.0.1:8265\): no cluster answers .*not this one\)"):
        ray_started(Ending()).__enter__()


def cluster(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    """Let Ray find these nodes."""
    names = {name for node in nodes for name in node}
    monkeypatch.setattr(ray, "cluster_resources", lambda: {n: sum(node.get(n, 0) for node in nodes) for n in names})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])


def trials(*workers: int | None) -> list[PlannedTrial]:
    config = configure(flops=1e12, vocab_size=256)
    return [PlannedTrial(f"t{index}", ("",), config, workers=count) for index, count in enumerate(workers)]


@pytest.mark.parametrize(
    ("wanted", "shape", "count"),
    [
        (ResourceRequest(), LaneShape(1, 1, 1), 8),
        (ResourceRequest(gpus_per_trial=2), LaneShape(2, 1, 1), 4),
        (ResourceRequest(trials_per_gpu=2), LaneShape(1, 0.5, 1), 12),  # 16 would fit on the GPUs, but each takes a CPU
        (ResourceRequest(concurrent=3), LaneShape(1, 1, 1), 3),
        (ResourceRequest(gpus_per_trial=0), LaneShape(1, 0, 1), 12),
        (ResourceRequest(gpus_per_trial=0, concurrent=2), LaneShape(1, 0, 6), 2),
        (ResourceRequest(gpus_per_trial=0, workers_per_trial=4), LaneShape(4, 0, 1), 3),
    ],
)
def test_lanes_that_fit(wanted: ResourceRequest, shape: LaneShape, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch devices left idle, lanes that wait for ever for a CPU or a GPU, and GPUs that are not shared."""
    cluster(monkeypatch, {"GPU": 8.0, "CPU": 12.0})
    lanes = plan_lanes(trials(*[None] * 20), wanted, is_local=True)
    assert (set(lanes.shapes.values()), lanes.counts, lanes.infeasible) == ({shape}, {shape: count}, {})


def test_trials_of_several_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a trial that waits for ever as it can never be placed, and one that ends the study for the others."""
    cluster(monkeypatch, {"GPU": 2.0, "CPU": 8.0}, {"GPU": 2.0, "CPU": 8.0})
    lanes = plan_lanes(trials(None, 2, 8), ResourceRequest(), is_local=True)
    assert lanes.shapes == {"t0": LaneShape(1, 1, 1), "t1": LaneShape(2, 1, 1)}
    assert lanes.infeasible == {"t2": "too large for the cluster: 8 ranks need a GPU each, and Ray has 4 GPUs"}
    with pytest.raises(UserError, match=r"gpus_per_trial \(8\) must be at most the 4 GPUs that Ray finds"):
        plan_lanes(trials(8), ResourceRequest(), is_local=True)


def documented(count: int) -> list[list[str]]:
    """The arguments of the `count` commands for a cluster that grows, in cluster.yaml and docs/cluster.md."""
    texts = [(ROOT / name).read_text() for name in ("cluster.yaml", "docs/cluster.md")]
    found = re.findall(r"python -m raytrain\.tune( [^`#]*?--storage \S+)", "\n".join(texts))
    assert len(found) == count
    return [command.split() for command in found]


@pytest.mark.parametrize("argv", documented(3))
@pytest.mark.parametrize(
    "nodes",
    [
        [{"memory": 1e9}],  # Ray leaves out what there is none of
        [{"memory": 1e9}, {"memory": 1e12, "CPU": 192.0, "GPU": 8.0}],
    ],
)
def test_the_documented_study_on_a_cluster_that_grows(
    argv: list[str], nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a study that is refused, trains on CPUs, or asks for as many lanes as there are GPUs already, since
    its nodes come only once they are asked for."""
    cluster(monkeypatch, *nodes)
    request = tune._plan(tune._parser().parse_args(argv)).request
    lanes = plan_lanes(trials(*[None] * 40), request, is_local=False)
    assert (lanes.counts, lanes.infeasible) == ({LaneShape(1, 1, 1): 16}, {})


def test_a_cluster_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a study that trains on CPUs for days as it did not say that it wants GPUs, which are yet to come, and
    one that is refused without a word on how to have it."""
    cluster(monkeypatch, {"memory": 1e9})
    lanes = plan_lanes(trials(*[None] * 40), ResourceRequest(gpus_per_trial=0, concurrent=16), is_local=False)
    assert (lanes.counts, lanes.infeasible) == ({LaneShape(1, 0, 1): 16}, {})
    with pytest.raises(UserError, match=r"gpus_per_trial \(none\) must be given"):
        plan_lanes(trials(None), ResourceRequest(concurrent=16), is_local=False)
    with pytest.raises(UserError, match="give --concurrent too"):
        plan_lanes(trials(None), ResourceRequest(gpus_per_trial=1), is_local=False)


def test_an_argument_that_is_no_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a traceback of Ray's, which notes the command as its job's, for `--data` in another encoding."""
    monkeypatch.setattr(sys, "argv", ["tune", "--data", "caf\udce9"])
    with pytest.raises(UserError, match=r"argument \(.*\) must be in UTF-8"):
        ray_started(Ending()).__enter__()
