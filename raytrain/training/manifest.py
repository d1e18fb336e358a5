"""The manifest of a checkpoint: by it one is whole, byte for byte, or is not one."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from raytrain.errors import UserError, shown
from raytrain.rundir.parse import parse_json
from raytrain.rundir.schema import CHECKPOINT
from raytrain.training.storage import MANIFEST, Storage

FORMAT = 1

# A process alone saves and loads as one process: no news.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


def newest(storage: Storage) -> tuple[dict[str, Any] | None, list[str]]:
    """The manifest of the newest whole checkpoint in `storage`, and of each newer one why it is not whole.

    The checkpoint is at `storage.local(manifest["name"])` then.
    """
    damaged: list[str] = []
    for name in reversed(storage.names()):
        manifest, problem = verify(storage, name)
        if manifest is not None:
            return manifest, damaged
        damaged.append(f"{name}: {problem}")
    return None, damaged


def verify(storage: Storage, name: str) -> tuple[dict[str, Any] | None, str]:
    """The manifest of checkpoint `name` if every byte of it is as written; else None and what is wrong.

    Raises UserError for a checkpoint in another format, whose digests may mean something else.
    """
    manifest = read_manifest(storage, name)
    if manifest is None:
        return None, f"{MANIFEST} is missing or damaged"
    if problem := CHECKPOINT.problem(manifest, ""):
        return None, f"{MANIFEST} is damaged: {problem}"
    files = manifest["files"]
    storage.fetch(name, list(files))
    for file, wanted in files.items():
        path = storage.local(name) / file
        if not path.is_file():
            return None, f"{file} is missing"
        if sha256(path) != wanted:
            return None, f"{file} is damaged (sha256 differs)"
    # The reader takes the tensors of every file in the folder, and of two with one name the later.
    beside = sorted(path.name for path in storage.local(name).iterdir() if path.name not in (*files, MANIFEST))
    return (None, f"{beside[0]} is not in its manifest") if beside else (manifest, "")


def read_manifest(storage: Storage, name: str) -> dict[str, Any] | None:
    """The manifest as it was written; None if it is not. Raises UserError for another format."""
    written = storage.manifest(name)
    if written is None:
        return None
    try:
        manifest = parse_json(written)
        written_digest, form = manifest.pop("sha256"), manifest["format"]
    except (UserError, KeyError, AttributeError, TypeError):
        return None
    if isinstance(form, int) and form != FORMAT:  # before the digest, which may be taken of other things there
        raise UserError(f"checkpoint {name} in {storage}: format ({shown(form)}) is not {FORMAT}, which this reads")
    return manifest if written_digest == digest(manifest) else None


def digest(value: Any) -> str:
    """The sha256 of a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """That of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
