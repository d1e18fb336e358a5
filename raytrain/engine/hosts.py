"""What trials need of a machine beside its devices: their data, initial weights and a place for checkpoints.

It is checked on every node before any trial, and again for a trial that failed: what a machine lacks is no result of
the trial, which waits for a machine, or a resume, that has it.
"""

import socket
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain.config.run import TrainConfig
from raytrain.data import open_dataset
from raytrain.data.corpora import STDLIB
from raytrain.errors import UserError
from raytrain.rundir.folders import read_json
from raytrain.sweep.trial import AssignedTrial, PlannedTrial
from raytrain.training.storage import open_storage
from raytrain.uris import is_uri, reopened

_ANSWER_SECONDS = 120.0  # that a node may take to start a process and look
# How reasons began that earlier versions recorded as failures of the trial.
_REASONS: tuple[str, ...] = (
    "Unknown data: ",
    "No data in ",
    "Cannot read ",
    "Cannot write ",
    "checkpoint step-",
    "checkpoints in ",
)
_REASONS += ("folder (", "init_from (", "FileNotFoundError: ", "OSError: ", "PermissionError: ")


def missing(config: TrainConfig, folder: str | None = None, fingerprints: Mapping[str, str] | None = None) -> str:
    """What a trial's `config` needs and this machine lacks, in one line; empty if nothing.

    `folder` is where its checkpoints go; `fingerprints` are those that its data has to have, by path.
    """
    try:
        for place in places(config):
            found = open_dataset(place).fingerprint
            wanted = (fingerprints or {}).get(place, found)
            if found != wanted:
                return f"data ({place}) has changed: its fingerprint is {found[:12]}, not {wanted[:12]}"
        weights = config.init_from
        if weights is not None and not Path(weights).is_dir():
            return f"init_from ({weights}) is not a folder"
        if folder is not None:
            _write_to(folder)
    except (UserError, OSError) as error:
        return str(error)
    return ""


def places(config: TrainConfig) -> list[str]:
    """The data that a trial reads, for training first."""
    return [config.data, *(place for _, place in config.eval_data)]


def _write_to(folder: str) -> None:
    """Raises UserError or OSError if checkpoints cannot be written to `folder`, a path or an address."""
    if is_uri(folder):
        open_storage(folder).names()  # leaves a mark there first
        return
    place = Path(folder).absolute()
    while not place.exists():  # it is made once there is something to keep
        place = place.parent
    with tempfile.TemporaryFile(dir=place):
        pass


def fingerprints(trials: Iterable[PlannedTrial]) -> dict[str, str]:
    """The fingerprint of all data of `trials`, by path. Raises UserError for data that is not there."""
    everywhere = dict.fromkeys(place for trial in trials for place in places(trial.config))
    return {place: open_dataset(place).fingerprint for place in everywhere}


def recorded_fingerprints(folder: Path, study: Mapping[str, Any]) -> dict[str, str]:
    """Those that the trials of an older study, in `folder`, reported of their data."""
    found = {}
    for trial in study["trials"]:
        result = folder / "trials" / trial["id"] / "result.json"
        if result.exists() and (fingerprint := read_json(result).get("data_fingerprint")):
            found[trial["config"]["data"]] = fingerprint
    return found


def to_run(folder: Path, trials: Iterable[AssignedTrial]) -> list[AssignedTrial]:
    """Those of the `trials` of the study in `folder` that have no result that stands."""
    found = []
    for trial in trials:
        path = folder / "trials" / trial.id / "result.json"
        result = read_json(path) if path.exists() else {"status": "lost"}
        if result.get("status") == "lost" or failed_by_host(result):
            found.append(trial)
    return found


def failed_by_host(result: Mapping[str, Any]) -> bool:
    """Whether an earlier version called a failure of the trial what its machine lacked."""
    return result.get("status") == "failed" and str(result.get("reason", "")).startswith(_REASONS)


def check_hosts(
    trials: Iterable[AssignedTrial], wanted: Mapping[str, str], storage: str | None, *, is_local: bool
) -> None:
    """Raises UserError, which names the node, if one where lanes may run lacks what `trials` need.

    `wanted` are the fingerprints that data has to have, by path.
    """
    # One of each kind of trial; the place of the first one's checkpoints stands for all.
    kinds = {(*places(trial.config), trial.config.init_from): trial for trial in trials}
    needs = [(trial.config, trial.folder and reopened(trial.folder, storage)) for trial in kinds.values()]
    problems = {socket.gethostname(): _first_missing(needs, wanted)} if is_local else _ask_nodes(needs, wanted)
    for node, problem in problems.items():
        if problem:
            raise UserError(f"node {node} lacks what the trials need: {problem}")


def _first_missing(needs: list[tuple[TrainConfig, str | None]], wanted: Mapping[str, str]) -> str:
    return next(filter(None, (missing(config, folder, wanted) for config, folder in needs)), "")


def _ask_nodes(needs: list[tuple[TrainConfig, str | None]], wanted: Mapping[str, str]) -> dict[str, str]:
    """What each node that has CPUs lacks, by its name."""
    ask = ray.remote(_first_missing)
    answers = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked = ask.options(num_cpus=0, max_retries=0, scheduling_strategy=here)
            answers[asked.remote(needs, wanted)] = node["NodeManagerHostname"]
    problems = {}
    for answer, name in answers.items():
        try:
            problems[name] = ray.get(answer, timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            problems[name] = f"it does not answer ({type(error).__name__})"
    return problems


def moved(study: Mapping[str, Any], data: str) -> dict[str, Any]:
    """`study` (study.json), all of whose trials read their data at `data`, where it was moved to.

    Raises UserError if it is other data than the study's, or the study has several.
    """
    old = {trial["config"]["data"] for trial in study["trials"]}
    if len(old) != 1:
        raise UserError(f"data ({data}) cannot take the place of the study's {len(old)} data sets")
    place = data if data == STDLIB else str(Path(data).absolute())
    found, (before,) = open_dataset(place).fingerprint, old
    wanted = study.get("data_fingerprints", {}).get(before)
    if wanted is None:
        raise UserError(f"data ({data}) cannot be compared with the study's: its fingerprint was not kept")
    if found != wanted:
        raise UserError(f"data ({data}) is not that of the study: its fingerprint is {found[:12]}, not {wanted[:12]}")
    trials = [trial | {"config": trial["config"] | {"data": place}} for trial in study["trials"]]
    return dict(study) | {"trials": trials, "data_fingerprints": study["data_fingerprints"] | {place: found}}
