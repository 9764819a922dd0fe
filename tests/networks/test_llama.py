"""The llama against the oracle, and everything that must not change a bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm import oracle
from refllm.api import InvalidInput, LlmRuntimeError
from refllm.checkpoints.open import open_weights
from refllm.jit.compile import use_threads
from refllm.llama import KVCache, Llama, Segment
from refllm.quant import Tensor
from tests.support.model_files import tiny_llama_folder, tiny_llama_gguf
from tests.support.networks import arrays_of, open_llama, same_bits

Floats = NDArray[np.float32]
PROMPT = [1, 403, 407, 261, 378, 5, 6, 7, 300, 301, 302, 17, 2, 1, 450, 451, 9, 9, 9, 410]
SHORT = [1, 20, 300, 259, 7]


def logits(llama: Llama, token_ids: list[int], cache: KVCache | None = None) -> Floats:
    return llama.forward([Segment(token_ids, cache or llama.new_cache())])[0]


@pytest.fixture(scope="module")
def stories_path(data_dir: Path) -> Path:
    return data_dir / "stories260K" / "stories260K.gguf"


@pytest.fixture(scope="module")
def stories(stories_path: Path) -> Llama:
    return open_llama(stories_path)


@pytest.fixture(scope="module")
def whole(stories: Llama) -> Floats:
    """The logits of PROMPT in one piece."""
    return logits(stories, PROMPT)


def test_a_trained_model_equals_the_oracle(
    stories: Llama, stories_path: Path, whole: Floats
) -> None:
    assert same_bits(whole, oracle.llama(stories.config, arrays_of(stories_path), PROMPT))


VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "biases": {"biases": True},
    "tied": {"tied": True},
    "as many key/value heads as heads": {"n_kv_heads": 4},
    "one key/value head": {"n_kv_heads": 1},
    "a head wider than its share": {"head_dim": 16, "metadata": {"llama.rope.dimension_count": 16}},
    "RoPE on half a head": {"metadata": {"llama.rope.dimension_count": 4}},
    "linear scaling": {
        "metadata": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    },
    "another base": {"metadata": {"llama.rope.freq_base": 500000.0}},
    "frequency factors": {
        "tensors": {"rope_freqs.weight": np.array([1.0, 1.5, 4.0, 8.0], np.float32)}
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_the_oracle(variant: str, tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", **VARIANTS[variant])  # type: ignore[arg-type]
    llama = open_llama(path)
    assert same_bits(logits(llama, SHORT), oracle.llama(llama.config, arrays_of(path), SHORT))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "RoPE" not in name][3:])
def test_variants_of_the_position_encoding_change_the_logits(variant: str, tmp_path: Path) -> None:
    plain = open_llama(tiny_llama_gguf(tmp_path / "plain.gguf"))
    other = open_llama(tiny_llama_gguf(tmp_path / "other.gguf", **VARIANTS[variant]))  # type: ignore[arg-type]
    assert not same_bits(logits(plain, SHORT), logits(other, SHORT))


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_quantized_file_equals_its_decoded_numbers(type_name: str, tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", type=type_name)
    llama = open_llama(path)
    assert same_bits(logits(llama, SHORT), oracle.llama(llama.config, arrays_of(path), SHORT))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_and_a_gguf_of_the_same_weights_give_the_same_bits(
    shards: int, tmp_path: Path
) -> None:
    folder = open_llama(tiny_llama_folder(tmp_path / "folder", shards=shards))
    file = open_llama(tiny_llama_gguf(tmp_path / "tiny.gguf"))
    assert same_bits(logits(folder, SHORT), logits(file, SHORT))


def test_llama_3_scaling_is_the_same_from_config_and_from_frequency_factors(
    tmp_path: Path,
) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = open_llama(tiny_llama_folder(tmp_path / "folder", config={"rope_scaling": scaling}))
    factors = folder.config.rope_factors
    assert factors is not None
    assert len(set(factors)) > 1
    tensors = {"rope_freqs.weight": np.array(factors, np.float32)}
    file = open_llama(tiny_llama_gguf(tmp_path / "tiny.gguf", tensors=tensors))
    assert same_bits(logits(folder, SHORT), logits(file, SHORT))


def test_frequency_factors_are_counted_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"rope_freqs.weight": np.ones(5, np.float32)}
    path = tiny_llama_gguf(tmp_path / "tiny.gguf", tensors=tensors)

    def decoded(_tensor: Tensor) -> Floats:
        raise AssertionError

    monkeypatch.setattr(Tensor, "array", decoded)
    with pytest.raises(LlmRuntimeError, match=r"rope_freqs\.weight must hold 4 positive numbers"):
        open_llama(path)


@pytest.mark.parametrize("piece", [1, 7, 19])
def test_a_prompt_in_pieces_gives_the_bits_of_the_whole(
    piece: int, stories: Llama, whole: Floats
) -> None:
    cache = stories.new_cache()
    pieces = [PROMPT[start : start + piece] for start in range(0, len(PROMPT), piece)]
    assert same_bits(np.concatenate([logits(stories, part, cache) for part in pieces]), whole)


def test_recomputing_without_a_cache_gives_the_same_bits(stories: Llama, whole: Floats) -> None:
    last = [logits(stories, PROMPT[:n])[-1] for n in range(1, len(PROMPT) + 1)]
    assert same_bits(np.stack(last), whole)


@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_any_number_of_threads_gives_the_same_bits(
    n_threads: int, stories: Llama, whole: Floats
) -> None:
    use_threads(n_threads)
    assert same_bits(logits(stories, PROMPT), whole)


def test_a_sequence_is_the_same_alone_and_in_company(stories: Llama, whole: Floats) -> None:
    first, second, third = (stories.new_cache() for _ in range(3))
    logits(stories, PROMPT[:5], second)
    got = stories.forward(
        [Segment(PROMPT, first), Segment(PROMPT[5:12], second), Segment([77], third)]
    )
    assert same_bits(got[0], whole)
    assert same_bits(got[1], whole[5:12])
    assert same_bits(got[2], logits(stories, [77]))
    assert (first.length, second.length, third.length) == (len(PROMPT), 12, 1)


def test_a_cache_cut_back_continues_as_if_the_rest_had_never_been(
    stories: Llama, whole: Floats
) -> None:
    cache = stories.new_cache()
    logits(stories, [*PROMPT[:8], 99, 100, 101], cache)
    cache.truncate(8)
    assert same_bits(logits(stories, PROMPT[8:], cache), whole[8:])


def test_the_tap_sees_llama_cpps_names_in_order_and_changes_nothing(
    stories: Llama, whole: Floats
) -> None:
    seen: list[tuple[str, Floats]] = []
    tapped = stories.forward(
        [Segment(PROMPT, stories.new_cache())], tap=lambda name, array: seen.append((name, array))
    )
    assert same_bits(tapped[0], whole)
    layer = ["attn_norm", *(["Qcur", "Kcur", "Vcur", "Qcur", "Kcur"]), "kq_soft_max", "kqv_out"]
    layer += ["attn_out", "ffn_inp", "ffn_norm", "ffn_gate", "ffn_up", "ffn_swiglu", "ffn_out"]
    names = [f"{name}-{i}" for i in range(5) for name in [*layer, "l_out"]]
    assert [name for name, _ in seen] == ["inp_embd", *names, "result_norm", "result_output"]
    values = dict(seen)
    assert same_bits(values["result_output"], whole)
    assert values["kq_soft_max-0"].shape == (8, len(PROMPT), len(PROMPT))  # [H, T, S]
    assert same_bits(values["l_out-2"], values["ffn_inp-2"] + values["ffn_out-2"])


def with_nan(name: str, path: Path) -> dict[str, Floats]:
    tensor = open_weights(path).tensors[name].array().copy()
    tensor[-1] = np.nan
    return {name: tensor}


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("blk.1.ffn_down.weight", "layer 1, value ffn_out"),
        ("blk.0.attn_k.weight", "layer 0, value Kcur"),
        ("blk.1.attn_norm.weight", "layer 1, value attn_norm"),
        ("output_norm.weight", "value result_norm"),
        ("output.weight", "output layer"),
    ],
)
def test_nan_weights_are_an_error_that_names_the_layer(
    tensor: str, named: str, tmp_path: Path
) -> None:
    good = tiny_llama_gguf(tmp_path / "good.gguf")
    bad = open_llama(tiny_llama_gguf(tmp_path / "bad.gguf", tensors=with_nan(tensor, good)))
    with pytest.raises(LlmRuntimeError, match=named):
        logits(bad, SHORT)


def test_weights_that_overflow_are_an_error(tmp_path: Path) -> None:
    huge = np.full((32, 64), 3e38, np.float32)
    path = tiny_llama_gguf(tmp_path / "bad.gguf", tensors={"blk.0.ffn_down.weight": huge})
    with pytest.raises(LlmRuntimeError, match="layer 0, value ffn_out"):
        logits(open_llama(path), SHORT)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([], "at least one token"),
        ([1, 512], "token id 512 is outside the vocabulary of 512"),
        ([-1], "token id -1"),
        ([1] * 2049, "2049 tokens do not fit the model's context of 2048"),
    ],
)
def test_tokens_that_cannot_be_computed_are_refused_and_the_cache_stays_as_it_was(
    token_ids: list[int], message: str, stories: Llama, whole: Floats
) -> None:
    cache = stories.new_cache()
    logits(stories, PROMPT[:3], cache)
    cache_or_new = stories.new_cache() if len(token_ids) > 2000 else cache
    with pytest.raises(InvalidInput, match=message):
        logits(stories, token_ids, cache_or_new)
    assert same_bits(logits(stories, PROMPT[3:], cache), whole[3:])


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.attn_v.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "bad.gguf", tensors={name: None})
    with pytest.raises(LlmRuntimeError, match=rf"bad\.gguf.*{name} is missing"):
        open_llama(path)


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    wrong = {"blk.0.ffn_up.weight": np.zeros((63, 32), np.float32)}
    path = tiny_llama_gguf(tmp_path / "bad.gguf", tensors=wrong)
    with pytest.raises(LlmRuntimeError, match=r"blk\.0\.ffn_up\.weight.*\[63, 32\].*\[64, 32\]"):
        open_llama(path)
