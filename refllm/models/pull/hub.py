"""Fetching a repository of the Hugging Face Hub, or one file of it, into a root.

    owner/repo                  what a model needs: config.json, its tokenizer, safetensors;
                                or the repository's only GGUF file
    owner/repo:model.gguf       that GGUF file, or all parts of the model that it is a part of

The hub says the hash of every file before it is fetched: the sha256 of a large one, Git's own of a
small one. Nothing becomes visible that has another. A repository is fetched as it is at one commit,
even if it changes meanwhile; HF_ENDPOINT names another hub.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from refllm.checkpoints.mapped_file import SPLIT_PART
from refllm.errors import InvalidInput, LlmRuntimeError
from refllm.files.whole import sync
from refllm.models.find import check_name, pulled_models_root
from refllm.models.pull.store import hub_problem, only_pull
from refllm.models.pull.wheel import reason, sha256_of

__all__ = ["KNOWN_REPOSITORIES", "pull_repository"]

# What people call these models, and where a file is that computes well on a CPU.
KNOWN_REPOSITORIES: Mapping[str, str] = {
    "llama2-chat": "TheBloke/Llama-2-7B-Chat-GGUF:llama-2-7b-chat.Q4_K_M.gguf",
    "codellama-instruct": "TheBloke/CodeLlama-7B-Instruct-GGUF:codellama-7b-instruct.Q4_K_M.gguf",
    "tinyllama-chat": "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:tinyllama-1.1b-chat-v1.0.Q8_0.gguf",
}

# What a model's folder is made of, as patterns; everything else in a repository is left there.
NEEDED = (
    *("config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    # sentence-transformers: the modules behind the encoder have folders such as 1_Pooling.
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
    *("[0-9]*_*/config.json", "[0-9]*_*/model.safetensors"),
)
TIMEOUT = 30  # seconds for the hub to answer
REPOSITORY = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
GGUF, SAFETENSORS = ".gguf", ".safetensors"
MOST_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file in a repository: its name, and the hash that the hub says it has."""

    name: str
    sha256: str | None  # of a large file
    git_hash: str | None  # of a small one, as Git counts it: SHA-1 with a header


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A repository at one commit."""

    repo: str
    commit: str
    files: Sequence[Remote]


def pull_repository(reference: str, *, name: str | None = None, root: Path | None = None) -> Path:
    """The model that `owner/repo` or `owner/repo:file.gguf` names, fetched unless it is there.

    Of a model in parts, NAME-00001-of-0000N.gguf, any part's name fetches all of them.

    It becomes `<root>/<name>.gguf`, or the folder `<root>/<name>`; `name` is the file's without its
    ending, or the repository's, unless given. `root` is `refllm.models.find.pulled_models_root()`
    unless given. A pull that was interrupted is continued. `huggingface_hub` shows bars of its own.

    Errors: `InvalidInput` for something that is not a reference, or a repository with several
    models; `LlmRuntimeError`, in one sentence that says what to do, if the files cannot be had, are
    not what the hub said, or cannot be stored, or if another pull of it is under way.
    """
    repo, file = _parsed(reference)
    if name is None:
        name = repo.rpartition("/")[2]
        if file is not None:
            stem, is_split = _model_of(PurePosixPath(file).name)
            name = stem if is_split else PurePosixPath(stem).stem
    check_name(name)
    root = pulled_models_root() if root is None else root
    partial = root / f".partial-{name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with only_pull(root / f".partial-{name}.lock", name):
            for there in (root / f"{name}{GGUF}", root / name):
                if there.exists():
                    shutil.rmtree(partial, ignore_errors=True)  # of a pull killed at its end
                    return there
            partial.mkdir(exist_ok=True)
            fetched = _fetched(repo, file, partial)
            target = root / (name if fetched.is_dir() else f"{name}{GGUF}")
            sync(fetched)
            fetched.replace(target)
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise LlmRuntimeError(f"{name}: cannot be stored in {root}: {reason(error)}") from error
    return target


def _parsed(reference: str) -> tuple[str, str | None]:
    """(owner/repo, file or None)."""
    repo, colon, file = reference.partition(":")
    if REPOSITORY.fullmatch(repo) is None or ".." in repo:
        raise InvalidInput(f"{reference[:100]!r} is not a repository of the hub: write owner/repo")
    if colon and not file.endswith(GGUF):
        raise InvalidInput(
            f"{reference[:100]!r}: only a .gguf file is a model by itself; write owner/repo for a "
            "folder"
        )
    return repo, file or None


def _fetched(repo: str, file: str | None, partial: Path) -> Path:
    """The model's file, or a folder with its files, whole and checked."""
    snapshot = _snapshot(repo)
    chosen = _chosen(snapshot, file)
    downloads = partial / "hub"
    for remote in chosen:
        _download(snapshot, remote, downloads)
    if len(chosen) == 1 and chosen[0].name.endswith(GGUF):
        return downloads / chosen[0].name
    folder = partial / "model"
    shutil.rmtree(folder, ignore_errors=True)
    for remote in chosen:
        # The parts of a split model lie in a folder of their own in some repositories.
        place = folder / (Path(remote.name).name if remote.name.endswith(GGUF) else remote.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        (downloads / remote.name).replace(place)
    return folder


def _snapshot(repo: str) -> Snapshot:
    # Imported here: it is slow, and nothing else has need of it.
    from huggingface_hub import HfApi

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=TIMEOUT)
    # Its HTTP client, and so the exceptions that come through, differ between its versions.
    except Exception as error:
        raise LlmRuntimeError(hub_problem(repo, "main", error)) from error
    files = [
        Remote(
            name=sibling.rfilename,
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            git_hash=sibling.blob_id,
        )
        for sibling in info.siblings or ()
    ]
    return Snapshot(repo=repo, commit=str(info.sha), files=files)


def _chosen(snapshot: Snapshot, file: str | None) -> Sequence[Remote]:
    """The files to fetch."""
    ggufs = [remote for remote in snapshot.files if remote.name.endswith(GGUF)]
    if file is not None:
        named = [remote for remote in ggufs if _model_of(remote.name) == _model_of(file)]
        if not named:
            raise InvalidInput(f"{snapshot.repo} has no {file[:100]}; {_offered(ggufs)}")
        return named
    names = {remote.name for remote in snapshot.files}
    if "config.json" in names and any(name.endswith(SAFETENSORS) for name in names):
        return [remote for remote in snapshot.files if _is_needed(remote.name)]
    if len({_model_of(remote.name) for remote in ggufs}) != 1:
        raise InvalidInput(
            f"{snapshot.repo} has neither safetensors with a config.json nor a single GGUF file; "
            f"{_offered(ggufs)}"
        )
    return ggufs


def _model_of(file: str) -> tuple[str, str]:
    """What the parts of one split model have in common: their stem, and how many they are."""
    part = SPLIT_PART.fullmatch(file)
    return (file, "") if part is None else (part[1], part[3])


def _is_needed(name: str) -> bool:
    # "*" matches a separator, too, so a pattern must have as many of them as the name.
    return any(
        name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in NEEDED
    )


def _offered(ggufs: Sequence[Remote]) -> str:
    if not ggufs:
        return "it has no .gguf file"
    listed = ", ".join(remote.name for remote in ggufs[:MOST_LISTED])
    more = f" and {len(ggufs) - MOST_LISTED} more" if len(ggufs) > MOST_LISTED else ""
    return f"name one with owner/repo:file of {listed}{more}"


def _download(snapshot: Snapshot, remote: Remote, downloads: Path) -> None:
    """Fetch a file, and delete it again if it is not what the hub said."""
    from huggingface_hub import hf_hub_download

    what = f"{remote.name} of {snapshot.repo}"
    try:
        hf_hub_download(
            snapshot.repo,
            remote.name,
            revision=snapshot.commit,
            local_dir=downloads,
            endpoint=os.environ.get("HF_ENDPOINT"),
            etag_timeout=TIMEOUT,
        )
    except Exception as error:
        raise LlmRuntimeError(hub_problem(what, snapshot.commit, error)) from error
    path = downloads / remote.name
    if not _is_as_said(path, remote):
        path.unlink()
        raise LlmRuntimeError(
            f"{what}: is not the file that the hub describes (its hash differs), so it was "
            "deleted; pull again"
        )


def _is_as_said(path: Path, remote: Remote) -> bool:
    if remote.sha256 is not None:
        return sha256_of(path) == remote.sha256
    data = path.read_bytes()
    header = f"blob {len(data)}\0".encode()
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest() == remote.git_hash
