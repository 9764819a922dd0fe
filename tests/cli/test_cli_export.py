"""`refllm models export` and `refllm models quantize`."""

from __future__ import annotations

from pathlib import Path

import pytest

from refllm.checkpoints.open import open_weights
from tests.support.commands import answer, refllm
from tests.support.model_files import tiny_bert_folder, tiny_llama_gguf


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_llama_gguf(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("layout", "place"),
    [("hf", "tiny"), ("gguf", "tiny.gguf"), ("spin", ".spin/ai-models/llama/tiny")],
)
def test_an_export_prints_its_path(llama: Path, layout: str, place: str, tmp_path: Path) -> None:
    to = tmp_path / "out"
    printed = answer("models", "export", llama, "--to", to, "--format", layout)
    assert printed == f"{to / place}\n"
    assert open_weights(to / place).architecture == "llama"


def test_a_model_is_found_by_its_name_and_exported_under_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REFLLM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tiny_bert_folder(tmp_path / "ai-models" / "embed")
    answer("models", "export", "embed", "--to", "out", "--format", "gguf", "--type", "F16")
    assert (
        open_weights(Path("out", "embed.gguf")).tensors["blk.0.attn_q.weight"].format.name == "F16"
    )


def test_a_folder_is_exported_under_its_own_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tiny_bert_folder(tmp_path / "embed"))
    assert answer("models", "export", ".", "--to", "..", "--format", "gguf") == "../embed.gguf\n"


def test_quantizing_prints_types_and_sizes_before_and_after(llama: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    n_before, n_after = (
        sum(tensor.data.nbytes for tensor in open_weights(path).tensors.values())
        for path in (llama, tiny_llama_gguf(tmp_path / "expected.gguf", type="Q8_0"))
    )
    printed = answer("models", "quantize", llama, small, "--type", "Q8_0")
    assert printed == f"{small}: F32, {n_before:,} bytes → Q8_0, {n_after:,} bytes\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("export", "tiny.gguf", "--to", ".", "--format", "gguf"), "tiny.gguf exists already"),
        (("export", "tiny.gguf", "--to", ".", "--format", "zip"), "spin, hf, gguf"),
        (("export", "tiny.gguf", "--to", ".", "--format", "hf", "--type", "Q8_0"), "safetensors"),
        (("quantize", "tiny.gguf", "tiny.gguf", "--type", "Q8_0"), "tiny.gguf exists already"),
        (("quantize", "tiny.gguf", "small.gguf", "--type", "Q3_K"), "got 'Q3_K'"),
    ],
)
def test_a_refused_export_is_an_error_of_one_line(
    llama: Path, arguments: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama.parent)
    done = refllm("models", *arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("refllm: invalid-input: ")
    assert expected in done.stderr
