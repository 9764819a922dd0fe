"""The numerics `int8` in whole models: chosen by name, and under the same invariances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import refllm
from refllm.kernels.packed.panels import Panels
from refllm.llama import Segment
from refllm.models.load import LlamaModel, load_path
from tests.support.model_files import tiny_llama_gguf
from tests.support.networks import same_bits

PROMPT = [1, 20, 300, 259, 7, 33, 301, 17]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    path = tiny_llama_gguf(tmp_path_factory.mktemp("int8") / "tiny.gguf", type="Q8_0")
    model = load_path(path, numerics="int8")
    assert isinstance(model, LlamaModel)
    return model


def test_only_quantized_matrices_are_packed_for_integers(llama: LlamaModel, tmp_path: Path) -> None:
    assert not isinstance(llama.network.layers[0].attn_output, Panels)
    floats = load_path(tiny_llama_gguf(tmp_path / "f16.gguf", type="F16"), numerics="int8")
    assert isinstance(floats, LlamaModel)
    assert isinstance(floats.network.layers[0].attn_output, Panels)


def test_the_numerics_differ(llama: LlamaModel) -> None:
    exact = refllm.load(llama.path)
    assert isinstance(exact, LlamaModel)
    assert not same_bits(exact.forward(PROMPT), llama.forward(PROMPT))
    np.testing.assert_allclose(exact.forward(PROMPT), llama.forward(PROMPT), atol=0.5)


@pytest.mark.parametrize("piece", [1, 3])
def test_a_prompt_in_pieces_gives_the_bits_of_the_whole(piece: int, llama: LlamaModel) -> None:
    cache = llama.new_cache()
    parts = [llama.forward(PROMPT[i : i + piece], cache) for i in range(0, len(PROMPT), piece)]
    assert same_bits(np.concatenate(parts), llama.forward(PROMPT))


def test_a_sequence_is_the_same_alone_and_in_company(llama: LlamaModel) -> None:
    segments = [Segment(ids, llama.new_cache()) for ids in (PROMPT, [5, 6], PROMPT[::-1])]
    together = llama.network.forward(segments)
    assert same_bits(together[0], llama.forward(PROMPT))
    assert same_bits(together[2], llama.forward(PROMPT[::-1]))


def test_an_engine_takes_its_numerics_by_name(llama: LlamaModel) -> None:
    params = refllm.InferencingParams(temperature=0.0, max_tokens=5)
    result = refllm.LocalEngine(numerics="int8").infer(llama.path, "the", params)
    assert result.usage.generated_token_count >= 1
