"""What one request may cost. Whoever wants more raises the limit, and knows who asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refllm.errors import InvalidInput, LlmRuntimeError

__all__ = ["Limits"]

MOST_UTF8_BYTES = 4  # of one character


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a server; each error says which one, and what it is.

    `max_waiting` requests wait while `max_at_once` are answered together; `request_seconds` counts
    from the arrival, waiting included; a request, head and body, has `arrival_seconds` to arrive.
    `max_text_bytes` is what a prompt, a chat, or a text to embed may have in UTF-8.
    """

    max_connections: int = 512
    max_body_bytes: int = 4 * 1024 * 1024
    # 32 bytes for each of `max_prompt_tokens`; a tokenizer reads so much in about a second.
    max_text_bytes: int = 1024 * 1024
    max_prompt_tokens: int = 32_768
    max_tokens: int = 4096
    max_texts: int = 2048
    max_waiting: int = 64
    max_at_once: int = 16
    request_seconds: float = 300.0
    arrival_seconds: float = 30.0

    def check_max_tokens(self, max_tokens: int) -> None:
        """Raise `InvalidInput` where more tokens are asked for than the server gives."""
        if max_tokens > self.max_tokens:
            raise InvalidInput(
                f"max_tokens is {max_tokens}, this server's limit is {self.max_tokens}"
            )

    def check_prompt_tokens(self, n_tokens: int, *, at_least: bool = False) -> None:
        """Raise `InvalidInput` for a prompt of more tokens than the server reads.

        With `at_least` the prompt may have more than `n_tokens`.
        """
        if n_tokens > self.max_prompt_tokens:
            raise InvalidInput(
                f"the prompt has {'at least ' if at_least else ''}{n_tokens} tokens, this "
                f"server's limit is {self.max_prompt_tokens}; shorten the prompt",
                code="context_length_exceeded",
            )

    def check_choices(self, n_choices: int) -> None:
        """Raise `InvalidInput` for more answers in one request than may wait at once."""
        if n_choices > self.max_waiting:
            raise InvalidInput(
                f"the request asks for {n_choices} answers, this server's limit is "
                f"{self.max_waiting} (--max-waiting); send them in several requests"
            )

    def check_texts(self, texts: Sequence[object]) -> None:
        """Raise `InvalidInput` for more texts than the server embeds in one request, or long ones.

        Items that are no texts, such as token ids, have no length here.
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
        """Raise `InvalidInput` for a text that is longer than the server reads.

        No tokenizer sees it then. `what` is what the error calls it.
        """
        if MOST_UTF8_BYTES * len(text) <= self.max_text_bytes:
            return
        n_bytes = len(text.encode("utf-8", "surrogatepass"))
        if n_bytes > self.max_text_bytes:
            raise InvalidInput(
                f"{what} has {n_bytes} bytes, this server's limit is {self.max_text_bytes} "
                "(--max-text-bytes); send it in parts",
                code="context_length_exceeded",
            )

    def took_too_long(self) -> LlmRuntimeError:
        """Return the error of a request that is not answered within `request_seconds`."""
        return LlmRuntimeError(
            f"the request took longer than this server's limit of {self.request_seconds:g} s; "
            "ask for less, or raise the limit"
        )
