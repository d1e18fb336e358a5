"""The training loop, from top to bottom."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch

from raytrain.config.run import TrainConfig
from raytrain.data import Dataset, Loader, open_dataset
from raytrain.data.eval_data import open_eval_data
from raytrain.data.unigram import unigram_loss
from raytrain.model import build
from raytrain.training import optimizer, parallel, rungs
from raytrain.training.batches import Batches
from raytrain.training.checkpoint import Checkpointer
from raytrain.training.evaluate import Evaluations
from raytrain.training.micro_batch import micro_batch
from raytrain.training.monitor import Meter, Report
from raytrain.training.objective import NextTokenLoss
from raytrain.training.pretrained import start_from
from raytrain.training.reports import OnReport, Reports, Saving
from raytrain.training.step import Outcomes, Stepper


def train(
    config: TrainConfig,
    on_report: OnReport = lambda report: None,
    folder: Path | str | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    weights: Path | str | None = None,
    saving: Saving = contextlib.nullcontext,
) -> Report:
    """Train the run that `config` describes; called on every rank. Returns its result.

    `on_report` is called on rank 0 with flat dicts of plain values, each with an "event": start, step, gradients, eval,
    rung, end. If it returns True at an eval, every rank stops there; at a rung, the run pauses: it saves a checkpoint
    if it has a folder, whatever `config` asks for, and ends. `folder` is where checkpoints are kept, a path or a URI
    that pyarrow knows (`s3://bucket/prefix`); a run continues from one of its own that is there. `weights` is where the
    model of a complete run is kept, likewise. `interrupted` is asked once a step has its gradients; when it turns true
    on any rank, the run ends that step (on GPUs, perhaps the next too), saves a checkpoint and ends. `saving` is
    entered while a rank writes or waits for one. The result's "status" is complete, stopped, paused, interrupted or
    diverged.

    Joins a torch.distributed process group that is already there, or torchrun's; see `parallel.join_world`.
    Raises UserError for a mistake in `config` that only data or devices could show.
    """
    with parallel.join_world(config) as world, contextlib.ExitStack() as at_end:
        report = on_report if world.is_main else lambda report: None
        return _train(config, report, folder, interrupted, weights, saving, world, at_end)


def _train(
    config: TrainConfig,
    on_report: OnReport,
    folder: Path | str | None,
    interrupted: Callable[[], bool],
    weights: Path | str | None,
    saving: Saving,
    world: parallel.World,
    at_end: contextlib.ExitStack,
) -> Report:
    started = time.perf_counter()
    dataset, further, data_facts = _open_data(config)
    loss_model = _initial_model(config).to(world.device)
    model = parallel.parallelize(loss_model, config, world)
    adamw = optimizer.make_optimizer(model, config, world)

    # Where it starts
    checkpoints = at_end.enter_context(
        Checkpointer(folder, config, dataset.fingerprint, world, loss_model, adamw, weights)
    )
    state, notes = checkpoints.restore()
    state.micro_batch = micro_batch(model, adamw, config, world, before=state.micro_batch)

    # Data, and reports
    loader = Loader(dataset.train, config.architecture.block_size, config.seed, config.architecture.vocab_size)
    batches = Batches(loader, state.micro_batch, world)
    evaluations = Evaluations(dataset, further, config, world, batches.micro_batch)
    stepper = Stepper(model, adamw, batches, config, world)
    status, steps = "complete", range(state.step, config.total_steps)
    micro_batches = batches.stream(map(config.span, steps))
    meter, outcomes = Meter(config, world, state.speed), Outcomes(config, world, state)
    reports = Reports(config, world, state, meter, on_report, saving)
    reports.start(data_facts, notes, time.perf_counter() - started)

    # A run that was paused or killed at a rung reports it again: whoever waits for the score may not have received it.
    if 0 < state.step == state.scored_step and reports.rung():
        status, steps = "paused", range(0)
    for step in steps:
        # Gradients of the global batch
        meter.start()
        rate = optimizer.learning_rate(config, step)
        _, sequences = config.span(step)
        loss_sum = stepper.gradients(micro_batches, sequences, step)
        if config.stats_interval and (step + 1) % config.stats_interval == 0:
            reports.gradients(loss_model.model.blocks, model)

        # One update
        outcomes.add(step, loss_sum, stepper.clip(), is_interrupted=interrupted())
        stepper.update(rate)
        meter.count(sequences * config.architecture.block_size)
        state.step, state.sequences = step + 1, state.sequences + sequences

        # What is due after it. Nothing is reported or kept of a step whose outcome was not read.
        warms_up, is_last = step < steps.start + stepper.warm_up_steps, state.step == config.total_steps
        is_rung, is_eval = state.step in config.rung_steps, evaluations.are_due(state.step)
        is_due = checkpoints.is_due(state, is_last=is_last)
        is_reported = warms_up or is_eval or is_rung or state.step % config.log_interval == 0
        if not outcomes.read(everything=is_reported or is_due):
            status = "diverged"
            meter.stop()
            break
        if is_reported:
            reports.step(rate, warms_up=warms_up)
        stop = pause = False
        if is_rung:
            with reports.evaluating():
                state.score = rungs.score(model, stepper, batches, evaluations, checkpoints, state, config, world)
                state.scored_step = state.step
            pause = reports.rung()
        elif is_eval:
            with reports.evaluating():
                state.evaluation, state.evaluated_step = evaluations(model), state.step
            stop = reports.evaluation()
        if outcomes.interruptions or pause or is_due:
            with reports.saving():
                checkpoints.save(reports.state())
        if (stop or pause or outcomes.interruptions) and not is_last:
            status = "paused" if pause else "interrupted" if outcomes.interruptions else "stopped"
            break
    with reports.saving():
        checkpoints.finish()
        kept = checkpoints.keep_weights(reports.state()) if status == "complete" else {}
    return reports.end(status, kept)


def _open_data(config: TrainConfig) -> tuple[Dataset, dict[str, Dataset], Report]:
    """The data, the further validation sets by name, and what the run's reports state of both."""
    arch, dataset = config.architecture, open_dataset(config.data)
    seen = {"block_size": arch.block_size, "eval_tokens": config.eval_tokens, "vocab_size": arch.vocab_size}
    further = open_eval_data(config.eval_data, config.data, **seen)
    facts: Report = {"data": config.data, "data_fingerprint": dataset.fingerprint}
    facts |= {f"data_fingerprint_{name}": other.fingerprint for name, other in further.items()}
    return dataset, further, facts | {"unigram_loss": unigram_loss(dataset, **seen)}


def _initial_model(config: TrainConfig) -> NextTokenLoss:
    """The same on every rank. Its weights are drawn on the CPU, so that they do not depend on the device."""
    torch.manual_seed(config.seed)
    model = build(config.architecture)
    if config.init_from is not None:
        start_from(model, Path(config.init_from))
    return NextTokenLoss(model, config.z_loss)
