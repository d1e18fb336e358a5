"""The folders of runs and studies: what they may be called, and their JSON. Pure."""

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from raytrain.axes import plugin
from raytrain.errors import UserError, readable, unknown_value
from raytrain.rundir.parse import parse_json
from raytrain.rundir.schema import ANY, NAME_LENGTH, STUDY, MapOf, Record, Schema, check, is_name
from raytrain.uris import joined, without_secrets

_SHOWN_MODELS = 4  # of a study, in an error


def check_name(name: str) -> str:
    """`name`, if it may be that of a folder. Raises UserError otherwise."""
    if len(name) > NAME_LENGTH:
        raise UserError(f"name ({name[:16]}...) has {len(name)} characters, and may have {NAME_LENGTH}")
    if not is_name(name):
        raise UserError(f"name ({name!r}) may have letters, digits, '.', '_' and '-'")
    return name


def write_json(path: Path, content: Any) -> None:
    """Write `content` whole or not at all."""
    write_whole(path, json.dumps(content, indent=1).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` whole, or leave the file as it was. Raises OSError, which names `path`."""
    # Another process or thread may write the same.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    partial.unlink(missing_ok=True)  # a link that somebody has put there leads to another file
    try:
        with partial.open("xb") as file:
            file.write(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        error.filename = str(path)
        raise


def read_json(path: Path, schema: Schema = ANY) -> dict[str, Any]:
    """Raises UserError for a file that cannot be read, is not a JSON object, or is not what `schema` says."""
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    check(content, schema, path)
    return content


def in_runs(given: str | Path, runs: Path) -> Path:
    """The path that `given` means: the folder of that name in `runs`, else the path itself, which may not exist."""
    is_name = os.path.basename(given) == str(given)
    return runs / given if is_name and os.path.isdir(runs / given) else Path(given)


def check_path(path: str | Path, field: str) -> None:
    """Raises UserError, about `field`, for a path that is not UTF-8: safetensors, MLflow and Ray take no other."""
    if readable(str(path)) != str(path):
        raise UserError(f"{field} ({path}) must be in UTF-8")


def tracking_address(runs: Path, given: str | None) -> str:
    """Where results go: `given`, else MLFLOW_TRACKING_URI, else a SQLite database in the folder `runs`.

    Raises UserError for a folder that an address means another place by, and for one that is not UTF-8.
    """
    check_path(runs, "runs")
    if uri := given or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    path = str(runs.absolute() / "mlflow.db")
    if "?" in path or unquote(path) != path:
        raise UserError(
            f"runs ({runs}) has a '?' or '%' in its path, which the address of MLflow's database there cannot have; "
            "give another, or a --tracking_uri"
        )
    return f"sqlite:///{path}"


def find_study(study: str | Path, runs: Path, field: str = "study") -> Path:
    """The folder of `study`: a name in `runs`, or a path. Raises UserError, about `field`, if there is neither."""
    folder = in_runs(study, runs)
    if os.path.isfile(folder / "study.json"):  # Path.is_file raises for a name too long for any file
        return folder
    if os.path.isdir(folder):
        raise UserError(f"{field} ({study}) is a folder without a study: it has no study.json")
    studies = sorted(path.parent.name for path in runs.glob("[!.]*/study.json")) if os.path.isdir(runs) else []
    raise unknown_value(f"{field} in {runs}", study, studies)


def find_run(given: str, runs: Path) -> tuple[Path, list[str]]:
    """The folder of the run that `given` means, and where else its weights may be: paths or addresses without secrets.

    `given` is a run's folder, a path or a name in `runs`; or STUDY/TRIAL: a study, likewise, and the id of one of its
    trials. Raises UserError for a study alone, naming the models that it keeps, and for a trial that it does not have.
    A folder that holds no run is left to whoever reads it.
    """
    folder = in_runs(given, runs)
    if os.path.isfile(folder / "study.json"):
        kept = read_study_json(folder).get("models", {}).get("kept", {})
        models = "; ".join(f"{given}/{trial} ({what})" for trial, what in list(kept.items())[:_SHOWN_MODELS])
        raise UserError(f"run ({given}) is a study: give one of its trials, {models or 'such as STUDY/TRIAL'}")
    parent, _, trial = str(given).rstrip("/").rpartition("/")
    study = folder.absolute().parent.parent
    if folder.absolute().parent.name != "trials" or not os.path.isfile(study / "study.json"):
        study = in_runs(parent, runs)
        if not parent or not os.path.isfile(study / "study.json"):
            return folder, []
    content = read_study_json(study)
    planned = {entry["id"]: entry for entry in content["trials"]}
    if trial not in planned:
        raise unknown_value(f"trial of {study.name}", trial, planned)
    places = [planned[trial].get("folder"), content.get("models", {}).get("storage")]
    return study / "trials" / trial, [place for place in (places[0], places[1] and joined(places[1], trial)) if place]


def read_study_json(folder: Path, *more: str) -> dict[str, Any]:
    """The study.json in `folder`. Raises UserError if it is not what `schema.STUDY` says, or lacks one of `more`.

    The plugins of its trials are known from their records then, where they are not loaded. Old files count their
    variants as `functions`; the result has `variants`.
    """
    path = folder / "study.json"
    study = read_json(path)
    if isinstance(counts := study.get("counts"), dict):
        study["counts"] = {{"functions": "variants"}.get(name, name): count for name, count in counts.items()}
    check(study, STUDY, path)
    check(study, Record(dict.fromkeys(more, MapOf(ANY))), path)
    ids = [trial["id"] for trial in study["trials"]]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{path} is damaged: trials: id ({twice}) stands twice")
    for trial in study["trials"]:
        plugin.recall(trial["config"].get("plugins", ()))
    study["command"] = readable(without_secrets(study["command"]))  # older studies have them
    return study
