"""Weights to start from or to leave with: a run's own checkpoint, and folders as Hugging Face keeps them."""

import itertools
import json
import os.path
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from raytrain.architecture import Architecture
from raytrain.config.run import TrainConfig, read_run
from raytrain.data.tokenizer import Tokenizer
from raytrain.errors import UserError, shown, unwritable
from raytrain.model import Transformer, build
from raytrain.model.interchange import from_hf, to_hf
from raytrain.rundir.folders import check_path, read_json, write_json
from raytrain.rundir.run import RunFolder
from raytrain.rundir.schema import HUGGING_FACE
from raytrain.training.manifest import newest
from raytrain.training.storage import CHECKPOINTS, WEIGHTS, Storage, open_storage

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

_HOW = (
    " and no weights: a sweep keeps those of the baseline and rank 1 (--keep_models best) or of every completed trial "
    "(--keep_models all); --checkpoint_interval N keeps checkpoints"
)


def load_run(run: Path, elsewhere: Sequence[str] = ()) -> tuple[TrainConfig, Transformer]:
    """As `load_newest`, without the step."""
    config, model, _ = load_newest(run, elsewhere)
    return config, model


def load_newest(run: Path, elsewhere: Sequence[str] = ()) -> tuple[TrainConfig, Transformer, int]:
    """The configuration of the run in folder `run`, its model on the CPU, and after how many optimizer steps that is:
    from its newest whole checkpoint, or else from the weights that a study has kept of it, in the folder or in one of
    the places `elsewhere`.

    Raises UserError for a folder that is no run, or whose weights are not there or damaged.
    """
    config = read_run(RunFolder(run))
    if config is None:
        raise UserError(f"run ({run}) is not a run folder: it has no config.json")
    damaged: list[str] = []
    for place, kind in itertools.product((str(run), *elsewhere), (CHECKPOINTS, WEIGHTS)):
        storage = open_storage(place, kind)
        try:
            manifest, problems = newest(storage)
            if manifest is not None:
                return config, _model(run, config, storage, manifest), manifest["state"]["step"]
        finally:
            storage.close()
        damaged += problems
    why = ": " + "; ".join(damaged) if damaged else _HOW if config.checkpoint_interval is None else ""
    raise UserError(f"run ({run}) has no whole checkpoint{why}")


def _model(run: Path, config: TrainConfig, storage: Storage, manifest: dict[str, Any]) -> Transformer:
    _check_same(run, config.architecture, manifest["trajectory"]["architecture"])
    model = build(config.architecture)
    tensors = {f"model.model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    reader = dcp.HuggingFaceStorageReader(str(storage.local(manifest["name"])))
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return model.eval()


def _check_same(run: Path, arch: Architecture, kept: dict[str, Any]) -> None:
    """Raises UserError if a run's config.json has another architecture than its checkpoint, which may be too large."""
    mine = json.loads(json.dumps(arch.canonical().to_dict()))
    for name in sorted(mine.keys() | kept.keys()):
        if mine.get(name) != kept.get(name):
            told = f"{name} ({shown(mine.get(name))}) must be {shown(kept.get(name))}, as in its checkpoint"
            raise UserError(f"{run / 'config.json'} is damaged: {told}")


def save_hugging_face(
    model: Transformer, folder: Path, tokenizer: Tokenizer | None = None, *, overwrite: bool = False
) -> None:
    """Write `config.json` and `model.safetensors`, which `transformers` loads to the same logits.

    With a `tokenizer` also that, whose ids there are the same, and the end token, at which `generate` stops.

    Raises UserError naming the axis that prevents it, a folder that holds such files unless these may be lost
    (`overwrite`), or one that cannot be written.
    """
    check_path(folder, "folder")
    if not overwrite and any(os.path.exists(folder / name) for name in (_CONFIG, _WEIGHTS, *_TOKENIZER)):
        raise UserError(f"folder ({folder}) holds a model; choose another, or --overwrite it")
    hf_config, state = to_hf(model.arch, model.state_dict())
    if model.arch.weight_tying:
        del state["lm_head.weight"]
    files: dict[str, Any] = {_CONFIG: hf_config}
    if tokenizer is not None:
        ends = {"bos_token_id": tokenizer.end_of_document, "eos_token_id": tokenizer.end_of_document}
        files |= {_CONFIG: hf_config | ends} | _tokenizer_files(tokenizer, model.arch.block_size, ends)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _TOKENIZER:  # of another model, which would be taken for this one's
            (folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            write_json(folder / name, content)
        save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(folder / _CONFIG, folder / _WEIGHTS)  # it makes a file that only its owner may read
    except (OSError, SafetensorError) as error:
        full = unwritable(error, folder) if isinstance(error, OSError) else ""
        raise UserError(full or f"folder ({folder}) cannot be written: {getattr(error, 'strerror', error)}") from None


def _tokenizer_files(tokenizer: Tokenizer, block_size: int, ends: dict[str, int]) -> dict[str, dict[str, Any]]:
    content, end = tokenizer.to_hugging_face()
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,  # a document follows the end of another
        "eos_token": end,
        "split_special_tokens": True,  # as in training: the text of a special token is text
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": (content["pre_tokenizer"] or {}).get("add_prefix_space", False),
        "model_max_length": block_size,
    }
    return dict(zip(_TOKENIZER, (content, config, ends | {"pad_token_id": tokenizer.end_of_document}), strict=True))


def read_hugging_face(folder: Path) -> tuple[Architecture, dict[str, torch.Tensor]]:
    """The architecture and our state dict of a folder that `transformers` wrote. Raises UserError if it cannot be."""
    try:
        hf_config = read_json(folder / _CONFIG, HUGGING_FACE)
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
    for name, parameter in model.state_dict().items():
        if state[name].shape != parameter.shape:
            shapes = tuple(parameter.shape), tuple(state[name].shape)
            raise UserError(f"init_from ({folder}) is damaged: {name} has the shape {shapes[1]}, not {shapes[0]}")
    model.load_state_dict(state)
