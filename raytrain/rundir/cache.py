"""What is kept between runs and can be computed again. Pure."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from raytrain.rundir.folders import read_json, write_json
from raytrain.rundir.private import private_folder

_REMEDY = "RAYTRAIN_CACHE chooses another place"
# Where torch.compile and Triton look for compiled code, unless the user has set it.
_COMPILERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def cache_folder() -> Path:
    """Where things are kept that can be computed again: $RAYTRAIN_CACHE, or ~/.cache/raytrain. Made if need be.

    Raises UserError for a folder that others can write to: see `raytrain.rundir.private`.
    """
    place = Path(os.environ.get("RAYTRAIN_CACHE") or "~/.cache/raytrain")
    return private_folder(place, "cache", _REMEDY)


def use_private_compile_cache() -> Path:
    """Have the compilers of this process, and of those it starts, keep code below `cache_folder`; returns inductor's.

    Their own default is a predictable folder for temporary files, where another user may have put code already. What
    the user has set stays, but is checked as `cache_folder` is. Raises UserError for a folder that is not private.
    """
    default = os.path.join(tempfile.gettempdir(), "torchinductor_")  # what torch sets itself as soon as it is imported
    for variable, name in _COMPILERS.items():
        given = os.environ.get(variable, "")
        given = "" if given.startswith(default) else given
        place, remedy = (Path(given), "unset it, or take a folder of your own") if given else (None, _REMEDY)
        os.environ[variable] = str(private_folder(place or cache_folder() / "compiled" / name, variable, remedy))
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def kept(kind: str, key: dict[str, Any], value: float | None = None) -> float | None:
    """The number of some `kind` that was kept under `key` (plain values), or None; with `value`, keep that."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / kind / f"{name}.json"
    if value is not None:
        private_folder(path.parent, "cache", _REMEDY)
        write_json(path, {"key": key, "value": value})
    return read_json(path)["value"] if path.exists() else None
