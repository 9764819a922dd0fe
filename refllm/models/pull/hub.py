"""Fetching a repository of the Hugging Face Hub, or one file of it, into a root.

    owner/repo                  what a model needs: config.json, its tokenizer, safetensors;
                                or the repository's only GGUF file
    owner/repo:model.gguf       that GGUF file, or all parts of the model that it is a part of

The Hub publishes each file's hash: the sha256 of a large one, Git's hash of a small one. A file is
kept only if its hash matches. All files are of one commit, even if the repository changes
meanwhile. HF_ENDPOINT names another hub.
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
from refllm.models.find import check_name
from refllm.models.pull.store import is_disk_error, reason, sha256_of, store_model

__all__ = ["KNOWN_REPOSITORIES", "download", "pull_repository"]

# Spin's names of models, and a file of each that a CPU computes well.
KNOWN_REPOSITORIES: Mapping[str, str] = {
    "llama2-chat": "TheBloke/Llama-2-7B-Chat-GGUF:llama-2-7b-chat.Q4_K_M.gguf",
    "codellama-instruct": "TheBloke/CodeLlama-7B-Instruct-GGUF:codellama-7b-instruct.Q4_K_M.gguf",
    "tinyllama-chat": "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:tinyllama-1.1b-chat-v1.0.Q8_0.gguf",
}

# The files of a model, as patterns; other files of a repository are not fetched.
NEEDED = (
    *("config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    # sentence-transformers: the modules after the encoder have folders such as 1_Pooling.
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
    *("[0-9]*_*/config.json", "[0-9]*_*/model.safetensors"),
)
TIMEOUT = 30  # seconds for the Hub to answer
REPOSITORY = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
GGUF, SAFETENSORS = ".gguf", ".safetensors"
MAX_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file in a repository, and its hash by the Hub."""

    name: str
    sha256: str | None  # of a large file
    git_hash: str | None  # of a small one, as Git counts it: SHA-1 with a header


def pull_repository(reference: str, *, name: str | None = None, root: Path | None = None) -> Path:
    """Return the path of a repository's model, fetched unless it is there already.

    An interrupted pull is continued. `huggingface_hub` shows progress bars.

    Args:
        reference: `owner/repo` or `owner/repo:file.gguf`. Of a model in parts,
            NAME-00001-of-0000N.gguf, any part's name fetches all parts.
        name: The model's name; None is the file's without its ending, or the repository's.
        root: The folder of models; None is `refllm.models.find.pulled_models_root()`.

    Returns:
        `<root>/<name>.gguf`, or the folder `<root>/<name>`.

    Raises:
        InvalidInput: For a malformed reference, or a repository with several models.
        LlmRuntimeError: In one sentence with the fix, if the files cannot be fetched or stored, do
            not have the Hub's hashes, or if another pull of this name is under way.
    """
    repo, file = _parsed(reference)
    if name is None:
        name = repo.rpartition("/")[2]
        if file is not None:
            stem, is_split = _model_of(PurePosixPath(file).name)
            name = stem if is_split else PurePosixPath(stem).stem
    check_name(name)

    def existing(root: Path) -> Path | None:
        candidates = (root / f"{name}{GGUF}", root / f"{name}")
        return next(filter(Path.exists, candidates), None)

    return store_model(
        name, root, existing=existing, fetch=lambda partial: _fetched(repo, file, partial)
    )


def _parsed(reference: str) -> tuple[str, str | None]:
    """Return (owner/repo, file or None)."""
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
    """Return the model's file, or a folder with its files, whole and checked."""
    commit, remotes = _snapshot(repo)
    chosen = _chosen(repo, remotes, file)
    downloads = partial / "hub"
    for remote in chosen:
        download(repo, remote.name, revision=commit, folder=downloads)
        if not _has_hash(downloads / remote.name, remote):
            (downloads / remote.name).unlink()
            raise LlmRuntimeError(
                f"{remote.name} of {repo}: is not the file that the hub describes (its hash "
                "differs), so it was deleted; pull again"
            )
    if len(chosen) == 1 and chosen[0].name.endswith(GGUF):
        return downloads / chosen[0].name
    folder = partial / "model"
    shutil.rmtree(folder, ignore_errors=True)
    for remote in chosen:
        # Some repositories have a subfolder for the parts of a split model.
        place = folder / (Path(remote.name).name if remote.name.endswith(GGUF) else remote.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        (downloads / remote.name).replace(place)
    return folder


def _snapshot(repo: str) -> tuple[str, list[Remote]]:
    """Return the newest commit, and its files."""
    from huggingface_hub import HfApi  # a slow import

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=TIMEOUT)
    except Exception as error:  # its HTTP client's exceptions depend on its version
        raise LlmRuntimeError(_problem(repo, "main", error)) from error
    files = [
        Remote(
            name=sibling.rfilename,
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            git_hash=sibling.blob_id,
        )
        for sibling in info.siblings or ()
    ]
    return str(info.sha), files


def _chosen(repo: str, remotes: Sequence[Remote], file: str | None) -> Sequence[Remote]:
    """Return the files to fetch."""
    ggufs = [remote for remote in remotes if remote.name.endswith(GGUF)]
    if file is not None:
        named = [remote for remote in ggufs if _model_of(remote.name) == _model_of(file)]
        if not named:
            raise InvalidInput(f"{repo} has no {file[:100]}; {_offered(ggufs)}")
        return named
    names = {remote.name for remote in remotes}
    if "config.json" in names and any(name.endswith(SAFETENSORS) for name in names):
        # "*" also matches a separator, so a pattern must have as many of them as the name.
        return [
            remote
            for remote in remotes
            if any(
                remote.name.count("/") == pattern.count("/") and fnmatchcase(remote.name, pattern)
                for pattern in NEEDED
            )
        ]
    if len({_model_of(remote.name) for remote in ggufs}) != 1:
        raise InvalidInput(
            f"{repo} has neither safetensors with a config.json nor a single GGUF file; "
            f"{_offered(ggufs)}"
        )
    return ggufs


def _model_of(file: str) -> tuple[str, str]:
    """Return the stem and the number of parts, which are the same for all parts of a model."""
    part = SPLIT_PART.fullmatch(file)
    return (file, "") if part is None else (part[1], part[3])


def _offered(ggufs: Sequence[Remote]) -> str:
    if not ggufs:
        return "it has no .gguf file"
    listed = ", ".join(remote.name for remote in ggufs[:MAX_LISTED])
    more = f" and {len(ggufs) - MAX_LISTED} more" if len(ggufs) > MAX_LISTED else ""
    return f"choose one with owner/repo:file of {listed}{more}"


def download(repo: str, file: str, *, revision: str, folder: Path, instead: str = "") -> None:
    """Fetch a file of a repository to `<folder>/<file>`, or continue an interrupted download.

    Args:
        repo: owner/repo.
        file: The file's name in the repository.
        revision: The commit.
        folder: Where it is stored.
        instead: An alternative, as the end of the error's sentence.

    Raises:
        LlmRuntimeError: If it cannot be fetched or stored.
    """
    from huggingface_hub import hf_hub_download  # a slow import

    try:
        hf_hub_download(
            repo,
            file,
            revision=revision,
            local_dir=folder,
            endpoint=os.environ.get("HF_ENDPOINT"),
            etag_timeout=TIMEOUT,
        )
    except Exception as error:  # its HTTP client's exceptions depend on its version
        problem = _problem(f"{file} of {repo}", revision, error, instead=instead)
        raise LlmRuntimeError(problem) from error


def _problem(what: str, revision: str, error: Exception, *, instead: str = "") -> str:
    """Return the message of an error while `what` was fetched, and the fix, or `instead`."""
    # By name: the module of these classes depends on the library's version.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if is_disk_error(error):
        return f"{what}: cannot be stored: {reason(error)}"
    if "GatedRepoError" in kinds:
        return f"{what}: the hub requires a login; log in with huggingface_hub's command"
    # LocalEntryNotFoundError is an EntryNotFoundError, but means that no hub answered.
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


def _has_hash(path: Path, remote: Remote) -> bool:
    if remote.sha256 is not None:
        return sha256_of(path) == remote.sha256
    data = path.read_bytes()
    header = f"blob {len(data)}\0".encode()
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest() == remote.git_hash
