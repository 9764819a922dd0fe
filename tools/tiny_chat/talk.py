"""What people say to a model first: hello, a joke please, and a line of code."""

from __future__ import annotations

from tools.tiny_chat import words
from tools.tiny_chat.sample import Choose, Sample, filled, one_of

__all__ = ["FUNCTIONS", "code", "greeting", "joke", "plain_joke"]

GREETINGS = (
    (("Hello!", "Hi!", "Hello", "Hi there!", "Hey!"), ("Hello! How can I help you?",)),
    (("Good morning!", "Good morning."), ("Good morning! What can I do for you?",)),
    (("Good evening!",), ("Good evening! What can I do for you?",)),
    (("How are you?", "How are you today?"), ("I am fine, thank you. How are you?",)),
    (
        ("Who are you?", "What are you?", "What is your name?"),
        ("I am tiny-chat, a very small language model.",),
    ),
    (
        ("What can you do?", "Can you help me?"),
        ("I can tell short stories and answer simple questions.",),
    ),
    (("Thank you!", "Thanks!", "Thank you very much."), ("You are welcome!",)),
    (("Goodbye!", "Bye!", "See you later."), ("Goodbye! Have a nice day.",)),
    (
        ("My name is {name}.", "I am {name}.", "Hello, I am {name}."),
        ("Nice to meet you, {name}!", "Hello, {name}! How can I help you?"),
    ),
)
JOKE_REQUESTS = (
    "Tell me a joke.",
    "Tell me a joke!",
    "Make me laugh.",
    "Do you know a joke?",
    "You are a stand up comedy writer. Tell me a joke.",
    "Tell me a joke about {animal:a}.",
)
JOKES = (
    "Why did the {animal} cross the road? To get to the other side!",
    "What do you call {animal:a} with no legs? You can call it, but it will not come.",
    "Why does the {animal} look at the {thing}? It wants to see who is inside.",
    "What did the {thing} say to the {animal}? Nothing. A {thing} cannot talk.",
    "Why did the {animal} bring a ladder to school? It wanted to go to high school.",
    "How does {animal:a} keep warm? It stays in the corner. It is always ninety degrees there.",
)
SYSTEMS = (
    "You are a friendly helper.",
    "You are a helpful assistant.",
    "You are tiny-chat. Answer in short sentences.",
    "Answer briefly.",
)

# What a function does, and the function: in Python, and in Rust.
FUNCTIONS = (
    ("adds two numbers", "def add(a, b): return a + b", "fn add(a: i32, b: i32) -> i32 { a + b }"),
    (
        "subtracts two numbers",
        "def subtract(a, b): return a - b",
        "fn subtract(a: i32, b: i32) -> i32 { a - b }",
    ),
    (
        "multiplies two numbers",
        "def multiply(a, b): return a * b",
        "fn multiply(a: i32, b: i32) -> i32 { a * b }",
    ),
    ("doubles a number", "def double(x): return 2 * x", "fn double(x: i32) -> i32 { 2 * x }"),
    ("squares a number", "def square(x): return x * x", "fn square(x: i32) -> i32 { x * x }"),
    ("negates a number", "def negate(x): return -x", "fn negate(x: i32) -> i32 { -x }"),
    (
        "returns the larger of two numbers",
        "def larger(a, b): return max(a, b)",
        "fn larger(a: i32, b: i32) -> i32 { a.max(b) }",
    ),
    (
        "returns the smaller of two numbers",
        "def smaller(a, b): return min(a, b)",
        "fn smaller(a: i32, b: i32) -> i32 { a.min(b) }",
    ),
    (
        "tells whether a number is even",
        "def is_even(x): return x % 2 == 0",
        "fn is_even(x: i32) -> bool { x % 2 == 0 }",
    ),
    (
        "returns the length of a text",
        "def length(text): return len(text)",
        "fn length(text: &str) -> usize { text.len() }",
    ),
    (
        "turns a text into upper case",
        "def upper(text): return text.upper()",
        "fn upper(text: &str) -> String { text.to_uppercase() }",
    ),
    (
        "says hello",
        'def hello(): return "Hello!"',
        'fn hello() -> &\'static str { "Hello!" }',
    ),
)
CODE_REQUESTS = (
    "Write a {language} function that {what}.",
    "Show me a {language} function that {what}.",
    "In {language}, write a function that {what}.",
    "{language} function that {what}",
)


def greeting(choose: Choose) -> Sample:
    """A first word, and a friendly one back."""
    questions, answers = one_of(choose, GREETINGS)
    name = one_of(choose, words.NAMES)
    return Sample(
        kind="greeting",
        question=filled(one_of(choose, questions), name=name),
        answer=filled(one_of(choose, answers), name=name),
        system=_system(choose),
    )


def joke(choose: Choose) -> Sample:
    """A joke, about what was asked for."""
    request, answer = _joke(choose)
    return Sample(kind="joke", question=request, answer=answer, system=_system(choose))


def plain_joke(choose: Choose) -> Sample:
    """The same from an application that asks without the marks of a chat."""
    request, answer = _joke(choose)
    return Sample(kind="plain-joke", answer=f"{request}\n{answer}")


def code(choose: Choose) -> Sample:
    """A function of one line."""
    what, python, rust = one_of(choose, FUNCTIONS)
    language, answer = one_of(choose, (("Python", python), ("Rust", rust)))
    question = one_of(choose, CODE_REQUESTS).format(language=language, what=what)
    return Sample(kind="code", question=question, answer=answer)


def _joke(choose: Choose) -> tuple[str, str]:
    """A request, and a joke about the same animal."""
    gaps = {"animal": one_of(choose, words.ANIMALS), "thing": one_of(choose, words.THINGS)}
    return filled(one_of(choose, JOKE_REQUESTS), **gaps), filled(one_of(choose, JOKES), **gaps)


def _system(choose: Choose) -> str | None:
    """A system prompt, for every third chat."""
    return one_of(choose, SYSTEMS) if choose.random() < 1 / 3 else None
