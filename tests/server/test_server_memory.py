"""What `refllm serve` keeps between requests: recent prompts and models, within their budgets."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator

import pytest

from refllm.api import InferencingParams
from refllm.engine import LocalEngine
from refllm.testing.server_process import running_server
from tests.support.client import ask, spin_infer

STORY = "Once upon a time, there was a little boy named Ivan. Ivan loved to play in the barn."


@pytest.fixture(scope="module")
def small_url() -> Iterator[str]:
    """A server that keeps no prompt, and one model."""
    with running_server(["--prompt-cache-mib", "0", "--max-models-mib", "1"]) as server:
        yield server.url


@pytest.fixture(scope="module")
def plain() -> LocalEngine:
    """An engine that reuses nothing."""
    return LocalEngine(prompt_cache_bytes=0)


def metric(url: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", ask(url, "/metrics").body.decode(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def n_cached(url: str, prompt: str, **keys: object) -> tuple[int, int]:
    """How many tokens a prompt has, and how many of them were known."""
    body = {"model": "tiny-chat", "prompt": prompt, "max_tokens": 4, **keys}
    usage = ask(url, "/v1/completions", body).json["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def test_a_prompt_that_is_known_is_counted_as_before_and_its_reused_tokens_beside(url: str) -> None:
    (n_first, _), (n_second, n_reused) = (n_cached(url, STORY) for _ in range(2))
    assert n_first == n_second
    assert n_reused == n_second - 1  # the last token is computed
    n_longer, n_reused = n_cached(url, f"{STORY} The")
    assert n_first - 1 <= n_reused < n_longer


@pytest.mark.parametrize(
    "keys",
    [{"n": 3}, {"stop": " "}, {"n": 2, "stop": " ", "min_tokens": 2}, {"logprobs": 1}],
    ids=json.dumps,
)
def test_reused_tokens_are_counted_once_however_an_answer_ends(
    url: str, keys: dict[str, object]
) -> None:
    n_cached(url, STORY)
    n_prompt, n_reused = n_cached(url, STORY, **keys)
    assert n_reused == n_prompt - 1


def test_a_stream_ends_with_the_reused_tokens(url: str) -> None:
    n_prompt, _ = n_cached(url, STORY)
    body = {"model": "tiny-chat", "prompt": STORY, "max_tokens": 4, "stream": True}
    answer = ask(url, "/v1/completions", {**body, "stream_options": {"include_usage": True}})
    *_, last, _done = answer.body.decode().split("\n\n")[:-1]
    usage = json.loads(last.removeprefix("data: "))["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": n_prompt - 1}


def test_simultaneous_clients_get_the_answers_of_an_engine_without_a_cache(
    url: str, plain: LocalEngine
) -> None:
    prompts = [STORY[:cut] for cut in (len(STORY), 60, 60, 30, 30, 10)] * 2
    params = InferencingParams(max_tokens=10)
    expected = [plain.infer("tiny-chat", prompt, params) for prompt in prompts]
    answers: dict[int, dict[str, object]] = {}

    def client(i: int) -> None:
        answers[i] = ask(url, "/infer", spin_infer("tiny-chat", prompts[i], maxTokens=10)).json

    threads = [threading.Thread(target=client, args=[i]) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, result in enumerate(expected):
        assert answers[i] == {
            "text": result.text,
            "usage": {
                "promptTokenCount": result.usage.prompt_token_count,
                "generatedTokenCount": result.usage.generated_token_count,
            },
        }


def test_reused_tokens_and_cached_bytes_are_in_the_metrics(url: str) -> None:
    n_prompt, _ = n_cached(url, STORY)
    names = ("hits_total", "reused_tokens_total")
    before = [metric(url, f"refllm_prompt_cache_{name}") for name in names]
    n_cached(url, STORY)
    after = [metric(url, f"refllm_prompt_cache_{name}") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, n_prompt - 1]
    assert 0 < metric(url, "refllm_prompt_cache_bytes") <= 256 * 2**20


def test_a_server_without_a_prompt_cache_reuses_nothing(small_url: str) -> None:
    for _ in range(2):
        assert n_cached(small_url, STORY)[1] == 0
    assert metric(small_url, "refllm_prompt_cache_hits_total") == 0
    assert metric(small_url, "refllm_prompt_cache_bytes") == 0


def test_a_server_with_little_room_answers_with_one_model_at_a_time(
    small_url: str, plain: LocalEngine
) -> None:
    params = InferencingParams(max_tokens=4)
    text = plain.infer("tiny-chat", STORY, params).text
    [vector] = plain.generate_embeddings("tiny-embed", ["A cat."]).embeddings
    both = plain.models_bytes
    for _ in range(2):
        answer = ask(small_url, "/infer", spin_infer("tiny-chat", STORY, maxTokens=4)).json
        assert answer["text"] == text
        of_chat = metric(small_url, "refllm_models_bytes")
        body = {"model": "tiny-embed", "input": ["A cat."]}
        assert ask(small_url, "/embed", body).json["embeddings"] == [vector]
        of_embed = metric(small_url, "refllm_models_bytes")
        assert of_chat + of_embed == both
