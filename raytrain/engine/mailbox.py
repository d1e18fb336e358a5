"""What the owner of a lane and its ranks say to one another: jobs one way, reports the other."""

import threading
from collections.abc import Callable
from typing import Any

import ray

from raytrain.engine.job import Job, Report


class Mailbox:
    """What the owner of a lane and its ranks say to one another. Any thread may call; an actor when ranks are many."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._number = 0
        self._job: Job | None = None
        self._is_cancelled = self._is_closed = False
        self._reports: list[Report] = []
        self._ranks: dict[int, dict[str, str]] = {}

    def submit(self, job: Job) -> None:
        """Hand over the next job; one that still runs is cancelled."""
        with self._changed:
            self._number, self._job, self._is_cancelled, self._reports = self._number + 1, job, False, []
            self._changed.notify_all()

    def take(self, seconds: float) -> list[Report]:
        """The job's reports since the last call; waits up to `seconds` for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._reports, seconds)
            reports, self._reports = self._reports, []
            return reports

    def close(self) -> None:
        """Cancel the job and let the ranks return."""
        with self._changed:
            self._is_cancelled = self._is_closed = True
            self._changed.notify_all()

    def next_job(self, after: int, seconds: float) -> tuple[int, Job | None]:
        """The job that follows number `after`, with its number; None if `seconds` pass without, and -1 once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._number > after, seconds)
            if self._is_closed:
                return -1, None
            return (self._number, self._job) if self._number > after else (after, None)

    def report(self, number: int, report: Report) -> bool:
        """Pass on a report of job `number`. True: stop that job."""
        with self._changed:
            if number != self._number:
                return True
            self._reports.append(report)
            self._changed.notify_all()
            return self._is_cancelled

    def tell(self, rank: int, facts: dict[str, str]) -> None:
        """Where a rank is and how it is; see `raytrain.engine.nodes`."""
        with self._changed:
            self._ranks[rank] = facts

    def told(self) -> dict[int, dict[str, str]]:
        """What each rank told last."""
        with self._changed:
            return dict(self._ranks)


class RemoteMailbox:
    """A Mailbox in an actor, called as if it were here."""

    def __init__(self, workers: int) -> None:
        # Every rank may be waiting inside a call, beside the owner.
        self._actor = ray.remote(Mailbox).options(num_cpus=0, max_concurrency=workers + 2).remote()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)  # while it is being unpickled there is no actor yet
        return lambda *args: ray.get(getattr(self._actor, name).remote(*args))
