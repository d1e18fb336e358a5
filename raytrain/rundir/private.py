"""Folders that nobody else can write to: compiled code and pickles are run by whoever reads them. Pure.

A folder is private if it is this user's and only its owner may write to it, and if no folder above it lets another
user put something else in its place. Folders that we make have the mode 0700.
"""

import contextlib
import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raytrain.errors import UserError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# A socket's path may have 107 bytes, of which Ray adds up to 66 to its folder, and we 11.
_SOCKET_FOLDER_BYTES = 30
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def private_folder(path: Path, field: str, remedy: str) -> Path:
    """`path`, absolute; made, with all folders above it, where it is missing.

    Raises UserError, which names `field` and what to do about it (`remedy`), for a folder that another user owns, can
    write to or can replace, and for one that cannot be made.
    """
    try:
        path = path.expanduser().absolute()
        missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process was faster; who it was is checked below
                folder.mkdir(mode=0o700)
        problem = _intruder(path)
    except (OSError, RuntimeError) as error:  # the latter where there is no home folder
        raise UserError(f"{field} ({path}) cannot be used: {getattr(error, 'strerror', error)}; {remedy}") from None
    if problem:
        raise UserError(f"{field} ({path}) is refused: {problem}; {remedy}")
    return path


def _intruder(path: Path) -> str | None:
    """Why another user could have written what is in the folder `path`; None if none could."""
    real = path.resolve(strict=True)
    trusted = {os.geteuid(), 0, os.stat("/").st_uid}
    facts = real.stat()
    if not stat.S_ISDIR(facts.st_mode):
        return f"{real} is not a folder"
    if facts.st_uid != os.geteuid():
        return f"{real} belongs to user {facts.st_uid}, not to this one ({os.geteuid()})"
    if facts.st_mode & _OTHERS_WRITE:
        return f"others can write to {real} (mode {stat.S_IMODE(facts.st_mode):04o})"
    for link in (path, *path.parents):
        if link.lstat().st_uid not in trusted:
            return f"{link} belongs to user {link.lstat().st_uid}, who can put another folder there"
    for folder in real.parents:
        facts = folder.stat()
        if facts.st_uid not in trusted:
            return f"{folder} belongs to user {facts.st_uid}, who can put another folder there"
        others = stat.S_IWOTH if _is_own_group(facts.st_gid) else _OTHERS_WRITE
        if facts.st_mode & others and not facts.st_mode & stat.S_ISVTX:
            return f"others can write to {folder} (mode {stat.S_IMODE(facts.st_mode):04o})"
    return None


def _is_own_group(gid: int) -> bool:
    """Whether a group is root's or, as many systems make one for each user, this user's alone."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return gid == 0
    return gid == 0 or (group.gr_name == user.pw_name and gid == user.pw_gid and not {*group.gr_mem} - {user.pw_name})


def private_file(path: Path) -> None:
    """Take from others what they may do with this user's file at `path`, if there is one."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


@contextlib.contextmanager
def short_private_folder(prefix: str) -> Iterator[Path]:
    """A new folder of mode 0700, deleted at the end, whose path is short enough for Ray's sockets below it.

    Not in $XDG_RUNTIME_DIR, which disappears when the user logs out while a study may go on.
    """
    places = [tempfile.gettempdir(), *_SHORT_FOLDERS]
    for place in places:
        if len(os.fsencode(place)) <= _SOCKET_FOLDER_BYTES:
            with contextlib.suppress(OSError):
                made = tempfile.TemporaryDirectory(prefix=prefix, dir=place, ignore_cleanup_errors=True)
                break
    else:
        raise UserError(f"no temporary folder with a short path can be written: tried {', '.join(places)}")
    with made as name:
        yield Path(name)
