"""Where a run's checkpoints are kept: a folder that all ranks see, or any storage that pyarrow reaches by a URI.

Either holds the same files: a folder `step-00000100` for each checkpoint, with shards and a manifest. They differ in
how a checkpoint becomes visible, always at once:

    folder   the ranks write under a temporary name, and one atomic rename shows it
    URI      each rank writes to a temporary folder of its own and uploads its files; the manifest follows them. Object
             stores rename nothing, and files without a manifest are no checkpoint
"""

import concurrent.futures
import contextlib
import functools
import os
import shutil
import tempfile
from pathlib import Path, PurePath

import pyarrow as pa
from pyarrow import fs

from raytrain.errors import HostError
from raytrain.rundir.folders import check_path
from raytrain.uris import joined, shown, without_secrets

MANIFEST = "manifest.json"
CHECKPOINTS, WEIGHTS = "checkpoints", "weights"  # of a run: what it continues from, and its model at the end alone
_CHUNK_BYTES = 16 * 2**20  # of one request; each waits for an answer, so small ones are slow
_DOWNLOADS = 8  # files at a time


class FolderStorage:
    """Checkpoints in a folder on this machine, or on a file system that all ranks share."""

    is_shared = True  # all ranks write to one folder, and read there

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def names(self) -> list[str]:
        """All checkpoints, oldest first, whole or not."""
        return sorted(path.name for path in self._folder.glob("step-*"))

    def manifest(self, name: str) -> bytes | None:
        """The manifest of a checkpoint as it was committed; None if there is none."""
        try:
            return (self._folder / name / MANIFEST).read_bytes()
        except OSError:  # on a damaged disk too
            return None

    def local(self, name: str) -> Path:
        """The folder where the files of a checkpoint that was fetched are read."""
        return self._folder / name

    def fetch(self, name: str, files: list[str]) -> None:
        """Bring files of a checkpoint to `local(name)`. One that is missing stays missing."""

    def stage(self, name: str, *, is_main: bool) -> Path:
        """The folder for this rank to write its files of a new checkpoint to. Ready once rank 0 has been here."""
        partial = self._folder / f".{name}.partial"
        if is_main:
            _remove(partial)
            partial.mkdir(parents=True)
        return partial

    def put(self, stage: Path, name: str) -> None:
        """Bring what this rank wrote to its place. After this on all ranks, rank 0 commits."""

    def commit(self, stage: Path, name: str, manifest: bytes) -> None:
        """Make a new checkpoint visible."""
        with (stage / MANIFEST).open("wb") as file:
            file.write(manifest)
            file.flush()
            os.fsync(file.fileno())
        _remove(self._folder / name)
        stage.rename(self._folder / name)

    def delete(self, name: str) -> None:
        """Remove a checkpoint. Cut short, this leaves one that is seen not to be whole."""
        _remove(self._folder / name)

    def clear(self) -> None:
        """Remove all checkpoints."""
        _remove(self._folder)

    def close(self) -> None:
        """Remove what this process holds of checkpoints that are kept elsewhere."""


class RemoteStorage:
    """Checkpoints below a URI, as `FolderStorage` for the rest. Credentials and endpoints are for pyarrow to find.

    Methods raise OSError where the storage fails, UserError where it cannot be reached at all. What is on its way from
    or to it lies in a temporary folder.
    """

    is_shared = False

    def __init__(self, uri: str, kind: str = CHECKPOINTS) -> None:
        self._uri, self._kind = uri, kind

    def __str__(self) -> str:
        return shown(joined(self._uri, self._kind))

    @functools.cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        """The file system and the path in it. Writes a mark there: a place that cannot be written is known at once."""
        try:
            filesystem, path = connect(self._uri)
            path = f"{path.rstrip('/')}/{self._kind}"
            _make_folder(filesystem, path)
            filesystem.open_output_stream(f"{path}/.writable").close()
        except (OSError, pa.ArrowException) as error:
            reason = without_secrets(str(error), self._uri).partition("\n")[0]
            raise HostError(f"folder ({self}) cannot be reached: {reason}") from error
        return filesystem, path

    @functools.cached_property
    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="raytrain-", ignore_cleanup_errors=True)

    def names(self) -> list[str]:
        filesystem, path = self._place
        entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in entries if info.base_name.startswith("step-"))

    def manifest(self, name: str) -> bytes | None:
        filesystem, path = self._place
        # Only what is not there is None: a network that fails must not make a checkpoint look damaged.
        with contextlib.suppress(FileNotFoundError), filesystem.open_input_stream(f"{path}/{name}/{MANIFEST}") as file:
            out: bytes | None = file.read()
            return out
        return None

    def local(self, name: str) -> Path:
        return Path(self._scratch.name) / name

    def fetch(self, name: str, files: list[str]) -> None:
        filesystem, path = self._place
        folder = self.local(name)
        folder.mkdir(exist_ok=True)

        def download(file: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                destination = folder / PurePath(file).name  # whatever a manifest names, nothing is written elsewhere
                _copy(filesystem, f"{path}/{name}/{file}", fs.LocalFileSystem(), str(destination))

        with concurrent.futures.ThreadPoolExecutor(_DOWNLOADS) as pool:
            list(pool.map(download, files))

    def stage(self, name: str, *, is_main: bool) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._scratch.name))

    def put(self, stage: Path, name: str) -> None:
        filesystem, path = self._place
        _make_folder(filesystem, f"{path}/{name}")
        _copy(fs.LocalFileSystem(), str(stage), filesystem, f"{path}/{name}")

    def commit(self, stage: Path, name: str, manifest: bytes) -> None:
        filesystem, path = self._place
        with filesystem.open_output_stream(f"{path}/{name}/{MANIFEST}") as file:
            file.write(manifest)

    def delete(self, name: str) -> None:
        filesystem, path = self._place
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{path}/{name}/{MANIFEST}")
        filesystem.delete_dir(f"{path}/{name}")

    def clear(self) -> None:
        for name in self.names():
            self.delete(name)

    def close(self) -> None:
        if "_scratch" in self.__dict__:
            self._scratch.cleanup()
            del self._scratch


Storage = FolderStorage | RemoteStorage


def open_storage(folder: Path | str, kind: str = CHECKPOINTS) -> Storage:
    """The checkpoints of the run in `folder`: a path, or a URI (`s3://bucket/prefix`); or its `WEIGHTS`, which are one
    checkpoint of the model alone. Touches nothing.

    Raises UserError for a path that is not UTF-8.
    """
    if isinstance(folder, str) and "://" in folder:
        return RemoteStorage(folder, kind)
    check_path(folder, "folder")
    return FolderStorage(Path(folder) / kind)


def connect(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system that `uri` names, and the path in it."""
    out: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri)
    return out


def _remove(path: Path) -> None:
    """Remove what is at `path`: of a link the link, never what it leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _make_folder(filesystem: fs.FileSystem, path: str) -> None:
    # Object stores need no folders, and credentials for a prefix alone may make none above it.
    with contextlib.suppress(OSError):
        filesystem.create_dir(path, recursive=True)


def _copy(source: fs.FileSystem, path: str, destination: fs.FileSystem, to: str) -> None:
    fs.copy_files(path, to, source, destination, chunk_size=_CHUNK_BYTES)
