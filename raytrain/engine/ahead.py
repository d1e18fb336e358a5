"""Idle CPU cores compile the programs of trials to come, so that lanes find them in the compilers' caches.

    Programs       which programs are wanted, taken by a process or a lane, and ready
    NodeCompiler   an actor on a node of lanes, with the processes that compile there
    Ahead          hands programs to the nodes, from a thread of the driver

Nothing depends on it: a trial whose program is not ready compiles it itself, to the same result, and whatever goes
wrong here is a message for debugging. The processes end with their actor, and the actor with the driver, however that
ends.
"""

import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain.config.run import AUTO
from raytrain.engine.cluster import Lanes
from raytrain.engine.job import LaneShape
from raytrain.plugins.loader import sources
from raytrain.sweep.estimate import Machine, rank_memory
from raytrain.sweep.trial import AssignedTrial
from raytrain.training.precompile import Precompiler, program

_log = logging.getLogger(__name__)

READY, WANTED, TAKEN = range(3)
_MOST = 16  # processes on a node
_SPARE = 1.25  # times the memory that a trial is expected to take
_CONTEXT = 1e9  # bytes of a GPU that a process takes before it has any tensor
_HOST_BYTES = 2.5e9  # of a process that compiles; all of them get a quarter of a node's memory
_POLL_SECONDS = 1.0
_END_SECONDS = 3.0  # what nodes may take to end their processes


class Programs:
    """What is compiled of the programs of `trials`, in their order. The driver's main thread
    and that of `Ahead` call it, without a lock: at worst a lane compiles what a process does.

    A lane that comes free should take a trial whose program is ready; else one that nobody compiles, rather than one
    that is being compiled. But before any trial has ended, in the order of the plan: while lanes start, which takes as
    long as to compile, what is first is being compiled.
    """

    def __init__(self, trials: Iterable[AssignedTrial] = ()) -> None:
        self._of: dict[str, str] = {}
        self._first: dict[str, AssignedTrial] = {}
        for trial in trials:
            self._of[trial.id] = text = program(trial.config)
            self._first.setdefault(text, trial)
        self._states = dict.fromkeys(self._first, WANTED)
        self._are_lanes_up = False

    def claim(self) -> AssignedTrial | None:
        """A trial whose program is to be compiled next, for who asks alone; None if there is none."""
        found = next((text for text, state in self._states.items() if state == WANTED), None)
        if found is None:
            return None
        self._states[found] = TAKEN
        return self._first[found]

    def compiled(self, trial: str) -> None:
        """The trial's program is ready, or nobody will try again."""
        if trial in self._of:
            self._states[self._of[trial]] = READY

    def begun(self, trial: str) -> None:
        """A lane has the trial, and compiles its program if it is not ready."""
        text = self._of.get(trial)
        if text is not None and self._are_lanes_up and self._states[text] == WANTED:
            self._states[text] = TAKEN

    def ended(self, trial: str) -> None:
        """A lane has left the trial."""
        self._are_lanes_up = True
        self.compiled(trial)

    def order(self, trial: str) -> int:
        """By which a lane chooses among trials: the least first."""
        return self._states.get(self._of.get(trial, ""), READY) if self._are_lanes_up else READY


def how_many(cores: int, lanes: int, trial_bytes: float, machine: Machine) -> int:
    """The processes that `cores` idle cores of a node may run beside its `lanes`, whose trials take `trial_bytes` of a
    GPU at most: so many that neither the lanes nor they run out of memory."""
    most = min(cores, _MOST, int(machine.cpu_bytes / 4 / _HOST_BYTES))
    if machine.gpus:
        need = _need(trial_bytes)
        lanes_each = -(-lanes // len(machine.gpus))
        most = min(most, len(machine.gpus) * int(machine.gpu_bytes / need - lanes_each))
    return max(0, most)


def _need(trial_bytes: float) -> float:
    return _SPARE * trial_bytes + _CONTEXT


class NodeCompiler:
    """An actor on a node: the processes that compile there, each one program at a time."""

    def __init__(self, cores: int, lanes: int, trial_bytes: float) -> None:
        machine = Machine.here()
        if not trial_bytes:  # lanes of CPUs
            machine = dataclasses.replace(machine, gpus=())
        self._idle: queue.Queue[Precompiler] = queue.Queue()
        count = how_many(cores, lanes, trial_bytes, machine)
        self._all = [self._make(number, machine, trial_bytes) for number in range(count)]
        for process in self._all:
            self._idle.put(process)

    @staticmethod
    def _make(number: int, machine: Machine, trial_bytes: float) -> Precompiler:
        if not machine.gpus:
            return Precompiler()
        return Precompiler(number % len(machine.gpus), _need(trial_bytes) - _CONTEXT)

    def processes(self) -> int:
        return len(self._all)

    def compile(self, config: Mapping[str, Any], plugins: Mapping[str, str]) -> str:
        """Compile the run of `config` (`TrainConfig.to_dict`); returns nothing, or why it could not be."""
        process = self._idle.get()
        try:
            return process.compile(config, plugins)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes."""
        for process in self._all:
            process.close()


class Ahead:
    """Compiles `programs` on the nodes of a study's `lanes`, until it is closed. Use it in a `with` statement."""

    def __init__(self, programs: Programs, nodes: Iterable[tuple[str, int, int]], trial_bytes: float) -> None:
        """`nodes` are their ids, idle cores and lanes; `trial_bytes` is 0 for lanes of CPUs."""
        self.programs, self._is_over = programs, threading.Event()
        self._actors: list[Any] = [
            ray.remote(NodeCompiler)
            .options(
                num_cpus=0,
                max_concurrency=_MOST + 1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(cores, lanes, trial_bytes)
            for node, cores, lanes in nodes
        ]
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def __enter__(self) -> "Ahead":
        if self._actors:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        with contextlib.suppress(Exception):  # Ray may be gone, and its actors with it
            ray.wait([actor.close.remote() for actor in self._actors], timeout=_END_SECONDS)
            for actor in self._actors:
                ray.kill(actor)

    def _run(self) -> None:
        try:
            self._feed([actor for actor in self._actors for _ in range(ray.get(actor.processes.remote()))])
        except Exception:
            _log.debug("nothing more is compiled ahead", exc_info=True)

    def _feed(self, free: list[Any]) -> None:
        """Give each of the processes, of which `free` has the actors, one program after another."""
        running: dict[Any, tuple[Any, str]] = {}
        while not self._is_over.is_set():
            while free and (trial := self.programs.claim()) is not None:
                actor = free.pop(0)
                config = trial.config.to_dict()
                running[actor.compile.remote(config, sources(config))] = actor, trial.id
            if not running:
                return
            done, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
            for call in done:
                actor, name = running.pop(call)
                self.programs.compiled(name)
                try:
                    _log.debug("compiled ahead: %s %s", name, ray.get(call))
                    free.append(actor)
                except ray.exceptions.RayError:  # the actor is gone, and this process of its
                    _log.debug("not compiled ahead: %s", name, exc_info=True)


def ahead_of(trials: Sequence[AssignedTrial], lanes: Lanes) -> Ahead:
    """What compiles ahead of the `trials` of a study on `lanes`, in as many processes as those ask for: by default as
    many as have idle cores where lanes have GPUs, and none on CPUs.

    Lanes of several ranks get no help, as they compile other programs than a run alone; nor do runs that try for the
    fastest micro-batch, since what they find depends on the memory that is free.
    """
    (shape, count), *others = lanes.counts.items()
    most = lanes.compile_ahead
    runs = [trial.config for trial in trials]
    is_on = most != 0 if shape.gpus else bool(most)
    compiles = runs[0].compile if runs[0].compile is not None else shape.gpus > 0
    if others or shape.workers > 1 or not (is_on and compiles) or any(run.micro_batch == AUTO for run in runs):
        return Ahead(Programs(), (), 0.0)
    precision = "fp32" if runs[0].precision == "fp32" else "bf16"
    memory = max(rank_memory(run, 1, precision, on_gpu=True) for run in runs) if shape.gpus else 0.0
    return Ahead(Programs(trials), list(_nodes(shape, count, most)), memory)


def _nodes(shape: LaneShape, lanes: int, most: int | None) -> Iterator[tuple[str, int, int]]:
    """Of each node with room for one of the `lanes`: its id, its cores to compile on, and the lanes it may have."""
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        room = has.get("GPU", 0) / shape.gpus if shape.gpus else has.get("CPU", 0) / shape.cpus
        here = min(lanes, round(room))
        if here:
            yield node["NodeID"], int(has["CPU"]) - here * shape.cpus - 1 if most is None else most, here
