"""refllm's contestant computes what its replies claim, by an independent way to the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.contestants.refllm_llama import ANSWER, Contestant
from benchmarks.llamas import token_ids
from benchmarks.synthetic import QUICK_SHAPE, model_file
from refllm.llama import Segment
from tests.support.benchmark_runs import NO_PYTHON


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Contestant:
    folder = tmp_path_factory.mktemp("model")
    path = model_file(folder, QUICK_SHAPE, "F16", peer_python=NO_PYTHON)
    contestant = Contestant()
    contestant.load(str(path), threads=1, n_ctx=64)
    return contestant


def logits_after(llama: Contestant, prompt: Sequence[int]) -> list[float]:
    [logits] = llama.network.forward([Segment(prompt, llama.network.new_cache())])  # [T, V]
    answer: list[float] = logits[-1, :ANSWER].tolist()
    return answer


def test_texts_together_answer_with_the_logits_of_the_last_text_alone(llama: Contestant) -> None:
    prompts = [token_ids(4, seed=i) for i in range(3)]
    llama.fill(prompts)
    for _ in range(2):  # the first turn leaves nothing that the second one would see
        reply = llama.continue_together(n_tokens=5)
        assert reply["answer"] == logits_after(llama, prompts[-1])
        assert reply["n_tokens"] == 15


def test_texts_together_are_continued_by_their_likeliest_tokens(llama: Contestant) -> None:
    prompts = [token_ids(4, seed=i) for i in range(2)]
    llama.fill(prompts)
    llama.continue_together(n_tokens=1)
    kept = [cache.keys[..., :4].copy() for cache in llama.batch]
    llama.continue_together(n_tokens=3)
    for prompt, cache, before in zip(prompts, llama.batch, kept, strict=True):
        tokens = list(prompt)
        for _ in range(4):
            [logits] = llama.network.forward([Segment(tokens, llama.network.new_cache())])
            tokens.append(int(np.argmax(logits[-1])))
        alone = llama.network.new_cache()
        llama.network.hidden([Segment(tokens[:-1], alone)])
        assert cache.length == len(prompt)
        np.testing.assert_array_equal(cache.keys[..., :4], before)
        np.testing.assert_array_equal(cache.keys[..., :7], alone.keys[..., :7])


def test_a_kept_prompt_costs_one_token_and_a_new_one_all_of_them(llama: Contestant) -> None:
    prompt = token_ids(70)
    new = llama.first_token(prompt, is_kept=False)
    kept = llama.first_token(prompt, is_kept=True, repeat=3)
    again = llama.first_token(prompt, is_kept=False, repeat=2)
    assert [each["n_tokens"] for each in (new, kept, again)] == [70, 1, 70]
    assert [len(each["seconds"]) for each in (new, kept, again)] == [1, 3, 2]
    assert new["answer"] == kept["answer"] == logits_after(llama, prompt)
