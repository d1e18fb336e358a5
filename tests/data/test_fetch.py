import base64
import hashlib
import json
import os
import random
import zipfile
from pathlib import Path

import pytest

from raytrain.data import open_dataset
from raytrain.data.__main__ import main
from raytrain.data.lock import Package, format_lock, is_permissive, licence_of, read_lock
from raytrain.data.selection import domain_of, fault_of, normalised, text_of
from raytrain.data.wheels import parse_metadata
from raytrain.errors import UserError

LICENCE = "License-Expression: MIT"


def prose(seed: str, words: int = 120) -> str:
    draw = random.Random(seed)
    lines = [" ".join(f"word{draw.randrange(500)}" for _ in range(8)) for _ in range(words // 8)]
    return f"# {seed}\n" + "\n".join(lines) + "\n"


def write_wheel(
    folder: Path, name: str, files: dict[str, str | bytes], version: str = "1.0", licence: str = LICENCE
) -> Path:
    """A wheel that pip accepts: its files, METADATA with a description, WHEEL and RECORD."""
    info = f"{name}-{version}.dist-info"
    described = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{licence}\n\n{prose(f'readme of {name}')}"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    contents |= {f"{info}/METADATA": described.encode(), f"{info}/WHEEL": wheel.encode()}
    record = ""
    for path, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, content in contents.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), content)
    return target


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of wheels, which is all that pip finds."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


NAMES = ["alpha", "beta", "gamma", "delta", "epsilon"]


def error_of(capsys) -> str:
    """What a command said last, which must be one line after its notes."""
    *notes, error, end = capsys.readouterr().err.split("\n")
    assert all(line.startswith("note: ") for line in notes)
    assert error.startswith("error: ")
    assert end == ""
    return error


def write_packages(index: Path) -> None:
    for name in NAMES:
        files: dict[str, str | bytes] = {f"{name}/m{i}.py": prose(f"{name} module {i}") for i in range(6)}
        files |= {f"{name}/guide.rst": prose(f"{name} guide"), f"{name}/static/app.js": prose(f"{name} script")}
        files |= {f"{name}/vendored.py": prose("vendored by all"), f"{name}/tiny.py": "x = 1\n"}
        files |= {f"{name}/latin.py": prose(name).encode() + b"\xe9", f"{name}/data.csv": prose(f"{name} data")}
        write_wheel(index, name, files)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lock_of(index: Path, *names: str) -> Path:
    lock = index.parent / "corpus.lock"
    assert main(["fetch", "--packages", str(lock), "--lock", *names]) == 0
    return lock


def test_a_corpus_of_packages(tmp_path, index, capsys):
    """Catches files of the wrong kind, duplicates, a project in both splits, and a manifest that miscounts."""
    write_packages(index)
    lock = lock_of(index, *NAMES)
    out = tmp_path / "out"
    assert main(["fetch", "--packages", str(lock), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    train, validation = rows(out / "code/train.jsonl"), rows(out / "code/validation.jsonl")
    docs, other = rows(out / "docs_validation.jsonl"), rows(out / "other_validation.jsonl")
    held_out = {row["project"] for row in validation}
    assert len(held_out) == 1
    assert {row["project"] for row in train} == set(NAMES) - held_out
    written = {f"{name}/m{i}.py": prose(f"{name} module {i}") for name in NAMES for i in range(6)}
    found = {row["path"]: row["text"] for row in train + validation if "vendored" not in row["path"]}
    assert found == written
    assert sum("vendored" in row["path"] for row in train) == 1
    assert not any("vendored" in row["path"] for row in validation)
    assert {row["path"] for row in other} == {f"{name}/static/app.js" for name in NAMES}
    expected = {f"{name}/guide.rst" for name in NAMES} | {f"{name}-1.0.dist-info/METADATA" for name in NAMES}
    assert {row["path"] for row in docs} == expected
    assert prose("readme of beta") in [row["text"] for row in docs]
    assert {row["licence"] for row in train + validation + docs + other} == {"MIT"}
    facts = json.loads((out / "corpus.json").read_text())
    counts = {reason: facts["dropped"][reason]["documents"] for reason in facts["dropped"]}
    assert counts == {"duplicate": 4, "no UTF-8": 5, "short": 5}
    for name, file in facts["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == file["sha256"]
        assert file["bytes"] == sum(len(row["text"].encode()) for row in rows(out / name))
        assert f"{file['documents']:,} documents" in printed
    assert {package["name"] for package in facts["packages"] if package["validation"]} == held_out
    assert "duplicate 4" in printed


def test_the_same_lock_gives_the_same_bytes(tmp_path, index):
    """Catches an order that depends on the folder or on the lines of the lock, and times in the output."""
    write_packages(index)
    lock = lock_of(index, *NAMES)
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, turned in zip(outs, (False, True), strict=True):
        lines = lock.read_text().splitlines()
        lock.write_text("\n".join(reversed(lines) if turned else lines) + "\n")
        assert main(["fetch", "--packages", str(lock), "--out", str(out)]) == 0
    files = [sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()) for out in outs]
    assert files[0] == files[1]
    assert len(files[0]) == 5
    for name in files[0]:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_overwrite_replaces_a_corpus_and_nothing_else(tmp_path, index, capsys):
    """Catches a folder of other files that is lost, prepared data among them, and a corpus that cannot be made anew."""
    write_packages(index)
    lock, out, other = lock_of(index, *NAMES), tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text("{}")
    fetch = ["fetch", "--packages", str(lock)]
    assert main([*fetch, "--out", str(out)]) == 0
    assert main([*fetch, "--out", str(out)]) == 2
    assert "--overwrite it" in error_of(capsys)
    (out / "stray").touch()
    assert main([*fetch, "--out", str(out), "--overwrite"]) == 0
    assert not (out / "stray").exists()
    capsys.readouterr()
    assert main([*fetch, "--out", str(other), "--overwrite"]) == 2
    assert "has no corpus.json, and --overwrite replaces only what this command has made" in error_of(capsys)
    assert (other / "manifest.json").exists()


def test_a_corpus_is_prepared_with_its_splits(tmp_path, index):
    """Catches a corpus whose projects for validation are mixed into training by the step after."""
    write_packages(index)
    out = tmp_path / "out"
    assert main(["fetch", "--packages", str(lock_of(index, *NAMES)), "--out", str(out)]) == 0
    assert main(["prepare", str(out / "code"), "--out", str(tmp_path / "code")]) == 0
    val = open_dataset(str(tmp_path / "code")).val
    texts = bytes(val.read([0], len(val))[0].tolist()).decode().split("\0")[:-1]
    assert texts == [row["text"] for row in rows(out / "code/validation.jsonl")]
    docs = ["prepare", str(out / "docs_validation.jsonl"), "--out", str(tmp_path / "docs"), "--val_fraction", "0.99"]
    assert main(docs) == 0
    assert len(open_dataset(str(tmp_path / "docs")).val) > len(open_dataset(str(tmp_path / "docs")).train)


def test_near_copies_in_another_project_are_left_out(tmp_path, index):
    """Catches validation on files that another project has copied with a changed line."""
    text = prose("shared", 2000)
    for name in NAMES:
        write_wheel(index, name, {f"{name}/a.py": text + f"from {name} import a_change\n", f"{name}/b.py": prose(name)})
    out = tmp_path / "out"
    assert main(["fetch", "--packages", str(lock_of(index, *NAMES)), "--out", str(out)]) == 0
    assert [row["path"] for row in rows(out / "code/validation.jsonl")] == [
        f"{row['project']}/b.py" for row in rows(out / "code/validation.jsonl")
    ]
    assert json.loads((out / "corpus.json").read_text())["dropped"]["near duplicate"]["documents"] == 4


def test_a_wheel_that_is_not_the_one_that_was_locked(tmp_path, index, capsys):
    """Catches a package that was changed in the registry or on the way."""
    write_packages(index)
    lock = lock_of(index, *NAMES)
    write_wheel(index, "beta", {"beta/m.py": prose("another")})
    capsys.readouterr()
    assert main(["fetch", "--packages", str(lock), "--out", str(tmp_path / "out")]) == 2
    error = error_of(capsys)
    assert error.startswith("error: pip cannot download the packages: ")
    assert "HASH" in error.upper()
    assert not (tmp_path / "out").exists()


def test_packages_under_other_licences_are_not_locked(index, capsys):
    """Catches text under a licence that asks for more than to be named, in a corpus that is passed on."""
    write_packages(index)
    write_wheel(index, "copyleft", {"c/a.py": prose("c")}, licence="License: GPL-3.0-or-later")
    write_wheel(index, "silent", {"s/a.py": prose("s")}, licence="Summary: none")
    lock = lock_of(index, "alpha", "copyleft", "silent", "beta")
    assert [package.name for package in read_lock(lock)] == ["alpha", "beta"]
    assert "left out for their licences: copyleft (GPL-3.0-or-later), silent (unknown)" in capsys.readouterr().err
    write_wheel(index, "alpha", {"alpha/m.py": prose("newer")}, version="2.0")
    lock_of(index)
    assert [package.version for package in read_lock(lock)] == ["2.0", "1.0"]


def test_nothing_in_a_wheel_runs_or_leaves_it(tmp_path, index):
    """Catches paths that lead out of the folder, and code of a package that runs while it is read."""
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n" + prose("trap")
    files = {
        "../../escaped.py": trap,
        "/absolute.py": trap + "1",
        "a/setup.py": trap + prose("x"),
        "a/ok.py": prose("ok"),
    }
    for name in ("first", "second"):
        write_wheel(index, name, {path: text + prose(name) for path, text in files.items()})
    before = set(tmp_path.parent.iterdir())
    assert main(["fetch", "--packages", str(lock_of(index, "first", "second")), "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "ran").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.lock", "out", "wheels"]
    assert set(tmp_path.parent.iterdir()) == before
    assert not Path("/absolute.py").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no packages"),
        ("alpha\n", "line 1: 'alpha' must be NAME==VERSION --hash=sha256:HEX # LICENCE"),
        ("# head\n\n--index-url=x\n", "line 3: '--index-url=x' must be NAME==VERSION"),
        (f"a==1 --hash=sha256:{'0' * 64}\n", "must be NAME==VERSION"),
        (f"a==1 --hash=sha256:{'0' * 64} # MIT\nA==2 --hash=sha256:{'1' * 64} # MIT\n", "line 2: A stands twice"),
        (f"a==1 --hash=sha256:{'0' * 64} # MIT\n", "has one package"),
    ],
)
def test_a_lock_that_is_none_is_one_line(tmp_path, capsys, content, words):
    """Catches options and addresses in a lock file that pip would follow, and a traceback for a mistyped line."""
    (tmp_path / "corpus.lock").write_text(content)
    assert main(["fetch", "--packages", str(tmp_path / "corpus.lock"), "--out", str(tmp_path / "out")]) == 2
    assert words in error_of(capsys)


def test_mistakes_on_the_command_line(tmp_path, index, capsys):
    """Catches pip's pages of output, or its options, reached through a name."""
    lock = str(tmp_path / "corpus.lock")
    for argv, words in (
        (["--packages", lock], "--out (a corpus of the lock file) or --lock"),
        (["--packages", lock, "--out", "x", "--lock"], "give one of the two"),
        (["--packages", lock, "--out", "x"], "Cannot read the lock file"),
        (["--packages", lock, "--lock"], "Cannot read the lock file"),
        (["--packages", lock, "--lock", "nowhere"], "pip cannot download the packages: "),
        (["--packages", lock, "--lock", "a/b"], "takes names of packages"),
    ):
        assert main(["fetch", *argv]) == 2
        assert words in error_of(capsys)


def test_a_damaged_wheel_is_named(tmp_path, index, capsys):
    """Catches a traceback of zipfile's."""
    write_packages(index)
    (index / "broken-1.0-py3-none-any.whl").write_bytes(b"PK no zip")
    assert main(["fetch", "--packages", str(tmp_path / "corpus.lock"), "--lock", "broken"]) == 2
    assert "broken" in error_of(capsys)


@pytest.mark.parametrize(
    ("path", "domain"),
    [
        ("a/b.py", "code"),
        ("a/B.PY", "code"),
        ("a/guide.rst", "docs"),
        ("a-1.dist-info/METADATA", "docs"),
        ("a-1.dist-info/licenses/LICENSE.md", None),
        ("a/LICENSE.md", None),
        ("a/license.py", "code"),
        ("a/app.ts", "other"),
        ("a/app.min.js", None),
        ("a/data.json", None),
        ("a/py", None),
        ("a/tests/util.py", None),
        ("a/_test/x.js", None),
        ("a/test_b.py", None),
        ("a/testing/latest_b.py", "code"),
        ("a/testimony.py", "code"),
        ("a/CHANGELOG.md", None),
        ("a/changes.py", "code"),
        ("a/.tools/guide.md", None),
    ],
)
def test_domains(path, domain):
    """Catches licences counted as prose a hundred times over, minified code, and tests, half of some packages."""
    assert domain_of(path) == domain


def test_what_is_no_document():
    """Catches tables of numbers, generated and minified code in a corpus of what people wrote."""
    assert fault_of(prose("a")) is None
    assert fault_of("x = 1\n" * 5) == "short"
    assert fault_of("# Generated by a tool. DO NOT EDIT\n" + prose("a")) == "generated"
    assert fault_of(prose("a") + "x" * 1001) == "long lines"
    assert fault_of("values = [\n" + "1.25, 3.5, 7.125,\n" * 50 + "]\n") == "data"
    assert text_of("\ufeffa\r\nb\rc".encode()) == "a\nb\nc"
    assert text_of(b"a\0b") is None
    assert text_of(b"\xff\xfe") is None
    assert normalised("a  \n\n\nb\n") == normalised("a\nb")


@pytest.mark.parametrize(
    ("metadata", "licence", "permissive"),
    [
        ("License-Expression: BSD-3-Clause AND MIT", "BSD-3-Clause AND MIT", True),
        ("License-Expression: MIT OR GPL-2.0", "MIT OR GPL-2.0", False),
        ("Classifier: License :: OSI Approved :: Apache Software License\nLicense: x", "Apache Software License", True),
        ("Classifier: License :: OSI Approved\nLicense: BSD 3-Clause", "BSD 3-Clause", True),
        ("License: GNU Lesser General Public License", "GNU Lesser General Public License", False),
        ("License: MPL-2.0", "MPL-2.0", False),
        ("License: CC-BY-NC and MIT", "CC-BY-NC and MIT", False),
        ("Name: x", "unknown", False),
        ("License: SUBMIT", "SUBMIT", False),
    ],
)
def test_licences(metadata, licence, permissive):
    """Catches a licence that is taken for a permissive one by a part of its name."""
    found = licence_of(parse_metadata(metadata.encode()))
    assert found == licence
    assert is_permissive(found) is permissive


def test_a_lock_survives_the_way_out_and_in(tmp_path):
    """Catches a lock that fetch does not read as it was written."""
    packages = [Package("b.c", "1.0+local", "1" * 64, "MIT"), Package("A_d", "2", "0" * 64, "BSD License, MIT License")]
    (tmp_path / "lock").write_text(format_lock(packages))
    assert read_lock(tmp_path / "lock") == packages[::-1]
    with pytest.raises(UserError, match="Cannot read the lock file"):
        read_lock(tmp_path)
