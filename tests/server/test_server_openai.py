"""`refllm serve` as OpenAI's own client uses it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.api import InferencingParams
from refllm.engine import LocalEngine
from refllm.models.load import LlamaModel
from refllm.testing.server_process import running_server
from tests.support.client import ask

openai: Any = pytest.importorskip("openai", reason="pip install openai")

BAD = "invalid-input"
SYSTEM = {"role": "system", "content": "You are a friendly helper."}
HELLO = {"role": "user", "content": "Hello!"}
PROMPT = "[INST] <<SYS>>\nYou are a friendly helper.\n<</SYS>>\n\nHello! [/INST]"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(["--stand-ins", "--token", "secret"]) as server:
        yield server.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_a_chat_is_the_prompt_that_llama_2_s_template_makes(
    client: Any, engine: LocalEngine
) -> None:
    answer = client.chat.completions.create(model="tiny-chat", messages=[SYSTEM, HELLO])
    expected = engine.infer("tiny-chat", PROMPT)
    assert expected.text.startswith(" ")
    assert answer.choices[0].message.content == expected.text.removeprefix(" ")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == expected.usage.prompt_token_count
    assert answer.usage.completion_tokens == expected.usage.generated_token_count


SPIN_S_SHAPE = {
    "model": "tiny-chat",
    "messages": [HELLO],
    "max_completion_tokens": 8,
    "frequency_penalty": 1.3,
}


def test_spin_s_own_chat_request_is_answered(url: str, engine: LocalEngine) -> None:
    headers = {"authorization": "bearer secret", "content-type": "application/json"}
    answer = ask(url, "/v1/chat/completions", SPIN_S_SHAPE, headers=headers).json
    params = InferencingParams(max_tokens=8, repeat_penalty=1.3)
    expected = engine.infer("tiny-chat", "[INST] Hello! [/INST]", params)
    assert answer["choices"][0]["message"]["content"] == expected.text


def test_a_frequency_penalty_of_openai_s_client_is_openai_s_in_spin_s_shape_too(
    client: Any,
) -> None:
    # So small that as a repeat penalty it would multiply logits by 100.
    penalty = 0.01

    def answer(**more: object) -> str:
        asked = {**SPIN_S_SHAPE, "frequency_penalty": penalty, **more}
        text: str = client.chat.completions.create(**asked).choices[0].message.content
        return text

    as_openai_s = answer(presence_penalty=0)
    as_repeat_penalty = answer(frequency_penalty=0, extra_body={"repeat_penalty": penalty})
    assert answer() == as_openai_s != as_repeat_penalty


def test_parameters_reach_the_sampler(client: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny-chat",
        messages=[HELLO],
        seed=11,
        temperature=1.5,
        top_p=0.5,
        max_tokens=12,
        frequency_penalty=0,
    )
    params = InferencingParams(max_tokens=12, repeat_penalty=1.0, temperature=1.5, top_p=0.5)
    expected = LocalEngine(seed=11).infer("tiny-chat", "[INST] Hello! [/INST]", params)
    assert answer.choices[0].message.content == expected.text.removeprefix(" ")


def test_a_stream_has_the_text_of_the_whole_answer(client: Any) -> None:
    asked = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Tell me a story."}]}
    _, whole = (client.chat.completions.create(**asked) for _ in range(2))  # it is known
    parts = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert len(parts) > 20
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert parts[-1].usage == whole.usage


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_the_text_before_it(client: Any, stream: bool) -> None:
    asked = {"model": "tiny-chat", "prompt": "Once upon a time", "max_tokens": 40, "seed": 1}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[20:24]
    answer = client.completions.create(**asked, stop=["never written", stop], stream=stream)
    choices = [part.choices[0] for part in answer] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == whole[: whole.find(stop)]
    assert choices[-1].finish_reason == "stop"


def test_the_end_at_the_limit_is_called_length(client: Any) -> None:
    answer = client.completions.create(model="tiny-chat", prompt="Once upon a time", max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_logprobs_are_the_softmax_of_the_model_s_logits(client: Any, engine: LocalEngine) -> None:
    answer = client.chat.completions.create(
        model="tiny-chat", messages=[HELLO], logprobs=True, top_logprobs=3, temperature=0
    )
    llama = engine.inferencing_model("tiny-chat")
    tokens = llama.prompt_tokens("[INST] Hello! [/INST]")
    for entry in answer.choices[0].logprobs.content:
        logits = llama.forward(tokens)[-1].astype(np.float64)
        logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        best = np.argsort(-logprobs)[:3]
        assert [each.logprob for each in entry.top_logprobs] == pytest.approx(logprobs[best])
        tokens.append(int(next(i for i in best if text_of(llama, i) == entry.token)))
        assert entry.logprob == pytest.approx(logprobs[tokens[-1]])
    assert tokens[-1] in llama.tokenizer.eos_ids


def text_of(llama: LlamaModel, token: int) -> str:
    written = llama.tokenizer.token_bytes(int(token))
    return written.decode() if written else llama.tokenizer.piece(int(token))


def test_completions_have_logprobs_too(client: Any) -> None:
    answer = client.completions.create(model="tiny-chat", prompt="Once", max_tokens=4, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert [len(each) for each in logprobs.top_logprobs] == [2] * 4
    assert logprobs.text_offset[0] == 0


def test_offsets_go_on_counting_from_part_to_part(client: Any) -> None:
    asked = {"model": "tiny-chat", "prompt": "Once", "max_tokens": 12, "logprobs": 0, "seed": 1}
    whole = client.completions.create(**asked).choices[0]
    parts = [part.choices[0] for part in client.completions.create(**asked, stream=True)]
    offsets = [at for part in parts if part.logprobs for at in part.logprobs.text_offset]
    assert offsets == whole.logprobs.text_offset
    assert all(
        whole.text.startswith(token, at)
        for token, at in zip(whole.logprobs.tokens, offsets, strict=True)
    )
    assert len(set(offsets)) == 12


@pytest.mark.parametrize("encoding_format", ["float", "base64", None])
def test_embeddings_are_the_python_api_s_bits(
    encoding_format: str | None, client: Any, engine: LocalEngine
) -> None:
    texts = ["A cat sat on the mat.", "Two."]
    kind = {} if encoding_format is None else {"encoding_format": encoding_format}
    answer = client.embeddings.create(model="all-minilm-l6-v2", input=texts, **kind)
    expected = engine.generate_embeddings("tiny-embed", texts)
    for entry, vector in zip(answer.data, expected.embeddings, strict=True):
        assert np.array_equal(vector_of(entry.embedding), np.array(vector, np.float32))
    assert answer.usage.prompt_tokens == expected.usage.prompt_token_count
    assert answer.model == "tiny-embed"


def vector_of(embedding: list[float] | str) -> NDArray[np.float32]:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), "<f4")
    return np.array(embedding, np.float32)


def test_token_ids_of_the_model_have_the_vector_of_their_text(
    client: Any, engine: LocalEngine
) -> None:
    ids = engine.load("tiny-embed").tokenizer.encode("Two.")
    asked = {"model": "tiny-embed", "input": [ids]}
    with pytest.raises(openai.BadRequestError, match="add add_special_tokens false"):
        client.embeddings.create(**asked)
    by_ids = client.embeddings.create(**asked, extra_body={"add_special_tokens": False}).data
    assert by_ids == client.embeddings.create(model="tiny-embed", input="Two.").data


def test_one_text_is_embedded_as_a_list_of_one(client: Any) -> None:
    one = client.embeddings.create(model="tiny-embed", input="Two.").data
    many = client.embeddings.create(model="tiny-embed", input=["Two."]).data
    assert one == many


def test_models_are_listed_with_the_model_that_answers(client: Any) -> None:
    owners = {model.id: model.owned_by for model in client.models.list()}
    assert owners["tiny-chat"] == "refllm"
    assert owners["llama2-chat"] == "refllm: tiny-chat stands in"


def test_the_model_that_answered_is_named(client: Any) -> None:
    asked = {"model": "llama2-chat", "messages": [HELLO], "max_tokens": 2}
    assert client.chat.completions.create(**asked).model == "tiny-chat"
    assert {part.model for part in client.chat.completions.create(**asked, stream=True)} == {
        "tiny-chat"
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "expected", "code"),
    [
        ({"model": "absent"}, openai.NotFoundError, "no model dir", "model_not_found"),
        ({"model": "tiny-embed"}, openai.NotFoundError, "tiny-embed", "model-not-supported"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature must be a number", BAD),
        ({"max_tokens": 10**6}, openai.BadRequestError, "this server's limit is 4096", BAD),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools is not supported", BAD),
        ({"n": 0}, openai.BadRequestError, "n must be a whole number from 1 to 128", BAD),
        ({"seed": -1}, openai.BadRequestError, "seed must be a whole number", BAD),
        ({"messages": []}, openai.BadRequestError, "messages must be a list of at least", BAD),
        (
            {"messages": [{"role": "user", "content": "x " * 900}]},
            openai.BadRequestError,
            "512",
            "context_length_exceeded",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            openai.BadRequestError,
            r"messages\[0\].content\[0\] of type 'image_url' is not supported here",
            BAD,
        ),
    ],
)
def test_a_refused_request_raises_the_client_s_own_error(
    change: dict[str, object], error: Any, expected: str, code: str, stream: bool, client: Any
) -> None:
    asked = {"model": "tiny-chat", "messages": [HELLO], "stream": stream, **change}
    with pytest.raises(error, match=expected) as refusal:
        client.chat.completions.create(**asked)
    assert refusal.value.body["code"] == code
    assert refusal.value.body["kind"] in ("invalid-input", "model-not-supported")


def test_a_wrong_key_is_the_client_s_authentication_error(url: str) -> None:
    refused = pytest.raises(openai.AuthenticationError, match="authorization: bearer TOKEN")
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with stranger, refused:
        stranger.models.list()


def test_text_in_parts_and_a_developer_s_message_are_read(client: Any, engine: LocalEngine) -> None:
    messages = [
        {"role": "developer", "content": "You are a friendly helper."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}],
        },
    ]
    answer = client.chat.completions.create(model="tiny-chat", messages=messages)
    expected = engine.infer("tiny-chat", PROMPT).text
    assert answer.choices[0].message.content == expected.removeprefix(" ")


def test_a_stream_is_made_of_server_sent_events(url: str) -> None:
    body = {"model": "tiny-chat", "messages": [HELLO], "stream": True}
    answer = ask(url, "/v1/chat/completions", body, headers={"authorization": "Bearer secret"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.body.decode().split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1])
    assert events[-2:] == ["data: [DONE]", ""]
