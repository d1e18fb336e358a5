"""Files that somebody has edited, or that come from elsewhere."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raytrain.analysis.ranking import read_study
from raytrain.config.run import TrainConfig, read_run
from raytrain.data.shards import read_manifest
from raytrain.engine.journal import StudyJournal
from raytrain.errors import UserError
from raytrain.rundir.folders import read_study_json
from raytrain.rundir.run import RunFolder
from raytrain.sweep.estimate import ResourceRequest
from raytrain.sweep.trial import trials_of
from raytrain.training.manifest import digest, newest
from raytrain.training.storage import open_storage

OLD = Path(__file__).parents[1] / "fixtures" / "v0_1"
TRIAL = "1L-2H-16D-RoPE-RMS-SwiGLU-PreNorm-6dbc43-s1337"
# What a field is replaced by: wrong types, numbers beyond all bounds, and nothing at all.
WRONG: tuple[Any, ...] = (None, True, -1, 1.5, math.nan, math.inf, 10**30, 10**39)
WRONG += ("x", "\0", "\ud800", "../../up", "", [], [[]], {}, {"a": 1})
GONE = object()


def study_events(folder: Path) -> None:
    study = read_study_json(OLD / "study")
    StudyJournal(folder / "study", trials_of(study), study["scheduler"])


def checkpoint(folder: Path) -> None:
    manifest, damaged = newest(open_storage(folder / "run"))
    if manifest is None:
        raise UserError("; ".join(damaged))
    assert manifest["state"]["step"] >= 0


# Each file, what reads it, and what its errors call it.
FILES: dict[str, Callable[[Path], object]] = {
    "run/config.json": lambda folder: read_run(RunFolder(folder / "run")),
    "run/result.json": lambda folder: RunFolder(folder / "run").result,
    "run/log.jsonl": lambda folder: (run := RunFolder(folder / "run")).seconds or run.last_step or run.rungs,
    "run/checkpoints/step-00000008/manifest.json": checkpoint,
    "study/study.json": lambda folder: read_study(folder / "study"),
    f"study/trials/{TRIAL}/result.json": lambda folder: read_study(folder / "study"),
    "study/events.jsonl": study_events,
    "data/manifest.json": lambda folder: read_manifest(folder / "data"),
}


def test_what_a_study_may_ask_of_lanes_is_known(tmp_path: Path) -> None:
    """Would catch a new field of requests that makes every study.json a damaged one, which no driver takes up again."""
    study = json.loads((OLD / "study" / "study.json").read_text())
    asked = dataclasses.asdict(ResourceRequest(*(1 for _ in dataclasses.fields(ResourceRequest))))
    (tmp_path / "study.json").write_text(json.dumps(study | {"lanes": asked}))
    assert read_study_json(tmp_path)["lanes"] == asked


def fields(value: Any) -> Iterator[tuple[Any, ...]]:
    """The path of each part of `value`; of a list, of its first entry."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in items:
        yield (key,)
        yield from ((key, *rest) for rest in fields(part))


def changed(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """A copy of `value` with the part at `path` replaced, or without it."""
    key, *rest = path
    out = value.copy()
    out[key] = changed(value[key], tuple(rest), by) if rest else by
    if out[key] is GONE:
        del out[key]
    return out


def tampered(content: str, *, is_log: bool) -> Iterator[str]:
    """The text of a file with one field changed: each field once by each wrong value in turn."""
    lines = [json.loads(line) for line in content.splitlines()] if is_log else [json.loads(content)]
    for number, line in enumerate(lines[:2] if is_log else lines):
        for place, path in enumerate(fields(line)):
            for by in (GONE if place % 3 == 0 else WRONG[(place * 7 + 3) % len(WRONG)], WRONG[place % len(WRONG)]):
                one = changed(line, path, by)
                if "files" in one and "sha256" in one:  # a checkpoint's manifest: tampered with knowingly
                    one["sha256"] = digest({name: part for name, part in one.items() if name != "sha256"})
                new = [*lines[:number], one, *lines[number + 1 :]]
                yield "".join(json.dumps(line) + "\n" for line in new)


def broken(content: str, *, is_log: bool) -> Iterator[str]:
    """Texts that are no JSON of ours as a whole."""
    end = "\n" if is_log else ""
    for text in ("", "{", "[]", "1", "null", '"x"', "[" * 100_000, '{"a":' * 400 + "1" + "}" * 400, "\0"):
        yield text + end
    yield f'{{"event": "step", "step": {"9" * 5000}}}{end}'
    yield content.replace("1", "9" * 5000, 1)
    yield content[: len(content) // 2] + end


def refusal(name: str, folder: Path) -> str:
    """The line that is said of a file; empty if it is read."""
    try:
        FILES[name](folder)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("make", [tampered, broken])
@pytest.mark.parametrize("name", FILES)
def test_a_tampered_file_is_read_or_is_one_line_that_names_it(name: str, make: Callable, tmp_path: Path) -> None:
    """Would catch: a traceback, or a line that does not say which file, for any field of a wrong type, missing, huge,
    not finite or nested; and an error of many lines."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    path = tmp_path / name
    content = path.read_text()
    refused = 0
    for text in make(content, is_log=path.suffix == ".jsonl"):
        path.write_text(text)
        said = refusal(name, tmp_path)
        refused += bool(said)
        assert "\n" not in said
        assert len(said) < 2000
        assert not said or path.name in said or "shard" in said or "not in its manifest" in said
    assert refused > 3


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        (
            "run/config.json",
            ("seed",),
            "x",
            r"damaged: seed \('x'\) must be a whole number below 2\^63$",
        ),
        ("run/config.json", ("architecture",), GONE, r"config\.json is incomplete: missing architecture$"),
        ("run/config.json", ("n",), 1, r"config\.json: Unknown field of a run: 'n'\."),
        (
            "run/config.json",
            ("learning_rate",),
            "1",
            r"damaged: learning_rate \('1'\) must be a number$",
        ),
        ("run/result.json", ("val_loss",), "2", r"result\.json is damaged: val_loss \('2'\) must be a number$"),
        ("study/study.json", ("trials", 0, "seed"), True, r"trials\[0\]\.seed \(True\) must be a whole number of 0 or"),
        (
            "study/study.json",
            ("trials", 0, "config", "flops"),
            [],
            r"trials\[0\]\.config\.flops \(\[\]\) must be",
        ),
        ("study/study.json", ("scheduler", "name"), GONE, r"scheduler: missing name$"),
        ("study/study.json", ("scheduler",), {"name": "halving"}, r"scheduler: missing keep, rungs$"),
        ("study/study.json", ("scheduler", "name"), "x", r"scheduler\.name \('x'\) must be none or halving$"),
        ("study/study.json", ("trials", 0, "hash"), GONE, r"damaged: trials\[0\]: missing hash$"),
        ("data/manifest.json", ("tokenizer",), "\ud800", r"tokenizer \('\\ud800'\) must be text"),
        ("data/manifest.json", ("train", "tokens"), 1.5, r"train\.tokens \(1\.5\) must be a whole number of 1 or more"),
    ],
)
def test_the_line_names_the_field_and_what_is_allowed(name: str, path: tuple, value: Any, message: str, tmp_path: Path):
    """Would catch: "damaged" without the field, its value or what it should be."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    file = tmp_path / name
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    with pytest.raises(UserError, match=message):
        FILES[name](tmp_path)


def test_events_of_what_the_study_does_not_have(tmp_path: Path) -> None:
    """Would catch: a traceback for the event of another study's trial, or of a rung that this one does not have."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    events = tmp_path / "study" / "events.jsonl"
    for event, message in (
        ({"event": "begin", "trial": "other", "rung": None}, r"trial \(other\) is not in study\.json"),
        ({"event": "stage", "stage": "confirm", "trials": ["other"]}, r"trial \(other\) is not in study\.json"),
        ({"event": "rung", "trial": TRIAL, "rung": 0, "score": 1.0}, r"rung \(0\) must be below 0"),
        ({"event": "begins", "trial": TRIAL}, r"Unknown event in .*events\.jsonl.*Did you mean begin\?"),
    ):
        events.write_text(json.dumps(event) + "\n")
        with pytest.raises(UserError, match=message):
            study_events(tmp_path)


def test_every_field_of_a_run_has_a_type_in_its_file() -> None:
    """Would catch: a field that is added to a run and read from its file as whatever stands there."""
    from raytrain.rundir.schema import RUN_FIELDS

    names = set(TrainConfig.__dataclass_fields__) - {"architecture"}
    assert names <= set(RUN_FIELDS)
