"""Another user of the machine must not be able to put code or pickles where this one reads them."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from raytrain.errors import UserError
from raytrain.rundir import private
from raytrain.rundir.cache import cache_folder, kept, use_private_compile_cache
from raytrain.rundir.private import private_file, private_folder, short_private_folder

OTHER = 12345  # a user's id that is nobody's here


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `path` look like another user's, as only root could really make it."""
    for name in ("stat", "lstat"):
        real = getattr(Path, name)

        def faked(self: Path, _real: Callable[..., os.stat_result] = real, **how: bool) -> SimpleNamespace:
            facts = _real(self, **how)
            uid = OTHER if self == path else facts.st_uid
            return SimpleNamespace(st_uid=uid, st_mode=facts.st_mode, st_gid=facts.st_gid)

        monkeypatch.setattr(Path, name, faked)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    """Would catch a cache that a permissive umask opens to all."""
    before = os.umask(0)
    try:
        made = private_folder(tmp_path / "a" / "b", "cache", "")
    finally:
        os.umask(before)
    assert [mode(made), mode(made.parent)] == [0o700, 0o700]
    assert private_folder(made, "cache", "") == made
    made.chmod(0o755)  # one that others may read is not ours to close
    assert private_folder(made, "cache", "") == made


def planted(tmp_path: Path, change: Callable[[Path], None]) -> str:
    """The error for a cache below `tmp_path` once `change` was made to it."""
    place = tmp_path / "above" / "cache"
    place.mkdir(parents=True)
    change(place)
    with pytest.raises(UserError) as error:
        private_folder(place, "cache", "RAYTRAIN_CACHE chooses another place")
    text = str(error.value)
    assert text.startswith(f"cache ({place}) ")
    assert text.endswith("; RAYTRAIN_CACHE chooses another place")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("bits", [0o777, 0o1777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(bits: int, tmp_path: Path) -> None:
    """Would catch code of another user that is run since its folder lies where ours is looked for."""
    assert f"(mode {bits:04o})" in planted(tmp_path, lambda place: place.chmod(bits))


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the predictable folder that another user made first."""
    assert f"belongs to user {OTHER}, not to" in planted(tmp_path, lambda place: give_away(place, monkeypatch))


def test_a_folder_above_that_another_user_owns_or_can_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a private folder that another user renames, to put one of their own in its place."""
    assert "others can write to" in planted(tmp_path / "open", lambda place: place.parent.chmod(0o777))
    place = tmp_path / "sticky" / "cache"
    place.mkdir(parents=True)
    place.parent.chmod(0o1777)  # as /tmp is: nobody can rename what is another's
    assert private_folder(place, "cache", "") == place
    text = planted(tmp_path / "owned", lambda place: give_away(place.parent, monkeypatch))
    assert f"belongs to user {OTHER}, who can put another folder there" in text


def test_a_link_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a link in a folder for temporary files that leads to ours, and may soon lead elsewhere."""
    (tmp_path / "real").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    assert private_folder(link, "cache", "") == link
    give_away(link, monkeypatch)
    with pytest.raises(UserError, match=f"belongs to user {OTHER}"):
        private_folder(link, "cache", "")


def test_a_group_that_is_the_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a home folder refused where each user has a group and a umask that lets it write; and one accepted
    that a whole department can write to."""
    place = tmp_path / "home" / "cache"
    place.mkdir(parents=True, mode=0o700)
    place.parent.chmod(0o775)
    monkeypatch.setattr(private, "_is_own_group", lambda gid: True)
    assert private_folder(place, "cache", "") == place
    monkeypatch.setattr(private, "_is_own_group", lambda gid: False)
    with pytest.raises(UserError, match="others can write"):
        private_folder(place, "cache", "")


def test_what_is_no_folder(tmp_path: Path) -> None:
    """Would catch a traceback for a file where the cache is to be, and for a link that leads nowhere."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "dangling"):
        with pytest.raises(UserError, match=r"^cache \("):
            private_folder(tmp_path / name, "cache", "")


def test_all_that_is_kept_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch the compilers' caches left in the shared folder for temporary files."""
    monkeypatch.setenv("RAYTRAIN_CACHE", str(tmp_path / "cache"))
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        # What torch sets itself as soon as it is imported is nobody's wish.
        monkeypatch.setenv(variable, os.path.join(tempfile.gettempdir(), "torchinductor_me", "x"))
    inductor = use_private_compile_cache()
    assert inductor == tmp_path / "cache" / "compiled" / "inductor"
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "cache" / "compiled" / "triton")
    kept("speed", {"a": 1}, 2.0)
    assert kept("speed", {"a": 1}) == 2.0
    folders = [cache_folder(), *(path for path in cache_folder().rglob("*") if path.is_dir())]
    assert {mode(folder) for folder in folders} == {0o700}
    assert len(folders) == 5


def test_a_compile_cache_of_the_user_s_own_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a setting that is ignored, and one that lets another user's code in."""
    mine, shared = tmp_path / "mine", tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(mine))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(shared))
    with pytest.raises(UserError, match=r"^TRITON_CACHE_DIR \(.*shared\) is refused: .* unset it"):
        use_private_compile_cache()
    shared.chmod(0o700)
    assert use_private_compile_cache() == mine
    assert os.environ["TRITON_CACHE_DIR"] == str(shared)


def test_a_file_is_closed_to_others(tmp_path: Path) -> None:
    """Would catch a token that every user of the machine can read."""
    token = tmp_path / "token"
    private_file(token)
    token.touch(mode=0o644)
    private_file(token)
    assert mode(token) == 0o600


def test_sockets_fit_below_a_long_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch Ray's traceback where $TMPDIR has 95 characters, and a session that other users can read."""
    long = tmp_path / ("t" * 95)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with short_private_folder("raytrain-") as folder:
        assert mode(folder) == 0o700
        assert len(str(folder)) <= 41
        (folder / "file").touch()
    assert not folder.exists()
