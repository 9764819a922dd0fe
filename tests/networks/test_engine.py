"""The engine generates: each case of the contract (SPEC.md, section 4), with real arithmetic."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import refllm
from refllm.api import (
    InferencingParams,
    InvalidInput,
)
from refllm.checkpoints.open import open_gguf
from refllm.engine import LocalEngine
from tests.support.engines import GREEDY, vectors
from tests.support.model_files import (
    tiny_llama_gguf,
    write_hf_llama_from_bin,
    write_tokenizer_model,
)


def test_the_text_is_only_what_was_generated(tiny_engine: LocalEngine) -> None:
    result = tiny_engine.infer("tiny", "the cat", GREEDY)
    assert not result.text.startswith("the cat")
    llama = tiny_engine.load("tiny")
    assert isinstance(llama, refllm.LlamaModel)
    # BOS, then greedy by hand: the largest logit, again and again.
    ids = llama.tokenizer.encode("the cat")
    n_prompt = len(ids)
    while len(ids) < n_prompt + 20 and ids[-1] not in llama.tokenizer.eos_ids:
        ids.append(int(llama.forward(ids)[-1].argmax()))
    assert result.text == llama.tokenizer.decode_continuation(ids[:n_prompt], ids[n_prompt:])
    assert result.usage.prompt_token_count == n_prompt
    assert result.usage.generated_token_count == len(ids) - n_prompt


def test_max_tokens_0_generates_nothing(tiny_engine: LocalEngine) -> None:
    result = tiny_engine.infer("tiny", "the", replace(GREEDY, max_tokens=0))
    assert (result.text, result.usage.generated_token_count) == ("", 0)
    assert result.usage.prompt_token_count > 0


def test_the_end_token_is_counted_and_not_shown(tmp_path: Path) -> None:
    # Without an output norm every logit is 0; greedy takes id 0, which is made the end token.
    path = tiny_llama_gguf(
        tmp_path / "m.gguf",
        tensors={"output_norm.weight": np.zeros(32, np.float32)},
        metadata={"tokenizer.ggml.eos_token_id": 0},
    )
    result = LocalEngine().infer(path, "the", GREEDY)
    assert (result.text, result.usage.generated_token_count) == ("", 1)


def test_an_empty_prompt_is_the_bos_alone(tiny_engine: LocalEngine) -> None:
    assert tiny_engine.infer("tiny", "", GREEDY).usage.prompt_token_count == 1


def test_a_full_context_ends_the_generation(tiny_engine: LocalEngine) -> None:
    result = tiny_engine.infer(
        "tiny", "q" * 120, InferencingParams(max_tokens=1000, temperature=2.0)
    )
    used = result.usage.prompt_token_count + result.usage.generated_token_count
    assert used <= 129, "the last token is drawn from the last position's logits"


def test_the_same_seed_gives_the_same_text_and_another_seed_another(tiny_models: Path) -> None:
    params = InferencingParams(temperature=1.5, max_tokens=30)
    texts = [
        LocalEngine(roots=[tiny_models], seed=seed).infer("tiny", "the", params)
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_an_earlier_request_changes_nothing(tiny_models: Path) -> None:
    engine = LocalEngine(roots=[tiny_models])
    first = engine.infer("tiny", "the")
    engine.infer("tiny", "something else")
    assert engine.infer("tiny", "the") == first


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_threads_change_nothing(threads: int, tiny_engine: LocalEngine, tiny_models: Path) -> None:
    other = LocalEngine(roots=[tiny_models], threads=threads)
    assert other.infer("tiny", "the cat") == tiny_engine.infer("tiny", "the cat")
    assert vectors(other) == vectors(tiny_engine)


def test_requests_from_several_threads_get_the_answers_they_would_get_alone(
    tiny_models: Path, tiny_engine: LocalEngine
) -> None:
    prompts = ["a", "the cat", "one", "q"]
    alone = [tiny_engine.infer("tiny", prompt) for prompt in prompts]
    together: dict[str, object] = {}

    def ask(prompt: str) -> None:
        together[prompt] = shared.infer("tiny", prompt)

    shared = LocalEngine(roots=[tiny_models])
    workers = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [together[prompt] for prompt in prompts] == alone


def test_a_stream_is_the_result_in_pieces(tiny_engine: LocalEngine) -> None:
    chunks = list(tiny_engine.stream("tiny", "the", GREEDY))
    result = tiny_engine.infer("tiny", "the", GREEDY)
    assert "".join(chunk.text for chunk in chunks) == result.text
    steps = [chunk.step for chunk in chunks if chunk.step is not None]
    assert [step.step for step in steps] == list(range(result.usage.generated_token_count))


def test_a_repeat_penalty_of_0_over_no_tokens_is_off(tiny_engine: LocalEngine) -> None:
    off = replace(GREEDY, repeat_penalty=0.0, repeat_penalty_last_n_token_count=0)
    assert tiny_engine.infer("tiny", "the", off) == tiny_engine.infer("tiny", "the", GREEDY)


def test_no_token_beyond_the_tokenizer_s_vocabulary_is_sampled(tmp_path: Path) -> None:
    plain = refllm.load(tiny_llama_gguf(tmp_path / "plain.gguf"))
    assert isinstance(plain, refllm.LlamaModel)
    n_tokens, width = plain.tokenizer.n_vocab, plain.config.n_embd
    # 64 rows more than there are tokens; half of them have the largest logit, whatever its sign.
    embedding, output = (np.zeros((n_tokens + 64, width), np.float32) for _ in range(2))
    embedding[:n_tokens] = plain.network.token_embd.array()
    output[n_tokens : n_tokens + 32], output[n_tokens + 32 :] = 100.0, -100.0
    tensors = {"token_embd.weight": embedding, "output.weight": output}
    path = tiny_llama_gguf(tmp_path / "padded.gguf", tensors=tensors)
    params = InferencingParams(max_tokens=5, temperature=0.0)
    steps = [chunk.step for chunk in LocalEngine().stream(path, "the", params)]
    sampled = [step.token for step in steps if step is not None]
    assert sampled != []
    assert max(sampled) < n_tokens


STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to "
    "do.\"\nLily didn't want to help her mom, so she"
)  # llama2.c's test of stories260K: greedy, 200 steps from BOS


@pytest.mark.parametrize("layout", ["gguf", "one file", "three shards"])
def test_stories260k_generates_its_published_story_from_every_layout(
    layout: str, data_dir: Path, tmp_path: Path
) -> None:
    assert len(STORY.encode()) == 464
    stories = data_dir / "stories260K"
    path = stories / "stories260K.gguf"
    if layout != "gguf":
        path = write_hf_llama_from_bin(
            stories / "stories260K.bin", tmp_path / "hf", shards=1 if layout == "one file" else 3
        )
        vocabulary = open_gguf(stories / "stories260K.gguf").hparams
        write_tokenizer_model(path / "tokenizer.model", vocabulary)
    params = InferencingParams(temperature=0.0, repeat_penalty=1.0, max_tokens=200)
    assert LocalEngine().infer(path, "", params).text.startswith(STORY)


def test_load_takes_a_name_or_a_path(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFLLM_HOME", str(tiny_models.parent))
    monkeypatch.chdir(tiny_models)
    by_path = refllm.load(tiny_models / "flat.gguf")
    by_text = refllm.load("flat.gguf")
    assert isinstance(by_path, refllm.LlamaModel)
    assert isinstance(by_text, refllm.LlamaModel)
    ids = by_path.tokenizer.encode("the")
    assert by_path.forward(ids).tobytes() == by_text.forward(ids).tobytes()
    for absent in (tiny_models / "absent.gguf", Path("a" * 300), "a/" * 5000, Path("nul\0")):
        with pytest.raises(InvalidInput, match="no model at") as caught:
            refllm.load(absent)
        assert len(str(caught.value)) < 1000


def test_a_model_continues_from_its_cache(tiny_models: Path) -> None:
    llama = refllm.load(tiny_models / "flat.gguf")
    assert isinstance(llama, refllm.LlamaModel)
    ids = llama.tokenizer.encode("the cat sat")
    cache = llama.new_cache()
    pieces = [llama.forward([token], cache) for token in ids]
    assert np.concatenate(pieces).tobytes() == llama.forward(ids).tobytes()
