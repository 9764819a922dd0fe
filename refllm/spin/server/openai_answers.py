"""The JSON of answers to OpenAI's clients, and where a text ends that is to stop at a word."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from refllm.generate import Chunk
from refllm.spin.server.worker import Begun, Done, Scores, TextEvent
from refllm.tokenizer import Tokenizer

__all__ = ["Piece", "StopFinder", "chat_logprobs", "completion_logprobs", "pieces", "usage"]

JSON = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: text that is certain not to be a stop, and scores of its tokens."""

    text: str
    scores: tuple[Scores, ...] = ()


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
    events: AsyncIterator[TextEvent], stops: Sequence[str]
) -> AsyncIterator[Begun | Piece | Done]:
    """A `Begun`, the answer's pieces, then a `Done`.

    Where a stop is found, what would follow is not computed.
    """
    finder = StopFinder(stops)
    scores: list[Scores] = []
    n_prompt = n_drawn = 0
    async for event in events:
        if isinstance(event, Begun):
            n_prompt = event.n_prompt_tokens
            yield event
        elif isinstance(event, Scores):
            scores.append(event)
        elif isinstance(event, Chunk):
            n_drawn += event.step is not None
            text = finder.push(event.text)
            if text or scores:
                yield Piece(text, tuple(scores))
                scores.clear()
            if finder.has_found:
                yield Done(n_prompt, n_drawn, "stop")
                return
        else:
            rest = finder.finish()
            if rest:
                yield Piece(rest)
            yield event


def usage(done: Done) -> JSON:
    """Tokens of the prompt, drawn ones, and all."""
    return {
        "prompt_tokens": done.n_prompt_tokens,
        "completion_tokens": done.n_generated_tokens,
        "total_tokens": done.n_prompt_tokens + done.n_generated_tokens,
    }


def chat_logprobs(scores: Sequence[Scores], tokenizer: Tokenizer) -> JSON:
    """As chats have them: each token with its bytes and alternatives."""
    return {
        "content": [
            {
                **_named(score.token, score.logprob, tokenizer),
                "top_logprobs": [_named(*each, tokenizer) for each in score.likeliest],
            }
            for score in scores
        ],
        "refusal": None,
    }


def completion_logprobs(scores: Sequence[Scores], tokenizer: Tokenizer) -> JSON:
    """As completions have them: lists that run in parallel."""
    texts = [_text(score.token, tokenizer) for score in scores]
    ends = list(accumulate(map(len, texts), initial=0))
    return {
        "tokens": texts,
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [
            {_text(token, tokenizer): logprob for token, logprob in score.likeliest}
            for score in scores
        ],
        "text_offset": ends[:-1],
    }


def _named(token: int, logprob: float, tokenizer: Tokenizer) -> JSON:
    written = tokenizer.token_bytes(token)
    return {"token": _text(token, tokenizer), "logprob": logprob, "bytes": list(written)}


def _text(token: int, tokenizer: Tokenizer) -> str:
    """What the token writes; a special one, which writes nothing, is named."""
    written = tokenizer.token_bytes(token)
    return written.decode("utf-8", "replace") if written else tokenizer.piece(token)
