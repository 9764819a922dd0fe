"""The JSON of answers to OpenAI's clients, and the search for stop texts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from refllm.generate import Chunk
from refllm.server.jobs import Echo, Finished, PromptRead, Started, TextEvent, TokenLogprobs
from refllm.tokenizer.base import Tokenizer

__all__ = [
    "Piece",
    "PlacedToken",
    "chat_logprobs",
    "completion_logprobs",
    "pieces",
    "usage",
]

JSON = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class PlacedToken:
    """A token's log-probabilities, and the index of its first character in the answer."""

    logprobs: TokenLogprobs
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: text that cannot be part of a stop, and its tokens."""

    text: str
    tokens: tuple[PlacedToken, ...] = ()


class StopFinder:
    """Passes text on, up to the first stop; holds back a tail that may begin a stop."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.has_found = False

    def push(self, text: str) -> str:
        """Add text, and return what can be passed on now."""
        self._held += text
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if starts:
            self.has_found = True
            passed, self._held = self._held[: min(starts)], ""
            return passed
        n_held = 0  # the longest tail that a stop begins with
        for stop in self._stops:
            longest = min(len(self._held), len(stop) - 1)
            tails = (n for n in range(longest, 0, -1) if stop.startswith(self._held[-n:]))
            n_held = max(n_held, next(tails, 0))
        passed = self._held[: len(self._held) - n_held]
        self._held = self._held[len(passed) :]
        return passed

    def finish(self) -> str:
        """Return the text that is still held back, at the end of the answer."""
        rest, self._held = self._held, ""
        return rest


async def pieces(
    events: AsyncIterator[TextEvent], stops: Sequence[str], *, min_tokens: int = 0
) -> AsyncGenerator[Started | Piece | Finished]:
    """Yield a `Started`, the answer's pieces, then a `Finished`.

    A stop ends the generation. Neither the prompt's text nor the text of the first `min_tokens`
    tokens is searched for stops.
    """
    finder = StopFinder(stops)
    tokens: list[PlacedToken] = []
    n_prompt = n_reused = n_sampled = n_characters = 0
    async for event in events:
        if isinstance(event, Started):
            n_prompt = event.n_prompt_tokens
            yield event
        elif isinstance(event, Echo):
            n_characters += len(event.text)
            yield Piece(event.text)
        elif isinstance(event, PromptRead):
            n_reused = event.n_reused_tokens
        elif isinstance(event, TokenLogprobs):
            tokens.append(PlacedToken(event, n_characters))
        elif isinstance(event, Chunk):
            n_sampled += event.step is not None
            n_characters += len(event.text)
            is_searched = n_sampled > min_tokens or min_tokens == 0
            text = finder.push(event.text) if is_searched else event.text
            if text or tokens:
                yield Piece(text, tuple(tokens))
                tokens.clear()
            if finder.has_found:
                yield Finished(n_prompt, n_sampled, "stop", n_reused_tokens=n_reused)
                return
        else:
            rest = finder.finish()
            if rest:
                yield Piece(rest)
            yield event


def usage(ends: Sequence[Finished], n_choices: int = 1) -> JSON:
    """Return the token counts of an answer.

    Args:
        ends: The end of each choice, the choices of a prompt one after the other.
        n_choices: The choices of each prompt, whose tokens are counted once.
    """
    n_prompt = sum(end.n_prompt_tokens for end in ends[::n_choices])
    n_reused = sum(end.n_reused_tokens for end in ends[::n_choices])
    n_sampled = sum(end.n_generated_tokens for end in ends)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_sampled,
        "total_tokens": n_prompt + n_sampled,
        "prompt_tokens_details": {"cached_tokens": n_reused},
    }


def chat_logprobs(tokens: Sequence[PlacedToken], tokenizer: Tokenizer) -> JSON:
    """Return the log-probabilities of a chat: each token with its bytes and alternatives."""

    def entry(token: int, logprob: float) -> JSON:
        raw = list(tokenizer.token_bytes(token))
        return {"token": _text(token, tokenizer), "logprob": logprob, "bytes": raw}

    return {
        "content": [
            {**entry(each.token, each.logprob), "top_logprobs": [entry(*one) for one in each.top]}
            for each in (token.logprobs for token in tokens)
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[PlacedToken], tokenizer: Tokenizer) -> JSON:
    """Return the log-probabilities of a completion: parallel lists."""
    return {
        "tokens": [_text(token.logprobs.token, tokenizer) for token in tokens],
        "token_logprobs": [token.logprobs.logprob for token in tokens],
        "top_logprobs": [
            {_text(each, tokenizer): logprob for each, logprob in token.logprobs.top}
            for token in tokens
        ],
        "text_offset": [token.offset for token in tokens],
    }


def _text(token: int, tokenizer: Tokenizer) -> str:
    """Return the token's text, or the name of a special token, which has no text."""
    raw = tokenizer.token_bytes(token)
    return raw.decode("utf-8", "replace") if raw else tokenizer.piece(token)
