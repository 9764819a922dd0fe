"""The JSON of answers to OpenAI's clients, and where a text ends that is to stop at a word."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from refllm.generate import Chunk
from refllm.server.jobs import Begun, Done, Echo, PromptRead, Scores, TextEvent
from refllm.tokenizer.base import Tokenizer

__all__ = [
    "Piece",
    "Scored",
    "StopFinder",
    "chat_logprobs",
    "completion_logprobs",
    "pieces",
    "usage",
]

JSON = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Scored:
    """A token's scores, and after how many characters of the whole answer its text begins."""

    scores: Scores
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: text that is certain not to be a stop, and its tokens' scores."""

    text: str
    tokens: tuple[Scored, ...] = ()


class StopFinder:
    """Gives text on, up to the first of the stops; keeps back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._kept = ""
        self.has_found = False

    def push(self, text: str) -> str:
        """What is certain after this text."""
        self._kept += text
        found = [self._kept.find(stop) for stop in self._stops]
        places = [place for place in found if place >= 0]
        if places:
            self.has_found = True
            certain, self._kept = self._kept[: min(places)], ""
            return certain
        n_kept = max((_overlap(self._kept, stop) for stop in self._stops), default=0)
        certain = self._kept[: len(self._kept) - n_kept]
        self._kept = self._kept[len(certain) :]
        return certain

    def finish(self) -> str:
        """What was kept back, and is the beginning of nothing."""
        rest, self._kept = self._kept, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """How much of the text's end is the beginning of a stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)


async def pieces(
    events: AsyncIterator[TextEvent], stops: Sequence[str], *, min_tokens: int = 0
) -> AsyncGenerator[Begun | Piece | Done]:
    """A `Begun`, the answer's pieces, then a `Done`.

    Where a stop is found, what would follow is not computed. Neither the prompt's text nor that of
    the first `min_tokens` tokens is searched.
    """
    finder = StopFinder(stops)
    tokens: list[Scored] = []
    n_prompt = n_reused = n_drawn = n_characters = 0
    async for event in events:
        if isinstance(event, Begun):
            n_prompt = event.n_prompt_tokens
            yield event
        elif isinstance(event, Echo):
            n_characters += len(event.text)
            yield Piece(event.text)
        elif isinstance(event, PromptRead):
            n_reused = event.n_reused_tokens
        elif isinstance(event, Scores):
            tokens.append(Scored(event, n_characters))
        elif isinstance(event, Chunk):
            n_drawn += event.step is not None
            n_characters += len(event.text)
            is_searched = n_drawn > min_tokens or min_tokens == 0
            text = finder.push(event.text) if is_searched else event.text
            if text or tokens:
                yield Piece(text, tuple(tokens))
                tokens.clear()
            if finder.has_found:
                yield Done(n_prompt, n_drawn, "stop", n_reused_tokens=n_reused)
                return
        else:
            rest = finder.finish()
            if rest:
                yield Piece(rest)
            yield event


def usage(done: Sequence[Done], n_choices: int = 1) -> JSON:
    """Return the tokens of the prompts, drawn ones, and all; those that the prompt cache had.

    Args:
        done: The end of each choice; those of one prompt one after the other.
        n_choices: How many choices each prompt has; the prompt's tokens are counted once.
    """
    n_prompt = sum(each.n_prompt_tokens for each in done[::n_choices])
    n_reused = sum(each.n_reused_tokens for each in done[::n_choices])
    n_drawn = sum(each.n_generated_tokens for each in done)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_drawn,
        "total_tokens": n_prompt + n_drawn,
        "prompt_tokens_details": {"cached_tokens": n_reused},
    }


def chat_logprobs(tokens: Sequence[Scored], tokenizer: Tokenizer) -> JSON:
    """As chats have them: each token with its bytes and alternatives."""
    return {
        "content": [
            {
                **_named(score.token, score.logprob, tokenizer),
                "top_logprobs": [_named(*each, tokenizer) for each in score.likeliest],
            }
            for score in (token.scores for token in tokens)
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[Scored], tokenizer: Tokenizer) -> JSON:
    """As completions have them: lists that run in parallel."""
    return {
        "tokens": [_text(token.scores.token, tokenizer) for token in tokens],
        "token_logprobs": [token.scores.logprob for token in tokens],
        "top_logprobs": [
            {_text(each, tokenizer): logprob for each, logprob in token.scores.likeliest}
            for token in tokens
        ],
        "text_offset": [token.offset for token in tokens],
    }


def _named(token: int, logprob: float, tokenizer: Tokenizer) -> JSON:
    written = tokenizer.token_bytes(token)
    return {"token": _text(token, tokenizer), "logprob": logprob, "bytes": list(written)}


def _text(token: int, tokenizer: Tokenizer) -> str:
    """What the token writes; a special one, which writes nothing, is named."""
    written = tokenizer.token_bytes(token)
    return written.decode("utf-8", "replace") if written else tokenizer.piece(token)
