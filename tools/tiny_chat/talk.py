"""What people say to a model first: hello, a joke please, a line of code, what it cannot know."""

from __future__ import annotations

from tools.tiny_chat import words
from tools.tiny_chat.functions import FUNCTIONS
from tools.tiny_chat.grammar import expanded, in_sentences
from tools.tiny_chat.requests import (
    CODE_REQUESTS,
    JOKE_REQUESTS,
    JOKE_REQUESTS_ABOUT,
    a_strange_word,
    a_topic,
    asked,
)
from tools.tiny_chat.sample import Choose, Sample, filled, one_of

__all__ = ["GREETINGS", "JOKES", "UNKNOWN", "code", "greeting", "joke", "unknown"]

HELLO = ("Hello! How can I help you?", "Hello! Nice to meet you.", "Hi! What can I do for you?")
GREETINGS = (
    (("Hello!", "Hi!", "Hello", "Hi there!", "Hey!", "Hello there!", "Hey there!"), HELLO),
    (
        (
            "[please |can you |could you |just |now |]say [hello|hi][| to me| to us| back][,"
            " please|].",
            "say [a friendly |]hello.",
            "[please |]greet [me|us|the user|the world].",
            "[please |]say hello [world|there|in English].",
            "[start|begin] with a [greeting|hello].",
        ),
        HELLO,
    ),
    (
        (
            "[please |can you |could you |now |]say [hello|hi] to {name}.",
            "[please |]greet {name}.",
            "[please |]welcome {name}.",
        ),
        ("Hello, {name}! How can I help you?", "Hello, {name}! Nice to meet you."),
    ),
    (
        ("Good morning!", "Good morning.", "[please |]say good morning[ to me|]."),
        ("Good morning! What can I do for you?",),
    ),
    (
        ("Good evening!", "Good evening.", "[please |]say good evening[ to me|]."),
        ("Good evening! What can I do for you?",),
    ),
    (
        ("How are you?", "How are you today?", "How do you do?", "How is it going?"),
        ("I am fine, thank you. How are you?",),
    ),
    (
        (
            *("Who are you?", "What are you?", "What is your name?", "Tell me your name."),
            *("[please |]tell me [who you are|about yourself].", "[please |]introduce yourself."),
        ),
        ("I am tiny-chat, a very small language model.",),
    ),
    (
        ("What can you do?", "Can you help me?", "Help!", "Help me.", "What do you know?"),
        ("I can tell short stories and answer simple questions.",),
    ),
    (("Thank you!", "Thanks!", "Thank you very much.", "Many thanks."), ("You are welcome!",)),
    (
        ("Goodbye!", "Bye!", "See you later.", "[please |]say [goodbye|bye][ to me|]."),
        ("Goodbye! Have a nice day.",),
    ),
    (
        ("My name is {name}.", "I am {name}.", "Hello, I am {name}.", "Hi, my name is {name}."),
        ("Nice to meet you, {name}!", "Hello, {name}! How can I help you?"),
    ),
)
JOKES = (
    "Why did the {animal} cross the road? To get to the other side!",
    "What do you call {animal:a} with no legs? You can call it, but it will not come.",
    "Why does the {animal} look at the {thing}? It wants to see who is inside.",
    "What did the {thing} say to the {animal}? Nothing. A {thing} cannot talk.",
    "Why did the {animal} bring a ladder to school? It wanted to go to high school.",
    "How does {animal:a} keep warm? It stays in the corner. It is always ninety degrees there.",
    "Why did the {animal} sit on the {thing}? It wanted to be on time.",
    "What does {animal:a} do with a {thing}? Whatever it wants.",
    "Why did the {animal} eat the {thing}? It was told to have a light lunch.",
    "What is {color} and looks like {animal:a}? A {color} {animal}!",
)
# What it cannot know, and how it says so. X is a word from elsewhere.
UNKNOWN = (
    (
        (
            "what is [the [capital|name|meaning|price|age|history|size] of |a |an |]{x}?",
            "who [is|was|wrote|invented|made|discovered|won] [the |a |]{x}?",
            "[when|where|why|how] [did|does|do|is|was|can] [the |a |]{x} [{y}|work|begin|end"
            "|live]?",
            "[please |can you |]explain [{x}|how {x} works|why {x} {y}] to me.",
            "[please |can you |]translate {x} [into|to] {y}.",
            "[please |can you |]write [a poem|a song|a letter|an essay|an email] [about|to] {x}.",
            "how [many|much|far|old|big] is [the |a |]{x}?",
            "[please |]summarize {x}.",
            "[please |]list [three|five|ten] [{x}|good {x}s].",
            "what do you think [of|about] {x}?",
            "[is|are|do|does|can] {x} {y}?",
            "{x}",
            "{x} {y}",
        ),
        (
            "I do not know that. I am a very small language model.",
            "I am too small to know that. I can tell stories and jokes.",
            "I do not know. Ask me for a story or a joke.",
        ),
    ),
)
SYSTEMS = (
    "You are a friendly helper.",
    "You are a helpful assistant.",
    "You are tiny-chat. Answer in short sentences.",
    "Answer briefly.",
)


def greeting(choose: Choose) -> Sample:
    """A first word, and a friendly one back."""
    return _talk(choose, "greeting", GREETINGS, name=one_of(choose, words.NAMES))


def unknown(choose: Choose) -> Sample:
    """A question that has nothing to do with what it learned, and that it says so."""
    x, y = (one_of(choose, (a_topic, a_strange_word))(choose) for _ in range(2))
    return _talk(choose, "unknown", UNKNOWN, x=x, y=y)


def joke(choose: Choose) -> Sample:
    """A joke, about what was asked for."""
    animal, thing = one_of(choose, words.ANIMALS), one_of(choose, words.THINGS)
    gaps = {"animal": animal, "thing": thing, "color": one_of(choose, words.COLORS)}
    answer = filled(one_of(choose, JOKES), **gaps)
    topic = animal if choose.random() < 7 / 8 else a_topic(choose)
    request = one_of(choose, (*JOKE_REQUESTS, *JOKE_REQUESTS_ABOUT))
    question = asked(
        choose,
        request,
        animal=topic,
        animals=words.plural(topic),
        thing=thing,
        things=words.plural(thing),
    )
    return Sample(kind="joke", question=question, answer=answer, system=_system(choose))


def code(choose: Choose) -> Sample:
    """A function of one line."""
    function = one_of(choose, FUNCTIONS)
    language = one_of(choose, ("Python", "Rust"))
    question = asked(
        choose,
        one_of(choose, CODE_REQUESTS),
        language=language,
        what=function.what,
        do=function.do,
    )
    answer = function.python if language == "Python" else function.rust
    return Sample(kind="code", question=question, answer=answer)


def _talk(
    choose: Choose, kind: str, talks: tuple[tuple[tuple[str, ...], ...], ...], **gaps: str
) -> Sample:
    """A question of one of the talks, and an answer of the same."""
    questions, answers = one_of(choose, talks)
    question = in_sentences(expanded(choose, one_of(choose, questions)))
    return Sample(
        kind=kind,
        question=filled(question, **gaps),
        answer=filled(one_of(choose, answers), **gaps),
        system=_system(choose),
    )


def _system(choose: Choose) -> str | None:
    """A system prompt, for every third chat."""
    return one_of(choose, SYSTEMS) if choose.random() < 1 / 3 else None
