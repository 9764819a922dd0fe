"""Files kept for the next process are read only if no other user could have written them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refllm.files.private import NotPrivateError, private_folder, read_kept, write_kept
from tests.support.owners import ANOTHER_USER, owned_by_another

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no owners and no modes")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file that is kept for the identity "a"."""
    path = tmp_path / "a.kept"
    write_kept(path, "a", b"contents")
    return path


# --- Folders -------------------------------------------------------------------------------------


def test_a_folder_is_made_and_can_be_written_to_by_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = private_folder(tmp_path / "outer" / "inner")
    finally:
        os.umask(before)
    assert folder == tmp_path / "outer" / "inner"
    assert [place.stat().st_mode & 0o022 for place in (folder, folder.parent)] == [0, 0]


@pytest.mark.parametrize("place", ["folder", "above"])
@pytest.mark.parametrize(("mode", "writers"), [(0o775, "its group"), (0o777, "every user")])
def test_a_folder_that_other_users_can_write_to_is_refused_with_the_command_that_fixes_it(
    place: str, mode: int, writers: str, tmp_path: Path
) -> None:
    folder = tmp_path / "above" / "folder"
    folder.mkdir(parents=True)
    blamed = folder if place == "folder" else folder.parent
    blamed.chmod(mode)
    with pytest.raises(NotPrivateError, match=f"can be written to by {writers}") as caught:
        private_folder(folder)
    assert caught.value.place == blamed
    assert caught.value.remedy == f"chmod go-w {blamed}"


@pytest.mark.parametrize("place", ["folder", "above"])
def test_a_folder_of_another_user_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "above" / "folder"
    folder.mkdir(parents=True)
    blamed = folder if place == "folder" else folder.parent
    monkeypatch.setattr(os, "lstat", owned_by_another(os.lstat, lambda file: file == blamed))
    with pytest.raises(NotPrivateError, match=f"user id {ANOTHER_USER}") as caught:
        private_folder(folder)
    assert caught.value.remedy == ""


def test_a_private_folder_in_a_shared_one_whose_files_are_their_owners_is_used(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o1777)
    assert private_folder(tmp_path / "mine") == tmp_path / "mine"
    with pytest.raises(NotPrivateError):
        private_folder(tmp_path)


def test_in_a_folder_that_other_users_can_write_to_nothing_is_made(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(NotPrivateError):
        private_folder(tmp_path / "outer" / "inner")
    assert list(tmp_path.iterdir()) == []


def test_of_a_link_to_a_folder_the_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert private_folder(tmp_path / "link" / "inner") == tmp_path / "real" / "inner"
    (tmp_path / "real").chmod(0o777)
    with pytest.raises(NotPrivateError):
        private_folder(tmp_path / "link" / "inner")


def test_a_file_in_the_place_of_a_folder_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(OSError, match="file"):
            private_folder(folder)


# --- Files ---------------------------------------------------------------------------------------


def test_a_cached_value_is_read_for_the_same_identity_only(kept: Path) -> None:
    assert read_kept(kept, "a") == b"contents"
    assert read_kept(kept, "b") is None
    assert read_kept(kept.with_name("nothing"), "a") is None


def test_where_an_identity_ends_and_the_contents_begin_is_part_of_the_checksum(kept: Path) -> None:
    stored = kept.read_bytes()
    kept.write_bytes(stored.replace(b"contents", b"ontents"))
    assert read_kept(kept, "ac") is None


def test_a_cached_file_is_writable_by_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_kept(tmp_path / "a.kept", "a", b"contents")
    finally:
        os.umask(before)
    assert (tmp_path / "a.kept").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_other_users_can_write_to_is_not_read(mode: int, kept: Path) -> None:
    kept.chmod(mode)
    assert read_kept(kept, "a") is None


def test_a_file_of_another_user_is_not_read(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fstat", owned_by_another(os.fstat))
    assert read_kept(kept, "a") is None


@pytest.fixture(params=["link", "pipe", "folder"])
def no_file(request: pytest.FixtureRequest, kept: Path) -> Path:
    """What is no regular file, under a file's name."""
    path = kept.with_name(request.param)
    match request.param:
        case "link":
            path.symlink_to(kept)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    return path


def test_a_path_that_is_no_regular_file_is_not_read_and_does_not_block(no_file: Path) -> None:
    assert read_kept(no_file, "a") is None


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_unfinished: Path, _path: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_kept(tmp_path / "a.kept", "a", b"contents")
    assert list(tmp_path.iterdir()) == []
