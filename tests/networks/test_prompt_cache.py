"""What is reused of recent prompts changes no bit, and never takes more memory than it may."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from refllm.api import InferencingParams, InvalidInput, LlmRuntimeError
from refllm.engine import LocalEngine
from refllm.generate import Generation, step_together, steps_of
from refllm.llama import KVCache, Llama, LlamaConfig
from refllm.models.bundled import ROOT
from refllm.models.load import LlamaModel, load
from refllm.models.prompt_cache import BLOCK_TOKENS, PromptCache
from refllm.sampling import PROFILES
from tests.support.model_files import tiny_llama_gguf

Floats = NDArray[np.float32]

TINY_CHAT = ROOT / "llama" / "tiny-chat.gguf"
PARAMS = InferencingParams(max_tokens=4)
AMPLE = 2**30

# --- Bits ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tiny-chat exact", "tiny-chat int8", "stories260K exact"])
def network(request: pytest.FixtureRequest) -> Llama:
    """A quantized network by both numerics, and one of F32."""
    name, numerics = request.param.split()
    path = TINY_CHAT
    if name == "stories260K":
        path = request.getfixturevalue("data_dir") / "stories260K" / "stories260K.gguf"
    model = load(path, numerics=numerics)
    assert isinstance(model, LlamaModel)
    return model.network


def prompts(choose: random.Random, n: int) -> Iterator[list[int]]:
    """Prompts that begin with all of an earlier one, with a part of it, or with its first token."""
    known = [[1]]
    for _ in range(n):
        earlier = choose.choice(known)
        cut = choose.choice([len(earlier), choose.randrange(1, len(earlier) + 1), 1])
        tail = choose.choices(range(3, 500), k=choose.choice([0, 1, choose.randrange(150)]))
        known.append([*earlier[:cut], *tail][:400])
        yield known[-1]


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    alike = (x == y for x, y in zip(a, b, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, alike))


def answered(network: Llama, generation: Generation) -> list[tuple[int, bytes]]:
    """Each token that is drawn, and the bits of the logits that it is drawn from."""
    result = []
    for step in steps_of(network, generation):
        assert generation.logits is not None
        result.append((step.token, generation.logits.tobytes()))
    return result


@pytest.mark.parametrize("budget_blocks", [AMPLE, 5])
def test_every_logit_after_a_known_beginning_has_the_bits_of_one_computed_anew(
    network: Llama, budget_blocks: int
) -> None:
    choose = random.Random(budget_blocks)
    bytes_each = 4 + network.new_cache().n_bytes_per_token
    prompt_cache = PromptCache(min(AMPLE, budget_blocks * BLOCK_TOKENS * bytes_each))
    read: list[list[int]] = []
    for seed, prompt in enumerate(prompts(choose, 25)):
        reusing = Generation(network, prompt, PARAMS, seed=seed, prompt_cache=prompt_cache)
        fresh = Generation(network, prompt, PARAMS, seed=seed)
        assert answered(network, reusing) == answered(network, fresh)
        assert prompt_cache.n_bytes <= prompt_cache.budget_bytes
        if budget_blocks == AMPLE:
            known = max((n_common(prompt, each) for each in read), default=0)
            assert reusing.n_reused == min(known, len(prompt) - 1)
        read.append(reusing.tokens[: reusing.cache.length])
    assert prompt_cache.n_hits > 0
    assert prompt_cache.n_reused_tokens > 0


def test_requests_that_are_answered_together_reuse_what_the_first_has_read(network: Llama) -> None:
    choose = random.Random(1)
    beginning = [1, *choose.choices(range(3, 500), k=200)]
    asked = [[*beginning, *choose.choices(range(3, 500), k=choose.randrange(40))] for _ in range(8)]
    prompt_cache = PromptCache(AMPLE)
    going = [
        Generation(network, prompt, PARAMS, seed=seed, prompt_cache=prompt_cache)
        for seed, prompt in enumerate(asked)
    ]
    logits: dict[int, list[tuple[int, bytes]]] = {id(each): [] for each in going}
    while left := [generation for generation in going if not generation.is_finished]:
        for generation, step in step_together(network, left):
            assert not isinstance(step, LlmRuntimeError)
            assert generation.logits is not None
            logits[id(generation)].append((step.token, generation.logits.tobytes()))  # type: ignore[union-attr]
    for seed, (generation, prompt) in enumerate(zip(going, asked, strict=True)):
        alone = Generation(network, prompt, PARAMS, seed=seed)
        assert logits[id(generation)] == answered(network, alone)
    # Two prompts fit into the first turn; the rest come later, and reuse the prompts of these two.
    assert [generation.n_reused >= len(beginning) for generation in going] == [False] * 2 + [
        True
    ] * 6


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_an_engine_answers_with_the_texts_and_counts_of_one_without_a_cache(profile: str) -> None:
    plain = LocalEngine(profile=profile, prompt_cache_bytes=0)
    engine = LocalEngine(profile=profile)
    story = "Once upon a time, there was a little boy named Ivan."
    for prompt in (story, story, story[:30], f"{story} Ivan", "", story):
        params = InferencingParams(max_tokens=12)
        assert engine.infer("tiny-chat", prompt, params) == plain.infer("tiny-chat", prompt, params)
    assert engine.prompt_cache.n_hits == 4  # all but the first, and the empty one
    n_story = len(engine.inferencing_model("tiny-chat").prompt_tokens(story))
    assert engine.prompt_cache.n_reused_tokens >= 3 * (n_story - 1)  # the whole story, three times
    assert (plain.prompt_cache.n_hits, plain.prompt_cache.n_bytes) == (0, 0)


def test_simultaneous_threads_get_the_same_answers_as_alone() -> None:
    asked = ["Once upon a time", "Once upon a hill", "The fox", "Once upon a time there"] * 2
    plain, engine = LocalEngine(prompt_cache_bytes=0), LocalEngine()
    params = InferencingParams(max_tokens=8)
    expected = [plain.infer("tiny-chat", prompt, params) for prompt in asked]
    results: dict[int, object] = {}

    def ask(i: int) -> None:
        results[i] = engine.infer("tiny-chat", asked[i], params)

    threads = [threading.Thread(target=ask, args=[i]) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(len(asked))] == expected


def test_a_request_that_fails_leaves_nothing_of_its_prompt(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(342, 32)).astype(np.float32)
    embeddings[7, 0] = np.inf
    path = tiny_llama_gguf(tmp_path / "m.gguf", tensors={"token_embd.weight": embeddings})
    engine, plain = LocalEngine(), LocalEngine(prompt_cache_bytes=0)
    for prompt in ([1, 5, 9], [1, 5, 7], [1, 5, 7, 9], [1, 5, 9], [1, 5, 7]):
        outcomes = []
        for each in (engine, plain):
            llama, generation = each.open(path, prompt, PARAMS)
            try:
                outcomes.append(str(answered(llama.network, generation)))
            except LlmRuntimeError as error:
                outcomes.append(str(error))
            if 7 in prompt:
                assert "not finite" in outcomes[-1]
        assert outcomes[0] == outcomes[1]
    network = engine.inferencing_model(path).network
    n_known = [
        engine.prompt_cache.extend(network, [*prompt, 0], network.new_cache())
        for prompt in ([1, 5, 9], [1, 5, 7], [1, 5, 7, 9])
    ]
    assert n_known == [3, 2, 2]


def test_values_that_a_caller_watches_are_all_computed() -> None:
    engine = LocalEngine()
    engine.infer("tiny-chat", "Once upon a time", PARAMS)
    llama = engine.inferencing_model("tiny-chat")
    tokens = llama.prompt_tokens("Once upon a time")
    seen: list[tuple[int, ...]] = []
    llama.forward(tokens, tap=lambda name, array: seen.append(array.shape))
    assert seen[0] == (len(tokens), llama.config.n_embd)


def test_a_negative_budget_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidInput, match="prompt_cache_bytes must be at least 0, got -1"):
        LocalEngine(prompt_cache_bytes=-1)


# --- The tree ------------------------------------------------------------------------------------

SMALL = LlamaConfig(
    n_vocab=3,
    n_ctx=1000,
    n_embd=2,
    n_layers=2,
    n_heads=1,
    n_kv_heads=1,
    head_dim=2,
    n_ff=1,
    rms_norm_eps=1.0,
    rope_dim=2,
)
BYTES_EACH = 4 + 2 * 2 * 1 * 2 * 4  # a token id; keys and values of 2 layers, 1 head, 2 numbers


class NoNetwork(Llama):
    """A key of the prompt cache; it computes nothing."""

    def __init__(self) -> None:
        """Without weights."""


def cache_with(token_ids: Sequence[int]) -> KVCache:
    """A cache whose numbers depend on a token and all tokens before it, as a network's do."""
    cache = KVCache(SMALL)
    numbers = [hash(tuple(token_ids[: i + 1])) % 2**20 for i in range(len(token_ids))]
    row = np.array(numbers, np.float32)  # [n]
    keys = np.broadcast_to(row, (2, 1, 2, len(row)))
    cache.append(keys, -np.broadcast_to(row[:, None], (2, 1, len(row), 2)))
    return cache


def contents(cache: KVCache) -> tuple[bytes, bytes]:
    keys, values = cache.copy_of(0, cache.length)
    return keys.tobytes(), values.tobytes()


SEQUENCES = st.lists(
    st.tuples(st.lists(st.sampled_from([1, 2]), max_size=4), st.integers(1, 150)).map(
        lambda drawn: (drawn[0] * 50 + [0] * 150)[: drawn[1]]
    ),
    max_size=12,
)


@given(SEQUENCES, st.integers(0, 500))
def test_the_cache_has_the_latest_sequences_that_fit_as_they_were_stored(
    stored: list[list[int]], budget_tokens: int
) -> None:
    network = NoNetwork()
    prompt_cache = PromptCache(budget_tokens * BYTES_EACH)
    for token_ids in stored:
        prompt_cache.store(network, token_ids, cache_with(token_ids))
        assert prompt_cache.n_bytes <= prompt_cache.budget_bytes
        cache = KVCache(SMALL)
        n = prompt_cache.extend(network, [*token_ids, 0], cache)
        assert n == min(len(token_ids), budget_tokens)
        assert contents(cache) == contents(cache_with(token_ids[:n]))


@given(SEQUENCES, st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=150), st.integers(0, 9))
def test_the_longest_common_prefix_is_found(
    stored: list[list[int]], asked: list[int], n_before: int
) -> None:
    network = NoNetwork()
    prompt_cache = PromptCache(AMPLE)
    for token_ids in stored:
        prompt_cache.store(network, token_ids, cache_with(token_ids))
    n_before = min(n_before, len(asked) - 1)
    cache = cache_with(asked[:n_before])
    found = prompt_cache.extend(network, asked, cache)
    longest = max((n_common(each, asked[:-1]) for each in stored), default=0)
    assert cache.length == max(longest, n_before)
    assert found == cache.length - n_before
    assert contents(cache) == contents(cache_with(asked[: cache.length]))


def test_a_common_beginning_is_kept_once() -> None:
    network, prompt_cache = NoNetwork(), PromptCache(AMPLE)
    beginning = [1] * (3 * BLOCK_TOKENS)
    for last in (0, 2):
        token_ids = [*beginning, last]
        prompt_cache.store(network, token_ids, cache_with(token_ids))
    assert prompt_cache.n_bytes == (len(beginning) + 2) * BYTES_EACH


def test_a_continued_sequence_replaces_its_beginning_in_the_cache() -> None:
    network, prompt_cache = NoNetwork(), PromptCache(AMPLE)
    for n in (3, 10, BLOCK_TOKENS + 5):
        prompt_cache.store(network, [1] * n, cache_with([1] * n))
        assert prompt_cache.n_bytes == n * BYTES_EACH
    prompt_cache.store(network, [1] * 7, cache_with([1] * 7))
    assert prompt_cache.n_bytes == (BLOCK_TOKENS + 5) * BYTES_EACH


def test_the_least_recently_used_block_of_all_networks_is_evicted_first() -> None:
    one, another = NoNetwork(), NoNetwork()
    prompt_cache = PromptCache(3 * 10 * BYTES_EACH)

    def n_known(network: Llama, token_id: int) -> int:
        return prompt_cache.extend(network, [token_id] * 11, KVCache(SMALL))

    for network, token_id in ((one, 1), (another, 1), (one, 2)):
        prompt_cache.store(network, [token_id] * 10, cache_with([token_id] * 10))
    assert n_known(one, 1) == 10  # used again
    prompt_cache.store(another, [2] * 10, cache_with([2] * 10))
    assert prompt_cache.n_bytes == prompt_cache.budget_bytes
    assert [n_known(one, 1), n_known(another, 1), n_known(one, 2)] == [10, 0, 10]


def test_the_blocks_of_a_network_are_freed_with_it() -> None:
    network, prompt_cache = NoNetwork(), PromptCache(AMPLE)
    cache = cache_with([1] * 100)
    prompt_cache.store(network, [1] * 100, cache)
    gone = weakref.ref(network)
    gc.disable()  # and needs no garbage collector for it
    try:
        del network
        assert gone() is None
        assert prompt_cache.n_bytes == 0
    finally:
        gc.enable()


def test_without_memory_for_a_copy_less_is_kept_and_nothing_breaks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network, prompt_cache = NoNetwork(), PromptCache(3 * BLOCK_TOKENS * BYTES_EACH)
    token_ids = [1] * (3 * BLOCK_TOKENS)

    def copy_of(cache: KVCache, start: int, stop: int) -> tuple[Floats, Floats]:
        if start > 0:
            raise MemoryError
        return real_copy_of(cache, start, stop)

    real_copy_of = KVCache.copy_of
    with monkeypatch.context() as patched:
        patched.setattr(KVCache, "copy_of", copy_of)
        prompt_cache.store(network, token_ids, cache_with(token_ids))
    assert "not enough memory to cache a prompt" in caplog.text
    assert prompt_cache.n_bytes == BLOCK_TOKENS * BYTES_EACH
    for last in (1, 2, 1):  # each takes the whole budget
        other = [last, *token_ids[1:]]
        prompt_cache.store(network, other, cache_with(other))
        cache = KVCache(SMALL)
        assert prompt_cache.extend(network, [*other, 0], cache) == len(other)
        assert contents(cache) == contents(cache_with(other))
