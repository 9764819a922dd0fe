"""Short stories: somebody, a wish or a worry, somebody who helps, and a good end.

A story is five or more sentences, each from a handful of templates. The hero, the friend and the
thing are chosen once, so that a story is about the same ones from its first word to its last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tools.tiny_chat import words
from tools.tiny_chat.sample import Choose, Sample, filled, one_of

__all__ = ["lexicon", "story", "told_story"]


@dataclass(frozen=True, slots=True)
class Pronouns:
    """How a hero is spoken of."""

    he: str
    him: str
    his: str


SHE, HE = Pronouns("she", "her", "her"), Pronouns("he", "him", "his")

OPENINGS = (
    "Once upon a time, there was a little {kind} named {name}.",
    "Once upon a time there was {quality:a} {kind} called {name}.",
    "There once was a little {kind} named {name}.",
    "One {weather} morning, a {kind} named {name} woke up early.",
)
HOMES = (
    "{name} lived in {quality2:a} house near the {place}.",
    "{he:C} lived near the {place} with {his} {friend}.",
    "{name} loved to play in the {place}.",
    "Every day {he} went to the {place} with {his} {friend}.",
)
# What happens, what is done about it, and how it ends: the second and third belong to the first.
PLOTS = (
    (
        (
            "One day, {name} found {quality3:a} {thing} in the {place}.",
            "One day {he} saw {quality3:a} {color} {thing} under a tree.",
        ),
        (
            '"Whose {thing} is this?" asked {name}.',
            "{name} wanted to know who had lost it.",
            "{he:C} picked it up and showed it to {his} {friend}.",
        ),
        (
            '"It is mine," said {animal:a}. "I looked for it all day."',
            "{animal:A} came by and said that the {thing} was lost.",
        ),
        (
            "{name} gave the {thing} back, and the {animal} was very happy.",
            "So {name} gave it back. The {animal} smiled and said thank you.",
        ),
    ),
    (
        (
            "One day, {name} lost {his} {color} {thing}.",
            "One {weather} day {name} could not find {his} {thing}.",
        ),
        (
            "{he:C} looked in the house and in the {place}, but it was not there.",
            "{name} was sad and began to cry.",
            "{he:C} asked {his} {friend}, but nobody had seen it.",
        ),
        (
            'Then {animal:a} came and asked, "Why are you sad?"',
            "{animal:A} heard {him} and wanted to help.",
        ),
        (
            "They looked together and found the {thing} behind a stone.",
            "The {animal} knew where it was. It was in the {place}!",
        ),
    ),
    (
        (
            "One day, {name} wanted to make {treat}.",
            "{name} was hungry and wished for some {treat}.",
        ),
        (
            "But there were no {food} in the house.",
            "{he:C} needed {food}, and {he} had none.",
        ),
        (
            "{name} went to the {place} and met {animal:a} with a basket of {food}.",
            'On the way {he} met {animal:a}. "Do you need {food}?" it asked.',
        ),
        (
            "The {animal} shared the {food}, and they ate the {treat} together.",
            "They took the {food} home and made {treat} for everybody.",
        ),
    ),
    (
        (
            "One {weather} night, {name} heard a strange sound.",
            "One day {name} was afraid of the dark {place}.",
        ),
        (
            "{he:C} wanted to run away.",
            "{his:C} heart beat fast, and {he} held {his} {thing}.",
            '"Who is there?" asked {name}.',
        ),
        (
            "It was only a little {animal}. It was afraid, too.",
            "A little {animal} came out and said hello.",
        ),
        (
            "{name} laughed, and {he} was not afraid any more.",
            "They held hands and walked home, and nobody was afraid.",
        ),
    ),
)
ENDINGS = (
    "From that day on, {name} and the {animal} were best friends.",
    "{name} went home and told {his} {friend} all about it.",
    "They played together until the sun went down.",
    "{name} was happy and slept well that night.",
    "And they all lived happily ever after.",
)
REQUESTS = (
    "Tell me a story.",
    "Tell me a story about {hero:a}.",
    "Write a short story about {hero:a} named {name}.",
    "Can you tell me a story about {name}?",
    "Please write a story about {hero:a} and {thing:a}.",
)


def story(choose: Choose) -> Sample:
    """A story told without being asked for: what a plain prompt continues as."""
    text, _ = _told(choose)
    return Sample(kind="story", answer=text)


def told_story(choose: Choose) -> Sample:
    """A story that was asked for, about what it was asked to be about."""
    text, gaps = _told(choose)
    fitting = [asked for asked in REQUESTS if "{thing" not in asked or gaps["thing"] in text]
    question = filled(one_of(choose, fitting), hero=gaps["kind"], **gaps)
    return Sample(kind="told-story", question=question, answer=text)


def lexicon() -> frozenset[str]:
    """Every word that a story can hold, in lower case."""
    templates = [*OPENINGS, *HOMES, *ENDINGS, *(t for plot in PLOTS for part in plot for t in part)]
    plain = re.sub(r"\{[^}]*\}", " ", " ".join(templates))
    fillers = [
        *(*words.NAMES, *words.ANIMALS, *words.FRIENDS, *words.THINGS, *words.FOODS),
        *(*words.TREATS, *words.COLORS, *words.QUALITIES, *words.PLACES, *words.WEATHER),
        *("a", "an", "girl", "boy", "she", "her", "he", "him", "his"),
    ]
    return frozenset(re.findall(r"[a-z]+", " ".join([plain, *fillers]).lower()))


def _told(choose: Choose) -> tuple[str, dict[str, str]]:
    """A story, and what fills its gaps."""
    name, kind, pronouns = _hero(choose)
    animals = [animal for animal in words.ANIMALS if animal != kind]
    gaps = {
        "name": name,
        "kind": kind,
        "he": pronouns.he,
        "him": pronouns.him,
        "his": pronouns.his,
        "friend": one_of(choose, words.FRIENDS),
        "animal": one_of(choose, animals),
        "thing": one_of(choose, words.THINGS),
        "color": one_of(choose, words.COLORS),
        "place": one_of(choose, words.PLACES),
        "food": one_of(choose, words.FOODS),
        "treat": one_of(choose, words.TREATS),
        "weather": one_of(choose, words.WEATHER),
        **{key: one_of(choose, words.QUALITIES) for key in ("quality", "quality2", "quality3")},
    }
    parts = (OPENINGS, HOMES, *one_of(choose, PLOTS), ENDINGS)
    sentences = [filled(one_of(choose, part), **gaps) for part in parts]
    return " ".join(sentences), gaps


def _hero(choose: Choose) -> tuple[str, str, Pronouns]:
    """A name, what it is, and how to speak of it."""
    is_girl = choose.random() < 0.5
    name = one_of(choose, words.GIRLS if is_girl else words.BOYS)
    child = "girl" if is_girl else "boy"
    kind = child if choose.random() < 0.5 else one_of(choose, words.ANIMALS)
    return name, kind, SHE if is_girl else HE
