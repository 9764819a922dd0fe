"""Targets over HTTP: refllm's own server, in two protocols, and servers that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from refllm.conform.case import Case, Group
from refllm.conform.compare.api import compare_api
from refllm.conform.reply import Answer, NotApplicable, Reply, Skipped, TargetError
from refllm.conform.targets.http import HttpTarget, Protocol
from tests.support.golden_api import (
    CASES,
    GREEDY,
    TOKEN,
    case_named,
    embeddings_case,
    name,
    serving,
    text_case,
)


def refusal_of(reply: Reply) -> Any:
    assert isinstance(reply, Answer), reply
    return reply.result["error"]


# --- refllm's own server -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture(scope="module", params=["spin", "openai"])
def target(request: pytest.FixtureRequest, url: str) -> HttpTarget:
    target = HttpTarget(url, protocol=request.param, token=TOKEN)
    target.start()
    return target


@pytest.mark.parametrize("case", CASES, ids=name)
def test_refllm_s_server_passes_the_case(case: Case, target: HttpTarget) -> None:
    protocol = target.start().details["protocol"]
    reply = target.run(case)
    if protocol in case.input.get("not_in", {}):
        assert reply == NotApplicable(case.input["not_in"][protocol])
        return
    assert isinstance(reply, Answer), reply
    assert (reply.result["protocol"], type(reply.result["status"])) == (protocol, int)
    assert compare_api(case, reply.result) is None


def test_a_text_arrives_with_its_counts(target: HttpTarget) -> None:
    reply = target.run(text_case())
    assert isinstance(reply, Answer)
    assert {key: reply.result[key] for key in ("text", "usage")} == GREEDY.expected


def test_vectors_arrive_with_their_count(target: HttpTarget) -> None:
    reply = target.run(embeddings_case())
    assert isinstance(reply, Answer)
    assert [len(vector) for vector in reply.result["embeddings"]] == [384, 384]
    assert reply.result["usage"] == {"prompt_token_count": 7}


def test_a_refusal_of_a_text_has_the_interface_s_kind(target: HttpTarget) -> None:
    case = text_case()
    asked = {**case.input, "model": "tiny-embed"}
    assert refusal_of(target.run(replace(case, input=asked)))["kind"] == "model-not-supported"


def test_a_target_names_its_groups(target: HttpTarget, url: str) -> None:
    implementation = target.start()
    assert implementation.groups == {"text", "embeddings", "api"}
    assert (implementation.name, implementation.details["url"]) == ("the server", url)
    assert not implementation.draws_as_refllm


def test_a_proxy_of_the_environment_is_not_used(
    target: HttpTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert isinstance(target.run(text_case()), Answer)


# --- What a protocol cannot carry ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "case", "problem"),
    [
        ("spin", text_case(temperature=0.8, seed="7"), "only texts of seed 0 are asked"),
        ("spin", text_case(top_p=float("nan")), "JSON has no NaN and no infinity"),
        ("spin", embeddings_case(max_tokens=8), "no max_tokens for embeddings"),
        ("openai", text_case(temperature=0.8), "no top_k, so only greedy texts"),
        ("openai", text_case(repeat_penalty=1.1), "no repeat_penalty, so only texts without"),
        ("openai", embeddings_case(max_tokens=8), "no max_tokens for embeddings"),
        ("openai", case_named("top-k-zero"), "OpenAI's protocol has no top_k"),
    ],
)
def test_a_case_that_a_protocol_cannot_carry_is_not_applicable_with_the_reason(
    protocol: Protocol, case: Case, problem: str, url: str
) -> None:
    target = HttpTarget(url, protocol=protocol, token=TOKEN)
    target.start()
    reply = target.run(case)
    assert isinstance(reply, NotApplicable)
    assert problem in reply.reason
    assert target.not_applicable(case) == reply


@pytest.mark.parametrize(
    "case",
    [
        text_case(temperature=0.8, top_k=1),
        text_case(temperature=-1.0, seed="7"),
        text_case(repeat_penalty=3.0, repeat_penalty_last_n_token_count=0),
    ],
)
def test_a_greedy_text_needs_no_seed(case: Case, url: str) -> None:
    target = HttpTarget(url, protocol="spin", token=TOKEN)
    target.start()
    reply = target.run(case)
    assert isinstance(reply, Answer)
    assert reply.result["text"] == GREEDY.expected["text"]


@pytest.mark.parametrize("protocol", ["spin", "openai"])
def test_an_empty_text_can_be_asked_with_any_parameters(protocol: Protocol, url: str) -> None:
    target = HttpTarget(url, protocol=protocol, token=TOKEN)
    target.start()
    reply = target.run(text_case(max_tokens=0, temperature=0.8, repeat_penalty=1.1))
    assert isinstance(reply, Answer)
    assert reply.result["text"] == ""


def test_a_server_that_draws_as_refllm_is_asked_for_sampled_texts(url: str) -> None:
    target = HttpTarget(url, protocol="spin", token=TOKEN, draws_as_refllm=True)
    assert target.start().draws_as_refllm
    assert isinstance(target.run(text_case(temperature=0.8)), Answer)


def test_a_case_about_the_token_is_skipped_without_a_token() -> None:
    with serving(token=None) as url:
        target = HttpTarget(url, protocol="spin")
        target.start()
        reply = target.run(case_named("http-token-wrong"))
    assert isinstance(reply, Skipped)
    assert "give --token" in reply.reason


@pytest.mark.parametrize("group", ["logits", "sampling"])
def test_other_groups_are_not_asked_over_http(group: Group, url: str) -> None:
    target = HttpTarget(url, protocol="spin", token=TOKEN)
    target.start()
    reply = target.run(replace(text_case(), group=group))
    assert reply == NotApplicable(f"HTTP carries no {group}; a harness can be asked it")


# --- Servers that are not there ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://127.0.0.1:1", "the connection is refused; start the server"),
        ("https://127.0.0.1:1", "the connection is refused; start the server"),
        ("ftp://127.0.0.1", "is not a server's URL: it must be http://HOST"),
        ("http://", "is not a server's URL: it must be http://HOST or https://HOST"),
        (
            "http://me:secret@127.0.0.1",
            "^'127.0.0.1' is not a server's URL: .*; the token is --token",
        ),
        ("http://127.0.0.1:99999", "with a :PORT from 1 to 65535"),
    ],
)
def test_an_unreachable_target_is_an_error_with_a_remedy(url: str, problem: str) -> None:
    with pytest.raises(TargetError, match=problem):
        HttpTarget(url, protocol="spin").start()


@pytest.mark.parametrize(("token", "problem"), [(None, "wants a token"), ("no", "another token")])
def test_a_target_that_refuses_the_token_is_an_error_with_the_option(
    token: str | None, problem: str, url: str
) -> None:
    with pytest.raises(TargetError, match=f"{problem}; give it with --token"):
        HttpTarget(url, protocol="spin", token=token).start()


def test_a_token_that_no_header_can_hold_is_refused_and_not_shown() -> None:
    target = HttpTarget("http://127.0.0.1:1", protocol="spin", token="secret\r\nx: y")
    with pytest.raises(TargetError, match="check the token") as raised:
        target.start()
    assert "secret" not in str(raised.value)
