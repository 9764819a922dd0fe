"""A component's `files`: patterns and mounts of the manifest become the folder that a guest sees.

    files = ["images/**/*.png", { source = "public", destination = "/assets" }]

A pattern's files keep the path that they have beside the manifest; a mount puts a folder, or one
file, elsewhere. `exclude_files` are patterns of what is left out.

Source: https://spinframework.dev/writing-apps, "Including Files with Components".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from refllm.api import LlmRuntimeError
from refllm.spin.wasm.wasi_filesystem import Folder

__all__ = ["folder_of"]

OpenFolder: TypeAlias = "dict[str, OpenFolder | Path]"


def folder_of(manifest: Path, files: object, exclude_files: object) -> Folder:
    """The folder of a component whose manifest says `files` and `exclude_files`.

    Errors: `LlmRuntimeError` naming the manifest, if one of them is wrong.
    """
    here = manifest.parent
    excluded = _patterns(manifest, exclude_files)
    root: OpenFolder = {}
    for path, place in _all(manifest, files):
        beside = path.relative_to(here).as_posix() if path.is_relative_to(here) else ""
        if not any(fnmatchcase(beside, pattern) for pattern in excluded):
            _put(manifest, root, place, path)
    return root


def _all(manifest: Path, files: object) -> Iterator[tuple[Path, PurePosixPath]]:
    """Each file, and its path in the guest."""
    here = manifest.parent
    if not isinstance(files, list):
        raise _wrong(manifest, "files")
    for item in files:
        if isinstance(item, str):
            for path in _matching(manifest, item):
                yield from _below(path, PurePosixPath(path.relative_to(here).as_posix()))
        elif isinstance(item, Mapping):
            yield from _mounted(manifest, item)
        else:
            raise _wrong(manifest, "files")


def _matching(manifest: Path, pattern: str) -> list[Path]:
    try:
        return sorted(manifest.parent.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise LlmRuntimeError(f"{manifest}: files: {pattern!r:.80}: {error}") from error


def _mounted(manifest: Path, mount: Mapping[str, Any]) -> Iterator[tuple[Path, PurePosixPath]]:
    source, destination = mount.get("source"), mount.get("destination")
    if not isinstance(source, str) or not isinstance(destination, str):
        raise LlmRuntimeError(f"{manifest}: files need a source and a destination, both text")
    path = manifest.parent / source
    if not path.exists():
        raise LlmRuntimeError(f"{manifest}: files: there is no {source}")
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
        inner = folder.setdefault(part, {})
        if isinstance(inner, Path):
            raise LlmRuntimeError(f"{manifest}: files: {part} is a file and a folder")
        folder = inner
    folder[name] = path


def _patterns(manifest: Path, patterns: object) -> list[str]:
    if not isinstance(patterns, list) or not all(isinstance(item, str) for item in patterns):
        raise _wrong(manifest, "exclude_files")
    return patterns


def _wrong(manifest: Path, key: str) -> LlmRuntimeError:
    return LlmRuntimeError(f"{manifest}: {key} must be a list of patterns")
