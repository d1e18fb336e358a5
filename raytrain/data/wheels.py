"""Wheels of packages: downloaded by pip, verified, and read in memory. No code of a package ever runs.

pip itself asks the registry, so the indexes, mirrors, proxies and certificates that it is configured with are in use.
Wheels alone, since pip runs a source distribution's own build even to download it. A wheel is a zip file, of which
nothing is unpacked to disk: no name in it can lead anywhere.
"""

import email
import email.message
import hashlib
import importlib.machinery
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raytrain.data.lock import Package, licence_of
from raytrain.errors import UserError, short

_ANY, _METADATA = re.compile(r"(?s:.*)"), re.compile(r"[^/]+\.dist-info/METADATA")

FILE_BYTES = 1 << 20  # of a file in a wheel; larger ones are data, and are not read
# One platform for all, so that a lock means the same wheels everywhere; they are read, not installed.
_PLATFORM = ["--python-version=3.11", "--implementation=cp"]
_PLATFORM += [f"--abi={abi}" for abi in ("cp311", "abi3", "none")]
_PLATFORM += [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)] + ["--platform=linux_x86_64"]
_PLATFORM += ["--platform=manylinux2014_x86_64"]


@dataclass(frozen=True)
class WheelFile:
    """A file of a wheel: its path there, its size in bytes, and its content, None if it is larger than 1 MiB."""

    path: str
    size: int
    content: bytes | None


def download(packages: Sequence[Package], folder: Path) -> list[Path]:
    """The wheel of each of `packages`, in their order, downloaded into `folder` and verified here too.

    Raises UserError where there is no pip, and with pip's own words for a package that is not to be had, has another
    sha256, or has no wheel.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{package.requirement}\n" for package in packages))
    _pip(["--require-hashes", f"--requirement={requirements}", f"--dest={folder}"])
    by_sha256 = {sha256_of_file(path): path for path in folder.glob("*.whl")}
    for package in packages:
        if package.sha256 not in by_sha256:
            raise UserError(
                f"No wheel of {package.name} {package.version} with the sha256 {package.sha256} was downloaded"
            )
    return [by_sha256[package.sha256] for package in packages]


def resolve(names: Sequence[str], folder: Path) -> list[Package]:
    """The newest wheels of packages, by name or as pip's requirements (`django<6`), as a lock pins them.

    They are downloaded into `folder`. Raises UserError as `download` does.
    """
    if wrong := [
        name for name in names if name.startswith("-") or any(c in name for c in "/\\@:") or name.endswith(".whl")
    ]:
        raise UserError(f"--lock takes names of packages, such as django or django<6, not {short(wrong[0])}")
    _pip([f"--dest={folder}", "--", *names])
    return [_package(path) for path in sorted(folder.glob("*.whl"))]


def _package(path: Path) -> Package:
    metadata = read_metadata(path)
    name, version = str(metadata["Name"]), str(metadata["Version"])
    return Package(name, version, sha256_of_file(path), licence_of(metadata))


def _pip(arguments: Sequence[str]) -> None:
    # Not importlib.util.find_spec: setuptools takes a look for pip as pip's start, and later cannot be imported.
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise UserError("pip is not in this environment, and downloads packages; python -m ensurepip installs it")
    command = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", *_PLATFORM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise UserError(f"pip cannot download the packages: {short(' '.join(said) or done.stderr, 600)}")


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file's content, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_metadata(content: bytes) -> email.message.Message:
    """The METADATA of a wheel; the payload is the description, a README as a rule."""
    return email.message_from_string(content.decode("utf-8", "replace"))


def read_metadata(path: Path) -> email.message.Message:
    """The metadata of the wheel at `path`. Raises UserError if there are none."""
    for file in wheel_files(path, _METADATA):
        if file.content is not None:
            return parse_metadata(file.content)
    raise UserError(f"{path.name} is no wheel: it has no METADATA")


def wheel_files(path: Path, pattern: re.Pattern[str] = _ANY) -> Iterator[WheelFile]:
    """The files of a wheel whose paths match, sorted by path, one at a time.

    Raises UserError for what is no wheel, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                if info.is_dir() or not pattern.fullmatch(info.filename):
                    continue
                content = None
                if info.file_size <= FILE_BYTES:
                    with archive.open(info) as file:
                        content = file.read(FILE_BYTES + 1)  # no more, whatever the archive states
                yield WheelFile(info.filename, info.file_size, content)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise UserError(f"Cannot read {path.name} as a wheel: {short(str(error))}") from error
