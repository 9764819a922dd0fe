"""Files and folders appear whole or not at all, and nothing of a failed write stays."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.files.whole import clear_leftovers, require_whole_file, whole_file, whole_folder
from tests.support.exports import names_in
from tests.support.interrupted import full_disk, hidden_in, killed_at, needs_kill, paused_at

BEFORE_THE_RENAME = "refllm.files.whole.sync"
AFTER_THE_RENAME = "refllm.files.whole.shutil.rmtree"


def write(path: Path, text: str) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(text)


def write_folder(path: Path, text: str) -> None:
    with whole_folder(path) as unfinished:
        (unfinished / "file").write_text(text)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A file that an earlier run wrote."""
    path = tmp_path / "report.json"
    path.write_text("old")
    return path


def test_an_interrupt_before_the_lock_is_held_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FileLock, "acquire", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new", "text")
    assert hidden_in(tmp_path) == []


class TestWhole:
    """What is written appears at once."""

    @pytest.mark.parametrize("name", ["report.json", "x" * 255, "ä" * 127, "[a]*?.{b}", "a b"])
    def test_a_file_appears_when_the_block_ends(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / name
        with whole_file(path) as unfinished:
            unfinished.write_text("new")
            assert not path.exists()
        assert path.read_text() == "new"
        assert names_in(tmp_path) == [name]

    def test_a_folder_appears_when_the_block_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "model"
        with whole_folder(path, parents=True) as unfinished:
            (unfinished / "file").write_text("new")
            assert not path.exists()
        assert names_in(path) == ["file"]
        assert names_in(path.parent) == ["model"]

    def test_until_then_the_old_file_stays(self, report: Path) -> None:
        with whole_file(report) as unfinished:
            unfinished.write_text("new")
            assert report.read_text() == "old"
        assert report.read_text() == "new"

    def test_an_unfinished_file_has_the_name_of_its_target(self, report: Path) -> None:
        with whole_file(report) as unfinished:
            assert unfinished.name == report.name
            unfinished.touch()

    @pytest.mark.skipif(os.name == "nt", reason="needs Unix's permissions")
    def test_a_file_keeps_its_permissions_and_a_new_one_gets_the_usual(
        self, report: Path, tmp_path: Path
    ) -> None:
        report.chmod(0o640)
        write(report, "new")
        assert stat.S_IMODE(report.stat().st_mode) == 0o640
        (tmp_path / "usual").touch()
        write(tmp_path / "new", "new")
        assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode

    @pytest.mark.parametrize("exists", [True, False])
    def test_a_symbolic_link_stays_and_its_file_is_replaced(
        self, exists: bool, tmp_path: Path
    ) -> None:
        (tmp_path / "folder").mkdir()
        target, link = tmp_path / "folder" / "target", tmp_path / "link"
        link.symlink_to(Path("folder", "target"))
        if exists:
            target.write_text("old")
        write(link, "new")
        assert link.is_symlink()
        assert target.read_text() == "new"
        assert not target.is_symlink()

    def test_a_mount_point_that_cannot_be_replaced_is_written_over(
        self, report: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

        monkeypatch.setattr(Path, "replace", refuse)
        write(report, "new")
        assert report.read_text() == "new"


class TestInPlace:
    """What is no regular file is written to, not replaced."""

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_a_pipe(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        heard: list[str] = []
        reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
        reader.start()
        write(pipe, "new")
        reader.join()
        assert heard == ["new"]
        assert stat.S_ISFIFO(pipe.stat().st_mode)

    @pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")
    def test_an_open_file(self, report: Path, tmp_path: Path) -> None:
        with report.open() as opened:
            write(Path(f"/dev/fd/{opened.fileno()}"), "new")
            assert opened.read() == "new"
        assert names_in(tmp_path) == ["report.json"]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_device_that_is_full_is_named(self) -> None:
        message = "^/dev/full: cannot be written: No space left on device$"
        with pytest.raises(LlmRuntimeError, match=message):
            write(Path("/dev/full"), "new")

    def test_a_pipe_without_a_reader_stays_a_broken_pipe(self, tmp_path: Path) -> None:
        with pytest.raises(BrokenPipeError), whole_file(tmp_path / "file"):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")


class TestFailure:
    """What fails leaves the old file, nothing beside it, and a message with the file's name."""

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_error_of_the_block(
        self, error: type[BaseException], report: Path, tmp_path: Path
    ) -> None:
        def fail() -> None:
            with whole_file(report) as unfinished:
                unfinished.write_text("half")
                raise error

        with pytest.raises(error):
            fail()
        assert report.read_text() == "old"
        assert names_in(tmp_path) == ["report.json"]

    def test_a_full_disk(self, report: Path, tmp_path: Path) -> None:
        message = rf"^{report}: cannot be written: File too large$"
        with full_disk(8192), pytest.raises(LlmRuntimeError, match=message):
            write(report, "x" * 9000)
        assert report.read_text() == "old"
        assert names_in(tmp_path) == ["report.json"]
        write(report, "new")
        assert report.read_text() == "new"

    def test_a_full_disk_in_a_folder(self, tmp_path: Path) -> None:
        message = rf"^{tmp_path / 'model'}: cannot be written: File too large$"
        with full_disk(8192), pytest.raises(LlmRuntimeError, match=message):
            write_folder(tmp_path / "model", "x" * 9000)
        assert names_in(tmp_path) == []

    @pytest.mark.parametrize("exists", [True, False])
    def test_a_folder_that_must_not_be_written(self, exists: bool) -> None:
        with tempfile.TemporaryDirectory() as name:
            if exists:
                Path(name, "report.json").write_text("old")
            self.refuse_to_write(Path(name, "report.json"))
            assert names_in(Path(name)) == ["report.json"] * exists

    def refuse_to_write(self, path: Path) -> None:
        with unprivileged(path.parent):
            message = rf"^{path}: cannot be written: Permission denied$"
            with pytest.raises(LlmRuntimeError, match=message):
                write(path, "new")
            with pytest.raises(LlmRuntimeError, match=message):
                require_whole_file(path)

    def test_a_file_that_must_not_be_written(
        self, report: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Not by the file's mode: root may write it all the same.
        monkeypatch.setattr("os.access", lambda _path, mode: mode != os.W_OK)
        with pytest.raises(LlmRuntimeError, match=r"report\.json: cannot .*: Permission denied$"):
            write(report, "new")
        assert report.read_text() == "old"

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            (".", "Is a directory"),
            ("report.json/new", "Not a directory"),
            ("absent/new", "No such file or directory"),
            ("loop", "Too many levels of symbolic links"),
            ("x" * 256, "File name too long"),
        ],
    )
    def test_a_place_where_no_file_can_be(
        self, name: str, reason: str, report: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "loop").symlink_to("loop")
        path = tmp_path / name
        message = rf"^{path}: cannot be written: {reason}$"
        with pytest.raises(LlmRuntimeError, match=message):
            write(path, "new")
        with pytest.raises(LlmRuntimeError, match=message):
            require_whole_file(path)
        assert names_in(tmp_path) == ["loop", "report.json"]
        assert report.read_text() == "old"

    def test_a_file_that_the_block_cannot_read_is_named_too(self, tmp_path: Path) -> None:
        message = rf"new: cannot be written: {tmp_path / 'absent'}: No such file or directory$"
        with pytest.raises(LlmRuntimeError, match=message), whole_file(tmp_path / "new"):
            (tmp_path / "absent").read_bytes()

    def test_checking_that_a_file_is_writable_changes_nothing(
        self, report: Path, tmp_path: Path
    ) -> None:
        require_whole_file(report)
        require_whole_file(tmp_path / "new")
        require_whole_file(tmp_path / "a" / "b" / "new", parents=True)
        assert report.read_text() == "old"
        assert names_in(tmp_path) == ["report.json"]


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Make the folder one that this process cannot write to, whether or not it is root."""
    if os.name == "nt":
        pytest.skip("needs Unix's permissions")
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


class TestNothingIsOverwritten:
    """Where that is asked for, what exists stays."""

    def test_a_file(self, report: Path, tmp_path: Path) -> None:
        message = rf"^{report} exists already; choose another place, or delete it first$"
        with pytest.raises(InvalidInput, match=message), whole_file(report, overwrite=False):
            raise AssertionError("nothing is to be written")
        assert report.read_text() == "old"
        assert names_in(tmp_path) == ["report.json"]

    @pytest.mark.parametrize("has_links", [True, False])
    def test_a_file_that_another_process_wrote_meanwhile(
        self, has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not has_links:

            def refuse(*_: object) -> None:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

            monkeypatch.setattr("os.link", refuse)
        path = tmp_path / "model.gguf"

        def lose() -> None:
            with whole_file(path, overwrite=False) as unfinished:
                unfinished.write_text("mine")
                path.write_text("theirs")

        with pytest.raises(InvalidInput, match="exists already"):
            lose()
        assert path.read_text() == "theirs"
        assert names_in(tmp_path) == ["model.gguf"]

    def test_a_folder_that_another_process_made_meanwhile(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="exists already"), whole_folder(tmp_path / "model"):
            (tmp_path / "model").mkdir()
        assert names_in(tmp_path) == ["model"]

    def test_a_new_file_has_one_name(self, tmp_path: Path) -> None:
        with whole_file(tmp_path / "model.gguf", overwrite=False) as unfinished:
            unfinished.write_text("mine")
        assert (tmp_path / "model.gguf").stat().st_nlink == 1


class TestTwoWriters:
    """One that writes does not disturb another."""

    def test_the_last_one_wins(self, report: Path, tmp_path: Path) -> None:
        with whole_file(report) as slow:
            slow.write_text("slow")
            write(report, "fast")
            assert report.read_text() == "fast"
        assert report.read_text() == "slow"
        assert names_in(tmp_path) == ["report.json"]

    @needs_kill
    @pytest.mark.parametrize("action", [write, write_folder])
    def test_an_unfinished_file_of_a_running_process_stays(
        self, action: object, tmp_path: Path
    ) -> None:
        assert callable(action)
        path = tmp_path / "new"
        with paused_at(BEFORE_THE_RENAME, action, path, "theirs"):
            action(path, "mine")
            clear_leftovers(path)
            assert len(hidden_in(tmp_path)) == 1
        clear_leftovers(path)
        assert names_in(tmp_path) == ["new"]

    def test_many_at_once_leave_one_whole_file(self, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        texts = [f"{i}" * 10_000 for i in range(8)]
        threads = [threading.Thread(target=write, args=(path, text)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert path.read_text() in texts
        assert names_in(tmp_path) == ["report.json"]


@needs_kill
class TestKilled:
    """What a killed process leaves is hidden, and the next write removes it."""

    def test_before_the_rename_the_old_file_stays(self, report: Path, tmp_path: Path) -> None:
        killed_at(BEFORE_THE_RENAME, write, report, "new")
        assert report.read_text() == "old"
        assert [name.split(".")[1:3] for name in hidden_in(tmp_path)] == [["report", "json"]]
        write(report, "newer")
        assert report.read_text() == "newer"
        assert names_in(tmp_path) == ["report.json"]

    def test_after_the_rename_the_new_file_is_there(self, report: Path, tmp_path: Path) -> None:
        killed_at(AFTER_THE_RENAME, write, report, "new")
        assert report.read_text() == "new"
        write(report, "newer")
        assert names_in(tmp_path) == ["report.json"]

    @pytest.mark.parametrize("point", [BEFORE_THE_RENAME, AFTER_THE_RENAME])
    def test_a_folder_is_absent_or_whole(self, point: str, tmp_path: Path) -> None:
        path = tmp_path / "model"
        killed_at(point, write_folder, path, "new")
        assert path.exists() == (point == AFTER_THE_RENAME)
        if path.exists():
            with pytest.raises(InvalidInput, match="exists already"):
                write_folder(path, "newer")
        else:
            write_folder(path, "new")
        assert (path / "file").read_text() == "new"
        assert names_in(tmp_path) == ["model"]

    def test_before_the_lock_is_held_an_empty_folder_stays(self, report: Path) -> None:
        killed_at("refllm.files.whole._lock_in", write, report, "new")
        assert len(hidden_in(report.parent)) == 1
        write(report, "new")
        assert names_in(report.parent) == ["report.json"]

    def test_a_leftover_is_removed_under_its_lock(
        self, report: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process may have made it just now, and wait for the lock."""
        killed_at(BEFORE_THE_RENAME, write, report, "new")
        (leftover,) = (report.parent / name for name in hidden_in(report.parent))
        seen: list[Path] = []

        def look(folder: Path, *, ignore_errors: bool) -> None:
            assert ignore_errors
            seen.append(folder)
            with pytest.raises(Timeout):
                FileLock(folder / "lock", timeout=0).acquire()

        monkeypatch.setattr("shutil.rmtree", look)
        clear_leftovers(report)
        assert seen == [leftover]

    def test_leftovers_of_another_file_stay(self, report: Path, tmp_path: Path) -> None:
        killed_at(BEFORE_THE_RENAME, write, tmp_path / "report.json.html", "new")
        left = hidden_in(tmp_path)
        write(report, "new")
        assert hidden_in(tmp_path) == left

    def test_files_of_another_program_with_similar_names_stay(self, report: Path) -> None:
        (report.parent / ".report.json.swp").touch()
        (report.parent / ".report.json.1234.unfinished").mkdir()
        write(report, "new")
        assert len(hidden_in(report.parent)) == 2
