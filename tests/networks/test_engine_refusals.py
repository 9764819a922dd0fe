"""What the engine refuses: every error of the contract (SPEC.md, section 4), and what it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refllm.api import (
    InferencingParams,
    InvalidInput,
    LlmRuntimeError,
    ModelNotSupported,
)
from refllm.engine import LocalEngine
from tests.support.engines import GREEDY
from tests.support.model_files import (
    tiny_bert_gguf,
    tiny_llama_folder,
    tiny_llama_gguf,
)


def test_an_empty_prompt_without_bos_is_refused(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.add_bos_token": False})
    with pytest.raises(InvalidInput, match="empty prompt"):
        LocalEngine().infer(path, "")


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(
    tiny_engine: LocalEngine,
) -> None:
    with pytest.raises(InvalidInput, match=r"the prompt has 20\d tokens.*holds 128"):
        tiny_engine.infer("tiny", "q" * 200)


def test_a_prompt_of_a_million_characters_is_refused_at_once(tiny_engine: LocalEngine) -> None:
    with pytest.raises(InvalidInput, match=r"at least \d+ tokens"):
        tiny_engine.infer("tiny", "x" * 1_000_000)


def test_a_streams_request_is_checked_before_its_first_chunk(tiny_engine: LocalEngine) -> None:
    with pytest.raises(InvalidInput, match="temperature"):
        tiny_engine.stream("tiny", "the", InferencingParams(temperature=float("nan")))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e39}, "temperature"),
        ({"top_p": float("inf")}, "top_p"),
        ({"repeat_penalty": 0.0}, "repeat_penalty"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**32}, "max_tokens"),
        ({"top_k": 1.5}, "top_k"),
        ({"repeat_penalty_last_n_token_count": True}, "repeat_penalty_last_n_token_count"),
        ({"top_p": "0.9"}, "top_p"),
    ],
)
def test_an_unusable_parameter_is_named(
    change: dict[str, object], named: str, tiny_engine: LocalEngine
) -> None:
    with pytest.raises(InvalidInput, match=named):
        tiny_engine.infer("tiny", "the", replace(GREEDY, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("lone \ud800 surrogate", "lone surrogate, U.D800, at character index 5"),
        (b"bytes", "the prompt must be text, got bytes"),
        (None, "the prompt must be text, got NoneType"),
    ],
)
def test_a_prompt_that_is_not_text_is_refused(
    prompt: str, message: str, tiny_engine: LocalEngine
) -> None:
    with pytest.raises(InvalidInput, match=message):
        tiny_engine.infer("tiny", prompt)


@pytest.mark.parametrize("texts", ["a", 3, None, [3], {"a"}])
def test_texts_that_are_not_a_list_of_texts_are_refused(
    texts: Any, tiny_engine: LocalEngine
) -> None:
    with pytest.raises(InvalidInput, match="texts must be a list of texts; put a single one in"):
        tiny_engine.generate_embeddings("tiny-bert", texts)


def test_a_model_that_is_not_allowed_is_refused_in_the_contracts_words(tiny_models: Path) -> None:
    engine = LocalEngine(roots=[tiny_models], allowed_models=["embedder"])
    with pytest.raises(
        InvalidInput,
        match=r"The component does not have access to use 'tiny'\. To give the component access, "
        r"add 'tiny' to the 'ai_models' key for the component in your spin\.toml manifest",
    ):
        engine.infer("tiny", "the")
    assert len(engine.generate_embeddings("embedder", ["a"]).embeddings) == 1


def test_an_absent_model_names_the_folders_looked_in(
    tiny_engine: LocalEngine, tiny_models: Path
) -> None:
    with pytest.raises(InvalidInput, match="no model directory found") as caught:
        tiny_engine.infer("absent", "the")
    assert str(tiny_models) in str(caught.value)


def test_an_absent_embedding_model_is_not_supported(tiny_engine: LocalEngine) -> None:
    with pytest.raises(ModelNotSupported, match="absent"):
        tiny_engine.generate_embeddings("absent", ["a"])


@pytest.mark.parametrize("name", ["../tiny", "llama/tiny", ".hidden", "a\0b", "", "x" * 10_000_000])
def test_a_name_that_is_a_path_is_refused(name: str, tiny_engine: LocalEngine) -> None:
    for request in (tiny_engine.infer, tiny_engine.generate_embeddings):
        texts = "a" if request == tiny_engine.infer else ["a"]
        with pytest.raises(InvalidInput, match="is not a model's name") as caught:
            request(name, texts)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 1000


def test_the_wrong_kind_of_model_is_not_supported(tmp_path: Path, tiny_engine: LocalEngine) -> None:
    with pytest.raises(ModelNotSupported, match="generates text"):
        tiny_engine.generate_embeddings(tiny_llama_gguf(tmp_path / "llama.gguf"), ["a"])
    with pytest.raises(ModelNotSupported, match="embedding model"):
        tiny_engine.infer(tiny_bert_gguf(tmp_path / "bert.gguf"), "a")


def test_a_disabled_engine_refuses_every_model(tiny_models: Path) -> None:
    engine = LocalEngine(roots=[tiny_models], enabled=False)
    for model in ("tiny", tiny_models / "flat.gguf"):
        with pytest.raises(LlmRuntimeError, match="Local LLM operations are not supported"):
            engine.infer(model, "the")


@pytest.mark.parametrize(
    ("option", "value"),
    [("profile", "ollama"), ("numerics", "fast"), ("threads", 0), ("seed", -1), ("seed", 2**64)],
)
def test_an_unknown_option_is_named(option: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=option):
        LocalEngine(**{option: value})  # type: ignore[arg-type]


def test_a_damaged_file_is_a_runtime_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    folder = tiny_llama_folder(tmp_path / "llama" / "broken")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(LlmRuntimeError, match=r"model\.safetensors"):
        LocalEngine(roots=[tmp_path]).infer("broken", "the")


def test_an_output_matrix_with_more_rows_than_the_embedding_is_a_runtime_error(
    tmp_path: Path,
) -> None:
    tensors: dict[str, Any] = {"token_embd.weight": np.zeros((100, 32), np.float32)}
    path = tiny_llama_gguf(tmp_path / "m.gguf", tensors=tensors)
    shapes = r"output\.weight has the shape \[\d+, 32\], the hyperparameters ask for \[100, 32\]"
    with pytest.raises(LlmRuntimeError, match=shapes):
        LocalEngine().infer(path, "the")


def test_a_token_without_a_row_in_a_smaller_embedding_is_refused(tmp_path: Path) -> None:
    small = np.zeros((100, 32), np.float32)
    tensors: dict[str, Any] = {"token_embd.weight": small, "output.weight": small}
    path = tiny_llama_gguf(tmp_path / "m.gguf", tensors=tensors)
    with pytest.raises(InvalidInput, match="the model has embeddings of 100 tokens only"):
        LocalEngine().infer(path, "the")
