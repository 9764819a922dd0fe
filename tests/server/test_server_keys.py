"""What each served key of OpenAI's routes does to an answer, as any HTTP client asks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from refllm.api import InferencingParams, InvalidInput, ModelNotSupported
from refllm.engine import LocalEngine
from refllm.server.openai_keys import WITHOUT_EFFECT
from refllm.spin.remote import RemoteEngine
from refllm.testing.server_process import running_server
from tests.conftest import DATA
from tests.support.client import Answer, ask, eventually, http_connection, is_idle

STORY = {"model": "tiny-chat", "prompt": "Once upon a time", "max_tokens": 20, "seed": 1}
HELLO = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hello!"}]}
LONG = "The cat sat on the mat and looked at the dog. " * 40


def completion(url: str, **more: object) -> Any:
    answer = ask(url, "/v1/completions", {**STORY, **more})
    assert answer.status == 200, answer.body
    return answer.json


def text(url: str, **more: object) -> str:
    written: str = completion(url, **more)["choices"][0]["text"]
    return written


def embeddings(url: str, **more: object) -> Any:
    answer = ask(url, "/v1/embeddings", {"model": "tiny-embed", **more})
    assert answer.status == 200, answer.body
    return answer.json


def error(answer: Answer, status: int = 400) -> Any:
    assert answer.status == status, answer.body
    return answer.json["error"]


def events(answer: Answer) -> list[Any]:
    *parts, done, end = answer.body.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


# How tokens are drawn


@pytest.mark.parametrize(
    ("body", "params"),
    [
        ({"repeat_penalty": 1.7}, {"repeat_penalty": 1.7}),
        ({"repetition_penalty": 1.7}, {"repeat_penalty": 1.7}),
        (
            {"repeat_penalty": 1.7, "repeat_last_n": 3},
            {"repeat_penalty": 1.7, "repeat_penalty_last_n_token_count": 3},
        ),
        ({"top_k": 2}, {"top_k": 2}),
        ({"presence_penalty": 0}, {"repeat_penalty": 1.0}),
    ],
)
def test_a_parameter_of_the_interface_under_its_other_names(
    body: dict[str, object], params: dict[str, float], url: str
) -> None:
    wanted = InferencingParams(max_tokens=20, **params)  # type: ignore[arg-type]
    expected = LocalEngine(seed=1).infer("tiny-chat", "Once upon a time", wanted)
    assert text(url, **body) == expected.text


@pytest.mark.parametrize("key", ["frequency_penalty", "presence_penalty"])
def test_openai_s_penalties_above_0_discourage_and_below_encourage(key: str, url: str) -> None:
    def n_distinct(penalty: float) -> int:
        tokens = completion(
            url, temperature=0, max_tokens=60, logprobs=0, ignore_eos=True, **{key: penalty}
        )["choices"][0]["logprobs"]["tokens"]
        assert len(tokens) == 60
        return len(set(tokens))

    assert n_distinct(2) > n_distinct(0)
    assert n_distinct(2) > n_distinct(-2)


def test_a_bias_chooses_a_token_and_forbids_one(url: str, engine: LocalEngine) -> None:
    tokenizer = engine.inferencing_model("tiny-chat").tokenizer
    cat = tokenizer.encode(" cat", add_special=False)[-1]
    biased = text(url, logit_bias={str(cat): 100}, max_tokens=3)
    assert biased == tokenizer.token_bytes(cat).decode() * 3
    greedy = completion(url, temperature=0, logprobs=0, max_tokens=1)["choices"][0]
    # A comma is a piece of the vocabulary, and a byte of its own.
    forbidden = {
        str(i): -100
        for i in range(tokenizer.n_vocab)
        if tokenizer.token_bytes(i).decode("utf-8", "replace") == greedy["text"]
    }
    assert text(url, temperature=0, max_tokens=1, logit_bias=forbidden) != greedy["text"]


def test_min_tokens_and_ignore_eos_put_the_end_off(url: str) -> None:
    short = {"prompt": "[INST] Hello! [/INST]", "temperature": 0, "max_tokens": 70}
    plain = completion(url, **short)
    n_plain = plain["usage"]["completion_tokens"]
    assert plain["choices"][0]["finish_reason"] == "stop"
    later = completion(url, **short, min_tokens=n_plain + 3)
    assert later["usage"]["completion_tokens"] >= n_plain + 3
    never = completion(url, **short, ignore_eos=True)
    assert never["usage"]["completion_tokens"] == 70
    assert never["choices"][0]["finish_reason"] == "length"


def test_a_stop_is_not_looked_for_before_min_tokens(url: str) -> None:
    whole = text(url)
    stop = whole[:4]
    assert text(url, stop=stop) == ""
    assert text(url, stop=stop, min_tokens=20) == whole


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_token_ends_the_text_before_it(stream: bool, url: str, engine: LocalEngine) -> None:
    chunks = LocalEngine(seed=1).stream(
        "tiny-chat", "Once upon a time", InferencingParams(max_tokens=20)
    )
    steps = [chunk for chunk in chunks if chunk.step is not None]
    stop = steps[5]
    assert stop.step is not None
    token = stop.step.token
    first = next(i for i, chunk in enumerate(steps) if chunk.step and chunk.step.token == token)
    body = {**STORY, "stop_token_ids": [token], "stream": stream}
    answer = ask(url, "/v1/completions", body)
    choices = [part["choices"][0] for part in (events(answer) if stream else [answer.json])]
    assert "".join(choice["text"] for choice in choices) == "".join(
        chunk.text for chunk in steps[:first]
    )
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("key", ["logit_bias", "stop_token_ids"])
def test_an_id_outside_the_vocabulary_is_refused_by_key(key: str, url: str) -> None:
    value = {"99999": 1} if key == "logit_bias" else [99999]
    refused = error(ask(url, "/v1/completions", {**STORY, key: value}))
    assert f"{key} names the token 99999" in refused["message"]


# Prompts, and how many answers


def test_choice_i_is_sampled_with_seed_plus_i(url: str) -> None:
    answer = completion(url, n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    alone = [completion(url, seed=seed) for seed in (1, 2, 3)]
    assert [choice["text"] for choice in answer["choices"]] == [
        each["choices"][0]["text"] for each in alone
    ]
    assert len({choice["text"] for choice in answer["choices"]}) > 1
    assert answer["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
    n_drawn = sum(each["usage"]["completion_tokens"] for each in alone)
    assert answer["usage"]["completion_tokens"] == n_drawn


def test_each_of_several_prompts_has_its_choices_in_order(url: str) -> None:
    prompts = ["Once upon a time", "The fox"]
    answer = completion(url, prompt=prompts, n=2)
    assert [choice["text"] for choice in answer["choices"]] == [
        text(url, prompt=prompt, seed=seed) for prompt in prompts for seed in (1, 2)
    ]
    assert answer["usage"]["prompt_tokens"] == sum(
        completion(url, prompt=prompt)["usage"]["prompt_tokens"] for prompt in prompts
    )


def test_a_stream_of_several_choices_has_each_choice_s_parts(url: str) -> None:
    _, whole = (completion(url, n=3, stop="\n") for _ in range(2))  # the prompt is known
    asked = {**STORY, "n": 3, "stop": "\n", "stream": True}
    parts = events(
        ask(url, "/v1/completions", {**asked, "stream_options": {"include_usage": True}})
    )
    assert parts.pop()["usage"] == whole["usage"]
    texts = ["", "", ""]
    for part in parts:
        [choice] = part["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    reasons = [c["finish_reason"] for p in parts for c in p["choices"] if c["finish_reason"]]
    assert len(reasons) == 3


def test_a_client_that_disconnects_ends_the_jobs_of_all_choices(url: str) -> None:
    connection = http_connection(url)
    body = {**STORY, "n": 20, "max_tokens": 4000, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body))
    assert connection.getresponse().readline().startswith(b"data: ")
    connection.close()
    eventually(lambda: is_idle(url))


def test_chats_have_several_choices_too(url: str) -> None:
    asked = {**HELLO, "temperature": 3, "max_tokens": 8, "seed": 5}
    both = ask(url, "/v1/chat/completions", {**asked, "n": 2}).json["choices"]
    one = ask(url, "/v1/chat/completions", {**asked, "seed": 6}).json["choices"]
    assert both[1]["message"] == one[0]["message"]
    parts = events(ask(url, "/v1/chat/completions", {**asked, "n": 2, "stream": True}))
    roles = [p["choices"][0]["index"] for p in parts if p["choices"][0]["delta"].get("role")]
    assert sorted(roles) == [0, 1]


def test_more_choices_than_may_wait_are_refused_with_the_limit(url: str) -> None:
    refused = error(ask(url, "/v1/completions", {**STORY, "n": 65}))
    assert "asks for 65 answers, this server's limit is 64" in refused["message"]


def test_one_prompt_that_is_refused_refuses_the_request(url: str) -> None:
    refused = error(ask(url, "/v1/completions", {**STORY, "prompt": ["Once", LONG]}))
    assert refused["code"] == "context_length_exceeded"


@pytest.mark.parametrize("is_list", [False, True])
def test_a_prompt_of_token_ids_is_continued_as_its_text_is(
    is_list: bool, url: str, engine: LocalEngine
) -> None:
    ids = engine.inferencing_model("tiny-chat").prompt_tokens("Once upon a time")
    answer = completion(url, prompt=[ids] if is_list else ids)
    assert answer["choices"][0]["text"] == text(url)
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_ids_that_are_not_the_model_s_are_refused(url: str) -> None:
    refused = error(ask(url, "/v1/completions", {**STORY, "prompt": [1, 99999]}))
    assert "token id 99999 is outside the vocabulary" in refused["message"]
    refused = error(ask(url, "/v1/completions", {**STORY, "prompt": [1] * 600}))
    assert refused["code"] == "context_length_exceeded"


def test_ids_to_embed_that_are_not_the_model_s_are_refused(url: str) -> None:
    refused = error(ask(url, "/v1/embeddings", {"model": "tiny-embed", "input": [9906, 1917]}))
    assert "is outside the model's vocabulary" in refused["message"]
    # Of another tokenizer, and by chance in the vocabulary.
    refused = error(ask(url, "/v1/embeddings", {"model": "tiny-embed", "input": [906, 191]}))
    assert "begin with [2] and end with [3] for this model" in refused["message"]


# The last is "#1$" in OpenAI's cl100k_base: every id is one of tiny-embed's too.
@pytest.mark.parametrize("ids", [[9906, 1917], [[9906], [1917]], [2, 16, 3], [[2, 16, 3]]])
def test_token_ids_of_openai_s_package_are_refused_with_the_option_to_set(
    ids: list[object], url: str
) -> None:
    body = {"model": "tiny-embed", "input": ids}
    refused = error(ask(url, "/v1/embeddings", body, headers={"x-stainless-lang": "python"}))
    assert refused["param"] == "input"
    assert "check_embedding_ctx_length=False" in refused["message"]
    assert "add_special_tokens false" in refused["message"]


def test_special_tokens_are_always_added_to_text(url: str) -> None:
    body = {"model": "tiny-embed", "input": "A cat."}
    assert embeddings(url, **body, add_special_tokens=True) == embeddings(url, **body)
    refused = error(ask(url, "/v1/embeddings", {**body, "add_special_tokens": False}))
    assert refused["message"] == "add_special_tokens false is for token ids; leave it out"


@pytest.mark.parametrize("prompt", [[], [[]], [[1], []], ["a", 1], [1, "a"], [True], {}, None])
def test_a_malformed_prompt_is_refused_with_what_it_must_be(prompt: object, url: str) -> None:
    refused = error(ask(url, "/v1/completions", {**STORY, "prompt": prompt}))
    assert refused["message"].startswith("prompt")
    assert "must be text, a list of texts, a list of token ids" in refused["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompt_before_the_answer(stream: bool, url: str) -> None:
    body = {**STORY, "echo": True, "stop": ["Once", "zzz"], "stream": stream}
    answer = ask(url, "/v1/completions", body)
    parts = events(answer) if stream else [answer.json]
    echoed = "".join(part["choices"][0]["text"] for part in parts)
    assert echoed == "Once upon a time" + text(url)


def test_echo_of_token_ids_is_their_text(url: str, engine: LocalEngine) -> None:
    ids = engine.inferencing_model("tiny-chat").prompt_tokens("Once upon a time")
    assert text(url, prompt=ids, echo=True) == "Once upon a time" + text(url)


def test_in_profile_spin_local_a_text_has_its_prompt_once_with_and_without_echo() -> None:
    with running_server(["--profile", "spin-local"]) as server:
        plain, echoed = (text(server.url, echo=echo) for echo in (False, True))
        chat = ask(server.url, "/v1/chat/completions", {**HELLO, "max_tokens": 3}).json
    assert plain == echoed
    assert plain.startswith("Once upon a time")
    assert plain.count("Once upon a time") == 1
    assert chat["choices"][0]["message"]["content"].startswith("[INST] Hello! [/INST]")


# Chats


def test_a_chat_s_answer_does_not_begin_with_the_space_after_its_prompt(url: str) -> None:
    prompt = completion(url, prompt="[INST] Hello! [/INST]", seed=0, max_tokens=30)
    chat = ask(url, "/v1/chat/completions", {**HELLO, "max_tokens": 30}).json
    continued = prompt["choices"][0]["text"]
    assert continued.startswith(" ")
    assert chat["choices"][0]["message"]["content"] == continued[1:]
    parts = events(ask(url, "/v1/chat/completions", {**HELLO, "max_tokens": 30, "stream": True}))
    streamed = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert streamed == continued[1:]


def test_spin_s_client_gets_the_text_as_it_always_did(url: str, engine: LocalEngine) -> None:
    body = {**HELLO, "max_completion_tokens": 30, "frequency_penalty": 1.100000023841858}
    headers = {"authorization": "bearer none"}
    answer = ask(url, "/v1/chat/completions", body, headers=headers).json
    content = answer["choices"][0]["message"]["content"]
    params = InferencingParams(max_tokens=30)
    assert content == engine.infer("tiny-chat", "[INST] Hello! [/INST]", params).text


# Embeddings


def test_texts_as_token_ids_have_the_vectors_of_their_texts(url: str, engine: LocalEngine) -> None:
    model: Any = engine.load("tiny-embed")
    texts = ["A cat.", "Two dogs sat."]
    ids = [model.tokenizer.encode(each) for each in texts]
    by_text = embeddings(url, input=texts)
    assert embeddings(url, input=ids) == by_text
    assert embeddings(url, input=ids, add_special_tokens=False) == by_text
    assert embeddings(url, input=ids[0])["data"][0] == by_text["data"][0]


def test_an_empty_list_is_refused_as_openai_does(url: str) -> None:
    body = {"input": [], "model": "tiny-embed"}
    headers = {"authorization": "bearer none", "user-agent": "litellm/1.110.2"}
    refused = error(ask(url, "/v1/embeddings", body, headers=headers))
    assert refused["message"].startswith("input must be text, a list of texts, ")


def test_no_texts_come_back_as_no_vectors_to_spin_s_open_ai_client(url: str) -> None:
    remote = RemoteEngine(url, api_type="open_ai")
    result = remote.generate_embeddings("tiny-embed", [])
    assert (result.embeddings, result.usage.prompt_token_count) == ([], 0)


@pytest.mark.parametrize("key", ["max_tokens", "truncate_prompt_tokens"])
def test_truncate_prompt_tokens_cuts_a_text_and_is_reported(
    key: str, url: str, engine: LocalEngine
) -> None:
    texts = ["Two.", "The cat sat on the mat."]
    answer = embeddings(url, input=texts, **{key: 6})
    expected = engine.generate_embeddings("tiny-embed", texts, max_tokens=6)
    got = np.array([each["embedding"] for each in answer["data"]], np.float32)
    assert np.array_equal(got, np.array(expected.embeddings, np.float32))
    assert [each["truncated"] for each in answer["data"]] == [False, True]
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_token_count
    whole = embeddings(url, input=texts)
    assert [each["truncated"] for each in whole["data"]] == [False, False]


def test_spin_s_route_has_the_limit_too(url: str) -> None:
    body = {"model": "tiny-embed", "input": ["The cat sat on the mat."]}
    cut = ask(url, "/embed", {**body, "maxTokens": 6}).json
    assert cut["usage"] == {"promptTokenCount": 6}
    assert cut["truncated"] == [True]
    assert "truncated" not in ask(url, "/embed", body).json
    assert cut["embeddings"] != ask(url, "/embed", body).json["embeddings"]


# Errors


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_key_without_effect_has_none(key: str, url: str) -> None:
    assert text(url, max_tokens=6, **{key: {"any": "value"}}) == text(url, max_tokens=6)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**HELLO, "model": "absent"}),
        ("/v1/completions", {**STORY, "model": "absent"}),
        ("/v1/embeddings", {"model": "absent", "input": "a"}),
        ("/v1/models/absent", None),
    ],
)
def test_an_unknown_model_is_the_same_error_on_all_routes(
    path: str, body: object, url: str
) -> None:
    refused = error(ask(url, path, body), 404)
    assert (refused["code"], refused["type"]) == ("model_not_found", "invalid_request_error")
    assert "absent" in refused["message"]
    assert "GET /v1/models" in refused["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**HELLO, "messages": [{"role": "user", "content": LONG * 2}]}),
        ("/v1/completions", {**STORY, "prompt": LONG * 2}),
    ],
)
def test_a_prompt_that_is_too_long_is_the_same_error_on_all_routes(
    path: str, body: object, url: str
) -> None:
    refused = error(ask(url, path, body))
    assert refused["code"] == "context_length_exceeded"
    assert "the model's context holds 512" in refused["message"]


@pytest.mark.parametrize(
    ("body", "key", "expected"),
    [
        ({"stop": 3}, "stop", "stop must be text, or a list of at most 4 texts; none empty; got 3"),
        ({"stop": [""]}, "stop", 'none empty; got [""]'),
        ({"stream": "yes"}, "stream", 'stream must be true or false; got "yes"'),
        ({"logit_bias": {"a": 1}}, "logit_bias", "logit_bias must be an object of token ids and"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "numbers from -100 to 100; got 101"),
        ({"n": 129}, "n", "n must be a whole number from 1 to 128; got 129"),
        (
            {"grammar": "a"},
            "grammar",
            "grammar is not supported here; JSON schemas are the only grammars",
        ),
        ({"frequency_penalty": 3}, "frequency_penalty", "must be a number from -2 to 2"),
        ({"messages": [{"role": "king"}]}, "messages[0].role", '"user" or "assistant"; got "king"'),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing; it must be text"),
        (
            {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
            "messages[0].content",
            "messages[0].content must be text, or a list of parts of type text",
        ),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
    ],
)
def test_an_error_names_the_key_and_what_it_must_be(
    body: dict[str, object], key: str, expected: str, url: str
) -> None:
    refused = error(ask(url, "/v1/chat/completions", {**HELLO, **body}))
    assert expected in refused["message"]
    assert refused["param"] == key


@pytest.mark.parametrize("key", ["\ud800", "\0", "ß\n", "x" * 100_000])
@pytest.mark.parametrize("path", ["/infer", "/v1/completions", "/v1/embeddings"])
def test_a_key_that_is_no_name_is_refused_and_shown_short(path: str, key: str, url: str) -> None:
    body = {"model": "tiny-embed", "input": "a"} if "embed" in path else dict(STORY)
    if path == "/infer":
        body = {"model": "tiny-chat", "prompt": "Hi"}
    answer = ask(url, path, {**body, key: 1})
    assert answer.status == 400
    assert len(answer.body) < 2000
    if key != "\ud800":  # no text at all
        assert b"is an unknown key" in answer.body


def test_a_model_can_be_retrieved(url: str) -> None:
    listed = ask(url, "/v1/models").json["data"]
    assert [ask(url, f"/v1/models/{each['id']}").json for each in listed] == listed


@pytest.mark.parametrize("api_type", ["default", "open_ai"])
def test_an_engine_that_asks_this_server_raises_the_interface_s_errors(
    api_type: str, url: str
) -> None:
    remote = RemoteEngine(url, api_type=api_type)
    with pytest.raises(InvalidInput, match="no model directory found"):
        remote.infer("absent", "Hello!")
    with pytest.raises(InvalidInput, match="the model's context holds 512"):
        remote.infer("tiny-chat", LONG * 2)
    with pytest.raises(ModelNotSupported, match="unknown embedding model"):
        remote.generate_embeddings("absent", ["Hello!"])


# The handed cases


HANDED = DATA / "cases" / "server.json"


@pytest.mark.skipif(not HANDED.exists(), reason="the handed cases are not here")
def test_the_handed_cases_get_their_expected_answers(url: str) -> None:
    cases = {case["id"]: case for case in json.loads(HANDED.read_text("utf-8"))["cases"]}
    bodies: dict[str, Any] = {
        "/v1/chat/completions": HELLO,
        "/infer": {"model": "tiny-chat", "prompt": "Hi"},
    }
    for name, case in cases.items():
        body = case.get("body", {**bodies.get(case["route"], {}), **case.get("add", {})}) or None
        answer = ask(
            url, case["route"], body, method=case.get("method"), headers=case.get("headers")
        )
        expected = case["expected"]
        if isinstance(expected, int):
            assert answer.status == expected, name
        elif expected.startswith("refused"):
            assert answer.status == 403, name
        elif expected.startswith("400"):
            assert (answer.status, *case["add"]) == (400, answer.json["error"]["param"]), name
        else:
            assert answer.status == 200, name
