"""A component's `files`: patterns and mounts of the manifest become the folder that a guest sees.

    files = ["images/**/*.png", { source = "public", destination = "/assets" }]

A pattern's files keep the path that they have beside the manifest, and what is no pattern but a
folder's path stands for all below it; a mount puts a folder, or one file, elsewhere.
`exclude_files` are patterns of what is left out; `*` stands for slashes there, too.

Only regular files are given, and links to them; a link to a folder is not followed. How many
entries of folders are looked at for a component is limited.

Sources: https://spinframework.dev/writing-apps, "Including Files with Components"; Spin's
crates/loader/src/local.rs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from refllm.errors import LlmRuntimeError
from refllm.wasm.wasi.filesystem import Folder

__all__ = ["folder_of"]

OpenFolder: TypeAlias = "dict[str, OpenFolder | Path]"

PATTERN_LETTERS = frozenset("*?[")
ANY_FOLDERS = "**/"  # or none

# The build folder of Rust or node_modules beside a manifest has some ten thousand entries; a
# component is given a few hundred of them.
MOST_ENTRIES = 200_000
MOST_PATTERNS = 1000  # of one component
MOST_ANY_FOLDERS = 6  # of one pattern; each doubles the ways to spell it out


class _Tree:
    """The files below a folder, of which only so many entries are looked at."""

    def __init__(self, manifest: Path, n_entries: int) -> None:
        self._manifest = manifest
        self._most = self._left = n_entries

    def below(self, top: Path, depth: int | None = None) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Each file in `top` and its folders, with the names that lead to it, in order.

        `depth` is of how many names at most. Errors: `LlmRuntimeError` if it is too much to see.
        """
        waiting: list[tuple[str, ...]] = [()]
        while waiting:
            names = waiting.pop()
            try:
                with os.scandir(top.joinpath(*names)) as found:
                    entries = sorted(self._counted(found), key=lambda entry: entry.name)
            except PermissionError:
                continue
            for entry in entries:
                path = Path(entry.path)
                if path.is_file():  # false for a link to itself, where entry.is_file() raises
                    yield path, (*names, entry.name)
            if depth is None or len(names) + 1 < depth:
                folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
                waiting += [(*names, folder.name) for folder in reversed(folders)]

    def _counted(self, entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        for entry in entries:
            self._left -= 1
            if self._left < 0:
                raise LlmRuntimeError(
                    f"{self._manifest}: files: more than {self._most} entries of folders would "
                    "have to be looked at; name the folders that the component needs"
                )
            yield entry


def folder_of(
    manifest: Path, files: object, exclude_files: object, *, most_entries: int = MOST_ENTRIES
) -> Folder:
    """The folder of a component whose manifest says `files` and `exclude_files`.

    Errors: `LlmRuntimeError` naming the manifest, if one of them is wrong, or if more than
    `most_entries` entries of folders would have to be looked at.
    """
    here = manifest.parent
    patterns = _patterns(manifest, exclude_files)
    excluded = [way for item in patterns for way in _spelled_out(manifest, item)]
    root: OpenFolder = {}
    try:
        for path, place in _all(manifest, files, _Tree(manifest, most_entries)):
            beside = path.relative_to(here).as_posix() if path.is_relative_to(here) else None
            if beside is None or not any(fnmatchcase(beside, pattern) for pattern in excluded):
                _put(manifest, root, place, path)
    except OSError as error:
        raise LlmRuntimeError(f"{manifest}: files: {error.strerror or error}") from error
    return root


def _spelled_out(manifest: Path, pattern: str) -> Iterator[str]:
    """The pattern with and without each of its `**/`, of which fnmatch knows only the first."""
    parts = pattern.split(ANY_FOLDERS)
    if len(parts) - 1 > MOST_ANY_FOLDERS:
        raise LlmRuntimeError(
            f"{manifest}: exclude_files: {pattern!r:.80} has more than {MOST_ANY_FOLDERS} "
            f"{ANY_FOLDERS}"
        )
    for between in itertools.product((ANY_FOLDERS, ""), repeat=len(parts) - 1):
        yield "".join(itertools.chain.from_iterable(zip(parts, (*between, ""), strict=True)))


def _all(manifest: Path, files: object, tree: _Tree) -> Iterator[tuple[Path, PurePosixPath]]:
    """Each file, and its path in the guest."""
    here = manifest.parent
    if not isinstance(files, list) or len(files) > MOST_PATTERNS:
        raise _wrong(manifest, "files")
    for item in files:
        if isinstance(item, str):
            for path in _matching(manifest, item, tree):
                yield path, PurePosixPath(path.relative_to(here).as_posix())
        elif isinstance(item, Mapping):
            yield from _mounted(manifest, item, tree)
        else:
            raise _wrong(manifest, "files")


def _matching(manifest: Path, pattern: str, tree: _Tree) -> Iterator[Path]:
    """The files that a pattern, or the path of a file or folder, stands for."""
    here = manifest.parent
    parts = PurePosixPath(pattern).parts
    if ".." in parts or PurePosixPath(pattern).is_absolute():
        raise LlmRuntimeError(f"{manifest}: files: {pattern!r:.80} leads out of the application")
    if any("**" in part and part != "**" for part in parts):
        raise LlmRuntimeError(f"{manifest}: files: in {pattern!r:.80}, ** must be a whole folder")
    there = here / pattern
    if _exists(there):
        yield from (path for path, _ in _below(manifest, there, PurePosixPath(), tree))
    elif not PATTERN_LETTERS & set(pattern):
        raise _absent(manifest, pattern)
    else:
        written_out = list(itertools.takewhile(lambda part: not PATTERN_LETTERS & set(part), parts))
        top, wanted = here.joinpath(*written_out), parts[len(written_out) :]
        if top.is_dir():
            depth = None if "**" in wanted else len(wanted)
            yield from (path for path, names in tree.below(top, depth) if _is_match(names, wanted))


def _is_match(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the names match the parts of a pattern, `**` any number of folders' names."""
    reached = {0}  # places in `wanted` before which the names so far may end
    for place, name in enumerate(names):
        is_file = place == len(names) - 1
        after: set[int] = set()
        for start in reached:
            part = start
            while part < len(wanted) and wanted[part] == "**":
                if not is_file:
                    after.add(part)
                part += 1
            if part < len(wanted) and fnmatchcase(name, wanted[part]):
                after.add(part + 1)
        reached = after
    return len(wanted) in reached


def _mounted(
    manifest: Path, mount: Mapping[str, Any], tree: _Tree
) -> Iterator[tuple[Path, PurePosixPath]]:
    source, destination = mount.get("source"), mount.get("destination")
    if not isinstance(source, str) or not isinstance(destination, str):
        raise LlmRuntimeError(f"{manifest}: files need a source and a destination, both text")
    path = manifest.parent / source
    if not _exists(path):
        raise _absent(manifest, source)
    yield from _below(manifest, path, PurePosixPath(destination), tree)


def _below(
    manifest: Path, path: Path, place: PurePosixPath, tree: _Tree
) -> Iterator[tuple[Path, PurePosixPath]]:
    if path.is_dir():
        yield from ((child, place.joinpath(*names)) for child, names in tree.below(path))
    elif path.is_file():
        yield path, place
    else:
        raise LlmRuntimeError(f"{manifest}: files: {str(path)!r:.80} is no file and no folder")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except ValueError:  # Python 3.12: a zero byte
        return False


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
    if (
        not isinstance(patterns, list)
        or len(patterns) > MOST_PATTERNS
        or not all(isinstance(item, str) for item in patterns)
    ):
        raise _wrong(manifest, "exclude_files")
    return patterns


def _absent(manifest: Path, what: str) -> LlmRuntimeError:
    return LlmRuntimeError(f"{manifest}: files: there is no {what:.80}")


def _both(manifest: Path, name: str) -> LlmRuntimeError:
    return LlmRuntimeError(f"{manifest}: files: {name} is a file and a folder")


def _wrong(manifest: Path, key: str) -> LlmRuntimeError:
    return LlmRuntimeError(
        f"{manifest}: {key} must be a list of patterns, of at most {MOST_PATTERNS}"
    )
