"""Finding a word of the question again, in its barest forms: what answering a question rests on.

A model that has learned to find a word again, and to say what stood beside it, has learned most of
how a fact is answered. It learns that from lists like these, many words to find in each of them,
and hardly from sentences, where one word in ten is to be found.
"""

from __future__ import annotations

from tools.tiny_chat import words
from tools.tiny_chat.sample import Choose, Sample, a_number, one_of, several_of

__all__ = ["again", "pairs"]

WORDS = (
    *(words.NAMES + words.ANIMALS + words.THINGS + words.FOODS + words.TREATS),
    *(words.COLORS + words.NUMBERS + words.PLACES + words.WEATHER),
)
MAX_WORDS = 24
MAX_PAIRS = 8
# What stands between words makes a list harder: then a word's neighbor says nothing.
BETWEEN = (" ", " ", " ", ", ", " and ")
COLONS = (" ", " ", ": ", " is ", " has a ")
AGAIN = ("Say again: {words}", "Repeat: {words}", "Repeat these words: {words}")
PAIRS = ("{pairs}. In another order:", "{pairs}. Shuffle these pairs.")


def again(choose: Choose) -> Sample:
    """Some words, and the same once more."""
    between = one_of(choose, BETWEEN)
    said = between.join(several_of(choose, WORDS, a_number(choose, 2, MAX_WORDS)))
    return Sample(kind="again", question=one_of(choose, AGAIN).format(words=said), answer=said)


def pairs(choose: Choose) -> Sample:
    """Some pairs of words, and the same in another order."""
    n = a_number(choose, 2, MAX_PAIRS)
    chosen = several_of(choose, WORDS, 2 * n)
    colon = one_of(choose, COLONS)
    stated = [f"{key}{colon}{value}" for key, value in zip(chosen[:n], chosen[n:], strict=True)]
    answer = ", ".join(several_of(choose, stated, n))
    question = one_of(choose, PAIRS).format(pairs=", ".join(stated))
    return Sample(kind="pairs", question=question, answer=answer)
