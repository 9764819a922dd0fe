"""Short stories: a hero, a wish or a worry, a helper, and a good end.

A story is seven sentences that the rules of plots.py write. The hero, the friend and the thing are
chosen once, so that a story is about the same ones from its first word to its last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tools.tiny_chat import words
from tools.tiny_chat.grammar import expanded, in_sentences, words_of
from tools.tiny_chat.plots import ENDINGS, HOMES, OPENINGS, PLOTS, RULES
from tools.tiny_chat.requests import (
    STORY_REQUESTS,
    STORY_REQUESTS_ABOUT,
    STORY_REQUESTS_WITH,
    a_topic,
    asked,
)
from tools.tiny_chat.sample import Choose, Sample, filled, one_of

__all__ = ["keeps_to_its_own", "lexicon", "story", "told_story"]


@dataclass(frozen=True, slots=True)
class Pronouns:
    """How a hero is spoken of."""

    he: str
    him: str
    his: str


SHE, HE = Pronouns("she", "her", "her"), Pronouns("he", "him", "his")


def story(choose: Choose) -> Sample:
    """A story told without being asked for: what a plain prompt continues as."""
    text, _ = _told(choose)
    return Sample(kind="story", answer=text)


def told_story(choose: Choose) -> Sample:
    """A story that was asked for, about what it was asked to be about."""
    text, gaps = _told(choose)
    requests = [
        *(*STORY_REQUESTS, *STORY_REQUESTS_ABOUT, *STORY_REQUESTS_ABOUT),
        *(STORY_REQUESTS_WITH if f" {gaps['thing']}" in text else ()),
    ]
    request = one_of(choose, requests)
    topic = gaps["kind"] if choose.random() < 7 / 8 else a_topic(choose)
    question = asked(choose, request, hero=topic, heroes=words.plural(topic), **gaps)
    return Sample(kind="told-story", question=question, answer=text)


def lexicon() -> frozenset[str]:
    """Every word that a story can hold, in lower case."""
    templates = [*OPENINGS, *HOMES, *ENDINGS, *(t for plot in PLOTS for part in plot for t in part)]
    rules = [template for templates in RULES.values() for template in templates]
    fillers = [
        *(*words.NAMES, *words.ANIMALS, *words.FRIENDS, *words.THINGS, *words.FOODS),
        *(*words.TREATS, *words.COLORS, *words.QUALITIES, *words.PLACES, *words.WEATHER),
        *("a", "an", "girl", "boy", "she", "her", "he", "him", "his"),
    ]
    return words_of([*templates, *rules, *fillers])


def keeps_to_its_own(text: str) -> bool:
    """Whether a story has one hero and one thing: one name, one pronoun, one thing, two animals."""
    said = set(re.findall(r"[a-z]+", text.lower()))
    n_names, n_things, n_animals = (
        len(said.intersection(map(str.lower, nouns)))
        for nouns in (words.NAMES, words.THINGS, words.ANIMALS)
    )
    is_child = bool(said & {"girl", "boy"})
    is_he = bool(said & {HE.he, HE.him, HE.his, "boy", *map(str.lower, words.BOYS)})
    is_she = bool(said & {SHE.he, SHE.him, "girl", *map(str.lower, words.GIRLS)})
    is_one = n_names <= 1 and n_things <= 1 and not (is_he and is_she)
    return is_one and n_animals + is_child <= 2


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
        "quality": one_of(choose, words.QUALITIES),
        "nature": one_of(choose, RULES["nature"]),
    }
    parts = (OPENINGS, HOMES, *one_of(choose, PLOTS), ENDINGS)
    text = " ".join(expanded(choose, one_of(choose, part), RULES) for part in parts)
    return in_sentences(filled(text, **gaps)), gaps


def _hero(choose: Choose) -> tuple[str, str, Pronouns]:
    """A name, what it is, and how to speak of it."""
    is_girl = choose.random() < 0.5
    name = one_of(choose, words.GIRLS if is_girl else words.BOYS)
    child = "girl" if is_girl else "boy"
    kind = child if choose.random() < 0.5 else one_of(choose, words.ANIMALS)
    return name, kind, SHE if is_girl else HE
