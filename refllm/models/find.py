"""From a model's name to its file or folder.

A root is a folder such as `.spin/ai-models`. In each root a model called `tiny` is searched in this
order:

    <root>/<architecture>/tiny/        a folder, see below     (architecture: llama, or bert)
    <root>/<architecture>/tiny         a GGUF file
    <root>/<architecture>/tiny.gguf    or tiny-00001-of-0000N.gguf, and its other parts
    <root>/tiny/                       the older layout, and the one of embedding models
    <root>/tiny                        a GGUF file
    <root>/tiny.gguf

A model's folder has `model.safetensors` or `model.safetensors.index.json` with its shards, beside
`config.json` and `tokenizer.json`; or one `.gguf` file, in one or several parts (of several files,
the one called `tiny.gguf`). The first root that has the model wins. Source: Spin's SIP 015 and its
host code, and refllm's SPEC.md for the cases that they leave open.

`check_name` refuses every name that could lead out of a root; symbolic links in a root are
followed. Hidden files and folders are never models, so a download in progress is a hidden folder
(`refllm.models.pull`).
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import shlex
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Literal

from refllm.checkpoints.mapped_file import SPLIT_PART
from refllm.errors import InvalidInput, LlmRuntimeError, ModelNotSupported
from refllm.models import bundled

__all__ = [
    "INFERENCING_ARCHITECTURE",
    "MODEL_NOT_FOUND",
    "PULLABLE",
    "FoundModel",
    "absent_path",
    "check_name",
    "default_roots",
    "find_embedding_model",
    "find_inferencing_model",
    "find_model",
    "has_model",
    "list_models",
    "pulled_models_root",
]

INFERENCING_ARCHITECTURE = "llama"
EMBEDDING_ARCHITECTURE = "bert"
PULLABLE = frozenset({"all-minilm-l6-v2", "llama2-chat", "codellama-instruct", "tinyllama-chat"})
"""The models that `refllm models pull` knows by name."""

SAFETENSORS_FILES = ("model.safetensors", "model.safetensors.index.json")
MODEL_FILES = (*SAFETENSORS_FILES, "config.json", "tokenizer.json", "tokenizer.model")
MODEL_NOT_FOUND = "model_not_found"  # OpenAI's name of the error
MAX_NAME = 255  # bytes; the limit of file systems for one component of a path
MIN_PART = 4  # characters of a part that suggests a whole name: llama2 for llama2-chat
# A path has one slash where an address has two.
HUB_REPOSITORY = re.compile(r"(?:https?:/+huggingface\.co/)?([\w-][\w.-]*/[\w-][\w.-]*)")
MAX_SHOWN = 60  # characters of a name in a message
MAX_LISTED = 5  # files in a message


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model in a root: its name, the folder of its architecture, and its path.

    `architecture` is None in the flat layout, where the folder does not tell it.
    """

    name: str
    architecture: str | None
    path: Path


def check_name(name: str) -> None:
    """Raise `InvalidInput` with the reason unless `name` is one plain component of a path."""
    if not isinstance(name, str):
        raise InvalidInput(f"a model's name must be text, got {type(name).__name__}")
    reason = _why_not_a_name(name)
    if reason is not None:
        raise InvalidInput(f"{_shown(name)} is not a model's name: {reason}")


def pulled_models_root() -> Path:
    """Return the root that models are pulled into: $REFLLM_HOME/ai-models.

    REFLLM_HOME is ~/.refllm unless set.

    Raises:
        LlmRuntimeError: If REFLLM_HOME is not set and there is no home directory.
    """
    try:
        home = Path(os.environ.get("REFLLM_HOME") or "~/.refllm").expanduser()
    except RuntimeError as error:
        raise LlmRuntimeError(f"{error} Set REFLLM_HOME to a folder for models.") from error
    return home / "ai-models"


def default_roots() -> tuple[Path, ...]:
    """Return the default roots, in the order of the search.

    `.spin/ai-models` in the current folder, the pulled models, the bundled models. Raises as
    `pulled_models_root`.
    """
    return (Path(".spin", "ai-models"), pulled_models_root(), bundled.ROOT)


def find_inferencing_model(name: str, roots: Sequence[Path]) -> Path:
    """Return the GGUF file, or the folder with safetensors, of an inferencing model.

    Raises:
        InvalidInput: If `name` is not a valid name, or no root has the model.
        ModelNotSupported: If the model is only in another architecture's folder.
        LlmRuntimeError: If its folder has no weights, or several GGUF files of which none has the
            model's name.
    """
    return _find_or_raise(name, roots, (INFERENCING_ARCHITECTURE,))


def find_embedding_model(name: str, roots: Sequence[Path]) -> Path:
    """Return the GGUF file, or the folder with safetensors, of an embedding model.

    Raises:
        InvalidInput: If `name` is not a valid name.
        ModelNotSupported: If no root has the model.
        LlmRuntimeError: As `find_inferencing_model`.
    """
    check_name(name)
    path = _find(name, roots, (EMBEDDING_ARCHITECTURE,))
    if path is None:
        llama = _find(name, roots, (INFERENCING_ARCHITECTURE,))
        if llama is not None:
            raise ModelNotSupported(
                f"unknown embedding model {_shown(name)}: {llama} is in the folder of models that "
                "generate text",
                f"to continue a text with it: refllm infer {shlex.quote(name)} PROMPT",
            )
        raise ModelNotSupported(
            *_absent("unknown embedding model", name, roots), code=MODEL_NOT_FOUND
        )
    return path


def find_model(name: str, roots: Sequence[Path]) -> Path:
    """Return the GGUF file, or the folder with safetensors, of a model of either kind.

    Raises as `find_inferencing_model`.
    """
    return _find_or_raise(name, roots, (INFERENCING_ARCHITECTURE, EMBEDDING_ARCHITECTURE))


def has_model(name: str, roots: Sequence[Path]) -> bool:
    """Return whether a root has a model called `name`, of either kind, whole or not.

    Raises as `find_model`, for files that cannot be read.
    """
    check_name(name)
    return _find(name, roots, (INFERENCING_ARCHITECTURE, EMBEDDING_ARCHITECTURE)) is not None


def list_models(roots: Sequence[Path]) -> list[FoundModel]:
    """Return every model in `roots`, by root and name; unsupported ones included.

    A GGUF file without the extension is found by its name, but not listed: it looks like any file.

    Raises:
        LlmRuntimeError: If a folder cannot be read.
    """
    models: list[FoundModel] = []
    for root in roots:
        for path in _visible(root):
            if _is_architecture_folder(path):
                inside = filter(_looks_like_model, _visible(path))
                models += [FoundModel(_name_of(model), path.name, model) for model in inside]
            elif _looks_like_model(path):
                models.append(FoundModel(_name_of(path), None, path))
    return models


# Names


def _why_not_a_name(name: str) -> str | None:
    if not name:
        return "it is empty"
    # Counted in characters first: encoding a huge name would take time.
    if len(name) > MAX_NAME or len(name.encode("utf-8", "replace")) > MAX_NAME:
        return f"it is longer than {MAX_NAME} bytes"
    if any(unicodedata.category(character) == "Cs" for character in name):
        return "it contains a lone surrogate"
    if "\0" in name:
        return "it contains a NUL"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "it contains a control character"
    if "/" in name or "\\" in name:
        return "it contains a path separator; a file's path is not a name"
    if ".." in name:
        return 'it contains ".."'
    if name.startswith("."):
        return "it begins with a dot"
    # Joining "C:x" to a root leaves the root on Windows; refused on every system.
    if PureWindowsPath(name).drive:
        return "it begins with a drive letter"
    return None


def _shown(name: str) -> str:
    return repr(name) if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]!r}..."


# Searching


def _find_or_raise(name: str, roots: Sequence[Path], architectures: Sequence[str]) -> Path:
    check_name(name)
    path = _find(name, roots, architectures)
    if path is None:
        _refuse_other_architecture(name, roots, architectures)
        raise InvalidInput(
            *_absent("no model directory found for model", name, roots), code=MODEL_NOT_FOUND
        )
    return path


def _find(name: str, roots: Sequence[Path], architectures: Sequence[str]) -> Path | None:
    for root in roots:
        for folder in (*(root / architecture for architecture in architectures), root):
            for path in (folder / name, folder / f"{name}.gguf", *_first_part(folder, name)):
                kind = _kind(path)
                if kind == "file":
                    return path
                # `<root>/bert` is the folder of BERT models, and not a model called bert.
                if kind == "folder" and not (folder == root and _is_architecture_folder(path)):
                    return _model_in_folder(path, name)
    return None


def _first_part(folder: Path, name: str) -> list[Path]:
    """Return the first part of a split GGUF file of this name in `folder`, if there is one."""
    return [
        path
        for path in _visible(folder)
        if (match := SPLIT_PART.fullmatch(path.name))
        and match[1] == name
        and path.suffix == ".gguf"
    ][:1]


def _is_later_part(path: Path) -> bool:
    """Return whether `path` is a part of a split GGUF file other than the first."""
    match = SPLIT_PART.fullmatch(path.name)
    return match is not None and path.suffix == ".gguf" and int(match[2]) != 1


def _model_in_folder(folder: Path, name: str) -> Path:
    files = {path.name: path for path in _visible(folder) if _kind(path) == "file"}
    if any(file in files for file in SAFETENSORS_FILES):
        return folder
    ggufs = [
        file for file, path in files.items() if path.suffix == ".gguf" and not _is_later_part(path)
    ]
    if len(ggufs) == 1:
        return files[ggufs[0]]
    if f"{name}.gguf" in files:
        return files[f"{name}.gguf"]
    if ggufs:
        rest = len(ggufs) - MAX_LISTED
        listed = ", ".join(ggufs[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
        raise LlmRuntimeError(
            f"{folder}: has several GGUF files ({listed}); "
            f"keep one of them, or call one {name}.gguf"
        )
    raise LlmRuntimeError(
        f"{folder}: has no weights; expected {SAFETENSORS_FILES[0]}, {SAFETENSORS_FILES[1]} "
        "or a .gguf file"
    )


def _refuse_other_architecture(name: str, roots: Sequence[Path], known: Sequence[str]) -> None:
    for root in roots:
        for folder in _visible(root):
            if folder.name in known or _has_model_file(folder):
                continue
            if any(_kind(folder / entry) is not None for entry in (name, f"{name}.gguf")):
                if folder.name == EMBEDDING_ARCHITECTURE:
                    raise ModelNotSupported(
                        f"model {_shown(name)} is in the folder of embedding models {folder}; "
                        "it cannot generate text",
                        f"to make vectors with it: refllm embed {shlex.quote(name)} TEXT",
                    )
                raise ModelNotSupported(
                    f"model {_shown(name)} is in the architecture folder {folder}; "
                    f"the architectures supported here: {', '.join(known)}"
                )


def _absent(problem: str, name: str, roots: Sequence[Path]) -> Iterator[str]:
    """Yield the error's lines: the searched folders, how to get the model, and alternatives."""
    looked_in = ", ".join(str(root) for root in roots) or "no folder"
    yield f"{problem} {_shown(name)}; looked in {looked_in}"
    if name in PULLABLE:
        yield f"to fetch it: refllm models pull {name}"
    if name in bundled.STAND_INS:
        flags = "--stand-ins, LocalEngine(stand_ins=True) or REFLLM_STAND_INS=1"
        yield f"to have {bundled.STAND_INS[name]} answer instead: {flags}"
    if name.endswith(".gguf"):
        yield f"to use the file of this name: pathlib.Path({name!r})"
    elif name not in PULLABLE:
        similar = _similar_names(name, roots)
        if similar:
            yield f"did you mean {' or '.join(similar)}?"
        yield "to see the models that are here: refllm models list"


def _similar_names(name: str, roots: Sequence[Path]) -> list[str]:
    """Return at most three names, of models in `roots` or to pull, that are spelled like `name`."""
    known = set(PULLABLE)
    with contextlib.suppress(LlmRuntimeError):  # a folder cannot be read
        known.update(model.name for model in list_models(roots))
    by_folded = {known_name.casefold(): known_name for known_name in sorted(known)}
    folded = name.casefold()
    similar = difflib.get_close_matches(folded, by_folded)
    inside = [k for k in by_folded if len(folded) >= MIN_PART and folded in k]
    return [by_folded[k] for k in dict.fromkeys([*similar, *inside])][:3]


def absent_path(path: Path) -> Iterator[str]:
    """Yield the error's lines for a path without a model: the path, and suggestions."""
    yield f"there is no model at {str(path)[:500]}"
    here = Path.cwd()
    typed = path.relative_to(here) if path.is_relative_to(here) else path
    repository = re.fullmatch(HUB_REPOSITORY, typed.as_posix())
    if repository is not None and typed.suffix != ".gguf":
        yield f"to fetch it from the Hugging Face Hub: refllm models pull {repository[1]}"
    with contextlib.suppress(LlmRuntimeError):
        stems = {place.stem: place for place in _visible(path.parent) if _looks_like_model(place)}
        similar = difflib.get_close_matches(path.stem, stems)
        if similar:
            yield f"did you mean {' or '.join(str(stems[stem]) for stem in similar)}?"


# Files


def _kind(path: Path) -> Literal["file", "folder"] | None:
    """Return the kind of a path; None if it is absent or, like a device, neither kind."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # a name of 255 bytes, followed by .gguf
            return None
        raise LlmRuntimeError(f"{path}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else None


def _visible(folder: Path) -> list[Path]:
    """Return the entries of `folder` that are not hidden, by name; none if there is no folder."""
    if _kind(folder) != "folder":
        return []
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise LlmRuntimeError(f"{folder}: {error.strerror}") from error


def _is_architecture_folder(folder: Path) -> bool:
    """Return whether `folder`, in a root, has models rather than the files of one model."""
    if _has_model_file(folder):
        return False
    if folder.name in (INFERENCING_ARCHITECTURE, EMBEDDING_ARCHITECTURE):
        return _kind(folder) == "folder"
    inside = _visible(folder)
    has_gguf = any(path.suffix == ".gguf" for path in inside)
    return not has_gguf and any(_kind(path) == "folder" for path in inside)


def _looks_like_model(path: Path) -> bool:
    if _kind(path) == "file":
        return path.suffix == ".gguf" and not _is_later_part(path)
    return _has_model_file(path) or any(file.suffix == ".gguf" for file in _visible(path))


def _has_model_file(folder: Path) -> bool:
    return any(_kind(folder / file) == "file" for file in MODEL_FILES)


def _name_of(path: Path) -> str:
    if path.suffix != ".gguf":
        return path.name
    match = SPLIT_PART.fullmatch(path.name)
    return path.stem if match is None else match[1]
