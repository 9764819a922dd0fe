"""The engine: each case of the contract (SPEC.md, section 4), with real arithmetic."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import refllm
from refllm.api import (
    EmbeddingsResult,
    InferencingParams,
    InvalidInput,
    LlmRuntimeError,
    ModelNotSupported,
)
from refllm.engine import LocalEngine
from refllm.weights import open_gguf
from tests.model_files import (
    tiny_bert_folder,
    tiny_bert_gguf,
    tiny_llama_folder,
    tiny_llama_gguf,
    write_hf_llama_from_bin,
    write_tokenizer_model,
)

GREEDY = InferencingParams(temperature=0.0, repeat_penalty=1.0, max_tokens=20)
TEXTS = ["a", "the cat sat on the mat", "one two three", "the"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models as CONTRACT.md lays them out."""
    root = tmp_path_factory.mktemp("ai-models")
    (root / "llama").mkdir()
    tiny_llama_folder(root / "llama" / "tiny")
    tiny_llama_gguf(root / "flat.gguf")
    tiny_bert_folder(root / "embedder")
    return root


@pytest.fixture(scope="module")
def engine(root: Path) -> LocalEngine:
    return LocalEngine(roots=[root])


def test_the_text_is_only_what_was_generated(engine: LocalEngine) -> None:
    result = engine.infer("tiny", "the cat", GREEDY)
    assert not result.text.startswith("the cat")
    llama = engine.load("tiny")
    assert isinstance(llama, refllm.LlamaModel)
    # BOS, then greedy by hand: the largest logit, again and again.
    ids = llama.tokenizer.encode("the cat")
    n_prompt = len(ids)
    while len(ids) < n_prompt + 20 and ids[-1] not in llama.tokenizer.eos_ids:
        ids.append(int(llama.forward(ids)[-1].argmax()))
    assert result.text == llama.tokenizer.decode_continuation(ids[:n_prompt], ids[n_prompt:])
    assert result.usage.prompt_token_count == n_prompt
    assert result.usage.generated_token_count == len(ids) - n_prompt


def test_max_tokens_0_generates_nothing(engine: LocalEngine) -> None:
    result = engine.infer("tiny", "the", replace(GREEDY, max_tokens=0))
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


def test_an_empty_prompt_is_the_bos_alone(engine: LocalEngine) -> None:
    assert engine.infer("tiny", "", GREEDY).usage.prompt_token_count == 1


def test_an_empty_prompt_without_bos_is_refused(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.add_bos_token": False})
    with pytest.raises(InvalidInput, match="empty prompt"):
        LocalEngine().infer(path, "")


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(
    engine: LocalEngine,
) -> None:
    with pytest.raises(InvalidInput, match=r"the prompt has 20\d tokens.*holds 128"):
        engine.infer("tiny", "q" * 200)


def test_a_prompt_of_a_million_characters_is_refused_at_once(engine: LocalEngine) -> None:
    with pytest.raises(InvalidInput, match=r"at least \d+ tokens"):
        engine.infer("tiny", "x" * 1_000_000)


def test_a_full_context_ends_the_generation(engine: LocalEngine) -> None:
    result = engine.infer("tiny", "q" * 120, InferencingParams(max_tokens=1000, temperature=2.0))
    used = result.usage.prompt_token_count + result.usage.generated_token_count
    assert used <= 129, "the last token is drawn from the last position's logits"


def test_the_same_seed_gives_the_same_text_and_another_seed_another(root: Path) -> None:
    params = InferencingParams(temperature=1.5, max_tokens=30)
    texts = [
        LocalEngine(roots=[root], seed=seed).infer("tiny", "the", params) for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_an_earlier_request_changes_nothing(root: Path) -> None:
    engine = LocalEngine(roots=[root])
    first = engine.infer("tiny", "the")
    engine.infer("tiny", "something else")
    assert engine.infer("tiny", "the") == first


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_threads_change_nothing(threads: int, engine: LocalEngine, root: Path) -> None:
    other = LocalEngine(roots=[root], threads=threads)
    assert other.infer("tiny", "the cat") == engine.infer("tiny", "the cat")
    assert vectors(other) == vectors(engine)


def test_requests_from_several_threads_get_the_answers_they_would_get_alone(
    root: Path, engine: LocalEngine
) -> None:
    prompts = ["a", "the cat", "one", "q"]
    alone = [engine.infer("tiny", prompt) for prompt in prompts]
    together: dict[str, object] = {}

    def ask(prompt: str) -> None:
        together[prompt] = shared.infer("tiny", prompt)

    shared = LocalEngine(roots=[root])
    workers = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [together[prompt] for prompt in prompts] == alone


def test_a_stream_is_the_result_in_pieces(engine: LocalEngine) -> None:
    chunks = list(engine.stream("tiny", "the", GREEDY))
    result = engine.infer("tiny", "the", GREEDY)
    assert "".join(chunk.text for chunk in chunks) == result.text
    steps = [chunk.step for chunk in chunks if chunk.step is not None]
    assert [step.step for step in steps] == list(range(result.usage.generated_token_count))


def test_a_streams_request_is_checked_before_its_first_chunk(engine: LocalEngine) -> None:
    with pytest.raises(InvalidInput, match="temperature"):
        engine.stream("tiny", "the", InferencingParams(temperature=float("nan")))


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
    change: dict[str, object], named: str, engine: LocalEngine
) -> None:
    with pytest.raises(InvalidInput, match=named):
        engine.infer("tiny", "the", replace(GREEDY, **change))  # type: ignore[arg-type]


def test_a_repeat_penalty_of_0_over_no_tokens_is_off(engine: LocalEngine) -> None:
    off = replace(GREEDY, repeat_penalty=0.0, repeat_penalty_last_n_token_count=0)
    assert engine.infer("tiny", "the", off) == engine.infer("tiny", "the", GREEDY)


@pytest.mark.parametrize("prompt", ["lone \ud800 surrogate", b"bytes", None])
def test_a_prompt_that_is_not_text_is_refused(prompt: str, engine: LocalEngine) -> None:
    with pytest.raises(InvalidInput):
        engine.infer("tiny", prompt)


def test_a_model_that_is_not_allowed_is_refused_in_the_contracts_words(root: Path) -> None:
    engine = LocalEngine(roots=[root], allowed_models=["embedder"])
    with pytest.raises(
        InvalidInput,
        match=r"The component does not have access to use 'tiny'\. To give the component access, "
        r"add 'tiny' to the 'ai_models' key for the component in your spin\.toml manifest",
    ):
        engine.infer("tiny", "the")
    assert len(engine.generate_embeddings("embedder", ["a"]).embeddings) == 1


def test_an_absent_model_names_the_folders_looked_in(engine: LocalEngine, root: Path) -> None:
    with pytest.raises(InvalidInput, match="no model directory found") as caught:
        engine.infer("absent", "the")
    assert str(root) in str(caught.value)


def test_an_absent_embedding_model_is_not_supported(engine: LocalEngine) -> None:
    with pytest.raises(ModelNotSupported, match="absent"):
        engine.generate_embeddings("absent", ["a"])


@pytest.mark.parametrize("name", ["../tiny", "llama/tiny", ".hidden", "a\0b", "", "x" * 10_000_000])
def test_a_name_that_is_a_path_is_refused(name: str, engine: LocalEngine) -> None:
    for request in (engine.infer, engine.generate_embeddings):
        with pytest.raises(InvalidInput) as caught:
            request(name, ["a"])  # type: ignore[arg-type]
        assert len(str(caught.value)) < 1000


def test_the_wrong_kind_of_model_is_not_supported(tmp_path: Path, engine: LocalEngine) -> None:
    with pytest.raises(ModelNotSupported, match="generates text"):
        engine.generate_embeddings(tiny_llama_gguf(tmp_path / "llama.gguf"), ["a"])
    with pytest.raises(ModelNotSupported, match="embedding model"):
        engine.infer(tiny_bert_gguf(tmp_path / "bert.gguf"), "a")


def test_an_engine_that_is_switched_off_says_so(root: Path) -> None:
    engine = LocalEngine(roots=[root], enabled=False)
    for model in ("tiny", root / "flat.gguf"):
        with pytest.raises(LlmRuntimeError, match="Local LLM operations are not supported"):
            engine.infer(model, "the")


@pytest.mark.parametrize(
    ("option", "value"),
    [("profile", "ollama"), ("numerics", "fast"), ("threads", 0), ("seed", -1), ("seed", 2**64)],
)
def test_an_unknown_option_is_named(option: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=option):
        LocalEngine(**{option: value})  # type: ignore[arg-type]


def test_profile_spin_local_refuses_top_k_0(root: Path) -> None:
    engine = LocalEngine(roots=[root], profile="spin-local")
    with pytest.raises(LlmRuntimeError, match="top_k 0"):
        engine.infer("tiny", "the", InferencingParams(top_k=0))


def test_profile_spin_local_repeats_the_prompt_and_counts_as_spin_does(
    root: Path, engine: LocalEngine
) -> None:
    spin = LocalEngine(roots=[root], profile="spin-local")
    as_spin, as_contract = (e.infer("tiny", "the cat", GREEDY) for e in (spin, engine))
    assert as_spin.text == "the cat" + as_contract.text
    assert "".join(chunk.text for chunk in spin.stream("tiny", "the cat", GREEDY)) == as_spin.text
    n_prompt, n_generated = (
        as_contract.usage.prompt_token_count,
        as_contract.usage.generated_token_count,
    )
    assert as_spin.usage.prompt_token_count == n_prompt + n_generated
    assert as_spin.usage.generated_token_count == n_generated


def test_profile_spin_local_lets_texts_influence_each_other(root: Path) -> None:
    spin = LocalEngine(roots=[root], profile="spin-local")
    alone = spin.generate_embeddings("embedder", ["a"])
    together = spin.generate_embeddings("embedder", ["a", "the cat sat on the mat"])
    assert together.embeddings[0] != alone.embeddings[0]
    longest = spin.generate_embeddings("embedder", ["the cat sat on the mat"])
    assert together.usage == longest.usage, "the longest padded length, whatever the number"
    assert together.embeddings[1] == longest.embeddings[0], "the longest has no padding"
    with pytest.raises(LlmRuntimeError, match="empty list"):
        spin.generate_embeddings("embedder", [])


def test_a_damaged_file_is_a_runtime_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    folder = tiny_llama_folder(tmp_path / "llama" / "broken")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(LlmRuntimeError, match=r"model\.safetensors"):
        LocalEngine(roots=[tmp_path]).infer("broken", "the")


def test_a_tokenizer_larger_than_the_model_is_a_runtime_error(tmp_path: Path) -> None:
    path = tiny_llama_gguf(
        tmp_path / "m.gguf", tensors={"token_embd.weight": np.zeros((100, 32), np.float32)}
    )
    with pytest.raises(LlmRuntimeError, match=r"tokens, the model only 100|\[\d+, 32\]"):
        LocalEngine().infer(path, "the")


def test_a_padded_vocabulary_is_never_drawn_from(tmp_path: Path) -> None:
    plain = refllm.load(tiny_llama_gguf(tmp_path / "plain.gguf"))
    assert isinstance(plain, refllm.LlamaModel)
    n_tokens, width = plain.tokenizer.n_vocab, plain.config.n_embd
    # 64 rows more than there are tokens; half of them have the largest logit, whatever its sign.
    embedding, output = (np.zeros((n_tokens + 64, width), np.float32) for _ in range(2))
    embedding[:n_tokens] = plain.network.token_embd.array()
    output[n_tokens : n_tokens + 32], output[n_tokens + 32 :] = 100.0, -100.0
    tensors = {"token_embd.weight": embedding, "output.weight": output}
    path = tiny_llama_gguf(tmp_path / "padded.gguf", tensors=tensors)
    result = LocalEngine().infer(path, "the", InferencingParams(max_tokens=5, temperature=0.0))
    assert result.usage.generated_token_count >= 1


# Embeddings


def vectors(engine: LocalEngine, texts: list[str] = TEXTS) -> list[list[float]]:
    return engine.generate_embeddings("embedder", texts).embeddings


def test_a_vector_never_depends_on_the_other_texts(engine: LocalEngine) -> None:
    together = vectors(engine)
    assert [vectors(engine, [text])[0] for text in TEXTS] == together
    assert vectors(engine, TEXTS[::-1]) == together[::-1]


def test_many_texts_are_computed_in_groups_that_change_nothing(engine: LocalEngine) -> None:
    many = TEXTS * 300
    assert vectors(engine, many) == vectors(engine) * 300


def test_every_value_of_a_vector_is_a_float32(engine: LocalEngine) -> None:
    values = np.array(vectors(engine))
    assert (values == values.astype(np.float32)).all()


def test_the_token_count_is_the_sum_over_texts_special_tokens_included(
    engine: LocalEngine,
) -> None:
    bert = engine.load("embedder")
    counts = [len(bert.tokenizer.encode(text)) for text in TEXTS]
    usage = engine.generate_embeddings("embedder", TEXTS).usage
    assert usage.prompt_token_count == sum(counts)


def test_no_texts_give_an_empty_result(engine: LocalEngine) -> None:
    result: EmbeddingsResult = engine.generate_embeddings("embedder", [])
    assert (result.embeddings, result.usage.prompt_token_count) == ([], 0)


def test_a_single_text_in_place_of_a_list_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(InvalidInput, match="list of texts"):
        engine.generate_embeddings("embedder", "a text")


def test_a_result_over_128_mib_is_a_runtime_error(engine: LocalEngine) -> None:
    n_texts = 128 * 1024 * 1024 // (32 * 4) + 1
    with pytest.raises(LlmRuntimeError, match="query result exceeds limit of 134217728 bytes"):
        engine.generate_embeddings("embedder", ["a"] * n_texts)


# The published text of stories260K


STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to "
    "do.\"\nLily didn't want to help her mom, so she"
)  # llama2.c's test of stories260K: greedy, 200 steps from BOS


@pytest.mark.parametrize("layout", ["gguf", "one file", "three shards"])
def test_stories260k_tells_its_published_story_from_every_layout(
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


def test_load_takes_a_name_or_a_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFLLM_HOME", str(root.parent))
    monkeypatch.chdir(root)
    by_path = refllm.load(root / "flat.gguf")
    by_text = refllm.load("flat.gguf")
    assert isinstance(by_path, refllm.LlamaModel)
    assert isinstance(by_text, refllm.LlamaModel)
    ids = by_path.tokenizer.encode("the")
    assert by_path.forward(ids).tobytes() == by_text.forward(ids).tobytes()
    for absent in (root / "absent.gguf", Path("a" * 300), "a/" * 5000, Path("nul\0")):
        with pytest.raises(InvalidInput, match="no model at") as caught:
            refllm.load(absent)
        assert len(str(caught.value)) < 1000


def test_a_model_continues_from_its_cache(root: Path) -> None:
    llama = refllm.load(root / "flat.gguf")
    assert isinstance(llama, refllm.LlamaModel)
    ids = llama.tokenizer.encode("the cat sat")
    cache = llama.new_cache()
    pieces = [llama.forward([token], cache) for token in ids]
    assert np.concatenate(pieces).tobytes() == llama.forward(ids).tobytes()
