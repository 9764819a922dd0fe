"""`refllm models export` and `refllm models quantize`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import refllm as library
from refllm.checkpoints.open import open_weights
from tests.support.commands import answer, refllm
from tests.support.model_files import tiny_bert_folder, tiny_llama_gguf

OPTIONS = ((), ("--numerics", "int8"))


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


@pytest.mark.parametrize(("type_name", "is_warned"), [("Q4_K", True), ("Q8_0", False)])
def test_q4_k_comes_with_a_word_on_mlx(
    llama: Path, type_name: str, is_warned: bool, tmp_path: Path
) -> None:
    arguments = ("models", "export", llama, "--to", tmp_path / "out", "--format", "gguf")
    result = refllm(*arguments, "--type", type_name)
    assert result.exit_code == 0
    assert ("mlx 0.32.4 reads half of the weights of Q4_K wrongly" in result.stderr) == is_warned


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
    printed = answer("models", "quantize", llama, "--to", small, "--type", "Q8_0")
    assert printed == f"{small}: F32, {n_before:,} bytes → Q8_0, {n_after:,} bytes\n"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty REFLLM_HOME, with the current folder beside it."""
    monkeypatch.setenv("REFLLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_quantized_model_is_found_by_its_name(home: Path) -> None:
    tiny_bert_folder(home / "ai-models" / "embed")
    printed = answer("models", "quantize", "embed", "--type", "Q8_0")
    assert printed.startswith(f"{home / 'ai-models' / 'bert' / 'embed-Q8_0.gguf'}: F32, ")
    assert "embed-Q8_0" in answer("models", "list")
    exact, int8 = (answer("embed", "embed-Q8_0", "a cat", *option) for option in OPTIONS)
    a, b = (np.fromstring(line, sep=" ") for line in (exact, int8))
    np.testing.assert_allclose(a, b, atol=0.02)
    assert exact != int8


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("file", "type_name", "made"),
    [
        ("a-F32.gguf", "Q8_0", "a-Q8_0"),
        ("a-Q8_0.gguf", "Q4_0", "a-Q4_0"),
        ("a-b.gguf", "F16", "a-b-F16"),
    ],
)
def test_the_name_of_a_quantized_model_ends_with_its_type(
    file: str, type_name: str, made: str
) -> None:
    tiny_llama_gguf(Path(file))
    printed = answer("models", "quantize", file, "--type", type_name)
    assert Path(printed.split(": ")[0]).name == f"{made}.gguf"
    assert library.load(made).config.n_layers == library.load(Path(file)).config.n_layers


def test_force_replaces_an_existing_file_and_nothing_else_does(llama: Path) -> None:
    old = llama.read_bytes()
    arguments = ("models", "quantize", llama, "--to", llama, "--type", "Q8_0")
    assert refllm(*map(str, arguments)).exit_code == 1
    assert llama.read_bytes() == old
    answer(*arguments, "--force")
    assert open_weights(llama).tensors["output.weight"].format.name == "Q8_0"


def test_quantizing_again_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny_llama_gguf(tmp_path / "tiny.gguf", type="Q8_0")
    answer("models", "quantize", source, "--to", tmp_path / "same.gguf", "--type", "Q8_0")
    answer("models", "quantize", source, "--to", tmp_path / "wide.gguf", "--type", "F16")
    assert caplog.messages == []
    answer("models", "quantize", source, "--to", tmp_path / "small.gguf", "--type", "Q4_0")
    [message] = caplog.messages
    assert "matrices are quantized again, from Q8_0 to Q4_0, and the errors" in message


def test_matrices_that_cannot_get_the_type_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tiny_llama_gguf(tmp_path / "tiny.gguf")  # its rows have 64 numbers and more
    answer("models", "quantize", source, "--to", tmp_path / "out.gguf", "--type", "Q4_K")
    tensors = open_weights(tmp_path / "out.gguf").tensors.values()
    types = [each.format.name for each in tensors if len(each.shape) > 1]
    assert types.count("Q8_0") > 0
    [message] = caplog.messages
    assert f"{types.count('Q8_0')} of {len(types)} matrices become Q8_0" in message
    assert message.endswith("no multiple of the 256 numbers of a block of Q4_K")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("export", "tiny.gguf", "--to", ".", "--format", "gguf"), "tiny.gguf exists already"),
        (("export", "tiny.gguf", "--to", ".", "--format", "zip"), "spin, hf, gguf"),
        (("export", "tiny.gguf", "--to", ".", "--format", "hf", "--type", "Q8_0"), "safetensors"),
        (("quantize", "tiny.gguf", "--to", "tiny.gguf", "--type", "Q8_0"), "--force replaces"),
        (("quantize", "tiny.gguf", "--to", "small.gguf", "--type", "Q3_K"), "got 'Q3_K'"),
        (("quantize", "tiny.gguf", "--type", "Q3_K"), "F32, F16, BF16, Q8_0, Q4_0, Q4_K, got"),
        (("quantize", "tiny.gguf", "--to", "small.bin", "--type", "Q8_0"), "ends in .gguf"),
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
