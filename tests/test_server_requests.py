"""What of OpenAI's parameters is refused, because it would change an answer and is not done."""

from __future__ import annotations

import pytest

from refllm.api import InvalidInput
from refllm.spin.server.openai_requests import ChatRequest, CompletionRequest

CHAT = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hello!"}]}
PROMPT = {"model": "tiny-chat", "prompt": "Hello!"}


def bodies_with(key: str, value: object) -> tuple[ChatRequest, CompletionRequest]:
    """A chat and a completion that ask for this, too."""
    return (
        ChatRequest.model_validate({**CHAT, key: value}),
        CompletionRequest.model_validate({**PROMPT, key: value}),
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("echo", True),
        ("presence_penalty", 1),
        ("presence_penalty", 0.5),
        ("min_p", 1.0),
        ("best_of", 2),
        ("logit_bias", {"1": 100}),
        ("suffix", "the end"),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function"}]),
        ("audio", {"voice": "ash"}),
    ],
)
def test_what_would_change_an_answer_is_refused_by_name(key: str, value: object) -> None:
    for body in bodies_with(key, value):
        with pytest.raises(InvalidInput, match=f"{key} is not supported here"):
            body.check_extras()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("echo", False),
        ("presence_penalty", 0),
        ("presence_penalty", 0.0),
        ("min_p", None),
        ("best_of", 1),
        ("logit_bias", {}),
        ("response_format", {"type": "text"}),
        ("modalities", ["text"]),
        ("tools", []),
        ("user", "somebody"),
    ],
)
def test_what_says_what_is_done_anyway_is_let_pass(key: str, value: object) -> None:
    for body in bodies_with(key, value):
        body.check_extras()
