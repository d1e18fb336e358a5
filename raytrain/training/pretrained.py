"""Weights to start from or to leave with: a run's own checkpoint, and folders as Hugging Face keeps them."""

import json
import os.path
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from raytrain.architecture import Architecture
from raytrain.config.run import TrainConfig
from raytrain.errors import UserError
from raytrain.model import Transformer, build
from raytrain.model.interchange import from_hf, to_hf
from raytrain.training.checkpoint import newest
from raytrain.training.storage import open_storage

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def load_run(run: Path) -> tuple[TrainConfig, Transformer]:
    """The configuration and the newest whole checkpoint of the run in folder `run`, the model on the CPU.

    Raises UserError for a folder that is no run or has no whole checkpoint.
    """
    try:
        config = TrainConfig.from_dict(json.loads((run / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        is_study = os.path.exists(run / "study.json")  # Path.exists raises for a name too long for any file
        why = f"it is a study's, whose runs are in {run / 'trials'}" if is_study else getattr(error, "strerror", error)
        raise UserError(f"run ({run}) is not a run folder: {why}") from None
    storage = open_storage(run)
    manifest, damaged = newest(storage)
    if manifest is None:
        raise UserError(f"run ({run}) has no whole checkpoint{': ' if damaged else ''}{'; '.join(damaged)}")
    model = build(config.architecture)
    tensors = {f"model.model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    reader = dcp.HuggingFaceStorageReader(str(storage.local(manifest["name"])))
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return config, model.eval()


def save_hugging_face(model: Transformer, folder: Path, *, overwrite: bool = False) -> None:
    """Write `config.json` and `model.safetensors`, which `transformers` loads to the same logits.

    Raises UserError naming the axis that prevents it, a folder that holds such files unless these may be lost
    (`overwrite`), or one that cannot be written.
    """
    if not overwrite and any(os.path.exists(folder / name) for name in (_CONFIG, _WEIGHTS)):
        raise UserError(f"folder ({folder}) holds a model; choose another, or --overwrite it")
    hf_config, state = to_hf(model.arch, model.state_dict())
    if model.arch.weight_tying:
        del state["lm_head.weight"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).write_text(json.dumps(hf_config, indent=1))
        save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})
    except OSError as error:
        raise UserError(f"folder ({folder}) cannot be written: {error.strerror}") from None


def read_hugging_face(folder: Path) -> tuple[Architecture, dict[str, torch.Tensor]]:
    """The architecture and our state dict of a folder that `transformers` wrote. Raises UserError if it cannot be."""
    try:
        hf_config = json.loads((folder / _CONFIG).read_text())
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"init_from ({folder}) has no .safetensors file; other formats are pickles and not read")
        hf_state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"init_from ({folder}) cannot be read: {error}") from None
    return from_hf(hf_config, hf_state)


def start_from(model: Transformer, folder: Path) -> None:
    """Fill `model` with the weights in `folder`. Raises UserError naming the first field in which the two differ."""
    arch, state = read_hugging_face(folder)
    mine, theirs = model.arch.canonical().to_dict(), arch.canonical().to_dict()
    for field in mine:
        if field != "dropout" and mine[field] != theirs[field]:
            raise UserError(f"{field} ({mine[field]}) must be {theirs[field]}, as in init_from ({folder})")
    model.load_state_dict(state)
