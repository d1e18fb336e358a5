"""The training loop, told from top to bottom."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from raytrain.accounting.flops import flops_per_token
from raytrain.config.run import TrainConfig
from raytrain.data import Loader, open_dataset
from raytrain.data.eval_data import open_eval_data
from raytrain.data.unigram import unigram_loss
from raytrain.model import build
from raytrain.training import monitor, optimizer, parallel, rungs
from raytrain.training.batches import Batches
from raytrain.training.checkpoint import Checkpointer
from raytrain.training.evaluate import Evaluations
from raytrain.training.micro_batch import micro_batch
from raytrain.training.monitor import Meter, Report
from raytrain.training.objective import NextTokenLoss
from raytrain.training.pretrained import start_from
from raytrain.training.step import Outcome, Stepper

OnReport = Callable[[Report], bool | None]


def train(
    config: TrainConfig,
    on_report: OnReport = lambda report: None,
    folder: Path | str | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Report:
    """Train as `config` says; called on every rank. Returns the run's result.

    `on_report` is called on rank 0 with flat dicts of plain values, each with an "event": start, step, gradients,
    eval, rung, end. If it returns True at an eval, every rank stops there; at a rung, the run pauses: it saves a
    checkpoint if it has a folder, whatever `config` says, and ends. `folder` is where checkpoints are kept, a path or
    a URI that pyarrow knows (`s3://bucket/prefix`); a run that finds one of its own there goes on from it. When
    `interrupted` turns true on any rank, the run saves a checkpoint and ends. The result's "status" is complete,
    stopped, paused, interrupted or diverged.

    Joins a torch.distributed process group that is already there, or torchrun's; see `parallel.join_world`.
    Raises UserError for a mistake in `config` that only data or devices could show.
    """
    with parallel.join_world(config) as world, contextlib.ExitStack() as at_end:
        return _train(config, on_report if world.is_main else lambda report: None, folder, interrupted, world, at_end)


def _train(
    config: TrainConfig,
    on_report: OnReport,
    folder: Path | str | None,
    interrupted: Callable[[], bool],
    world: parallel.World,
    at_end: contextlib.ExitStack,
) -> Report:
    started = time.perf_counter()

    arch = config.architecture
    dataset = open_dataset(config.data)
    seen = {"block_size": arch.block_size, "eval_tokens": config.eval_tokens, "vocab_size": arch.vocab_size}
    further = open_eval_data(config.eval_data, config.data, **seen)

    # Model and optimizer. Every rank draws the same weights, on the CPU, so they do not depend on the device.
    torch.manual_seed(config.seed)
    language_model = build(arch)
    if config.init_from is not None:
        start_from(language_model, Path(config.init_from))
    loss_model = NextTokenLoss(language_model).to(world.device)
    model = parallel.parallelize(loss_model, config, world)
    adamw = optimizer.make_optimizer(model, config, world)

    # Where it starts
    checkpoints = at_end.enter_context(Checkpointer(folder, config, dataset.fingerprint, world, loss_model, adamw))
    state, notes = checkpoints.restore()
    state.micro_batch = micro_batch(model, adamw, config, world, before=state.micro_batch)

    # Data
    loader = Loader(dataset.train, arch.block_size, config.seed, arch.vocab_size)
    batches = Batches(loader, state.micro_batch, world)
    evaluations = Evaluations(dataset, further, config, world, batches.micro_batch)

    flops_per_sequence = flops_per_token(arch).per_sequence
    start = monitor.start_report(config, world) | {"data": config.data, "data_fingerprint": dataset.fingerprint}
    start |= {f"data_fingerprint_{name}": other.fingerprint for name, other in further.items()}
    start["unigram_loss"] = unigram_loss(dataset, **seen)
    start |= {
        "first_step": state.step,
        "micro_batch": batches.micro_batch,
        "startup_seconds": time.perf_counter() - started,
    }
    start["restored_seconds"] = state.train_seconds + state.eval_seconds  # spent before this process
    on_report(start | notes)

    status = "complete"
    eval_interval = config.eval_interval or -(-config.total_steps // config.evaluations)
    stepper = Stepper(model, adamw, batches, config, world)
    micro_batches = batches.stream(map(config.span, range(state.step, config.total_steps)))
    meter = Meter(config, world, state.speed)

    def rung_report() -> Report:
        """The rung that the run is at, from what is known of it."""
        seconds = {"train_seconds": state.train_seconds + meter.train_seconds, "eval_seconds": state.eval_seconds}
        progress = {"step": state.step, "tokens": state.sequences * arch.block_size}
        progress["train_flops"] = state.sequences * flops_per_sequence
        rung = {"event": "rung", "rung": config.rung_steps.index(state.step), "decay_flops": state.decay_flops}
        return {**rung, **progress, "train_loss": state.train_loss, **state.score, **seconds, **meter.summary()}

    # A run that was paused or killed at a rung says again what it found: who wanted to know may not have heard.
    steps = range(state.step, config.total_steps)
    if 0 < state.step == state.scored_step and world.agree(on_report(rung_report())):
        status, steps = "paused", range(0)
    unread: collections.deque[Outcome] = collections.deque()
    interruptions = 0.0
    for step in steps:
        warms_up, is_last = step < start["first_step"] + stepper.warm_up_steps, step + 1 == config.total_steps
        meter.start()

        # Gradients of the global batch
        rate = optimizer.learning_rate(config, step)
        _, sequences = config.span(step)
        n_tokens = sequences * arch.block_size
        totals = torch.zeros(2, device=world.device)  # the loss over all ranks' tokens; ranks that were interrupted
        totals[1] = float(interrupted())
        totals[0] = stepper.gradients(micro_batches, sequences, step)
        if config.stats_interval and (step + 1) % config.stats_interval == 0:
            with meter.paused():
                stats = monitor.gradient_stats(language_model.blocks, model, world)
            if all(map(math.isfinite, stats.values())):  # else the run ends just below
                on_report({"event": "gradients", "step": step + 1, **stats})

        # One update
        norm = stepper.clip()
        unread.append(Outcome(step, world.sum(totals), norm))
        stepper.update(rate)
        meter.count(n_tokens)
        state.step, state.sequences = step + 1, state.sequences + sequences

        # What the step came to is read a step late, so that the device never waits for this process. But nothing is
        # reported or kept of a step that was not read.
        is_rung = state.step in config.rung_steps
        wants_eval = is_last or state.step % eval_interval == 0
        is_due = checkpoints.is_due(state, is_last=is_last)
        is_reported = warms_up or wants_eval or is_rung or state.step % config.log_interval == 0
        while len(unread) > (0 if is_reported or is_due or interruptions else 1):
            outcome = unread.popleft()
            loss_sum, interrupted_ranks, state.grad_norm = outcome.read()
            interruptions += interrupted_ranks
            first, count = config.span(outcome.step)
            state.train_loss = loss_sum / (count * arch.block_size)
            if not (math.isfinite(state.train_loss) and math.isfinite(state.grad_norm)):
                status, state.step, state.sequences = "diverged", outcome.step, first
                break
        if status == "diverged":
            meter.stop()
            break

        # What there is to say
        progress = {
            "step": state.step,
            "tokens": state.sequences * arch.block_size,
            "train_flops": state.sequences * flops_per_sequence,
        }
        if is_reported:
            meter.stop()
            speed = meter.read(warms_up=warms_up) | monitor.memory(world.device)
            found = {"loss": state.train_loss, "learning_rate": rate, "grad_norm": state.grad_norm}
            on_report({"event": "step", **progress, **found, **speed})
        stop = pause = False
        if is_rung:
            clock = time.perf_counter()
            state.score = rungs.score(model, stepper, batches, evaluations, checkpoints, state, config, world)
            state.scored_step = state.step
            state.eval_seconds += time.perf_counter() - clock
            pause = world.agree(on_report(rung_report()))
        elif wants_eval:
            clock = time.perf_counter()
            state.evaluation = evaluations(model)
            state.evaluated_step = state.step
            state.eval_seconds += time.perf_counter() - clock
            stop = world.agree(
                on_report({"event": "eval", **progress, "train_loss": state.train_loss, **state.evaluation, **speed})
            )
        if interruptions or pause or is_due:
            with meter.paused():
                seconds = state.train_seconds + meter.train_seconds
                checkpoints.save(dataclasses.replace(state, train_seconds=seconds, speed=meter.state()))
        if (stop or pause or interruptions) and not is_last:
            status = "paused" if pause else "interrupted" if interruptions else "stopped"
            break
    checkpoints.finish()

    # The result
    result: Report = {"status": status, **{key: value for key, value in start.items() if key != "event"}}
    result |= {
        "steps": state.step,
        "tokens": state.sequences * arch.block_size,
        "train_flops": state.sequences * flops_per_sequence,
        "train_seconds": state.train_seconds + meter.train_seconds,
        "eval_seconds": state.eval_seconds,
    }
    if status == "diverged":
        result["reason"] = f"loss {state.train_loss}, gradient norm {state.grad_norm} at step {state.step + 1}"
    else:
        found = state.score if status == "paused" else state.evaluation
        result |= {"train_loss": state.train_loss, "grad_norm": state.grad_norm, **found}
    if config.rungs:
        result["decay_flops"] = state.decay_flops
    result |= meter.summary() | monitor.memory(world.device)
    if "mfu" in result:
        result["hardware_flops"] = result["train_flops"] / result["mfu"] * monitor.reference_ratio(config, world)
    on_report({"event": "end", **result})
    return result
