"""Requests that are answered together: each gets, bit for bit, what it would get alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.api import InferencingParams, LlmRuntimeError
from refllm.generate import MAX_BATCH_TOKENS, Generation, generate, step_together
from refllm.llama import Llama, Segment
from refllm.models.load import LlamaModel, load
from refllm.sampling import Step
from refllm.tap import Tap, ignore
from tests.support.model_files import tiny_llama_gguf

Floats = NDArray[np.float32]

PARAMS = InferencingParams(max_tokens=12)
END = frozenset({2})


@pytest.fixture(scope="module")
def network(data_dir: Path) -> Llama:
    model = load(data_dir / "stories260K" / "stories260K.gguf")
    assert isinstance(model, LlamaModel)
    return model.network


def alone(network: Llama, prompt: Sequence[int], params: InferencingParams, seed: int) -> list[int]:
    steps = generate(network, prompt, params, end_tokens=END, seed=seed)
    return [step.token for step in steps]


def drawn(generation: Generation, prompt: Sequence[int]) -> list[int]:
    return generation.tokens[len(prompt) :]


def test_requests_that_come_at_any_step_get_what_each_gets_alone(network: Llama) -> None:
    choose = random.Random(0)
    asked = [
        ([1, *choose.choices(range(3, 512), k=choose.randrange(1, 80))], seed) for seed in range(20)
    ]
    waiting = list(enumerate(asked))
    going: list[tuple[int, Generation]] = []
    finished: dict[int, Generation] = {}
    while waiting or going:
        while waiting and (not going or choose.random() < 0.3):
            i, (prompt, seed) = waiting.pop()
            going.append((i, Generation(network, prompt, PARAMS, end_tokens=END, seed=seed)))
        choose.shuffle(going)
        outcomes = dict(step_together(network, [generation for _, generation in going]))
        assert all(isinstance(outcome, Step) for outcome in outcomes.values())
        finished |= {i: generation for i, generation in going if generation.is_finished}
        going = [(i, generation) for i, generation in going if not generation.is_finished]
    for i, (prompt, seed) in enumerate(asked):
        assert drawn(finished[i], prompt) == alone(network, prompt, PARAMS, seed)


def test_no_more_tokens_are_read_together_than_fit(network: Llama) -> None:
    prompts = [[1, *[300] * 200] for _ in range(4)]
    generations = [Generation(network, prompt, PARAMS) for prompt in prompts]
    list(step_together(network, generations))
    read = [generation.cache.length for generation in generations]
    assert read == [201, 201, 0, 0]
    assert sum(read) <= MAX_BATCH_TOKENS


def test_the_draws_of_a_step_are_its_logits_own(network: Llama) -> None:
    generation = Generation(network, [1], PARAMS, seed=3)
    [(same, step)] = step_together(network, [generation])
    assert same is generation
    assert isinstance(step, Step)
    assert step.token == next(iter(generate(network, [1], PARAMS, seed=3))).token


def test_an_empty_batch_yields_nothing(network: Llama) -> None:
    assert list(step_together(network, [])) == []


def test_a_request_that_breaks_breaks_no_other(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(342, 32)).astype(np.float32)
    embeddings[7, 0] = np.inf
    model = load(tiny_llama_gguf(tmp_path / "t.gguf", tensors={"token_embd.weight": embeddings}))
    assert isinstance(model, LlamaModel)
    check_that_only_token_7_breaks(model.network)


def test_a_request_that_breaks_in_the_last_layer_breaks_no_other(network: Llama) -> None:
    check_that_only_token_7_breaks(LastLayerBreaks(network))


def check_that_only_token_7_breaks(network: Llama) -> None:
    params = InferencingParams(max_tokens=1)
    prompts = [[1, 5], [1, 7], [1, 9]]
    generations = [Generation(network, prompt, params) for prompt in prompts]
    outcomes = dict(step_together(network, generations))
    first, broken, last = (outcomes[generation] for generation in generations)
    assert isinstance(broken, LlmRuntimeError)
    for step, prompt in ((first, prompts[0]), (last, prompts[2])):
        assert isinstance(step, Step)
        assert step.token == next(iter(generate(network, prompt, params))).token


class LastLayerBreaks(Llama):
    """A llama whose logits are not finite where it has read token 7."""

    def __init__(self, network: Llama) -> None:
        vars(self).update(vars(network))

    def hidden(self, segments: Sequence[Segment], *, tap: Tap = ignore) -> Floats:
        self.is_broken = any(7 in segment.token_ids for segment in segments)
        return super().hidden(segments, tap=tap)

    def logits(self, hidden: Floats, *, tap: Tap = ignore) -> Floats:
        if self.is_broken:
            raise LlmRuntimeError("a logit is not finite")
        return super().logits(hidden, tap=tap)


def test_each_sequence_gets_the_logits_of_its_last_token(network: Llama) -> None:
    prompts = [[1, 300, 301], [1, 302]]
    generations = [Generation(network, prompt, PARAMS, seed=5) for prompt in prompts]
    outcomes = dict(step_together(network, generations))
    for generation, prompt in zip(generations, prompts, strict=True):
        step = outcomes[generation]
        [expected] = alone(network, prompt, InferencingParams(max_tokens=1), 5)
        assert isinstance(step, Step)
        assert np.int64(step.token) == expected
