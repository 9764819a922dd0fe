"""The models that the golden suite asks for: made once, cached, and made again if damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.checkpoints.open import open_weights
from refllm.conform import models
from refllm.conform.models import MODEL_NAMES, is_shipped_or_made, model_sha256s, suite_model
from refllm.ggml.encode import QUANTIZABLE
from refllm.models.bundled import SHA256, is_bundled
from refllm.models.find import find_model


def made(name: str, folder: Path) -> Path:
    path = suite_model(name, folder)
    assert path is not None
    return path


@pytest.mark.parametrize("name", ["tiny-chat", "tiny-embed"])
def test_a_model_that_ships_is_the_file_that_ships(name: str, tmp_path: Path) -> None:
    assert is_bundled(made(name, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_suite_has_a_model_in_every_type_that_can_be_written() -> None:
    types = {name.removeprefix("tiny-chat-") for name in MODEL_NAMES if "tiny-chat-" in name}
    assert types | {"Q8_0"} == set(QUANTIZABLE)


@pytest.mark.parametrize("type_name", ["F16", "Q4_0"])
def test_a_made_model_is_tiny_chat_in_another_type(type_name: str, tmp_path: Path) -> None:
    tensors = open_weights(made(f"tiny-chat-{type_name}", tmp_path)).tensors
    original = open_weights(made("tiny-chat", tmp_path)).tensors
    assert tensors.keys() == original.keys()
    for name, tensor in tensors.items():
        assert tensor.format.name == (type_name if len(tensor.shape) == 2 else "F32")
        largest = np.abs(original[name].array()).max()
        assert np.abs(tensor.array() - original[name].array()).max() <= largest / 7


def test_a_made_model_is_kept(tmp_path: Path) -> None:
    path = made("tiny-chat-F16", tmp_path)
    before = path.stat()
    assert made("tiny-chat-F16", tmp_path) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_a_made_model_is_the_same_in_another_folder(tmp_path: Path) -> None:
    first, second = (made("tiny-chat-Q4_0", tmp_path / folder) for folder in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_made_models_folder_is_a_root(tmp_path: Path) -> None:
    path = made("tiny-chat-Q4_0", tmp_path)
    assert find_model("tiny-chat-Q4_0", [path.parent]) == path


@pytest.mark.parametrize("damage", [b"", b"GGUF", None])
def test_a_damaged_model_is_made_anew(damage: bytes | None, tmp_path: Path) -> None:
    path = made("tiny-chat-Q4_0", tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if damage is None else damage)
    assert made("tiny-chat-Q4_0", tmp_path).read_bytes() == whole


def test_no_unfinished_file_is_left(tmp_path: Path) -> None:
    path = made("tiny-chat-Q4_0", tmp_path)
    left = sorted(file.name for file in path.parent.iterdir())
    assert left == ["tiny-chat-Q4_0.gguf", "tiny-chat-Q4_0.gguf.sha256"]


def test_another_quantizer_makes_its_models_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made("tiny-chat-Q4_0", tmp_path)
    monkeypatch.setattr(models, "RECIPE", ("export.py",))
    assert made("tiny-chat-Q4_0", tmp_path).parent != before.parent


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LlmRuntimeError, match="file"):
        suite_model("tiny-chat-Q4_0", tmp_path / "file")


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "stories260K"])
def test_a_model_that_refllm_cannot_make_may_be_absent(name: str, tmp_path: Path) -> None:
    assert suite_model(name, tmp_path, roots=[tmp_path]) is None
    (tmp_path / f"{name}.gguf").write_bytes(b"")
    assert suite_model(name, tmp_path, roots=[tmp_path]) == tmp_path / f"{name}.gguf"


def test_a_name_that_the_suite_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="tiny-chat-Q9_9"):
        suite_model("tiny-chat-Q9_9", tmp_path)


def test_every_model_that_ships_or_is_made_has_a_hash(tmp_path: Path) -> None:
    sha256s = model_sha256s(tmp_path)
    assert list(sha256s) == [name for name in MODEL_NAMES if is_shipped_or_made(name)]
    assert len(set(sha256s.values())) == len(sha256s)
    assert {name: sha256s[name] for name in SHA256} == SHA256
