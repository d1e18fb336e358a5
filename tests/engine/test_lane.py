import os
import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
import torch.distributed as dist
from torch._inductor.runtime.runtime_utils import cache_dir

from raytrain.config.resolve import resolve
from raytrain.engine.job import Job, LaneShape
from raytrain.engine.lane import JobFailed, Lane, describe, explain
from raytrain.engine.mailbox import Mailbox
from raytrain.errors import UserError

CONFIG = resolve([("test", {"max_iters": 1})], data_vocab_size=256)[0]


def jobs(*seeds: int) -> list[Job]:
    return [Job(CONFIG.replace(seed=seed).to_dict()) for seed in seeds]


def finish(lane: Lane) -> list[dict[str, Any]]:
    """All reports of the job until its end."""
    reports: list[dict[str, Any]] = []
    while not any(report["event"] == "end" for report in reports):
        reports += lane.take(5.0)
    return reports


def test_mailbox_stops_a_job_that_was_replaced() -> None:
    """Would catch reports of a cancelled trial in the log of the next one, and a trial that never learns of its end."""
    mailbox = Mailbox()
    mailbox.submit(Job({"n": 1}))
    first, job = mailbox.next_job(0, 0)
    assert (job, mailbox.report(first, {"event": "step"})) == (Job({"n": 1}), False)
    mailbox.submit(Job({"n": 2}))
    assert mailbox.report(first, {"event": "end"}) is True
    assert mailbox.take(0) == []
    second, job = mailbox.next_job(first, 0)
    assert job == Job({"n": 2})
    assert mailbox.next_job(second, 0) == (second, None)


def test_mailbox_wakes_those_who_wait() -> None:
    """Would catch a lane that hangs when it is closed, and a report that lies until its owner's timeout."""
    mailbox = Mailbox()
    woken: list[Any] = []
    rank = threading.Thread(target=lambda: woken.append(mailbox.next_job(0, 60)))
    owner = threading.Thread(target=lambda: woken.append(mailbox.take(60)))
    rank.start()
    owner.start()
    mailbox.report(0, {"event": "step"})
    owner.join(10)
    mailbox.close()
    rank.join(10)
    assert woken == [[{"event": "step"}], (-1, None)]


@pytest.mark.parametrize(
    ("error", "status", "reason", "needs_restart"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "oom", "CUDA out of memory. Tried 2 GiB", False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 B"), "oom", "DefaultCPUAllocator", False),
        (
            RuntimeError("CUDA error: device-side assert triggered\nmore"),
            "lost",
            "device-side assert triggered",
            True,
        ),
        (RuntimeError("CUDA error: out of memory"), "oom", "out of memory", True),
        (dist.DistBackendError("NCCL error in: x.cpp"), "lost", "NCCL error in: x.cpp", True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "lost", "closed by peer", False),
        (ray.exceptions.ActorDiedError(), "lost", "ActorDiedError", False),
        (UserError("micro_batch (3) must divide 8"), "failed", "micro_batch (3) must divide 8", False),
        (KeyError("x"), "failed", "KeyError: 'x'", False),
    ],
)
def test_describe(error: Exception, status: str, reason: str, needs_restart: bool) -> None:
    """Would catch a want of memory taken for a bug, a poisoned process that is kept, a broken device or connection
    that is held against the trial, and reasons of many lines."""
    said = describe(error)
    assert (said["status"], said["needs_restart"]) == (status, needs_restart)
    assert reason in said["reason"]
    assert "\n" not in said["reason"]


def test_explain_finds_the_cause_among_ranks() -> None:
    """Would catch the echo of a lost peer taken for the cause, and an outcome that does not survive pickling."""

    def failed(status: str) -> JobFailed:
        return pickle.loads(pickle.dumps(JobFailed({"status": status, "reason": f"it {status}"})))

    def explained(*failures: Exception) -> dict[str, Any]:
        return explain(ray.train.WorkerGroupError("text", dict(enumerate(failures))))

    assert explained(failed("failed"), failed("oom")) == {"status": "oom", "reason": "it oom", "rank": 1}
    assert explained(failed("lost"), failed("failed")) == {"status": "failed", "reason": "it failed", "rank": 1}
    assert explained(failed("failed"), RuntimeError("died"))["status"] == "lost"
    assert explain(failed("failed")) == {"status": "failed", "reason": "it failed"}
    assert explain(ValueError("no room"))["reason"] == "the lane broke: ValueError: no room"


def test_lane_of_one_rank(ray_here: None, tmp_path: Path) -> None:
    """Would catch global torch state that leaks from trial to trial, a failure that ends the lane, and a job that goes
    on after the next one was handed in."""
    seen: list[tuple[int, torch.dtype, bool, int]] = []
    started = threading.Event()

    def train(
        config: Any, on_report: Callable[..., bool], folder: Path | None, interrupted: Callable[[], bool]
    ) -> None:
        seen.append((config.seed, torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()))
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(2)
        if config.seed == 2:
            raise RuntimeError("bad luck\nand more")
        if config.seed == 3:
            started.set()
            while not (on_report({"event": "step"}) and interrupted()):
                pass
        on_report({"event": "end", "status": "complete", "pid": os.getpid()})

    threads = torch.get_num_threads()
    lane = Lane(LaneShape(cpus=1), str(tmp_path), train)
    one, two, three, four = jobs(1, 2, 3, 4)
    lane.submit(one)
    assert finish(lane)[-1]["pid"] == os.getpid()
    lane.submit(two)
    end = finish(lane)[-1]
    assert (end["status"], end["reason"]) == ("failed", "RuntimeError: bad luck")
    assert "bad luck" in end["traceback"]
    lane.submit(three)
    assert started.wait(10)
    lane.submit(four)
    assert finish(lane)[-1]["status"] == "complete"
    assert not lane.is_broken
    lane.close()
    assert lane.is_broken
    torch.set_num_threads(threads)
    assert seen == [(seed, torch.float32, True, 1) for seed in (1, 2, 3, 4)]


def test_lane_of_two_ranks(ray_here: None, tmp_path: Path) -> None:
    """Would catch a worker group that is started anew for each trial, ranks that get different jobs or no process
    group, a killed rank that hangs the lane or is taken for a failure of the trial, and compiled code that goes with
    its lane instead of being kept for all on the node."""

    def train(
        config: Any, on_report: Callable[..., bool], folder: Path | None, interrupted: Callable[[], bool]
    ) -> None:
        if config.seed == 3 and dist.get_rank() == 1:
            os._exit(1)
        pids = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(pids, torch.tensor([os.getpid()]))
        seeds = torch.tensor([config.seed])
        dist.all_reduce(seeds)
        if dist.get_rank() == 0:
            on_report({"event": "end", "pids": [int(pid) for pid in pids], "seeds": int(seeds), "cache": cache_dir()})

    lane = Lane(LaneShape(workers=2, cpus=1), str(tmp_path), train)
    one, two, three = jobs(1, 2, 3)
    lane.submit(one)
    first = finish(lane)[-1]
    lane.submit(two)
    second = finish(lane)[-1]
    assert len(set(first["pids"]) - {os.getpid()}) == 2
    assert second["pids"] == first["pids"]
    assert (first["seeds"], second["seeds"]) == (2, 4)
    assert first["cache"] == cache_dir()
    lane.submit(three)
    end = finish(lane)[-1]
    assert end["status"] == "lost"
    assert f"rank 1 on node {socket.gethostname()}: " in end["reason"]
    assert lane.is_broken
    lane.close()


def test_a_lane_that_hangs_ends_itself(ray_here: None, tmp_path: Path) -> None:
    """Would catch a study that waits for ever on a collective that one rank never joins."""

    def train(
        config: Any, on_report: Callable[..., bool], folder: Path | None, interrupted: Callable[[], bool]
    ) -> None:
        if dist.get_rank() == 0:
            dist.all_reduce(torch.zeros(1))
        threading.Event().wait()

    lane = Lane(LaneShape(workers=2, cpus=1), str(tmp_path), train, hang_timeout=1.0)
    lane.submit(jobs(1)[0])
    end = finish(lane)[-1]
    assert end["status"] == "lost"
    assert "no message from a rank for 1 s" in end["reason"]
    while not lane.is_broken:
        lane.take(1.0)
    lane.close()
