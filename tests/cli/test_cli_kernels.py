"""`refllm kernels`: compiled before they are needed, listed, exported and imported."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from refllm.jit import archive as archives
from refllm.jit.archive import MANIFEST, ArchiveError, export_kernels, import_kernels
from refllm.jit.disk_cache import cache_folder, kernel_sources
from tests.conftest import HUNG_SECONDS, PROJECT
from tests.support.commands import refllm

NAME = f"linear.Q8_0_gemv_serial-{'0' * 32}.nbc"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This version's folder of kernels, with one file that looks like a kernel."""
    monkeypatch.setenv("REFLLM_CACHE_DIR", str(tmp_path / "cache"))
    folder = cache_folder(os.environ, kernel_sources())
    assert folder is not None
    (folder / NAME).write_bytes(b"machine code")
    (folder / f"{Path(NAME).stem}.claim").touch()
    (folder / f"{Path(NAME).stem}.8b1a9953c4611296").write_bytes(b"unfinished")
    return folder


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Path:
    """The archive of that folder, from which the kernel has been removed since."""
    assert refllm("kernels", "export", tmp_path / "kernels.zip").exit_code == 0
    (folder / NAME).unlink()
    return tmp_path / "kernels.zip"


def test_list_prints_the_folder_and_its_kernels(folder: Path) -> None:
    assert refllm("kernels", "list").output == (f"{folder}\n      12  linear.Q8_0_gemv_serial\n")
    assert json.loads(refllm("kernels", "list", "--json").output) == {
        "folder": str(folder),
        "kernels": [{"kernel": "linear.Q8_0_gemv_serial", "bytes": 12}],
    }


def test_an_archive_brings_the_kernels_back_as_they_were(folder: Path, archive: Path) -> None:
    done = refllm("kernels", "import", archive)
    assert (done.exit_code, done.output) == (0, f"1 kernels, 12 bytes, added to {folder}\n")
    assert (folder / NAME).read_bytes() == b"machine code"
    if os.name == "posix":
        assert stat.S_IMODE((folder / NAME).stat().st_mode) & 0o022 == 0


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
def test_an_archive_is_a_file_and_no_pipe_or_folder(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", folder):
        done = refllm("kernels", "import", path)
        assert done.exit_code == 1
        assert f"{path} is no file; name an archive" in done.output + done.stderr


def test_the_same_kernels_make_the_same_archive(folder: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.zip", "two.zip")]
    for path in paths:
        export_kernels(folder, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.usefixtures("folder")
def test_an_archive_replaces_an_existing_file_only_with_force(tmp_path: Path) -> None:
    file = tmp_path / "kernels.zip"
    file.write_bytes(b"something else")
    done = refllm("kernels", "export", file)
    assert (done.exit_code, file.read_bytes()) == (1, b"something else")
    assert f"invalid-input: {file} exists already; --force replaces it\n" in done.stderr
    assert refllm("kernels", "export", file, "--force").exit_code == 0
    assert zipfile.is_zipfile(file)


def test_without_kernels_there_is_nothing_to_export(folder: Path, tmp_path: Path) -> None:
    (folder / NAME).unlink()
    done = refllm("kernels", "export", tmp_path / "kernels.zip")
    assert done.exit_code == 1
    assert "refllm kernels warm MODEL compiles those of a model" in done.output
    assert not (tmp_path / "kernels.zip").exists()


def rewritten(
    archive: Path,
    change: Callable[[dict[str, Any]], object] = lambda _: None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """The archive with a changed manifest, or with these files in place of its own."""
    with zipfile.ZipFile(archive) as source:
        contents = {name: source.read(name) for name in source.namelist()}
    manifest = json.loads(contents.pop(MANIFEST))
    change(manifest)
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr(MANIFEST, json.dumps(manifest))
        for name, code in (contents if files is None else files).items():
            target.writestr(name, code)
    return archive


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("kernels", "kernels-0", "those of another version of refllm (kernels-0, here kernels-"),
        ("cpu", "znver9", "for another CPU: 'znver9', here '"),
        ("triple", "riscv64-linux", "for another system: 'riscv64-linux', here '"),
        ("python", "cpython-399", "for another Python: 'cpython-399', here '"),
        ("numba", "0.1", "for another numba: '0.1', here '"),
        ("features", "+quantum", "other features: there and not here +quantum, here and not there"),
        ("version", 2, "for another version: '2', here '1'"),
    ],
)
def test_kernels_of_another_version_or_cpu_are_refused(
    key: str, value: object, reason: str, folder: Path, archive: Path
) -> None:
    rewritten(archive, lambda manifest: manifest.update({key: value}))
    done = refllm("kernels", "import", archive)
    assert done.exit_code == 1
    assert f"invalid-input: {archive} is not imported: its kernels are" in done.output
    assert reason in done.output
    assert not (folder / NAME).exists()


OUTSIDE = [
    *("../evil.nbc", f"../{NAME}", f"/tmp/{NAME}", f"folder/{NAME}", f"..\\{NAME}", f".{NAME}"),
    *("linear.py", f"{NAME}\n", "linear.nbc", f"{'x' * 300}-{'0' * 32}.nbc"),
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_is_no_kernels_is_refused(
    name: str, folder: Path, archive: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))

    def rename(manifest: dict[str, Any]) -> None:
        manifest["files"] = {name: manifest["files"][NAME]}

    rewritten(archive, rename, {name: b"machine code"})
    with pytest.raises(ArchiveError, match=r"no kernel's name|its files are not those"):
        import_kernels(archive, folder)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({NAME: b"another code"}, "is damaged: it has another checksum"),
        ({}, "its files are not those that its manifest.json names"),
        ({NAME: b"machine code", "more": b""}, "its files are not those"),
    ],
    ids=["changed", "missing", "too many"],
)
def test_an_archive_that_is_not_as_its_manifest_says_is_refused(
    files: Mapping[str, bytes], reason: str, folder: Path, archive: Path
) -> None:
    with pytest.raises(ArchiveError, match=reason):
        import_kernels(rewritten(archive, files=files), folder)
    assert not (folder / NAME).exists()


def test_a_kernel_that_unpacks_to_more_than_any_kernel_has_is_refused(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 11)
    with pytest.raises(ArchiveError, match="is larger than 11 bytes"):
        import_kernels(archive, folder)


@pytest.mark.parametrize("contents", [b"", b"PK", b"no archive", b"PK\x05\x06" + b"\0" * 18])
def test_what_is_no_archive_is_refused(contents: bytes, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "kernels.zip"
    path.write_bytes(contents)
    done = refllm("kernels", "import", path)
    assert (done.exit_code, folder.joinpath(NAME).exists()) == (1, True)
    assert "no archive of kernels" in done.output


def test_a_damaged_archive_is_refused(folder: Path, archive: Path) -> None:
    sound = archive.read_bytes()
    for at in range(0, len(sound), 7):
        archive.write_bytes(sound[:at] + bytes([sound[at] ^ 0x40]) + sound[at + 1 :])
        try:
            import_kernels(archive, folder)
        except ArchiveError:
            assert not (folder / NAME).exists()
        else:  # a bit that nothing reads, such as one of a date
            assert (folder / NAME).read_bytes() == b"machine code"
            (folder / NAME).unlink()


def test_an_absent_archive_is_named(folder: Path, tmp_path: Path) -> None:
    assert folder.is_dir()
    done = refllm("kernels", "import", tmp_path / "absent.zip")
    assert (done.exit_code, "there is no file" in done.output) == (1, True)


def test_help_says_that_an_archive_is_code() -> None:
    text = " ".join(refllm("kernels", "import", "--help").output.split())
    assert "Import only archives that you have exported" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("warm", "absent"), "absent"),
        (("warm", "tiny-chat", "--numerics", "fast"), "numerics must be one of exact, int8"),
        (("compile", "tiny-chat"), "refllm kernels warm MODEL compiles kernels"),
    ],
)
def test_wrong_usage_is_explained(arguments: tuple[str, ...], reason: str) -> None:
    done = refllm("kernels", *arguments)
    assert done.exit_code in (1, 2)
    assert reason in done.output


def test_the_workflow_of_the_page_exports_and_imports_kernels(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("refllm.models.compiling.missing_of_models", lambda *_: [])
    page = (PROJECT / "docs" / "ci.md").read_text("utf-8")
    commands = re.findall(r"^ *- run: refllm (kernels .*)$", page, re.MULTILINE)
    words = [each.split() for line in commands for each in line.split(" || refllm ")]
    assert [each[1] for each in words] == ["warm", "export", "import", "warm"]
    for each in words:
        assert refllm(*each).exit_code == 0
    assert (folder / NAME).exists()
    assert (tmp_path / "kernels.zip").exists()


LOGGED = (
    "import logging\n"
    "from refllm.cli import main\n"
    "logging.basicConfig(format='%(name)s: %(message)s')\n"
    "logging.getLogger('refllm.kernels').setLevel(logging.INFO)\n"
    "main()"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "numerics", "commands"),
    [
        (
            "tiny-chat",
            "exact",
            [
                ("infer", "tiny-chat", "Once", "--max-tokens", "400"),
                ("infer", "tiny-chat", "Once upon a time there was a dog. " * 9),
            ],
        ),
        ("tiny-chat", "int8", [("infer", "tiny-chat", "Once upon a time", "--numerics", "int8")]),
        (
            "tiny-embed",
            "exact",
            [("embed", "tiny-embed", "A cat."), ("embed", "tiny-embed", *"ab")],
        ),
    ],
)
def test_after_warm_no_command_compiles_and_warm_itself_compiles_nothing_more(
    model: str, numerics: str, commands: list[tuple[str, ...]], tmp_path: Path
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", LOGGED, *arguments],
            env={**os.environ, "REFLLM_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=HUNG_SECONDS,
        )

    warm = ("kernels", "warm", model, "--numerics", numerics)
    assert "compiling kernels in" in run(*warm).stderr
    assert run(*warm).stdout.startswith("0 kernels compiled")
    for command in commands:
        assert "refllm.kernels:" not in run(*command).stderr
