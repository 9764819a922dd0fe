"""Tests of `refllm.models.pull.hub` against a server on loopback that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.models.find import list_models
from refllm.models.pull import pull
from refllm.models.pull.hub import pull_repository
from tests.support.interrupted import killed_at, needs_kill
from tests.support.model_site import REVISION, Site, serve, sha256

REPO = "tests/small"
FOLDER = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "config_sentence_transformers.json": b"{}",
    "1_Pooling/config.json": b"{}",
    "2_Dense/config.json": b"{}",
    "2_Dense/model.safetensors": b"weights",
    "2_Dense/pytorch_model.bin": b"the same again",
    "README.md": b"not needed",
    "onnx/model.onnx": b"not needed either",
    "pytorch_model.bin": b"nor this",
}
GGUFS = {"small.Q4_0.gguf": b"GGUF" * 5000, "small.Q8_0.gguf": b"GGUF" * 9000}
LARGE = 10_000  # bytes, from which on the test's hub keeps a file in LFS


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serve() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        yield site


def publish(site: Site, files: dict[str, bytes], *, repo: str = REPO) -> None:
    """Put the files into a repository, described as the hub describes them."""
    for name, data in files.items():
        site.files[f"/{repo}/resolve/{REVISION}/{name}"] = data
    siblings = [described(name, data) for name, data in files.items()]
    info = {"id": repo, "sha": REVISION, "siblings": siblings}
    site.files[f"/api/models/{repo}"] = json.dumps(info).encode()


def described(name: str, data: bytes) -> dict[str, object]:
    blob = f"blob {len(data)}\0".encode() + data
    git_hash = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
    large = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
    entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git_hash}
    return {**entry, "lfs": large} if len(data) >= LARGE else entry


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_is_pulled_with_only_the_files_of_a_model(site: Site, tmp_path: Path) -> None:
    publish(site, FOLDER)
    folder = pull_repository(REPO, root=tmp_path)
    assert folder == tmp_path / "small"
    not_needed = ("README.md", "onnx/model.onnx", "pytorch_model.bin", "2_Dense/pytorch_model.bin")
    needed = [name for name in FOLDER if name not in not_needed]
    assert content(folder) == {name: FOLDER[name] for name in needed}


def test_one_of_several_gguf_files_is_pulled_by_its_name(site: Site, tmp_path: Path) -> None:
    publish(site, GGUFS)
    path = pull_repository(f"{REPO}:small.Q8_0.gguf", root=tmp_path)
    assert path == tmp_path / "small.Q8_0.gguf"
    assert path.read_bytes() == GGUFS["small.Q8_0.gguf"]
    assert [model.name for model in list_models([tmp_path])] == ["small.Q8_0"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", ["", "Q8_0/"])
@pytest.mark.parametrize("reference", [f"{REPO}:{{}}big-00001-of-00002.gguf", REPO])
def test_all_parts_of_a_split_model_are_pulled(
    folder: str, reference: str, site: Site, tmp_path: Path
) -> None:
    parts = {f"big-0000{i}-of-00002.gguf": b"GGUF" * (5000 + i) for i in (1, 2)}
    publish(site, {f"{folder}{name}": data for name, data in parts.items()})
    path = pull_repository(reference.format(folder), root=tmp_path)
    assert path == tmp_path / ("small" if reference == REPO else "big")
    assert content(path) == parts


def test_the_modules_of_a_sentence_model_are_pulled(site: Site, tmp_path: Path) -> None:
    needed = {
        "generation_config.json": b"{}",
        "config_sentence_transformers.json": b"{}",
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": b"dense",
        "additional_chat_templates/tools.jinja": b"",
    }
    left = {"2_Dense/pytorch_model.bin": b"", "onnx/config.json": b"{}"}
    publish(site, FOLDER | needed | left)
    pulled = content(pull_repository(REPO, root=tmp_path))
    assert needed.items() <= pulled.items()
    assert not left.keys() & pulled.keys()


def test_the_only_gguf_file_of_a_repository_needs_no_name(site: Site, tmp_path: Path) -> None:
    publish(site, {"README.md": b"", "only.gguf": b"GGUF"})
    assert pull_repository(REPO, root=tmp_path) == tmp_path / "small.gguf"


def test_a_known_name_is_what_the_model_is_called(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "refllm.models.pull.KNOWN_REPOSITORIES", {"tinyllama-chat": f"{REPO}:small.Q4_0.gguf"}
    )
    publish(site, GGUFS)
    assert pull("tinyllama-chat", root=tmp_path) == tmp_path / "tinyllama-chat.gguf"


def test_an_existing_model_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    publish(site, GGUFS)
    reference = f"{REPO}:small.Q4_0.gguf"
    first = pull(reference, root=tmp_path)
    site.status = 503
    assert pull(reference, root=tmp_path) == first


def test_an_interrupted_pull_is_no_model_and_the_next_one_completes_it(
    site: Site, tmp_path: Path
) -> None:
    publish(site, FOLDER)
    weights = site.files.pop(f"/{REPO}/resolve/{REVISION}/model.safetensors")
    with pytest.raises(LlmRuntimeError, match=r"model\.safetensors of tests/small"):
        pull_repository(REPO, root=tmp_path)
    assert list_models([tmp_path]) == []
    site.files[f"/{REPO}/resolve/{REVISION}/model.safetensors"] = weights
    assert pull_repository(REPO, root=tmp_path) == tmp_path / "small"


@pytest.mark.parametrize("name", ["small.Q4_0.gguf", "config.json"])
def test_a_file_without_the_hub_s_hash_is_deleted(name: str, site: Site, tmp_path: Path) -> None:
    publish(site, {**FOLDER, **GGUFS})
    damaged = bytearray(site.files[f"/{REPO}/resolve/{REVISION}/{name}"])
    damaged[3] ^= 1
    site.files[f"/{REPO}/resolve/{REVISION}/{name}"] = bytes(damaged)
    reference = f"{REPO}:{name}" if name.endswith(".gguf") else REPO
    with pytest.raises(LlmRuntimeError, match=f"{name} of {REPO}: is not the file"):
        pull_repository(reference, root=tmp_path)
    assert list_models([tmp_path]) == []
    assert not list(tmp_path.rglob(name))


@pytest.mark.parametrize(
    ("files", "reference", "expected"),
    [
        (GGUFS, REPO, r"choose one with owner/repo:file of small\.Q4_0\.gguf, small\.Q8_0\.gguf"),
        (GGUFS, f"{REPO}:other.gguf", r"has no other\.gguf; choose one"),
        ({"pytorch_model.bin": b""}, REPO, r"it has no \.gguf file"),
        (GGUFS, f"{REPO}:config.json", r"only a \.gguf file is a model by itself"),
        (GGUFS, "a/b/c", "write owner/repo"),
        (GGUFS, "/b", "write owner/repo"),
        (GGUFS, "a/..", "write owner/repo"),
        (GGUFS, "../a", "write owner/repo"),
    ],
)
def test_a_malformed_reference_is_invalid_input_with_the_right_form(
    files: dict[str, bytes], reference: str, expected: str, site: Site, tmp_path: Path
) -> None:
    publish(site, files)
    with pytest.raises(InvalidInput, match=expected):
        pull_repository(reference, root=tmp_path)


def test_a_repository_that_is_not_there_is_named(site: Site, tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match="tests/absent is not on the hub that was asked"):
        pull_repository("tests/absent", root=tmp_path)


def test_a_repository_is_on_the_hub_alone(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="on the hub only"):
        pull(REPO, source="pypi", root=tmp_path)


@needs_kill
@pytest.mark.parametrize(
    ("reference", "point", "call"),
    [
        (REPO, "refllm.models.pull.hub._has_hash", 2),
        (REPO, "pathlib.Path.replace", 3),
        (REPO, "refllm.models.pull.store.sync", 1),
        (REPO, "shutil.rmtree", 2),
        (f"{REPO}:small.Q4_0.gguf", "refllm.models.pull.store.sync", 1),
        (f"{REPO}:small.Q4_0.gguf", "shutil.rmtree", 1),
    ],
)
def test_after_a_kill_the_next_pull_completes_the_model(
    reference: str, point: str, call: int, site: Site, tmp_path: Path
) -> None:
    publish(site, FOLDER | GGUFS)
    right = pull_repository(reference, root=tmp_path / "right")
    root = tmp_path / "root"
    killed_at(point, _pull_in_a_process, reference, site.url, root, call=call)
    models = list_models([root])
    assert models == [] or [all_of(model.path) for model in models] == [all_of(right)]
    pulled = pull_repository(reference, root=root)
    assert all_of(pulled) == all_of(right)
    assert list(root.iterdir()) == [pulled]


def _pull_in_a_process(reference: str, url: str, root: Path) -> None:
    os.environ["HF_ENDPOINT"] = url
    pull_repository(reference, root=root)


def all_of(path: Path) -> dict[str, bytes]:
    return content(path) if path.is_dir() else {path.name: path.read_bytes()}


def test_a_second_pull_at_the_same_time_is_refused(site: Site, tmp_path: Path) -> None:
    publish(site, GGUFS)
    with (
        FileLock(tmp_path / ".partial-small.Q4_0.lock"),
        pytest.raises(LlmRuntimeError, match="another pull of it is under way"),
    ):
        pull_repository(f"{REPO}:small.Q4_0.gguf", root=tmp_path)
