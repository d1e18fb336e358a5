"""Where a study's folder is, what it is called, and how it comes to be."""

import datetime
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytrain.engine.cluster import is_job
from raytrain.errors import UserError
from raytrain.plugins.loader import write_sources
from raytrain.rundir.folders import check_name, write_json
from raytrain.sweep.plan import Plan


def home(runs: Path) -> Path:
    """Where studies are: Ray deletes a job's working directory, so a job's are below the home folder."""
    return Path.home() / runs if is_job() else runs


def study_name(plan: Plan) -> str:
    """What a study is called that is given no name: the space and the time."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", plan.space)  # a space's file may be called anything
    return f"{plain}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def free_folder(runs: Path, name: str) -> Path:
    """Where the study goes. Raises UserError if the name is taken or unfit, or the place cannot be written."""
    try:
        if (runs / check_name(name)).exists():
            raise _taken(runs / name)
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs ({runs}) cannot be written: {error.strerror}") from None
    return (runs / name).absolute()


def make_folder(folder: Path, study: dict[str, Any], plugins: Mapping[str, str] | None = None) -> None:
    """Make the study's folder, whole or not at all, with the sources of its plugins for the record.

    Raises UserError if the name was taken since, or it cannot be.
    """
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        partial.mkdir()
        write_json(partial / "study.json", study)
        write_sources(partial, plugins or {})
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():
            raise _taken(folder) from None
        raise UserError(f"runs ({folder.parent}) cannot be written: {error.strerror}") from None


def _taken(folder: Path) -> UserError:
    name = folder.name
    return UserError(f"name ({name}) is taken in {folder.parent}; choose another, or continue it with --resume {name}")
