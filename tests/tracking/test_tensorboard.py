import struct
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from raytrain import track
from raytrain.rundir.log import JsonLog
from tests.studies import write_study


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What the event file in `folder` holds: records of a length, its checksum, an event and its checksum."""
    (path,) = folder.glob("events.out.tfevents.*")
    content, found, at = path.read_bytes(), {}, 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        at += 16 + length
    return found


def test_a_study_for_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch: a step that was done again as two points, constants as charts, a trial under another name than in
    tables, one without its result, and files of two calls in one folder."""
    axes = {"normalization": ("rmsnorm", "layernorm")}
    folder = write_study(
        tmp_path / "s", axes=axes, seeds=2, results=lambda index: {"status": None} if index == 3 else {}
    )
    log = JsonLog(folder / "trials" / "t0" / "log.jsonl")
    for step in (1, 2, 2, 3):
        log.write({"event": "step", "step": step, "loss": 4.0 - step, "vocab_size": 256})
    flags = ["tensorboard", "s", "--runs", str(tmp_path), "--out", str(tmp_path / "events")]
    assert track.main(flags) == 0
    assert "3 trials are in" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "events").iterdir()) == [
        "gpt2-s0", "gpt2-s1", "normalization=layernorm-s0",
    ]  # fmt: skip
    found = scalars(tmp_path / "events" / "gpt2-s0")
    assert found["loss"] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert found["final/val_loss"][0][1] == pytest.approx(2.99, abs=0.05)
    assert "vocab_size" not in found
    assert track.main(flags) == 2
    assert "holds event files already" in capsys.readouterr().err


def test_what_tensorboard_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: a traceback where the extra is not installed, and a flag that is ignored."""
    folder = write_study(tmp_path / "s", points=1)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert track.main(["tensorboard", str(folder)]) == 2
    assert "pip install 'raytrain[tensorboard]'" in capsys.readouterr().err
    assert track.main(["sync", str(folder), "--out", "x"]) == 2
    assert "out (x) goes with tensorboard" in capsys.readouterr().err
