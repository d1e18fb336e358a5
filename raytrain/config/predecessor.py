"""What arguments and fields of the predecessor, and common ones of nanoGPT, are called here: the one place of it."""

import re

from raytrain.architecture import PRESETS

RENAMED = {
    "arch_preset": "--preset",
    "use_fsdp": "--parallel fsdp",
    "use_zero1": "--parallel zero1",
    "dtype": "--precision",
    "batch_size": "--micro_batch",
    "gradient_accumulation_steps": "--global_batch",
    "dataset": "--data",
    "out_dir": "--runs",
    "eval_iters": "--eval_tokens",
    "min_lr": "--min_lr_fraction",
    "warmup_iters": "--warmup_fraction",
    "always_save_checkpoint": "--checkpoint_interval",
    "wandb_run_name": "--name",
}
# What has no equivalent, and why none is needed.
GONE = {
    "wandb_log": "Leave it out: a run is logged in its folder, and a sweep in MLflow too.",
    "wandb_project": "Leave it out: a run is logged in its folder, and a sweep in MLflow too.",
    "decay_lr": "Leave it out: the learning rate always decays; --min_lr_fraction 1 keeps it constant.",
    "lr_decay_iters": "Leave it out: the learning rate decays over the whole run.",
    "backend": "Leave it out: NCCL on GPUs, gloo on CPUs.",
    "eval_only": "Leave it out: every run ends with an evaluation.",
}
_COMMAND_LINE = ("--runs", "--name")  # what no file of fields holds


def hint_for_argument(argument: str) -> str:
    """What takes the place of an `argument` of the predecessor's command line; empty for one that it did not have.

    >>> hint_for_argument("--use_fsdp"), hint_for_argument("config/arch_llama.py")
    ('Did you mean --parallel fsdp?', 'Did you mean --preset llama --scale 124m?')
    """
    if file := re.fullmatch(r"(?:[^-].*/)?arch_(\w+)\.py", argument):
        start = f"--preset {file[1]}" if PRESETS.get(file[1]) else "--config FILE.yaml"
        return f"Did you mean {start} --scale 124m?"
    name = argument.removeprefix("--") if argument.startswith("--") else ""
    return f"Did you mean {RENAMED[name]}?" if name in RENAMED else GONE.get(name, "")


def hint_for_field(name: str) -> str:
    """The same for a field in a YAML file.

    >>> hint_for_field("use_fsdp"), hint_for_field("out_dir")
    ('Did you mean parallel: fsdp?', 'Give --runs on the command line.')
    """
    meant = RENAMED.get(name)
    if meant is None:
        return GONE.get(name, "")
    if meant in _COMMAND_LINE:
        return f"Give {meant} on the command line."
    field, _, value = meant.removeprefix("--").partition(" ")
    return f"Did you mean {field}: {value}?" if value else f"Did you mean {field}?"
