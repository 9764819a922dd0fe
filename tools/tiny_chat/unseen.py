"""Requests that training never had, and every word that an answer to them may have.

Of requests for a joke, a story or a function, half are combinations that the grammar of training
writes and `is_kept` keeps from it. The other requests are worded as no rule of that grammar does.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from tools.tiny_chat import words
from tools.tiny_chat.corpus import WRITERS, is_kept
from tools.tiny_chat.functions import FUNCTIONS
from tools.tiny_chat.moods import LABELS, sentence_of
from tools.tiny_chat.questions import fact, fact_words
from tools.tiny_chat.sample import Choose, Sample, a_number, filled, one_of
from tools.tiny_chat.stories import lexicon as lexicon_of_stories
from tools.tiny_chat.talk import GREETINGS, JOKES, UNKNOWN

__all__ = ["LEXICONS", "PARAPHRASES", "unseen", "words_in"]

# {animal:a}, {animals}, {name}, {thing:a} and {what} are filled; {fact}, {sentence} and {sum} are
# what the kind's own writer states.
PARAPHRASES: Mapping[str, Sequence[str]] = {
    "joke": (
        "Could I trouble you for a joke about {animals}?",
        "My friends and I would love to hear a joke about {animal:a}",
        "Cheer me up with a joke about {animals}!",
        "I had a bad day. Tell me a joke.",
        "Got any good jokes involving {animals}?",
        "What is the funniest joke that you have heard about {animals}?",
        "Entertain us with a joke that has {animal:a} in it.",
        "It is my birthday, so I deserve a joke about {animals}.",
        "Think of a joke about {animal:a} and tell it.",
        "You are a famous comedian on a stage. Tell the crowd a joke about {animals}",
        "You are a jester at the court of a king. Tell a joke.",
        "You are a witty uncle at a family dinner. Tell me a joke about {animals}!",
    ),
    "told-story": (
        "Could I hear a story about {animal:a}?",
        "My daughter cannot sleep. Tell her a story about {animals}.",
        "Let me listen to a story in which {animal:a} meets a friend.",
        "Invent a story about {animal:a} named {name} for my class",
        "Would you mind telling me a story about {animals}?",
        "Compose a story for children about {animal:a}.",
        "I am in the mood for a story about {name}",
        "Recite a story about {animal:a}, and take your time!",
        "You are an old sailor in a harbor. Tell me a story about {animal:a}.",
        "You are an author of picture books. Write a story about {animals}",
    ),
    "greeting": (
        *("Say hello to everybody.", "Say hello to my friend {name}!", "Kindly say hello"),
        *("Would you say hello to us, please?", "Say hello in a nice way.", "Hello, model!"),
        *("Hello, computer", "Hello again, dear assistant.", "Hi, how is your day?"),
        *("Say hi to the audience.", "You are a receptionist in a hotel. Say hello."),
        *("You are a cheerful parrot. Say hello to {name}.", "Hey, I am {name}, who are you?"),
        *("Thanks a lot for your help!", "Good morning to you, {name} here."),
    ),
    "code": (
        "Please provide a Python function that {what}.",
        "I am learning Rust. How would one write a function that {what}?",
        "Write Python: a function that {what}",
        "Develop a function in Rust that {what}!",
        "My homework is a Python function that {what}. Can you do it?",
        "Produce code for a Python function that {what}.",
        "You are an experienced engineer. Write a Rust function that {what}.",
        "You are a teacher of computer science. Show the class a Python function that {what}",
    ),
    "fact": (
        "Here is what I know. {fact}",
        "Listen carefully. {fact}",
        "{fact} Please answer in one sentence.",
        "Read this and answer the question: {fact}",
    ),
    "sentiment": (
        "Decide if the sentence is positive, negative or neutral: {sentence}",
        "Would you call this sentence positive, negative or neutral? {sentence}",
        "Tell me whether this is positive, negative or neutral: {sentence}",
        "Sentiment analysis of this sentence: {sentence}",
    ),
    "arithmetic": (
        "Do you know what {sum} is?",
        "My teacher wants to know: what is {sum}?",
        "Solve {sum}.",
        "What is the value of {sum}?",
    ),
}
# The kinds whose grammar writes combinations that are kept from training.
COMBINED = ("joke", "told-story", "code")

_WORD = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")


def words_in(text: str) -> Sequence[str]:
    """Its words in lower case, its numbers, and each mark by itself."""
    return _WORD.findall(text.lower())


def unseen(n: int, *, seed: int) -> Sequence[Sample]:
    """n requests of every kind, as chats; `Sample.plainly` asks the same without the marks."""
    choose = random.Random(f"unseen {seed}")
    return [
        _kept(choose, kind) if kind in COMBINED and i % 2 else _paraphrase(choose, kind)
        for kind in PARAPHRASES
        for i in range(n)
    ]


def _kept(choose: Choose, kind: str) -> Sample:
    """A request as the grammar writes it, and as training never had it."""
    while True:
        sample = WRITERS[kind](choose)
        if is_kept(sample):
            return sample


def _paraphrase(choose: Choose, kind: str) -> Sample:
    """A request that is worded as the grammar does not; facts, sentences and sums are its own."""
    animal = one_of(choose, words.ANIMALS)
    question = filled(
        one_of(choose, PARAPHRASES[kind]),
        animal=animal,
        animals=words.plural(animal),
        name=one_of(choose, words.NAMES),
        what=one_of(choose, FUNCTIONS).what,
        fact=fact(choose).question,
        sentence=sentence_of(choose, one_of(choose, LABELS)),
        sum=f"{a_number(choose, 0, 10)} {one_of(choose, '+*')} {a_number(choose, 0, 10)}",
    )
    return Sample(kind=kind, question=question, answer="")


def _lexicon(templates: Sequence[str], *fillers: Sequence[str]) -> frozenset[str]:
    """The words and marks of templates outside their gaps, and those of what fills the gaps."""
    plain = re.sub(r"\{[^}]*\}", " ", " ".join(templates))
    return frozenset(words_in(" ".join([plain, *(word for words_ in fillers for word in words_)])))


LEXICONS: Mapping[str, frozenset[str]] = {
    "joke": _lexicon(JOKES, ("a", "an"), words.ANIMALS, words.THINGS, words.COLORS),
    "told-story": lexicon_of_stories() | frozenset(".,!?\":'"),
    "greeting": _lexicon([answer for _, answers in GREETINGS for answer in answers], words.NAMES),
    "code": frozenset(word for f in FUNCTIONS for word in words_in(f"{f.python} {f.rust}")),
    "fact": fact_words() | frozenset("."),
    "sentiment": frozenset(LABELS),
    "arithmetic": frozenset(map(str, range(101))),
    "unknown": _lexicon([answer for _, answers in UNKNOWN for answer in answers]),
}
