"""`python -m raytrain.train`: one run, alone or under torchrun. Needs neither Ray nor MLflow."""

import argparse
import contextlib
import datetime
import fcntl
import math
import re
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raytrain.axes.plugin import check_loaded
from raytrain.config.flags import train_parser
from raytrain.config.resolve import fields as known_fields
from raytrain.config.resolve import read_file, read_flags, read_value, resolve
from raytrain.config.run import STOPS, TrainConfig, read_run
from raytrain.data import open_dataset
from raytrain.errors import UserError, command, unknown_value, unwritable
from raytrain.interrupts import INTERRUPTED, listening
from raytrain.plugins.loader import line_in_plugin, load_named, sources, write_sources
from raytrain.rundir.folders import check_name
from raytrain.rundir.log import JsonLog
from raytrain.rundir.run import RunFolder
from raytrain.sweep.estimate import Machine, time_of_run
from raytrain.sweep.measure import measured_rate
from raytrain.training.ending import RunEnding
from raytrain.training.launch import launched
from raytrain.training.loop import train
from raytrain.training.monitor import Console, Report
from raytrain.training.plugin_check import check
from raytrain.training.pretrained import read_hugging_face


@command
def main(argv: list[str] | None = None) -> int | None:
    """Train one run."""
    for plugin in load_named(argv):
        check(plugin)
    flags = train_parser().parse_args(argv)

    config, layers = _resumed(Path(flags.resume), flags) if flags.resume else _resolved(flags)
    folder = taken = None
    if _is_main():
        taken = Path(flags.resume) if flags.resume else _abandoned(Path(flags.runs), flags.name, config)
        folder = taken or _new_folder(Path(flags.runs), flags.name, config)
        if RunFolder(folder).result.get("status") == "complete":
            print(f"{folder} is complete: there is nothing left to train")
            return 0
        _print_sources(config, layers)
    ending = RunEnding(folder, owns_process=True)
    try:
        result = _train_in(folder, config, ending, is_resumed=taken is not None)
    except KeyboardInterrupt:
        if folder is not None:
            print(f"interrupted: {ending.saved()}", file=sys.stderr)
        return ending.code
    if folder is not None:
        print(_last_line(result, folder))
    is_by_signal = result["status"] == "interrupted" and ending.has_come
    return ending.code if is_by_signal else _EXIT_CODES[result["status"]]


def run(config: TrainConfig, *, runs: str | Path = "runs", name: str | None = None) -> Report:
    """Train `config` in a new folder of `runs`, and return its last report, which result.json there holds.

    This is what `raytrain.train(config)` does, as `python -m raytrain.train` would, step lines on stdout included.
    Under torchrun every rank calls it; rank 0 alone writes the folder, called `name` or by the architecture and time.

    The report has `status` ("complete" or "diverged"), `val_loss` (nats per token), `train_flops` (model FLOPs),
    `tokens_per_second`, `memory_peak_gb` (1e9 bytes) and the other metrics of docs/metrics.md; and `folder`, on rank 0.

    Raises UserError, one line, for a run that cannot be or does not fit the device, and a name that is taken; and
    KeyboardInterrupt once an interrupted run is saved: `python -m raytrain.train --resume FOLDER` continues it.
    """
    folder = _new_folder(Path(runs), name, config) if _is_main() else None
    result = _train_in(folder, config, RunEnding(folder, owns_process=False))
    if folder is not None:
        print(_last_line(result, folder))
        result = result | {"folder": str(folder)}
    if result["status"] == "interrupted":
        raise KeyboardInterrupt
    return result


def configure(*, config: str | Path | None = None, **fields: Any) -> TrainConfig:
    """A run from any fields of `TrainConfig` and `Architecture`, as the command line makes one of its flags.

    `configure(preset="llama", normalization="layernorm", max_iters=100)` starts from a preset (gpt2) and a `scale`
    (tiny), whose size, batch, learning rate and budget stand where `fields` do not say otherwise. `config` is a YAML
    file of fields, which `fields` override. The vocabulary is that of the data, and with `init_from` the architecture
    that of those weights. Raises UserError, one line, for an unknown field or a bad value.
    """
    known = ("preset", *known_fields())
    for field in fields:
        if field not in known:
            raise unknown_value("argument", field, ("config", *known))
    layers: list[tuple[str, dict[str, Any]]] = [("argument", fields)]
    if config is not None:
        layers.insert(0, (str(config), read_file(str(config))))
    return _from_layers(layers)[0]


class _Callable(types.ModuleType):
    """This module itself: `raytrain.train(config)` is `run`, and `raytrain.train.main` the command, whichever part of
    raytrain was imported first."""

    def __call__(self, config: TrainConfig, *, runs: str | Path = "runs", name: str | None = None) -> Report:
        return run(config, runs=runs, name=name)


_Callable.__call__.__doc__ = run.__doc__
sys.modules[__name__].__class__ = _Callable


def _is_main() -> bool:
    """Whether this process is rank 0, which writes the folder and the lines."""
    return launched().rank == 0


def _train_in(folder: Path | None, config: TrainConfig, ending: RunEnding, *, is_resumed: bool = False) -> Report:
    """Train `config` and leave its files in `folder`, which rank 0 alone has; the last report. `ending` heeds signals.

    Raises UserError for a run that cannot be, or does not fit: a new one then leaves no folder behind; for a resumed
    one that its checkpoint refuses, and then nothing has changed; and for a folder that another process trains in.
    """
    if folder is None:
        return _train(None, config, ending, is_resumed=is_resumed)
    with _claimed(folder):
        if not is_resumed:
            try:
                _describe(RunFolder(folder), config)
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)  # the name is free again
                raise
        return _train(folder, config, ending, is_resumed=is_resumed)


def _train(folder: Path | None, config: TrainConfig, ending: RunEnding, *, is_resumed: bool) -> Report:
    """`_train_in` for a folder that is ours, and holds the configuration of a new run."""
    files = RunFolder(folder) if folder else None
    log = JsonLog(files.log) if files else None
    micro_batch: int | None = None  # known from the run's start on
    has_trained = is_resumed

    with listening(ending), Console(config) if files else contextlib.nullcontext() as console:
        if console is not None:
            ending.close_display = console.stop

        def on_report(report: Report) -> None:
            nonlocal micro_batch, has_trained
            assert log is not None
            assert console is not None
            micro_batch = report.get("micro_batch", micro_batch)
            has_trained = has_trained or report["event"] == "step"
            if is_resumed and files and report["event"] == "start":
                _take_up(files, config, log, report)
            log.write(report)
            console(report)
            if report["event"] == "start" and (time := _time_ahead(config, report)):
                print(f"  {'time':<20} {time}")

        try:
            result = train(config, on_report, folder, ending.interrupted, saving=ending.saving)
        except (UserError, torch.OutOfMemoryError) as error:
            if folder is not None and not has_trained:
                shutil.rmtree(folder)  # the name is free again
            if isinstance(error, UserError) or folder is None:  # one rank's word is enough
                raise
            needed = str(error).partition(" GPU ")[0]  # what follows is the allocator's state
            if micro_batch is None:
                raise UserError(f"the run does not fit the device, before its first step: {needed}") from error
            raise UserError(
                f"the run does not fit the device with micro_batch ({micro_batch}): {needed} Less memory take a "
                "smaller one, --activation_checkpointing selective or full, and --parallel fsdp on several devices"
            ) from error
        except OSError as error:
            if not (reason := unwritable(error, folder)) or folder is None:
                raise
            if not has_trained:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            raise UserError(f"{reason}; resume with: python -m raytrain.train --resume {folder}") from error
        except Exception as error:
            if not (place := line_in_plugin(error)):
                raise
            raise UserError(f"{place}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if files:
        files.write_result(result)
    return result


def _time_ahead(config: TrainConfig, start: Report) -> str:
    """What a run whose `start` this is will take from here on, if that is long."""

    def measured(config: TrainConfig) -> float | None:
        with contextlib.suppress(UserError):  # a cache that may not be read is no reason to end a run
            return measured_rate(config, now=False)
        return None

    ranks, on_gpus = start["world_size"], start["device"] != "cpu"
    gpus = (start["device"],) * ranks if on_gpus else ()
    machine = Machine(gpus, math.inf, ranks * torch.get_num_threads(), math.inf, name="")
    return time_of_run(config, 1 - start["first_step"] / start["total_steps"], ranks, machine, measured)


def _describe(files: RunFolder, config: TrainConfig) -> None:
    """Write what the run is to be."""
    files.write_config(config.to_dict())
    write_sources(files.path, sources(config.to_dict()))


def _take_up(files: RunFolder, config: TrainConfig, log: JsonLog, start: Report) -> None:
    """Write what changes once a resumed run's checkpoint has agreed, or is known not to be there."""
    _describe(files, config)
    if start["first_step"] == 0:
        log.clear()
        print(f"{files.path} has no whole checkpoint: it starts anew")


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder. Raises UserError if one is in there."""
    path = folder / ".lock"
    try:
        lock = path.open("wb")
    except OSError as error:
        if unwritable(error):
            raise
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is in use: another process trains in it") from None
        except OSError:  # some network file systems have no locks
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


_EXIT_CODES = {"complete": 0, "diverged": 1, "interrupted": INTERRUPTED}


def _resolved(flags: argparse.Namespace) -> tuple[TrainConfig, dict[str, str]]:
    given: list[tuple[str, dict[str, Any]]] = [("flag", read_flags(flags))]
    if flags.config:
        given.insert(0, (flags.config, read_file(flags.config)))
    return _from_layers(given)


def _from_layers(given: list[tuple[str, dict[str, Any]]]) -> tuple[TrainConfig, dict[str, str]]:
    """The run of layers of values, over those of its data and the weights that it starts from; where each came from."""
    values = {field: value for _, layer in given for field, value in layer.items()}
    if values.get("init_from"):
        arch, _ = read_hugging_face(Path(values["init_from"]))
        given = [("init_from", arch.to_dict()), *given]
    return resolve(given, **open_dataset(str(values.get("data", "stdlib"))).vocabulary)


def _resumed(folder: Path, flags: argparse.Namespace) -> tuple[TrainConfig, dict[str, str]]:
    """The configuration of an earlier run, with what the flags change: the checkpoint says whether they may."""
    run = RunFolder(folder)
    if run.config is None:
        raise UserError(f"resume ({folder}) is no run folder: it has no config.json; give the path of one")
    for name in ("preset", "scale", "config", "name"):
        if getattr(flags, name) is not None:
            raise UserError(f"{name} ({getattr(flags, name)}) cannot change on resume; leave it out")
    check_loaded(run.config.get("plugins", ()))
    earlier = read_run(run)
    assert earlier is not None
    if earlier.checkpoint_interval is None and not (folder / "checkpoints").is_dir():
        raise UserError(f"resume ({folder}) has no checkpoint to continue from; --checkpoint_interval N keeps some")
    changes = {name: read_value(name, value) for name, value in read_flags(flags).items()}
    for stop in STOPS:
        if stop in changes:
            raise UserError(f"{stop} ({changes[stop]}) cannot change on resume: the learning rate follows the budget")
    return earlier.change(changes), dict.fromkeys(changes, "flag")


def _new_folder(runs: Path, name: str | None, config: TrainConfig) -> Path:
    """Make the run's folder. Raises UserError if the name is taken or the place cannot be written."""
    arch = config.architecture
    time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    names = (
        [check_name(name)]
        if name
        else [f"{arch.name}-{arch.hash[:6]}-s{config.seed}-{time}{end}" for end in ("", "-2", "-3")]
    )
    for candidate in names:
        try:
            (runs / candidate).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"runs ({runs}) cannot be written: {error.strerror}") from None
        return runs / candidate
    raise UserError(f"name ({names[0]}) is taken in {runs}; choose another, or --resume {runs / names[0]}")


def _abandoned(runs: Path, name: str | None, config: TrainConfig) -> Path | None:
    """The folder `name`, if the same run was killed in it before its first checkpoint: it starts anew there."""
    folder = runs / check_name(name) if name else runs
    if not name or not (folder / "config.json").is_file() or any((folder / "checkpoints").glob("step-*")):
        return None
    with contextlib.suppress(UserError), _claimed(folder):
        run = RunFolder(folder)
        if not run.has_ended and read_run(run) == config:
            return folder
    return None


def _print_sources(config: TrainConfig, sources: dict[str, str]) -> None:
    """Every value that is not the plain default, by where it came from."""
    values = config.flat()
    layers: dict[str, list[str]] = {}
    for field, layer in sources.items():
        if layer != "default" and values[field] is not None:
            layers.setdefault(layer, []).append(f"{field}={values[field]}")
    for layer, fields in sorted(layers.items(), key=lambda item: list(layers).index(item[0])):
        print(f"from {layer}: {' '.join(fields)}")


def _last_line(result: Report, folder: Path) -> str:
    if result["status"] == "diverged":
        return f"diverged: {result['reason']}. Log in {folder}"
    if result["status"] == "interrupted":
        return f"interrupted at step {result['steps']}; resume with: python -m raytrain.train --resume {folder}"
    parts = [f"val_loss {result['val_loss']:.4f} after {result['train_flops']:.4g} FLOPs", _peak_memory(result)]
    return f"{', '.join(filter(None, parts))}. Log and result in {folder}"


def _peak_memory(result: Report) -> str:
    """The most memory that the run held on this rank's GPU, or this process on a CPU, where the system tells."""
    if "memory_peak_gb" in result:
        return f"peak memory {result['memory_peak_gb']:.2f} GB"
    try:  # getrusage would give the peak of the process that started this one, if that was higher
        status = Path("/proc/self/status").read_text()
    except OSError:
        return ""
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return f"peak memory of the process {int(peak[1]) * 1024 / 1e9:.2f} GB" if peak else ""


if __name__ == "__main__":
    raise SystemExit(main())
