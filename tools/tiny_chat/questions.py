"""Questions with one right answer: about what the prompt states, and about numbers."""

from __future__ import annotations

from tools.tiny_chat import words
from tools.tiny_chat.sample import Choose, Sample, a_number, filled, one_of, several_of

__all__ = ["arithmetic", "fact", "fact_words"]

MAX_FACTS = 3
LARGEST_SUM, LARGEST_FACTOR = 20, 10
WORDS_OF_SIGNS = {"+": "plus", "-": "minus", "*": "times"}
SUMS = (
    *("What is {sum}?", "Compute {sum}.", "{sum} =", "What is {sum}?", "{sum} =", "{sum}"),
    *("How much is {sum}?", "Calculate {sum}.", "Can you tell me what {sum} is?", "{sum}?"),
    *("What does {sum} make?", "Please work out {sum}.", "Tell me the result of {sum}."),
)


# What the prompt states


def fact(choose: Choose) -> Sample:
    """Two or three sentences of one kind, and a question that one of them answers."""
    return one_of(choose, (_color, _owner, _place, _count, _liking))(choose)


def fact_words() -> frozenset[str]:
    """Every word that an answer can hold, in lower case."""
    fillers = (
        *(*words.NAMES, *words.THINGS, *words.COLORS, *words.ANIMALS, *words.ROOMS),
        *(*words.FOODS, *words.NUMBERS, *words.TREATS),
    )
    said = ("the", "of", "is", "belongs", "to", "in", "has", "likes")
    return frozenset(word.lower() for word in (*fillers, *said))


def _color(choose: Choose) -> Sample:
    """Whose thing has which color."""
    names, things, colors = _different(choose, words.NAMES, words.THINGS, words.COLORS)
    stated = [
        filled("{name} has {color:a} {thing}.", name=name, color=color, thing=thing)
        for name, thing, color in zip(names, things, colors, strict=True)
    ]
    i = a_number(choose, 0, len(names) - 1)
    return _fact(
        stated,
        f"What color is the {things[i]} of {names[i]}?",
        f"The {things[i]} of {names[i]} is {colors[i]}.",
        colors,
        i,
    )


def _owner(choose: Choose) -> Sample:
    """Whose a thing is.

    As the others, this asks for a word that stands behind the one it is known by. "Rosa has a cup.
    Who has the cup?" asks for one before it, and a network of this size does not learn that.
    """
    names, things = _different(choose, words.NAMES, words.THINGS)
    stated = [f"The {thing} belongs to {name}." for name, thing in zip(names, things, strict=True)]
    i = a_number(choose, 0, len(names) - 1)
    question = one_of(choose, ("Whose is the {thing}?", "Who does the {thing} belong to?"))
    answer = f"The {things[i]} belongs to {names[i]}."
    return _fact(stated, question.format(thing=things[i]), answer, names, i)


def _place(choose: Choose) -> Sample:
    """Where an animal is."""
    animals, rooms = _different(choose, words.ANIMALS, words.ROOMS)
    stated = [
        f"The {animal} is in the {room}." for animal, room in zip(animals, rooms, strict=True)
    ]
    i = a_number(choose, 0, len(animals) - 1)
    question, answer = f"Where is the {animals[i]}?", f"The {animals[i]} is in the {rooms[i]}."
    return _fact(stated, question, answer, rooms, i)


def _count(choose: Choose) -> Sample:
    """How many things a person has."""
    names, foods, numbers = _different(choose, words.NAMES, words.FOODS, words.NUMBERS[2:])
    stated = [
        f"{name} has {number} {food}."
        for name, food, number in zip(names, foods, numbers, strict=True)
    ]
    i = a_number(choose, 0, len(names) - 1)
    question = f"How many {foods[i]} does {names[i]} have?"
    answer = f"{names[i]} has {numbers[i]} {foods[i]}."
    return _fact(stated, question, answer, numbers, i)


def _liking(choose: Choose) -> Sample:
    """What a person likes."""
    names, treats = _different(choose, words.NAMES, words.TREATS)
    stated = [f"{name} likes {treat}." for name, treat in zip(names, treats, strict=True)]
    i = a_number(choose, 0, len(names) - 1)
    question, answer = f"What does {names[i]} like?", f"{names[i]} likes {treats[i]}."
    return _fact(stated, question, answer, treats, i)


def _fact(
    stated: list[str], question: str, answer: str, keywords: tuple[str, ...], i: int
) -> Sample:
    """The sample whose answer is keyword i, and not one of the others."""
    lowered = [keyword.lower() for keyword in keywords]
    return Sample(
        kind="fact",
        question=f"{' '.join(stated)} {question}",
        answer=answer,
        keyword=lowered[i],
        rivals=tuple(lowered[:i] + lowered[i + 1 :]),
    )


def _different(choose: Choose, *pools: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """From each pool two or three words, none twice; as many from each."""
    n = a_number(choose, 2, MAX_FACTS)
    return tuple(several_of(choose, pool, n) for pool in pools)


# Numbers


def arithmetic(choose: Choose) -> Sample:
    """A small sum, difference or product."""
    sign = one_of(choose, "+-*")
    largest = LARGEST_FACTOR if sign == "*" else LARGEST_SUM
    a, b = a_number(choose, 0, largest), a_number(choose, 0, largest)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    said = WORDS_OF_SIGNS[sign] if choose.random() < 1 / 8 else sign
    return Sample(
        kind="arithmetic",
        question=one_of(choose, SUMS).format(sum=f"{a} {said} {b}"),
        answer=str(result),
        keyword=str(result),
    )
