"""What is kept between runs and can be computed again. Pure."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from raytrain.rundir.folders import read_json, write_json


def cache_folder() -> Path:
    """Where things are kept that can be found anew: $RAYTRAIN_CACHE, or ~/.cache/raytrain."""
    return Path(os.environ.get("RAYTRAIN_CACHE") or Path.home() / ".cache" / "raytrain")


def kept(kind: str, key: dict[str, Any], value: float | None = None) -> float | None:
    """The number of some `kind` that was kept under `key` (plain values), or None; with `value`, keep that."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / kind / f"{name}.json"
    if value is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "value": value})
    return read_json(path)["value"] if path.exists() else None
