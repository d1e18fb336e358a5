"""The reports of a run, each made from where the run is: its state, its meter, and its last evaluations."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from raytrain.accounting.flops import flops_per_token
from raytrain.axes import plugin
from raytrain.config.run import TrainConfig
from raytrain.training import monitor
from raytrain.training.checkpoint import State
from raytrain.training.monitor import Meter, Report
from raytrain.training.parallel import World

OnReport = Callable[[Report], bool | None]
Saving = Callable[[], contextlib.AbstractContextManager[None]]


class Reports:
    """Sends the reports of one run to `send`, whose answers to evaluations and rungs hold for all ranks."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        state: State,
        meter: Meter,
        send: OnReport,
        saving: Saving = contextlib.nullcontext,
    ) -> None:
        self._config, self._world, self._state, self._meter = config, world, state, meter
        self._send, self._saving = send, saving
        self._flops_per_sequence = flops_per_token(config.architecture).per_sequence
        self._speed: Report = {}  # at the last step that was reported
        self._facts: Report = {}
        self._checkpoint_seconds = 0.0  # in this process

    def start(self, facts: Report, notes: Report, startup_seconds: float) -> None:
        """The run's setting and `facts`, which the result repeats; and `notes`, which it does not."""
        state = self._state
        start = monitor.start_report(self._config, self._world) | facts
        start |= {"first_step": state.step, "micro_batch": state.micro_batch, "startup_seconds": startup_seconds}
        start["restored_seconds"] = state.train_seconds + state.eval_seconds  # spent before this process
        start["restored_eval_seconds"] = state.eval_seconds
        self._send(start | notes)
        self._facts = {key: value for key, value in start.items() if key != "event"}

    def gradients(self, blocks: Iterable[nn.Module], model: nn.Module) -> None:
        """Statistics of the gradients of the step at hand. A collective."""
        with self._meter.paused():
            stats = monitor.gradient_stats(blocks, model, self._world)
        if all(map(math.isfinite, stats.values())):  # else the run ends at this step
            self._send({"event": "gradients", "step": self._state.step + 1, **stats})

    def step(self, learning_rate: float, *, warms_up: bool) -> None:
        """The last step's loss, and the speed since the last such report. Stops the meter."""
        self._meter.stop()
        self._speed = self._meter.read(warms_up=warms_up) | monitor.memory(self._world.device)
        optimization = {"loss": self._state.train_loss, "learning_rate": learning_rate}
        optimization["grad_norm"] = self._state.grad_norm
        self._send({"event": "step", **self._position("step"), **optimization, **self._speed})

    def evaluation(self) -> bool:
        """The evaluation that the state holds. Whether to stop. A collective."""
        state = self._state
        losses = {"train_loss": state.train_loss, **state.evaluation}
        return self._world.agree(self._send({"event": "eval", **self._position("step"), **losses, **self._speed}))

    def rung(self) -> bool:
        """The rung that the run is at, with the score that the state holds. Whether to pause. A collective."""
        state = self._state
        rung = {"event": "rung", "rung": self._config.rung_steps.index(state.step), "decay_flops": state.decay_flops}
        losses = {"train_loss": state.train_loss, **state.score}
        report = {**rung, **self._position("step"), **losses, **self._seconds(), **self._meter.summary()}
        return self._world.agree(self._send(report))

    def end(self, status: str, facts: Report) -> Report:
        """The run's result, which is its last report too; with `facts` in it."""
        state = self._state
        result: Report = {"status": status, **self._facts, **self._position("steps"), **self._seconds()}
        if status == "diverged":
            result["reason"] = f"loss {state.train_loss}, gradient norm {state.grad_norm} at step {state.step + 1}"
            result["reason"] += plugin.suspects(self._config.plugins)
        else:
            losses = state.score if status == "paused" else state.evaluation
            result |= {"train_loss": state.train_loss, "grad_norm": state.grad_norm, **losses}
        if self._config.rungs:
            result["decay_flops"] = state.decay_flops
        result |= self._meter.summary() | monitor.memory(self._world.device)
        result |= {"first_steps_seconds": self._meter.first_steps_seconds}
        result |= {"checkpoint_seconds": self._checkpoint_seconds} | facts
        if "mfu" in result:
            ratio = monitor.reference_ratio(self._config, self._world)
            result["hardware_flops"] = result["train_flops"] / result["mfu"] * ratio
        self._send({"event": "end", **result})
        return result

    def state(self) -> State:
        """The run's state with its times up to now, as a checkpoint holds it."""
        seconds = self._state.train_seconds + self._meter.train_seconds
        return dataclasses.replace(self._state, train_seconds=seconds, speed=self._meter.state())

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The time that passes inside counts as the run's time of evaluation."""
        clock = time.perf_counter()
        yield
        self._state.eval_seconds += time.perf_counter() - clock

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """The time that passes inside counts as what the run waits for its checkpoints, and not as training."""
        with self._meter.paused(), self._saving():
            clock = time.perf_counter()
            yield
            self._checkpoint_seconds += time.perf_counter() - clock

    def _position(self, steps: str) -> dict[str, Any]:
        """How far the run is; `steps` names the number of steps."""
        sequences = self._state.sequences
        tokens = sequences * self._config.architecture.block_size
        return {steps: self._state.step, "tokens": tokens, "train_flops": sequences * self._flops_per_sequence}

    def _seconds(self) -> dict[str, float]:
        seconds = self._state.train_seconds + self._meter.train_seconds
        return {"train_seconds": seconds, "eval_seconds": self._state.eval_seconds}
