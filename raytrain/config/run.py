"""What a run is: an architecture, data, a budget and a recipe. No torch."""

import dataclasses
import functools
import itertools
import math
import re
import typing
from collections.abc import Mapping
from typing import Any

from raytrain import architecture
from raytrain.accounting.flops import flops_per_token
from raytrain.architecture import AXES, SCALES, SIZES, Architecture, divisors_near
from raytrain.axes import RUN_AXES, plugin
from raytrain.errors import UserError, unknown_value
from raytrain.rundir import schema
from raytrain.rundir.run import CONFIG, RunFolder

DEFAULT_TOKENS = {"cpu": 8192, "cuda": 65536}  # tokens of a micro-batch at most, by default
RUNG_TOLERANCE = 0.001  # of its FLOPs, within which a trial must stop at a rung
AUTO = "auto"
FP8_MULTIPLE = 16  # of which kernels for fp8 take every side of a product
STOPS = ("max_iters", "tokens", "flops")  # what may end a run; a run has one of them


def _field(default: Any, text: str, *, newer: bool = False) -> Any:
    """`newer`: version 0.1 did not have the field, and was as it is at its default."""
    return dataclasses.field(default=default, metadata={"help": text, "newer": newer})


def flat(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What `TrainConfig.to_dict` gave, in this version or an earlier one, as one mapping of field to value: first the
    architecture's, without axes at their default, then the run's own."""
    own = {name: value for name, value in stored.items() if name != "architecture"}
    return dict(stored["architecture"]) | own


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, complete. Batch sizes and budgets are global: they do not depend on the number of ranks.

    Exactly one of `max_iters`, `tokens` and `flops` is set. Raises UserError for a value that cannot be.
    """

    architecture: Architecture
    scale: str = _field("tiny", f"size and recipe to start from: {', '.join(SCALES)}")
    data: str = _field("stdlib", "'stdlib' (the Python standard library's source), or a folder of token shards")
    seed: int = _field(1337, "seeds the initial weights, the data order and dropout")

    max_iters: int | None = _field(None, "stop after this many optimizer steps")
    tokens: int | None = _field(None, "stop after this many training tokens")
    flops: float | None = _field(None, "stop after this many model FLOPs (unhalved attention)")

    global_batch: int = _field(8192, "tokens per optimizer step, over all ranks and micro-batches")
    micro_batch: int | str | None = _field(
        None, "sequences per rank and forward pass; none: a usual number; auto: the fastest that fits, by trying"
    )
    learning_rate: float = _field(1e-3, "peak learning rate")
    min_lr_fraction: float = _field(0.1, "learning rate at the end, as a fraction of the peak")
    warmup_fraction: float = _field(0.05, "part of the steps spent warming up")
    schedule: str = _field("cosine", "after the warm-up: cosine, or wsd (constant, then linear decay)")
    decay_fraction: float = _field(0.2, "part of the steps that wsd decays over")
    rungs: tuple[float, ...] = _field(
        (), "model FLOPs below the budget where a step ends and the loss is taken, as 1e12,4e12"
    )
    rung_decay: float = _field(0.0, "wsd: take a rung's loss after a decay of this part of its FLOPs, then undo that")
    optimizer: str = _field(RUN_AXES["optimizer"].default, "what makes a step of a gradient", newer=True)
    weight_decay: float = _field(0.1, "AdamW's decay of matrices; vectors are not decayed")
    beta1: float = _field(0.9, "AdamW's first-moment decay")
    beta2: float = _field(0.95, "AdamW's second-moment decay")
    grad_clip: float = _field(1.0, "largest global gradient norm; 0 for none")
    z_loss: float = _field(0.0, "weight of a loss on the softmax's denominator, which keeps logits small", newer=True)

    device: str = _field("auto", "auto, cpu or cuda")
    precision: str = _field(
        "auto", "bf16, fp32, fp8 (the blocks' matrix products, the rest bf16), or auto (bf16 on a GPU)"
    )
    compile: bool | None = _field(None, "torch.compile the model; none: on a GPU only")
    parallel: str = _field("auto", "single, ddp, zero1, fsdp, or auto (ddp when there are several ranks)")
    fsdp_shard_size: int | None = _field(None, "ranks a parameter is sharded over, replicated across; none: all ranks")
    activation_checkpointing: str = _field(
        "none", "what the backward pass computes anew, to spare memory: none, selective (no matrix product), full (all)"
    )
    peak_tflops: float | None = _field(None, "dense peak of one device for MFU, in TFLOP/s, where it is not known")

    eval_interval: int = _field(0, "steps between evaluations; 0: as many as evaluations gives")
    evaluations: int = _field(
        5, "evaluations in a run, evenly spaced, where eval_interval is 0 (2 in a sweep)", newer=True
    )
    eval_tokens: int = _field(65536, "validation tokens of each evaluation, always the same ones")
    log_interval: int = _field(10, "steps between log lines")
    stats_interval: int = _field(100, "steps between per-layer gradient statistics; 0 for none")

    eval_data: tuple[tuple[str, str], ...] = _field(
        (), "further validation sets, as name=folder,...: each gets a val_loss_NAME and a val_bpb_NAME", newer=True
    )

    checkpoint_interval: int | None = _field(0, "steps between checkpoints; 0: only at the end; none: never")
    keep_checkpoints: int = _field(2, "newest checkpoints kept, beside the best")
    init_from: str | None = _field(None, "folder of Hugging Face weights to start from")

    def __post_init__(self) -> None:
        stops = {name: getattr(self, name) for name in STOPS if getattr(self, name) is not None}
        if len(stops) != 1:
            given = ", ".join(f"{name} {value}" for name, value in stops.items()) or "none"
            raise UserError(f"Give one of {', '.join(STOPS)}; given: {given}")
        for name, value in stops.items():
            if not 0 < value < math.inf:
                raise UserError(f"{name} ({value}) must be above 0 and finite")
        for name, allowed in (
            ("schedule", RUN_AXES["schedule"].levels),
            ("optimizer", RUN_AXES["optimizer"].levels),
            ("device", ("auto", "cpu", "cuda")),
            ("precision", ("auto", "bf16", "fp32", "fp8")),
            ("parallel", ("auto", "single", "ddp", "zero1", "fsdp")),
            ("activation_checkpointing", ("none", "selective", "full")),
        ):
            if getattr(self, name) not in allowed:
                raise unknown_value(name, getattr(self, name), allowed)
        if isinstance(self.micro_batch, str) and self.micro_batch != AUTO:
            raise UserError(f"micro_batch ({self.micro_batch!r}) must be a whole number, {AUTO} or none")
        for name in (
            "learning_rate",
            "eval_tokens",
            "evaluations",
            "log_interval",
            "micro_batch",
            "fsdp_shard_size",
            "peak_tflops",
        ):
            value = getattr(self, name)
            if value not in (None, AUTO) and not 0 < value < math.inf:
                raise UserError(f"{name} ({value}) must be above 0 and finite")
        for name in (
            "weight_decay",
            "grad_clip",
            "z_loss",
            "eval_interval",
            "stats_interval",
            "checkpoint_interval",
            "seed",
        ):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise UserError(f"{name} ({getattr(self, name)}) must be 0 or above")
        if self.seed >= 2**63:
            raise UserError(f"seed ({self.seed}) must be below 2^63")
        for name in ("min_lr_fraction", "warmup_fraction", "decay_fraction", "beta1", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} ({getattr(self, name)}) must be from 0 to 1")
        self._check_eval_data()
        if self.keep_checkpoints < 1:
            raise UserError(f"keep_checkpoints ({self.keep_checkpoints}) must be 1 or more")
        block_size = self.architecture.block_size
        if self.global_batch < block_size or self.global_batch % block_size:
            near = max(1, round(self.global_batch / block_size)) * block_size
            raise UserError(
                f"global_batch ({self.global_batch}) must be a multiple of block_size ({block_size}); try {near}"
            )
        per_sequence = flops_per_token(self.architecture).per_sequence
        if self.total_sequences < 1:
            raise UserError(f"The budget is less than one sequence of {block_size} tokens ({per_sequence:.3g} FLOPs)")
        self._check_rungs(per_sequence)
        if self.precision == "fp8":
            self._check_fp8()
        if self.activation_checkpointing == "selective" and self.compile is False:
            raise UserError("activation_checkpointing ('selective') is the compiler's doing: leave out --compile False")

    def _check_eval_data(self) -> None:
        if isinstance(self.eval_data, Mapping):  # as JSON has it
            object.__setattr__(self, "eval_data", tuple(self.eval_data.items()))
        names = [name for name, _ in self.eval_data]
        for name in names:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise UserError(f"eval_data ({name!r}): a name has letters, digits and '_', a letter first")
            if names.count(name) > 1:
                raise UserError(f"eval_data has the name {name} twice")

    def _check_fp8(self) -> None:
        arch = self.architecture
        if arch.ffn_type == "moe":
            raise UserError("precision ('fp8') does not go with ffn_type moe: try bf16")
        widths = {"n_embd": arch.n_embd, "d_ff": arch.ffn_width, "block_size": arch.block_size}
        widths["n_embd / n_head x (n_head + 2 n_kv_head)"] = arch.head_dim * (arch.n_head + 2 * arch.kv_heads)
        for name, width in widths.items():
            if width % FP8_MULTIPLE:
                raise UserError(
                    f"precision ('fp8') needs {name} ({width}) to be a multiple of {FP8_MULTIPLE}; try bf16"
                )

    def _check_rungs(self, per_sequence: int) -> None:
        if not isinstance(self.rungs, tuple):  # as JSON has it
            object.__setattr__(self, "rungs", tuple(self.rungs))
        text = ", ".join(f"{rung:.4g}" for rung in self.rungs)
        bounds = (0.0, *self.rungs, float(self.train_flops))
        if any(not low < high for low, high in itertools.pairwise(bounds)):
            raise UserError(f"rungs ({text}) must ascend, from above 0 to below the budget ({self.train_flops:.4g})")
        for rung in self.rungs:
            reached = round(rung / per_sequence) * per_sequence
            if abs(reached / rung - 1) > RUNG_TOLERANCE:
                raise UserError(
                    f"rungs ({text}): {rung:.4g} FLOPs is {rung / per_sequence:.1f} sequences, too few to end within "
                    f"{RUNG_TOLERANCE:.1%} of it; take {500 * per_sequence:.3g} or more"
                )
        if not 0 <= self.rung_decay <= 1:
            raise UserError(f"rung_decay ({self.rung_decay}) must be from 0 to 1")
        if self.rung_decay and self.schedule != "wsd":
            raise UserError(
                f"rung_decay ({self.rung_decay}) goes with schedule wsd: {self.schedule} cannot continue after a decay"
            )

    def check_ranks(self, size: int) -> None:
        """Raises UserError if the run cannot be spread over `size` ranks: its strategy, shards or batches."""
        if self.parallel == "single" and size > 1:
            raise UserError(f"parallel 'single' runs on one rank, but there are {size}; try ddp, zero1 or fsdp")
        if size % (self.fsdp_shard_size or size):
            raise UserError(f"fsdp_shard_size ({self.fsdp_shard_size}) must divide the number of ranks ({size})")
        if self.batch_sequences % size:
            raise UserError(
                f"global_batch ({self.global_batch} tokens: {self.batch_sequences} sequences) must be divisible over "
                f"{size} ranks"
            )
        per_rank = self.batch_sequences // size
        if isinstance(self.micro_batch, int) and per_rank % self.micro_batch:
            wanted = self.micro_batch
            near = min(divisors_near(per_rank, wanted), key=lambda b: abs(b - wanted))
            raise UserError(
                f"micro_batch ({self.micro_batch}) must divide the {per_rank} sequences of a rank's step; try {near}"
            )

    @property
    def total_sequences(self) -> int:
        """Training sequences of `block_size` tokens in the budget, to the nearest one."""
        if self.max_iters is not None:
            return self.max_iters * self.batch_sequences
        if self.tokens is not None:
            return round(self.tokens / self.architecture.block_size)
        assert self.flops is not None
        return round(self.flops / flops_per_token(self.architecture).per_sequence)

    @property
    def batch_sequences(self) -> int:
        """Sequences in a full optimizer step, over all ranks."""
        return self.global_batch // self.architecture.block_size

    @functools.cached_property
    def _stretches(self) -> tuple[tuple[int, int, int], ...]:
        """The run as (first step, first sequence, sequence after the last) between rungs."""
        per_sequence = flops_per_token(self.architecture).per_sequence
        ends = [*(round(rung / per_sequence) for rung in self.rungs), self.total_sequences]
        stretches, step = [], 0
        for begin, end in itertools.pairwise([0, *ends]):
            stretches.append((step, begin, end))
            step += math.ceil((end - begin) / self.batch_sequences)
        return tuple(stretches)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the budget. The last may hold fewer sequences, so that the budget is met exactly."""
        step, begin, end = self._stretches[-1]
        return step + math.ceil((end - begin) / self.batch_sequences)

    @property
    def rung_steps(self) -> tuple[int, ...]:
        """How many steps each rung takes; the last of them, too, may hold fewer sequences."""
        return tuple(step for step, _, _ in self._stretches[1:])

    def span(self, step: int) -> tuple[int, int]:
        """The training sequences of `step`: the first, and how many."""
        first_step, begin, end = max(stretch for stretch in self._stretches if stretch[0] <= step)
        first = begin + (step - first_step) * self.batch_sequences
        return first, min(self.batch_sequences, end - first)

    @property
    def train_flops(self) -> int:
        """Model FLOPs of the whole run."""
        return self.total_sequences * flops_per_token(self.architecture).per_sequence

    @property
    def plugins(self) -> tuple[dict[str, Any], ...]:
        """A record of each plugin that the run uses: its name, the digest of its source, and its levels here."""
        return plugin.records(self.architecture.values() | {axis: getattr(self, axis) for axis in RUN_AXES})

    def replace(self, **changes: Any) -> "TrainConfig":
        return dataclasses.replace(self, **changes)

    def change(self, changes: Mapping[str, Any]) -> "TrainConfig":
        """A copy with any of `flat`'s fields changed, those of the architecture among them."""
        shape = {name: value for name, value in changes.items() if name in (*AXES, *SIZES)}
        rest = {name: value for name, value in changes.items() if name not in shape}
        return self.replace(architecture=self.architecture.replace(**shape), **rest)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them; `plugins` where the run uses some."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {"rungs": list(self.rungs), "eval_data": dict(self.eval_data)}
        values |= {"plugins": list(self.plugins)} if self.plugins else {}
        return values | {"architecture": self.architecture.to_dict()}

    def identity(self) -> dict[str, Any]:
        """`to_dict` without the fields that 0.1 did not have, where they are at their default: what it says of a run
        is the same in every version."""
        newer = (field for field in dataclasses.fields(self) if field.metadata.get("newer"))
        usual = {field.name for field in newer if getattr(self, field.name) == field.default}
        return {name: value for name, value in self.to_dict().items() if name not in usual}

    def flat(self) -> dict[str, Any]:
        """Plain values with the architecture's axes and sizes among the run's own: one mapping of field to value."""
        return self.architecture.values() | flat(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """A run as `to_dict` gave it, also that of 0.1.0 before activation checkpointing had three levels.

        Raises UserError for a field that is unknown, missing or has a bad value.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names and name != "plugins":  # which are loaded apart
                raise unknown_value("field of a run", name, names)
        if problem := schema.CONFIG.problem(values, ""):
            raise UserError(problem)
        checkpointing = values.get("activation_checkpointing", "none")
        if isinstance(checkpointing, bool):
            checkpointing = "full" if checkpointing else "none"
        values = dict(values)
        stored = values.pop("plugins", ())
        plugin.recall(stored)
        plugin.check_unchanged(stored)
        known = {"architecture": architecture.from_dict(values["architecture"])}
        return cls(**(values | known | {"activation_checkpointing": checkpointing}))


def read_run(folder: RunFolder) -> TrainConfig | None:
    """What the run in `folder` was to be; None without a config.json. Raises UserError, which names that file."""
    values = folder.config
    try:
        return None if values is None else TrainConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{folder.path / CONFIG}: {error}") from None


_KINDS = {int: schema.SIZE, float: schema.NUMBER, str: schema.TEXT, bool: schema.FLAG}


def _kind(declared: Any) -> schema.Schema:
    """What a stored field must be, by the type that it is declared with."""
    kinds = typing.get_args(declared) or (declared,)
    found = schema.either(*(_KINDS[kind] for kind in kinds if kind in _KINDS))
    return schema.Maybe(found) if type(None) in kinds else found


schema.RUN_FIELDS |= {f.name: _kind(f.type) for f in dataclasses.fields(TrainConfig) if f.name != "architecture"}
schema.RUN_FIELDS |= {"rungs": schema.ListOf(schema.NUMBER), "eval_data": schema.MapOf(schema.TEXT)}
schema.RUN_FIELDS["activation_checkpointing"] = schema.either(schema.TEXT, schema.FLAG)  # the latter in 0.1.0
