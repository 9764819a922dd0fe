"""Each key of a request of OpenAI's clients: served, refused by name, or without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from refllm.api import InferencingParams
from refllm.generate import GenerationOptions
from refllm.sampling import Adjustments
from refllm.server.openai_keys import (
    MESSAGE_REFUSED,
    MESSAGE_SERVED,
    PART_WITHOUT_EFFECT,
    REFUSED,
    SERVED,
    STREAM_REFUSED,
    WITHOUT_EFFECT,
    KeyRefused,
)
from refllm.server.openai_requests import ChatRequest, CompletionRequest, EmbeddingsRequest, Message

Body = ChatRequest | CompletionRequest | EmbeddingsRequest

HELLO = {"role": "user", "content": "Hello!"}
BODIES: dict[type[Body], dict[str, Any]] = {
    ChatRequest: {"model": "tiny-chat", "messages": [HELLO]},
    CompletionRequest: {"model": "tiny-chat", "prompt": "Hello!"},
    EmbeddingsRequest: {"model": "tiny-embed", "input": "Hello!"},
}
ROUTES = list(BODIES)
TEXT_ROUTES: list[type[ChatRequest | CompletionRequest]] = [ChatRequest, CompletionRequest]
WRONG = {"not": ["what", "any", "key", "takes"]}


def checked(route: type[Body], **more: object) -> Body:
    body = route.model_validate({**BODIES[route], **more})
    body.check()
    return body


def chat(message: dict[str, object]) -> list[dict[str, str]]:
    return ChatRequest.model_validate({"model": "m", "messages": [{**HELLO, **message}]}).chat


def extras_of(route: type[Body], table: Any) -> list[str]:
    return [key for key in table if key not in route.model_fields]


# The tables


@pytest.mark.parametrize("route", ROUTES)
def test_each_field_is_in_the_table_of_served_keys_and_has_a_description(
    route: type[BaseModel],
) -> None:
    assert set(route.model_fields) <= set(SERVED)
    assert [key for key, field in route.model_fields.items() if not field.description] == []


def test_each_served_key_is_a_field_of_a_route() -> None:
    assert set(SERVED) == set().union(*(route.model_fields for route in ROUTES))
    assert set(MESSAGE_SERVED) == set(Message.model_fields)


def test_no_key_is_in_two_tables() -> None:
    assert set(WITHOUT_EFFECT) & (set(REFUSED) | set(SERVED)) == set()
    assert set(MESSAGE_SERVED) & set(MESSAGE_REFUSED) == set()


def test_each_key_of_openai_s_own_client_is_in_a_table() -> None:
    types = pytest.importorskip("openai", reason="the package openai is not installed").types
    params = [
        types.chat.completion_create_params.CompletionCreateParamsBase,
        types.chat.completion_create_params.CompletionCreateParamsStreaming,
        types.completion_create_params.CompletionCreateParamsBase,
        types.embedding_create_params.EmbeddingCreateParams,
    ]
    keys = set().union(*(each.__annotations__ for each in params))
    assert len(keys) > 40
    assert keys - {*SERVED, *REFUSED, *WITHOUT_EFFECT} == set()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("key", REFUSED)
def test_an_unsupported_key_is_refused_by_name(key: str, route: type[Body]) -> None:
    if key in route.model_fields:
        assert key in SERVED
        return
    with pytest.raises(KeyRefused) as refusal:
        checked(route, **{key: WRONG})
    assert str(refusal.value) == f"{key} is not supported here; {REFUSED[key].instead}"
    assert refusal.value.key == key


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("key", REFUSED)
def test_a_value_without_effect_is_accepted(key: str, route: type[Body]) -> None:
    if key in route.model_fields:
        return
    for value in (None, *REFUSED[key].neutral):
        checked(route, **{key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("best_of", True), ("min_p", False), ("echo", 0), ("top_n_sigma", 1)]
)
def test_a_value_of_another_type_asks_for_something_else(key: str, value: object) -> None:
    with pytest.raises(KeyRefused, match=f"^{key} is not supported here"):
        checked(ChatRequest, **{key: value})


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_key_without_effect_is_let_pass(key: str, route: type[Body]) -> None:
    checked(route, **{key: WRONG})


@pytest.mark.parametrize("route", ROUTES)
def test_an_unknown_key_is_refused_with_the_known_keys(route: type[Body]) -> None:
    with pytest.raises(KeyRefused, match=r"^tempreature is an unknown key; .* model, .*max_tokens"):
        checked(route, tempreature=0.5)
    checked(route, tempreature=None)


def test_a_key_of_another_route_is_refused() -> None:
    for route, key in ((ChatRequest, "prompt"), (CompletionRequest, "messages")):
        with pytest.raises(KeyRefused, match=f"^{key} is an unknown key"):
            checked(route, **{key: "Hello!"})
    with pytest.raises(KeyRefused, match=r"^stream is an unknown key"):
        checked(EmbeddingsRequest, stream=True)


@pytest.mark.parametrize("key", STREAM_REFUSED)
def test_an_option_of_streams_that_is_not_served_is_refused(key: str) -> None:
    with pytest.raises(KeyRefused, match=rf"^stream_options\.{key} is not supported here"):
        checked(ChatRequest, stream_options={key: True})
    checked(ChatRequest, stream_options={key: False})


@pytest.mark.parametrize("key", MESSAGE_REFUSED)
def test_a_key_of_a_message_that_is_not_served_is_refused_with_its_place(key: str) -> None:
    with pytest.raises(KeyRefused, match=rf"^messages\[0\]\.{key} is not supported here"):
        chat({key: WRONG})
    for value in (None, *MESSAGE_REFUSED[key].neutral):
        assert chat({key: value}) == [HELLO]


@pytest.mark.parametrize("key", PART_WITHOUT_EFFECT)
def test_a_key_of_a_part_without_effect_is_accepted(key: str) -> None:
    part = {"type": "text", "text": "Hello!", key: WRONG}
    assert chat({"content": [part]}) == [HELLO]
    with pytest.raises(KeyRefused, match=r"^messages\[0\]\.content\[0\]\.detail is an unknown key"):
        chat({"content": [{**part, "detail": "high"}]})


def test_a_message_s_name_and_reasoning_are_handed_to_the_template() -> None:
    more = {"name": "Anna", "reasoning_content": "Greet."}
    assert chat({**more, "role": "assistant"}) == [{**HELLO, **more, "role": "assistant"}]


# What keys become


def params_and_options(
    body: dict[str, object], route: type[ChatRequest | CompletionRequest] = ChatRequest
) -> tuple[InferencingParams, GenerationOptions]:
    asked = route.model_validate({**BODIES[route], **body})
    asked.check()
    return asked.params(), asked.generation_options()


@pytest.mark.parametrize("route", TEXT_ROUTES)
@pytest.mark.parametrize(
    ("body", "params"),
    [
        ({}, InferencingParams()),
        ({"repeat_penalty": 1.3}, InferencingParams(repeat_penalty=1.3)),
        ({"repetition_penalty": 1.3}, InferencingParams(repeat_penalty=1.3)),
        ({"repeat_last_n": 5}, InferencingParams(repeat_penalty_last_n_token_count=5)),
        ({"top_k": 3}, InferencingParams(top_k=3)),
        ({"frequency_penalty": 0}, InferencingParams(repeat_penalty=1.0)),
        ({"presence_penalty": 0.5}, InferencingParams(repeat_penalty=1.0)),
        ({"frequency_penalty": 0.5, "repeat_penalty": 1.2}, InferencingParams(repeat_penalty=1.2)),
    ],
)
def test_a_key_becomes_a_parameter_of_the_interface(
    body: dict[str, object], params: InferencingParams, route: type[ChatRequest | CompletionRequest]
) -> None:
    assert params_and_options(body, route)[0] == params


@pytest.mark.parametrize("route", TEXT_ROUTES)
@pytest.mark.parametrize(
    ("body", "generation_options"),
    [
        ({}, GenerationOptions()),
        (
            {"frequency_penalty": 0.2},
            GenerationOptions(adjustments=Adjustments(frequency_penalty=0.2)),
        ),
        ({"presence_penalty": -2}, GenerationOptions(adjustments=Adjustments(presence_penalty=-2))),
        ({"logit_bias": {"7": -100}}, GenerationOptions(adjustments=Adjustments(bias={7: -100}))),
        ({"min_tokens": 4}, GenerationOptions(min_tokens=4)),
        ({"ignore_eos": True}, GenerationOptions(ignore_eos=True)),
        ({"stop_token_ids": [5, 9]}, GenerationOptions(stop_token_ids=frozenset({5, 9}))),
    ],
)
def test_a_key_becomes_a_wish(
    body: dict[str, object],
    generation_options: GenerationOptions,
    route: type[ChatRequest | CompletionRequest],
) -> None:
    assert params_and_options(body, route)[1] == generation_options


SPIN: dict[str, object] = {"max_completion_tokens": 9, "frequency_penalty": 1.1}


def test_spin_s_frequency_penalty_is_the_repeat_penalty() -> None:
    params, generation_options = params_and_options(SPIN)
    assert (params, generation_options) == (
        InferencingParams(max_tokens=9, repeat_penalty=1.1),
        GenerationOptions(),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"user": "anna"},
        {"stream": False},
        {"messages": [HELLO, {"role": "assistant", "content": "Hi."}, HELLO]},
        {"messages": [{"role": "system", "content": "Be brief."}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]},
        {"messages": [{**HELLO, "name": "Anna"}]},
        {"frequency_penalty": -0.5},
        {"frequency_penalty": 0},
    ],
)
def test_in_any_other_request_frequency_penalty_is_openai_s(change: dict[str, object]) -> None:
    params, generation_options = params_and_options({**SPIN, **change})
    assert params.repeat_penalty == 1.0
    penalty = change.get("frequency_penalty", 1.1)
    assert generation_options.adjustments.frequency_penalty == penalty


@pytest.mark.parametrize("key", ["frequency_penalty", "presence_penalty"])
@pytest.mark.parametrize("value", [2.1, -2.1, 1e300])
def test_openai_s_penalties_have_openai_s_range(key: str, value: float) -> None:
    with pytest.raises(KeyRefused, match=f"^{key} must be a number from -2 to 2"):
        params_and_options({key: value})


@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        (ChatRequest, {"top_logprobs": 2}, "^top_logprobs needs logprobs true"),
        (CompletionRequest, {"echo": True, "logprobs": 0}, "^echo with logprobs"),
        (
            ChatRequest,
            {"repeat_penalty": 1.1, "repetition_penalty": 1.2},
            "^repetition_penalty is another name of repeat_penalty",
        ),
        (
            EmbeddingsRequest,
            {"max_tokens": 3, "truncate_prompt_tokens": 4},
            "^truncate_prompt_tokens is another name of max_tokens",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(
    route: type[Body], body: dict[str, object], expected: str
) -> None:
    with pytest.raises(KeyRefused, match=expected):
        checked(route, **body)


def test_the_page_of_the_documentation_has_the_tables(request: pytest.FixtureRequest) -> None:
    from refllm.server.pages import keys_in_markdown

    page = (Path(request.config.rootpath) / "docs" / "serving.md").read_text("utf-8")
    assert keys_in_markdown() in page, "write them with: python -m tools.serving_keys"
