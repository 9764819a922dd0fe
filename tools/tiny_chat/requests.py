"""How people ask for a joke, a story or a function: many forms, and what is typed around them.

One in `ONE_IN` of the requests that name what they are about is never learned from. Which ones
depends on their words alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

from tools.tiny_chat.grammar import expanded, in_sentences
from tools.tiny_chat.sample import Choose, a_number, filled, one_of

__all__ = [
    "CODE_REQUESTS",
    "JOKE_REQUESTS",
    "JOKE_REQUESTS_ABOUT",
    "PERSONAS",
    "STORY_REQUESTS",
    "STORY_REQUESTS_ABOUT",
    "STORY_REQUESTS_WITH",
    "a_strange_word",
    "a_topic",
    "asked",
    "is_never_learned",
    "typed",
    "with_other_words",
]

ONE_IN = 8

RULES: Mapping[str, Sequence[str]] = {
    "please": (
        *(
            "",
            "",
            "",
            "please ",
            "please ",
            "can you ",
            "can you ",
            "could you ",
            "can you please ",
        ),
        *("could you please ", "would you ", "will you ", "I want you to ", "I would like you to "),
        *("now ", "just ", "quick, ", "go on, ", "I am bored, ", "try to ", "do "),
    ),
    "tell": ("tell me", "tell me", "tell", "tell us", "give me", "write", "write me", "make up"),
    "want": (
        *(
            "I want [to hear |]",
            "I would like [to hear |]",
            "I need ",
            "let me hear ",
            "let us have ",
        ),
        *("do you [know|have] ", "have you [got |]", "how about ", "what about ", "may I have "),
        *("can I [hear|have] ", "", "got ", "time for ", "is there "),
    ),
    "size": ("", "", "", "short ", "little ", "new ", "good ", "nice ", "very short ", "simple "),
    "funny": ("", "", "", "funny ", "good ", "silly ", "short ", "clean ", "new ", "really good "),
    "joke": (
        *(
            "a <funny>joke",
            "a <funny>joke",
            "a <funny>joke",
            "another joke",
            "one joke",
            "some jokes",
        ),
        *("your best joke", "a joke or two", "a <funny>one-liner", "something funny"),
    ),
    "story": (
        *("a <size>story", "a <size>story", "a <size>story", "another story", "one story"),
        *("a <size>tale", "a bedtime story", "your best story", "a fairy tale"),
    ),
    "now": ("", "", "", "", ", please", " please", " now", " for me", " today", " for my kids"),
    "topic": (
        *(
            "{animal:a}",
            "{animals}",
            "{animals}",
            "my {animal}",
            "the {animal}",
            "{animals} and {things}",
        ),
        "{animal:a} and {thing:a}",
    ),
    "hero": ("{hero:a}", "{hero:a}", "{heroes}", "a <nature>{hero}", "my {hero}", "the {hero}"),
    "nature": ("little ", "small ", "brave ", "clever ", "young ", "funny ", "big "),
    "that": ("that {what}", "that {what}", "which {what}", "to {do}"),
    "show": ("write", "write me", "show me", "give me", "make", "create", "implement", "code"),
}
JOKE_REQUESTS = (
    "<please><tell> <joke><now>.",
    "<want><joke><now>.",
    "[please |can you |]make me laugh<now>.",
    "[say|tell me|do you know] something funny<now>.",
    "be funny<now>.",
)
JOKE_REQUESTS_ABOUT = (
    "<please><tell> <joke> [about|about|on|with] <topic><now>.",
    "<want><joke> [about|about|with] <topic><now>.",
    "<please>make [me laugh with |]a [{animal}|{animal}] joke<now>.",
    "<please><tell> [a|one] {animal} joke<now>.",
    "<joke> about <topic>.",
)
STORY_REQUESTS = (
    "<please><tell> <story><now>.",
    "<want><story><now>.",
    "[read|tell] me [something nice|a story] before I go to sleep.",
)
STORY_REQUESTS_ABOUT = (
    "<please><tell> <story> [about|about|of|with] <hero><now>.",
    "<please><tell> <story> about <hero> [named|called] {name}<now>.",
    "<please><tell> <story> about {name}[ the {hero}|]<now>.",
    "<want><story> about [<hero>|<hero>|{name}]<now>.",
    "<story> about [<hero>|{name}].",
)
STORY_REQUESTS_WITH = (
    "<please><tell> <story> about <hero> and {thing:a}<now>.",
    "<please><tell> <story> about {thing:a}<now>.",
)
CODE_REQUESTS = (
    "<please><show> a [|small |simple |short ]{language} function <that><now>.",
    "<please><show> a {language} function <that><now>.",
    "in {language}, <show> a function <that>.",
    "<please><show> a [function|program] in {language} <that><now>.",
    "{language} function <that>.",
    "how do I {do} in {language}?",
    "I need [a {language} function|{language} code|some {language} code] <that>.",
    "[what does|how would] a {language} function <that> look [like|]?",
    "<please><show> [{language} code|code in {language}] <that>.",
)
PERSONAS: Mapping[str, Sequence[str]] = {
    "joke": (
        *("You are a stand up comedy writer.", "You are a comedian.", "You are a funny clown."),
        *(
            "You write jokes for a [show|newspaper|living].",
            "You are a [very |]funny [bot|helper].",
        ),
        *("Act as a comedian.", "You are a joke [bot|writer|teller].", "You are a stand up comic."),
    ),
    "told-story": (
        *("You are a [good |great |]storyteller.", "You are a writer of children's books."),
        *("You are a [kind |]grandmother.", "Act as a storyteller.", "You write [short |]stories."),
    ),
    "code": (
        *("You are a [good |senior |]programmer.", "You are a [Python|Rust] developer."),
        *("You write [short |clean |]code.", "Act as a programmer.", "You are a code assistant."),
    ),
    "": (
        *("You are a [friendly|helpful|kind|polite] [helper|assistant|bot|robot].",),
        *("You are tiny-chat. Answer in short sentences.", "Answer briefly.", "Be brief."),
        *("You are a helpful, respectful and honest assistant.", "You are an AI assistant."),
    ),
}
STRANGE = (
    *("dragon", "robot", "computer", "king", "queen", "pirate", "ship", "moon", "star", "train"),
    *("doctor", "programmer", "banana", "penguin", "elephant", "tiger", "wizard", "princess"),
    *("car", "love", "winter", "music", "potato", "chicken", "monkey", "unicorn", "rocket"),
    *("lawyer", "cloud", "server", "astronaut", "spider", "whale", "school", "pizza", "knight"),
)
FILLERS = (
    *("really", "kindly", "perhaps", "maybe", "then", "there", "again", "quick", "today", "friend"),
    *("well", "some", "very", "and", "so", "my", "for", "with", "nice", "hilarious", "little"),
    *("amusing", "best", "great", "old", "sweet", "any", "this", "also", "here", "buddy", "us"),
)
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def asked(choose: Choose, request: str, **gaps: str) -> str:
    """A request with its choices drawn and its gaps filled."""
    return in_sentences(filled(expanded(choose, request, RULES), **gaps))


def a_topic(choose: Choose) -> str:
    """What a request is about that tiny-chat has no word for."""
    return one_of(choose, STRANGE) if choose.random() < 3 / 4 else a_strange_word(choose)


def a_strange_word(choose: Choose) -> str:
    """A word of no language."""
    syllables = a_number(choose, 1, 3)
    word = "".join(one_of(choose, CONSONANTS) + one_of(choose, VOWELS) for _ in range(syllables))
    return word + (one_of(choose, CONSONANTS) if choose.random() < 1 / 2 else "")


def is_never_learned(request: str) -> bool:
    """Whether a request is one of those that are kept from training, however it is typed."""
    words = " ".join(re.findall(r"[a-z]+", request.lower()))
    return zlib.crc32(words.encode("ascii")) % ONE_IN == 0


def typed(choose: Choose, question: str) -> str:
    """A question as people type it: with another mark at its end or none, or in lower case."""
    if choose.random() < 1 / 3:
        question = question.rstrip(".?!") + one_of(choose, ("", "", "", ".", "!", "?", "..."))
    if choose.random() < 1 / 10:
        question = question[:1].lower() + question[1:]
    return question


def with_other_words(choose: Choose, request: str, needed: frozenset[str]) -> str:
    """A request with a word or two more, less, or of no language: all but those that are needed."""
    words = request.split(" ")
    for _ in range(a_number(choose, 1, 2)):
        i = a_number(choose, 0, len(words) - 1)
        other = one_of(choose, FILLERS) if choose.random() < 2 / 3 else a_strange_word(choose)
        is_needed = words[i].strip(".?!,").lower() in needed
        if is_needed or choose.random() < 1 / 2:
            words.insert(i, other)
        else:
            words[i] = other
    return " ".join(words)
