"""A component's `files`: patterns and mounts of the manifest become the folder that a guest sees.

    files = ["images/**/*.png", { source = "public", destination = "/assets" }]

A pattern's files keep the path that they have beside the manifest, and what is no pattern but a
folder's path stands for all below it; a mount puts a folder, or one file, elsewhere.
`exclude_files` are patterns of what is left out; `*` stands for slashes there, too.

Sources: https://spinframework.dev/writing-apps, "Including Files with Components"; Spin's
crates/loader/src/local.rs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from refllm.api import LlmRuntimeError
from refllm.spin.wasm.wasi_filesystem import Folder

__all__ = ["folder_of"]

OpenFolder: TypeAlias = "dict[str, OpenFolder | Path]"

PATTERN_LETTERS = frozenset("*?[")
ANY_FOLDERS = "**/"  # or none


def folder_of(manifest: Path, files: object, exclude_files: object) -> Folder:
    """The folder of a component whose manifest says `files` and `exclude_files`.

    Errors: `LlmRuntimeError` naming the manifest, if one of them is wrong.
    """
    here = manifest.parent
    excluded = [way for item in _patterns(manifest, exclude_files) for way in _spelled_out(item)]
    root: OpenFolder = {}
    try:
        found = list(_all(manifest, files))
    except OSError as error:
        raise LlmRuntimeError(f"{manifest}: files: {error.strerror or error}") from error
    for path, place in found:
        beside = path.relative_to(here).as_posix() if path.is_relative_to(here) else None
        if beside is None or not any(fnmatchcase(beside, pattern) for pattern in excluded):
            _put(manifest, root, place, path)
    return root


def _spelled_out(pattern: str) -> Iterator[str]:
    """The pattern with and without each of its `**/`, of which fnmatch knows only the first."""
    parts = pattern.split(ANY_FOLDERS)
    for between in itertools.product((ANY_FOLDERS, ""), repeat=len(parts) - 1):
        yield "".join(itertools.chain.from_iterable(zip(parts, (*between, ""), strict=True)))


def _all(manifest: Path, files: object) -> Iterator[tuple[Path, PurePosixPath]]:
    """Each file, and its path in the guest."""
    here = manifest.parent
    if not isinstance(files, list):
        raise _wrong(manifest, "files")
    for item in files:
        if isinstance(item, str):
            for path in _matching(manifest, item):
                yield path, PurePosixPath(path.relative_to(here).as_posix())
        elif isinstance(item, Mapping):
            yield from _mounted(manifest, item)
        else:
            raise _wrong(manifest, "files")


def _matching(manifest: Path, pattern: str) -> list[Path]:
    """The files that a pattern, or the path of a file or folder, stands for."""
    here = manifest.parent
    there = here / pattern
    if not there.is_relative_to(here):
        raise LlmRuntimeError(f"{manifest}: files: {pattern:.80} leads out of the application")
    if there.exists():
        return [path for path, _ in _below(there, PurePosixPath())]
    if not PATTERN_LETTERS & set(pattern):
        raise _absent(manifest, pattern)
    try:
        return sorted(path for path in here.glob(pattern) if path.is_file())
    except ValueError as error:
        raise LlmRuntimeError(f"{manifest}: files: {pattern!r:.80}: {error}") from error


def _mounted(manifest: Path, mount: Mapping[str, Any]) -> Iterator[tuple[Path, PurePosixPath]]:
    source, destination = mount.get("source"), mount.get("destination")
    if not isinstance(source, str) or not isinstance(destination, str):
        raise LlmRuntimeError(f"{manifest}: files need a source and a destination, both text")
    path = manifest.parent / source
    if not path.exists():
        raise _absent(manifest, source)
    yield from _below(path, PurePosixPath(destination))


def _below(path: Path, place: PurePosixPath) -> Iterator[tuple[Path, PurePosixPath]]:
    if path.is_file():
        yield path, place
    elif path.is_dir():
        for child in sorted(path.rglob("*")):
            if child.is_file():
                yield child, place / child.relative_to(path).as_posix()


def _put(manifest: Path, root: OpenFolder, place: PurePosixPath, path: Path) -> None:
    *folders, name = [part for part in place.parts if part not in ("/", ".")] or [path.name]
    if ".." in (*folders, name):
        raise LlmRuntimeError(f"{manifest}: files: {place} leads out of the component's folder")
    folder = root
    for part in folders:
        inner = folder.setdefault(_spelled(part), {})
        if isinstance(inner, Path):
            raise _both(manifest, part)
        folder = inner
    if isinstance(folder.get(_spelled(name)), dict):
        raise _both(manifest, name)
    folder[_spelled(name)] = path


def _spelled(name: str) -> str:
    """A file's name as a guest can have it: with a question mark for a byte that is not UTF-8."""
    return name.encode("utf-8", "replace").decode()


def _patterns(manifest: Path, patterns: object) -> list[str]:
    if not isinstance(patterns, list) or not all(isinstance(item, str) for item in patterns):
        raise _wrong(manifest, "exclude_files")
    return patterns


def _absent(manifest: Path, what: str) -> LlmRuntimeError:
    return LlmRuntimeError(f"{manifest}: files: there is no {what:.80}")


def _both(manifest: Path, name: str) -> LlmRuntimeError:
    return LlmRuntimeError(f"{manifest}: files: {name} is a file and a folder")


def _wrong(manifest: Path, key: str) -> LlmRuntimeError:
    return LlmRuntimeError(f"{manifest}: {key} must be a list of patterns")
