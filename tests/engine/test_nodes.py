import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raytrain.config.run import TrainConfig
from raytrain.engine.job import Job
from raytrain.engine.lane import Watchdog, _run
from raytrain.engine.mailbox import Mailbox
from raytrain.engine.nodes import Notice, going, meet
from raytrain.training.loop import train

CPU = torch.device("cpu")


class Watched(Mailbox):
    """A mailbox that says when a rank has told of an error."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = threading.Event()

    def tell(self, rank: int, facts: dict[str, str]) -> None:
        super().tell(rank, facts)
        if "Error" in facts["state"]:
            self.failed.set()


def all_meet(add_up: Callable[[int, Callable[[], object], Watched], float], ranks: range = range(3)) -> list[Any]:
    """What `meet` says on each of three ranks, on nodes a, b and c, whose ones `add_up(rank, ready, mailbox)` adds up.

    Those in `ranks` have all the time that they need.
    """
    mailbox, said = Watched(), [None] * 3

    def run(rank: int) -> None:
        here = {"host": "abc"[rank], "node": f"id-{rank}"}
        seconds = 60.0 if rank in ranks else 0.01
        said[rank] = meet(rank, 3, mailbox, here, CPU, lambda device, ready: add_up(rank, ready, mailbox), seconds)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_ranks_that_meet() -> None:
    """Would catch a lane that never trains, and one whose ranks are in no group, so that ones add up to 1."""
    barrier = threading.Barrier(3)

    def add_up(rank: int, ready: Callable[[], object], mailbox: Watched) -> float:
        ready()
        barrier.wait()
        return 3.0

    def alone(rank: int, ready: Callable[[], object], mailbox: Watched) -> float:
        add_up(rank, ready, mailbox)
        return 1.0

    assert all_meet(add_up) == [None] * 3
    assert all("the ones of 3 ranks add up to 1" in outcome["reason"] for outcome in all_meet(alone))


def test_who_does_not_come_is_named_with_its_node() -> None:
    """Would catch a broken GPU on one node of many that shows only as the others' lost connections, and no limit."""
    barrier, for_ever = threading.Barrier(3), threading.Event()

    def broken(rank: int, ready: Callable[[], object], mailbox: Watched) -> float:
        if rank == 1:
            raise RuntimeError("CUDA error: uncorrectable ECC error\nmore")
        ready()
        mailbox.failed.wait()
        raise RuntimeError("Connection closed by peer")

    for outcome in all_meet(broken)[::2]:
        assert outcome["status"] == "lost"
        assert "do not meet: rank 1 on node b: RuntimeError: CUDA error: uncorrectable ECC error" in outcome["reason"]

    def hangs(rank: int, ready: Callable[[], object], mailbox: Watched) -> float:
        if rank == 2:
            barrier.wait()
            for_ever.wait()
            return 3.0
        ready()
        barrier.wait()
        raise RuntimeError("Timed out")

    *others, hung = all_meet(hangs, range(2))
    for outcome in others:
        assert outcome["reason"] == "the ranks of the lane do not meet: rank 2 on node c: its device does not answer"
    assert "rank 2 on node c: its device does not answer" in hung["reason"]
    for_ever.set()

    def walled(rank: int, ready: Callable[[], object], mailbox: Watched) -> float:
        ready()
        barrier.wait()
        raise RuntimeError("Timed out")

    places = "node a (rank 0) and node b (rank 1) and node c (rank 2)"
    for outcome in all_meet(walled):
        assert outcome["reason"] == f"no all-reduce between the ranks on {places}: RuntimeError: Timed out"


def test_a_notice_is_of_the_lane_s_own_nodes_and_outlives_an_error() -> None:
    """Would catch lanes that end for the drain of any node of the cluster, and a watch that one lost answer ends."""
    answers: list[Any] = [{"other": 0}, None, {"other": 0, "mine": 7}]
    notice = Notice({"mine", "owner"}, lambda: answers.pop(0), 0.001)
    assert not notice.has_come
    with notice:
        assert notice.wait(60)
    assert answers == []
    ranks = {0: {"host": "a", "node": "x"}, 1: {"host": "b", "node": "mine"}, 2: {"host": "b", "node": "mine"}}
    assert going(ranks, lambda: ["mine", "other"]) == "node b"
    assert going(ranks, lambda: ["owner"]) == going(ranks, lambda: 1 / 0) == "the node of the lane's owner"


def test_a_notice_saves_a_checkpoint_and_the_trial_goes_on_elsewhere(
    tiny_run: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Would catch a drain that costs the steps since the last checkpoint, counts as an end, or changes a loss."""
    config = tiny_run(max_iters=6)
    undisturbed = train(config)

    def segment(notice: Notice, seconds: float) -> list[Any]:
        """The reports of a lane on which the notice may come, for so many seconds, during the second step."""
        mailbox = Mailbox()
        mailbox.tell(0, {"host": "a", "node": "mine", "state": "ready"})
        mailbox.submit(Job(json.loads(json.dumps(config.to_dict())), str(tmp_path)))
        number, job = mailbox.next_job(0, 0)
        assert job is not None

        def watched(config: Any, on_report: Callable[..., bool], *rest: Any) -> Any:
            def reported(report: dict[str, Any]) -> bool:
                if report["event"] == "step" and report["step"] == 2:
                    with notice:
                        notice.wait(seconds)
                return on_report(report)

            return train(config, reported, *rest)

        assert _run(job, number, watched, mailbox, Watchdog(900, mailbox), notice) is None
        return mailbox.take(0)

    end = segment(Notice({"mine"}, lambda: ["mine"], 0.001), 60)[-1]
    assert (end["event"], end["status"], end["preempted"]) == ("end", "lost", True)
    assert end["reason"].endswith(" is to go, as Ray was told; a checkpoint was saved")
    assert 2 <= end["steps"] < 6
    again = segment(Notice({"mine"}, list, 0.001), 0)
    assert next(report for report in again if report["event"] == "start")["first_step"] == end["steps"]
    assert (again[-1]["status"], again[-1]["val_loss"]) == ("complete", undisturbed["val_loss"])
