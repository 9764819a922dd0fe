"""What one request may cost. Whoever wants more raises the limit, and knows who asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refllm.api import InvalidInput

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a server; each error says which one, and what it is.

    `max_waiting` requests wait while `max_at_once` are answered together; `request_seconds` counts
    from the arrival, waiting included; a request, head and body, has `arrival_seconds` to arrive.
    """

    max_connections: int = 512
    max_body_bytes: int = 4 * 1024 * 1024
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

    def check_prompt_tokens(self, n_tokens: int) -> None:
        """Raise `InvalidInput` for a prompt of more tokens than the server reads."""
        if n_tokens > self.max_prompt_tokens:
            raise InvalidInput(
                f"the prompt has {n_tokens} tokens, this server's limit is "
                f"{self.max_prompt_tokens}; shorten the prompt",
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
        """Raise `InvalidInput` for more texts than the server embeds in one request."""
        if len(texts) > self.max_texts:
            raise InvalidInput(
                f"there are {len(texts)} texts, this server's limit is {self.max_texts}; "
                "send them in several requests"
            )
