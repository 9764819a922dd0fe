"""Answers that a client of OpenAI's binds to a JSON schema, as any HTTP client asks."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from refllm.engine import LocalEngine
from refllm.generate import GenerationOptions
from refllm.server import openai_requests
from refllm.server.openai_keys import KeyRefused
from refllm.server.openai_requests import ChatRequest, CompletionRequest
from refllm.tokenizer.grammar import MAX_DEPTH, json_grammar
from tests.support.client import Answer, ask

pytest.importorskip("llguidance", reason="the extra grammar is not installed")

MOOD: dict[str, object] = {
    "type": "object",
    "properties": {"mood": {"enum": ["glad", "sad"]}, "day": {"type": "integer", "enum": [1, 2]}},
    "required": ["mood", "day"],
    "additionalProperties": False,
}
STORY = {"model": "tiny-chat", "prompt": "Once upon a time", "max_tokens": 300, "seed": 1}
HELLO = {
    **{"model": "tiny-chat", "messages": [{"role": "user", "content": "Hello!"}]},
    **{"max_tokens": 300, "seed": 1},
}
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONG_NAME = "zq" * 30  # more characters than three tokens have


def schema_of(schema: object, **more: object) -> dict[str, object]:
    """A `response_format` with a schema."""
    named = {"name": "an_answer", "schema": schema, **more}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def chat(url: str, **more: object) -> Any:
    answer = ask(url, CHATS, {**HELLO, **more})
    assert answer.status == 200, answer.body
    return answer.json


def completion(url: str, **more: object) -> Any:
    answer = ask(url, COMPLETIONS, {**STORY, **more})
    assert answer.status == 200, answer.body
    return answer.json


def error(answer: Answer) -> Any:
    assert answer.status == 400, answer.body
    return answer.json["error"]


# What is answered


@pytest.mark.parametrize(
    "asked",
    [
        schema_of(MOOD),
        schema_of(MOOD, strict=True, description="How the speaker feels."),
        schema_of(MOOD, strict=False),
        {"json_schema": MOOD},
        {"json_schema": json.dumps(MOOD)},
        {"guided_json": MOOD},
        {"guided_json": json.dumps(MOOD), "response_format": {"type": "text"}},
    ],
)
def test_an_answer_is_json_that_its_schema_describes(asked: dict[str, object], url: str) -> None:
    [choice] = chat(url, **asked)["choices"]
    assert choice["finish_reason"] == "stop"
    Draft202012Validator(MOOD).validate(json.loads(choice["message"]["content"]))
    assert choice["message"]["content"][0] == "{"
    [choice] = completion(url, **asked)["choices"]
    assert choice["finish_reason"] == "stop"
    Draft202012Validator(MOOD).validate(json.loads(choice["text"]))


class Mood(BaseModel):
    mood: Literal["glad", "sad"]
    days: list[bool] = Field(max_length=2)


def test_openai_s_client_gets_the_object_of_a_class(url: str) -> None:
    openai: Any = pytest.importorskip("openai", reason="pip install openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    completion = client.chat.completions.parse(**HELLO, response_format=Mood)
    assert isinstance(completion.choices[0].message.parsed, Mood)
    assert completion.choices[0].finish_reason == "stop"
    client.close()


def test_json_object_asks_for_any_object(url: str) -> None:
    asked = {"response_format": {"type": "json_object"}}
    tokenizer = LocalEngine().inferencing_model("tiny-chat").tokenizer
    end = {
        str(i): 100 for i in range(tokenizer.n_vocab) if tokenizer.token_bytes(i) in (b"}", b" }")
    }
    [choice] = chat(url, **asked, logit_bias=end)["choices"]
    assert json.loads(choice["message"]["content"]) == {}
    for seed in range(5):
        [choice] = chat(url, **asked, seed=seed, max_tokens=30)["choices"]
        assert choice["message"]["content"][0] == "{"


def test_the_type_text_asks_for_nothing(url: str) -> None:
    plain = completion(url, max_tokens=20)["choices"]
    assert completion(url, max_tokens=20, response_format={"type": "text"})["choices"] == plain


def test_an_answer_has_the_bits_of_the_engine_s_however_many_are_computed_together(
    url: str,
) -> None:
    bodies: list[dict[str, object]] = [
        {"seed": seed, **asked}
        for seed in range(6)
        for asked in (schema_of(MOOD), schema_of({"type": "string", "maxLength": 9}), {})
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: completion(url, **body)["choices"], bodies))
    assert together == [completion(url, **body)["choices"] for body in bodies]
    params = CompletionRequest.model_validate(STORY).params()
    generation_options = GenerationOptions(grammar=json_grammar(MOOD))
    alone = LocalEngine(seed=5).infer(
        "tiny-chat", "Once upon a time", params, generation_options=generation_options
    )
    assert together[15][0]["text"] == alone.text


def test_each_of_several_choices_is_sampled_with_its_seed(url: str) -> None:
    choices = chat(url, n=4, **schema_of(MOOD))["choices"]
    alone = [chat(url, seed=seed, **schema_of(MOOD))["choices"][0] for seed in (1, 2, 3, 4)]
    assert [choice["message"] for choice in choices] == [choice["message"] for choice in alone]
    assert len({choice["message"]["content"] for choice in choices}) > 1


def test_the_logprobs_are_the_model_s_own_and_their_tokens_are_the_text(url: str) -> None:
    [bound] = chat(url, logprobs=True, top_logprobs=20, **schema_of(MOOD))["choices"]
    tokens = bound["logprobs"]["content"]
    written = b"".join(bytes(token["bytes"]) for token in tokens)
    assert written.decode() == bound["message"]["content"]
    [free] = chat(url, logprobs=True, top_logprobs=20, max_tokens=1)["choices"]
    assert tokens[0]["top_logprobs"] == free["logprobs"]["content"][0]["top_logprobs"]


def test_a_stream_has_the_text_that_is_answered_whole(url: str) -> None:
    whole = chat(url, **schema_of(MOOD))["choices"][0]["message"]["content"]
    answer = ask(url, CHATS, {**HELLO, **schema_of(MOOD), "stream": True})
    *parts, _, _ = answer.body.decode().split("\n\n")
    choices = [json.loads(part.removeprefix("data: "))["choices"][0] for part in parts]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == whole
    assert choices[-1]["finish_reason"] == "stop"


def test_a_stop_ends_the_text_before_it(url: str) -> None:
    asked = schema_of({"const": "abcdef"})
    [choice] = completion(url, stop="d", **asked)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ('"abc', "stop")


@pytest.mark.parametrize("asked", [{"min_tokens": 50}, {"ignore_eos": True}])
def test_a_text_that_can_only_end_ends_whatever_else_is_asked_for(
    asked: dict[str, object], url: str
) -> None:
    [choice] = completion(url, **asked, **schema_of({"type": "boolean"}))["choices"]
    assert (choice["text"] in ("true", "false"), choice["finish_reason"]) == (True, "stop")


def test_at_max_tokens_the_text_is_cut_and_the_reason_is_length(url: str) -> None:
    asked = schema_of({"type": "object", "required": [LONG_NAME]})
    [choice] = completion(url, max_tokens=3, **asked)["choices"]
    assert choice["finish_reason"] == "length"
    assert ('{"' + LONG_NAME).startswith("".join(choice["text"].split()))


def test_where_the_context_is_full_the_reason_is_length(url: str) -> None:
    asked = schema_of({"type": "string", "minLength": 3000})
    answer = completion(url, max_tokens=3000, **asked)
    assert answer["choices"][0]["finish_reason"] == "length"
    # The last token is drawn from the context's last place, and has no place itself.
    n_ctx = LocalEngine().inferencing_model("tiny-chat").config.n_ctx
    assert answer["usage"]["total_tokens"] == n_ctx + 1


# What is refused

FORMAT = "response_format"
SCHEMA = "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("asked", "key", "expected"),
    [
        (
            {FORMAT: {"type": "xml"}},
            f"{FORMAT}.type",
            'must be "text", "json_object" or "json_schema"',
        ),
        ({FORMAT: {}}, f"{FORMAT}.type", "is missing"),
        ({FORMAT: "json"}, FORMAT, "must be an object with the `type` text, json_object or"),
        ({FORMAT: {"type": "json_schema"}}, f"{FORMAT}.json_schema", "is missing; it must be an"),
        (
            {FORMAT: {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}},
            f"{FORMAT}.json_schema",
            "of type 'json_object' must be an object with a name and a schema, for that type",
        ),
        (
            {FORMAT: {"type": "json_object", "schema": MOOD}},
            f"{FORMAT}.schema",
            "is not supported here; send it as json_schema.schema",
        ),
        (
            {FORMAT: {"type": "json_schema", "json_schema": {"schema": {}}}},
            f"{FORMAT}.json_schema.name",
            "is missing; it must be 1 to 64 letters",
        ),
        (
            {FORMAT: {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            f"{FORMAT}.json_schema.name",
            'must be 1 to 64 letters, digits, underscores and dashes; got "a b"',
        ),
        (
            {FORMAT: {"type": "json_schema", "json_schema": {"name": "a"}}},
            SCHEMA,
            "is missing; it must be a JSON schema, as an object",
        ),
        (schema_of(True), SCHEMA, "must be a JSON schema, as an object; got true"),
        (schema_of({}, strict="yes"), f"{FORMAT}.json_schema.strict", "must be true or false"),
        (
            schema_of({}, mode="x"),
            f"{FORMAT}.json_schema.mode",
            "is an unknown key; the keys are name, description, schema, strict",
        ),
        (schema_of({"type": "strin"}), SCHEMA, "cannot be used: Invalid type: strin"),
        (schema_of({"not": {}}), SCHEMA, 'cannot be used: Unimplemented keys: ["not"]'),
        ({"json_schema": {"not": {}}}, "json_schema", "json_schema cannot be used: Unimplemented"),
        ({"guided_json": {"not": {}}}, "guided_json", "guided_json cannot be used: Unimplemented"),
        ({"guided_json": "{"}, "guided_json", "must be a JSON schema, as an object or as the text"),
        ({"guided_json": "[1]"}, "guided_json", "or as the text of one; got [1]"),
        ({"json_schema": 3}, "json_schema", "must be a JSON schema, as an object or as the text"),
        (
            {**schema_of(MOOD), "guided_json": MOOD},
            "guided_json",
            f"and {SCHEMA} both set the format of the answer; send one",
        ),
        ({"regex": "a*"}, "regex", "JSON schemas are the only grammars; send response_format"),
    ],
)
@pytest.mark.parametrize(("path", "body"), [(CHATS, HELLO), (COMPLETIONS, STORY)])
def test_an_impossible_schema_is_refused_by_key(
    path: str, body: dict[str, object], asked: dict[str, object], key: str, expected: str, url: str
) -> None:
    refused = error(ask(url, path, {**body, **asked}))
    assert expected in refused["message"]
    assert refused["message"].startswith(key)
    assert refused["param"] == key


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_is_too_deep_is_refused_before_the_answer_has_a_status(
    stream: bool, url: str
) -> None:
    schema: dict[str, object] = {}
    for _ in range(MAX_DEPTH):
        schema = {"items": schema}
    refused = error(ask(url, CHATS, {**HELLO, **schema_of(schema), "stream": stream}))
    assert f"nested deeper than {MAX_DEPTH} levels" in refused["message"]
    assert refused["param"] == SCHEMA


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (schema_of(MOOD), SCHEMA),
        ({FORMAT: {"type": "json_object"}}, FORMAT),
        ({"guided_json": MOOD}, "guided_json"),
    ],
)
@pytest.mark.parametrize(
    ("route", "body"), [(ChatRequest, HELLO), (CompletionRequest, STORY)]
)  # fmt: skip
def test_without_the_library_the_key_is_refused_with_the_command_that_installs_it(
    route: type[ChatRequest | CompletionRequest],
    body: dict[str, object],
    asked: dict[str, object],
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai_requests, "has_library", lambda: False)
    with pytest.raises(KeyRefused, match=r"pip install '\.\[grammar\]'") as refused:
        route.model_validate({**body, **asked}).check()
    assert str(refused.value).startswith(f"{key} is not supported here; it needs llguidance")
    route.model_validate({**body, FORMAT: {"type": "text"}}).check()
