"""wasi:filesystem as a guest calls it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from wasmtime.component import Record

from refllm.wasm.guest import Allowance, Guest, Output, Turn
from refllm.wasm.wasi.filesystem import Descriptor, Folder, Preopens
from refllm.wasm.wasi.io import InputStream


@pytest.fixture
def root(tmp_path: Path) -> Descriptor:
    """The root of a guest with the files a.txt, of five bytes, and folder/b.txt."""
    turn = Turn(threading.Lock(), threading.Event(), seconds=60, set_deadline=lambda _: None)
    guest = Guest(turn=turn, allowance=Allowance(100_000), output=Output())
    (tmp_path / "a.txt").write_text("first")
    files: Folder = {"a.txt": tmp_path / "a.txt", "folder": {"b.txt": tmp_path / "b.txt"}}
    [(root, path)] = Preopens(guest, files).get_directories()
    assert path == "/"
    return root


def opened(root: Descriptor, path: str) -> Descriptor:
    found = root.open_at(set(), path, set(), {"read"})
    assert isinstance(found, Descriptor)
    return found


def test_a_file_older_than_unix_is_as_old_as_unix(root: Descriptor, tmp_path: Path) -> None:
    os.utime(tmp_path / "a.txt", ns=(-1, -1))
    message = root.stat_at(set(), "a.txt")
    assert isinstance(message, Record)
    modified = getattr(message, "data-modification-timestamp")
    assert (modified.seconds, modified.nanoseconds) == (0, 0)


@pytest.mark.parametrize(
    ("length", "offset", "data", "is_end"),
    [
        (2, 0, b"fi", False),
        (2, 3, b"st", True),
        (100, 0, b"first", True),
        (1, 2**63, b"", True),
        (0, 0, b"", False),
    ],
)
def test_a_part_of_a_file_is_read(
    length: int, offset: int, data: bytes, is_end: bool, root: Descriptor
) -> None:
    assert opened(root, "a.txt").read(length, offset) == (data, is_end)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("b.txt", "no-entry"),
        ("a.txt/", "not-directory"),
        ("a.txt/b.txt", "not-directory"),
        ("..", "not-permitted"),
        ("folder/../../a.txt", "not-permitted"),
        ("/a.txt", "not-permitted"),
    ],
)
def test_an_invalid_path_has_its_error_code(path: str, code: str, root: Descriptor) -> None:
    assert root.open_at(set(), path, set(), {"read"}) == code
    assert root.stat_at(set(), path) == code


def test_a_file_that_has_gone_is_an_error_of_the_guest_s(root: Descriptor) -> None:
    gone = opened(root, "folder/b.txt")
    assert (gone.read(1, 0), gone.read_via_stream(0), gone.stat()) == ("io", "io", "io")


def test_a_path_that_no_system_has_is_too_long(root: Descriptor) -> None:
    assert root.stat_at(set(), "./" * 10_000) == "name-too-long"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are not listed there")
def test_a_stream_of_a_file_keeps_it_not_open(root: Descriptor, tmp_path: Path) -> None:
    streams = [opened(root, "a.txt").read_via_stream(1) for _ in range(20)]
    assert tmp_path / "a.txt" not in [fd.resolve() for fd in Path("/proc/self/fd").iterdir()]
    assert [stream.read(3) for stream in streams if isinstance(stream, InputStream)] == [
        b"irs"
    ] * 20


def test_a_stream_reads_a_file_from_its_offset_to_its_end(root: Descriptor) -> None:
    stream = opened(root, "a.txt").read_via_stream(2)
    assert isinstance(stream, InputStream)
    assert [stream.read(2), stream.read(2), stream.read(2)] == [b"rs", b"t", None]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with a name")
def test_a_file_that_has_become_a_pipe_is_not_waited_for(root: Descriptor, tmp_path: Path) -> None:
    (tmp_path / "a.txt").unlink()
    os.mkfifo(tmp_path / "a.txt")
    assert opened(root, "a.txt").read(1, 0) == "io"
