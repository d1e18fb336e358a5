"""Folders as Hugging Face's `datasets` writes them: what in them is data, without that library.

    dataset_dict.json     of a DatasetDict: {"splits": ["train", "test"]}, each a folder of the following kind
    state.json            of a Dataset: {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], ...}
    dataset_info.json     its description

Files of a `map` or `filter` may lie beside them (`cache-*.arrow`), which are no part of the data.
"""

from pathlib import Path
from typing import Any

from raytrain.errors import UserError, shown
from raytrain.rundir.parse import parse_json

DESCRIPTIONS = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}
_STATE, _DICT = "state.json", "dataset_dict.json"


def saved_entries(folder: Path, names: set[str]) -> list[str] | None:
    """Which of the `names` in `folder` are data, or folders of it, by what `datasets` wrote there; None if it did not.

    Raises UserError for a description that cannot be read, and for one that names what is not there.
    """
    if _DICT in names:
        listed = _field(folder / _DICT, "splits")
    elif _STATE in names and any(name.endswith(".arrow") for name in names):
        if _read(folder / _STATE).get("_indices_data_files"):
            raise UserError(f"{folder} selects rows by a second file, as old versions of datasets wrote; save it anew")
        files = _field(folder / _STATE, "_data_files")
        listed = [file.get("filename") if isinstance(file, dict) else file for file in files]
    elif any(name.endswith((".arrow", ".parquet")) for name in names):
        return sorted(names - DESCRIPTIONS)
    else:
        return None
    for name in listed:
        if not isinstance(name, str) or name not in names:
            raise UserError(f"{folder} lacks {shown(name)}, which its {_DICT if _DICT in names else _STATE} names")
    return sorted(listed)


def _field(path: Path, name: str) -> list[Any]:
    value = _read(path).get(name)
    if not isinstance(value, list):
        raise UserError(f"{path} is not as datasets writes it: {name} is {shown(value)}, not a list")
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not as datasets writes it: {shown(values)}")
    return values
