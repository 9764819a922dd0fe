"""Where the text of each token begins in an answer to OpenAI's clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from refllm.generate import Chunk
from refllm.server.jobs import Finished, TextEvent, TokenLogprobs
from refllm.server.openai_answers import Piece, pieces


def offsets(texts: Sequence[str], stops: Sequence[str] = ()) -> list[int]:
    """Of tokens that make these texts certain, one each."""

    async def events() -> AsyncIterator[TextEvent]:
        for text in texts:
            yield TokenLogprobs(1, -1.0, ())
            yield Chunk(text, None)
        yield Finished(1)

    async def found() -> list[int]:
        parts = [part async for part in pieces(events(), stops) if isinstance(part, Piece)]
        return [token.offset for part in parts for token in part.tokens]

    return asyncio.run(found())


def test_a_token_begins_where_the_one_before_it_ended() -> None:
    assert offsets(["Once", " upon", "", " a"]) == [0, 4, 9, 9]


def test_tokens_of_one_character_begin_at_the_same_place() -> None:
    assert offsets(["a", "", "", "€", "b"]) == [0, 1, 1, 1, 2]


def test_tokens_of_withheld_text_are_counted() -> None:
    assert offsets(["ab", "cd", "ef"], stops=["cde!"]) == [0, 2, 4]
