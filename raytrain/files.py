"""The folders of runs and studies: what they may be called, and the JSON files in them. Pure."""

import json
import re
from pathlib import Path
from typing import Any

from raytrain.errors import UserError


def check_name(name: str) -> str:
    """`name`, if it may be that of a folder. Raises UserError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise UserError(f"name ({name!r}) may have letters, digits, '.', '_' and '-'")
    return name


def write_json(path: Path, content: Any) -> None:
    """Write `content` whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that cannot be read or is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content
