"""What a sweep, or one run, will cost on a machine: the time and the memory of trials, before anything starts."""

import dataclasses
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence

from raytrain.accounting.hardware import MEMORY, peak_flops
from raytrain.accounting.memory import peak_memory
from raytrain.config.run import DEFAULT_TOKENS, TrainConfig
from raytrain.errors import UserError, unknown_value
from raytrain.sweep.trial import PlannedTrial

_MOST_DEVICES = 100_000  # of a cluster
_ASSUMED_MFU = 0.4  # on a GPU whose peak is known
_LEAST_WIDTH = 768  # of models that reach it
_ASSUMED_GPU_FLOPS = 50e12  # FLOP/s of one GPU whose peak is not
_LONG = 600.0  # seconds of a run, of which it tells beforehand
_HOURS, _MINUTES = 3600.0, 600.0  # seconds of a sweep that tells of shorter ones, and of those
_CONFIRMING = 9  # runs with fresh seeds that a design without replicates adds
_LEAST_PART = 0.1  # of a budget: with less, runs are too short to tell anything
_ASSUMED_CORE_FLOPS = 50e9  # FLOP/s of one CPU core; the tiny scale in fp32 was measured at 60 to 70


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a machine, or a cluster of them, has to train on: the names and memory (bytes) of its GPUs, its CPU cores
    and memory (infinite if unknown); `name` is what a plan calls it, if anything."""

    gpus: tuple[str, ...]
    gpu_bytes: float
    cores: int
    cpu_bytes: float
    name: str = "this machine"

    @classmethod
    def named(cls, text: str) -> "Machine":
        """Of a text such as `16xB200` or `64xcpu`. Raises UserError for another, and for an unknown GPU."""
        count, _, part = text.partition("x")
        if not count.isdecimal() or not 1 <= int(count) <= _MOST_DEVICES:
            raise UserError(f"on ({text}) must be a number of devices and their name, such as 16xB200, 8xH100 or 2xcpu")
        if part.lower() == "cpu":
            return cls((), 0.0, int(count), math.inf, "")
        gpu = next((name for name in MEMORY if part.upper() in (name, name.split()[-1])), None)
        if gpu is None:
            raise unknown_value("device in on", part, ["cpu", *(name.split()[-1] for name in MEMORY)])
        return cls((gpu,) * int(count), MEMORY[gpu], 0, math.inf, "")

    @classmethod
    def here(cls) -> "Machine":
        """This machine: its NVIDIA GPUs as the driver's own tool lists them."""
        cpu_bytes = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        names, memory = [], []
        if tool := shutil.which("nvidia-smi"):
            query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
            shown = subprocess.run(query, capture_output=True, text=True)
            for line in shown.stdout.splitlines() if shown.returncode == 0 else []:
                name, _, mebibytes = line.rpartition(",")
                names.append(name.strip())
                memory.append(float(mebibytes) * 2**20)
        return cls(tuple(names), min(memory, default=0.0), os.cpu_count() or 1, cpu_bytes)


@dataclasses.dataclass(frozen=True)
class ResourceRequest:
    """What the user asks of lanes; None leaves it to the cluster."""

    gpus_per_trial: int | None = None
    workers_per_trial: int | None = None
    trials_per_gpu: int | None = None
    concurrent: int | None = None
    compile_ahead: int | None = None


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of training, `lanes` trials at a time, on so many `devices` ("GPU" or "core"); what the guess rests on;
    and the memory (bytes) of the largest trial's rank at its peak beside what there is for it, if that is known."""

    seconds: float
    devices: int
    device: str
    basis: str
    lanes: int
    memory: float
    memory_limit: float | None

    @property
    def device_hours(self) -> float:
        return self.seconds * self.devices / 3600

    def describe(self, price: float | None = None) -> list[str]:
        """The lines of a plan; `price` is that of an hour of one device."""
        memory, unit = f"memory      about {self.memory / 1e9:.2g} GB a rank at most", f"{self.device}-hour"
        if self.memory_limit is not None:
            fit = "fits" if self.memory <= self.memory_limit else "does NOT fit"
            memory += f"; that {fit} in the {self.memory_limit / 1e9:.3g} GB there are for it"
        time = (
            f"time        about {duration(self.seconds)} of training, {self.device_hours:.3g} {unit}s, {self.lanes} "
            f"trial{'s' * (self.lanes > 1)} at a time: {self.basis}"
        )
        cost = [] if price is None else [f"{self.device_hours * price:,.2f}, at {price:g} a {unit}"]
        return [memory, time, *(f"price       about {text}" for text in cost)]


NO_REQUEST = ResourceRequest()


def estimate(
    total_flops: float,
    trials: Sequence[PlannedTrial],
    request: ResourceRequest,
    machine: Machine,
    measured: Callable[[TrainConfig], float | None],
) -> Estimate:
    """Of as many trials at a time as fit, which may leave GPUs idle."""
    config = trials[0].config
    gpus = machine.gpus if config.device != "cpu" and request.gpus_per_trial != 0 else ()
    most = min(len(trials), request.concurrent or len(trials))
    ranks = (request.gpus_per_trial if gpus else request.workers_per_trial) or 1
    share = (request.trials_per_gpu or 1) if gpus else 1
    lanes = max(1, min(most, len(gpus) * share // ranks if gpus else machine.cores // ranks))
    precision = "fp32" if config.precision == "fp32" or not gpus else "bf16"
    memory = max(rank_memory(trial.config, trial.workers or ranks, precision, on_gpu=bool(gpus)) for trial in trials)
    limit = machine.gpu_bytes / share if gpus else machine.cpu_bytes / (lanes * ranks)

    devices = min(len(gpus), -(-lanes * ranks // share)) if gpus else machine.cores
    place = (
        f"{devices} x {gpus[0]}" if gpus else f"{devices} CPU core{'s' * (devices > 1)}"
    ) + f" of {machine.name}" * bool(machine.name)
    if request.gpus_per_trial and not gpus:
        place += ", which has no GPU (--on 8xH100 plans for one that has),"
    rate = measured(config)
    if rate is not None:
        basis = f"{place}, measured at {rate / 1e12:.3g} TFLOP/s each"
    elif not gpus:
        rate, basis = _ASSUMED_CORE_FLOPS, f"{place} at an assumed {_ASSUMED_CORE_FLOPS / 1e9:g} GFLOP/s each"
    else:
        peak = peak_flops(gpus[0], "bfloat16" if precision == "bf16" else "float32")
        if peak is None and config.peak_tflops is not None:
            peak = config.peak_tflops * 1e12
        if peak is None:
            rate, basis = _ASSUMED_GPU_FLOPS, f"{place} at an assumed {_ASSUMED_GPU_FLOPS / 1e12:g} TFLOP/s each"
        else:
            rate = peak * _ASSUMED_MFU
            basis = f"{place} at an assumed MFU of {_ASSUMED_MFU:.0%} of {peak / 1e12:g} TFLOP/s"
            basis += ", which models this small do not reach" * (config.architecture.n_embd < _LEAST_WIDTH)
    seconds = total_flops / (devices * rate)
    return Estimate(
        seconds, devices, "GPU" if gpus else "core", basis, lanes, memory, limit if math.isfinite(limit) else None
    )


def time_of_run(
    config: TrainConfig, part: float, ranks: int, machine: Machine, measured: Callable[[TrainConfig], float | None]
) -> str:
    """How long the last `part` of a run of `ranks` takes on `machine`, and what that rests on; empty if it is short."""
    request = ResourceRequest(gpus_per_trial=ranks) if machine.gpus else ResourceRequest(workers_per_trial=ranks)
    guess = estimate(part * config.train_flops, [PlannedTrial("", (), config)], request, machine, measured)
    return f"about {duration(guess.seconds)} of training, on {guess.basis}" if guess.seconds >= _LONG else ""


def shorter(seconds: float, trials: int, budget: float, levels: int | None) -> list[str]:
    """What a plan says of `seconds` that are hours, with the flags that make minutes of them: of so many `trials`,
    `budget` FLOPs each, over axes with so many `levels` beside the base's; None where the trials are chosen already."""
    if seconds < _HOURS:
        return []
    each, ways = seconds / trials, []
    designed = 8 * math.ceil(((levels or 0) + 1) / 4)  # twice the main effects
    if levels and 2 * designed <= trials:
        ways.append((f"--design d_optimal --no-interactions --trials {designed}", (designed + _CONFIRMING) * each))
    if levels is not None and (part := int(_MINUTES / each)) > 1:
        ways.append((f"--max_trials {part}", part * each))
    if not ways:
        less = max(_LEAST_PART, _MINUTES / seconds)
        ways.append((f"--flops {less * budget:.2g}", less * seconds))
    flags = "; ".join(f"with {flag} about {duration(time)}" for flag, time in ways)
    return [f"warning     {duration(seconds)} is long: {flags}"]


def rank_memory(config: TrainConfig, ranks: int, precision: str, *, on_gpu: bool) -> float:
    """Bytes of one of a run's `ranks` at its peak, in `precision` (bf16 or fp32)."""
    parallel = config.parallel if config.parallel != "auto" else "ddp" if ranks > 1 else "single"
    per_rank = max(1, config.batch_sequences // ranks)
    usual = max(1, DEFAULT_TOKENS["cuda" if on_gpu else "cpu"] // config.architecture.block_size)
    return peak_memory(
        config.architecture,
        config.micro_batch if isinstance(config.micro_batch, int) else min(per_rank, usual),
        precision=precision,
        parallel=parallel,
        world_size=ranks,
        shard_size=config.fsdp_shard_size,
        checkpointing=config.activation_checkpointing,
    )


def duration(seconds: float) -> str:
    """Such as `45 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for size, unit in ((86400 * 2, "days"), (3600 * 2, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.3g} {unit}"
    return f"{math.ceil(seconds)} s"
