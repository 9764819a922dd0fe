"""Per-request limits. Raise them only if you trust the clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refllm.errors import InvalidInput, LlmRuntimeError

__all__ = ["Limits"]

MAX_UTF8_BYTES = 4  # of one character


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a server; each error names the limit and its value.

    Attributes:
        max_connections: Open connections.
        max_body_bytes: Of a request's body.
        max_text_bytes: Of a prompt, a chat, or a text to embed, in UTF-8.
        max_prompt_tokens: Of a prompt.
        max_tokens: Of an answer.
        max_texts: Embedded in one request.
        max_waiting: Queued requests.
        max_at_once: Requests answered together.
        request_seconds: From a request's arrival to the end of its answer, queueing included.
        arrival_seconds: For a request, head and body, to arrive.
    """

    max_connections: int = 512
    max_body_bytes: int = 4 * 1024 * 1024
    # 32 bytes for each of `max_prompt_tokens`; a tokenizer takes about a second for so much.
    max_text_bytes: int = 1024 * 1024
    max_prompt_tokens: int = 32_768
    max_tokens: int = 4096
    max_texts: int = 2048
    max_waiting: int = 64
    max_at_once: int = 16
    request_seconds: float = 300.0
    arrival_seconds: float = 30.0

    def check_max_tokens(self, max_tokens: int) -> None:
        """Raise `InvalidInput` where a request asks for more tokens than the limit."""
        if max_tokens > self.max_tokens:
            raise InvalidInput(
                f"max_tokens is {max_tokens}, this server's limit is {self.max_tokens}"
            )

    def check_prompt_tokens(self, n_tokens: int, *, at_least: bool = False) -> None:
        """Raise `InvalidInput` for a prompt of more tokens than the limit.

        With `at_least` the prompt may have more than `n_tokens`.
        """
        if n_tokens > self.max_prompt_tokens:
            raise InvalidInput(
                f"the prompt has {'at least ' if at_least else ''}{n_tokens} tokens, this "
                f"server's limit is {self.max_prompt_tokens}; shorten the prompt",
                code="context_length_exceeded",
            )

    def check_choices(self, n_choices: int) -> None:
        """Raise `InvalidInput` for more answers in one request than can be queued."""
        if n_choices > self.max_waiting:
            raise InvalidInput(
                f"the request asks for {n_choices} answers, this server's limit is "
                f"{self.max_waiting} (--max-waiting); send them in several requests"
            )

    def check_texts(self, texts: Sequence[object]) -> None:
        """Raise `InvalidInput` for too many texts in one request, or one that is too long.

        Token ids, which are not texts, have no length here.
        """
        if len(texts) > self.max_texts:
            raise InvalidInput(
                f"there are {len(texts)} texts, this server's limit is {self.max_texts}; "
                "send them in several requests"
            )
        for index, text in enumerate(texts):
            if isinstance(text, str):
                self.check_text(text, f"text {index + 1} of {len(texts)}")

    def check_text(self, text: str, what: str) -> None:
        """Raise `InvalidInput` for a text that is too long, before a tokenizer reads it.

        `what` is the error's name for the text.
        """
        if MAX_UTF8_BYTES * len(text) <= self.max_text_bytes:
            return
        n_bytes = len(text.encode("utf-8", "surrogatepass"))
        if n_bytes > self.max_text_bytes:
            raise InvalidInput(
                f"{what} has {n_bytes} bytes, this server's limit is {self.max_text_bytes} "
                "(--max-text-bytes); send it in parts",
                code="context_length_exceeded",
            )

    def timeout_error(self) -> LlmRuntimeError:
        """Return the error of a request that is not answered within `request_seconds`."""
        return LlmRuntimeError(
            f"the request took longer than this server's limit of {self.request_seconds:g} s; "
            "ask for less, or raise the limit"
        )
