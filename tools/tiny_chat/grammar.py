"""Text from a context-free grammar: each choice is drawn, so a rule has as many texts as choices.

    [old|new|]    one of the alternatives, the empty one too; a choice may stand inside a choice
    <animal>      one of that rule's templates
    {name}        a gap, which `filled` fills; the same word wherever it stands

An alternative that is written twice is drawn twice as often.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from tools.tiny_chat.sample import Choose, one_of

__all__ = ["Rules", "expanded", "in_sentences", "words_of"]

Rules = Mapping[str, Sequence[str]]

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_RULE = re.compile(r"<(\w+)>")
_GAP = re.compile(r"\{[^}]*\}")
_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=[aeiou])")
_BEGINNING = re.compile(r'(^"?|[.!?] "?)([a-z])')


def expanded(choose: Choose, template: str, rules: Rules | None = None) -> str:
    """The template with every choice drawn and every rule written; gaps stay."""
    rules = rules or {}
    while True:
        while "[" in template:
            template = _CHOICE.sub(lambda found: one_of(choose, found[1].split("|")), template)
        if "<" not in template:
            return template
        template = _RULE.sub(lambda found: one_of(choose, rules[found[1]]), template)


def in_sentences(text: str) -> str:
    """The text with "an" before vowels and a capital letter at the beginning of each sentence.

    A quotation's end is no sentence's end: what follows `said?"` goes on in lower case, and so a
    template has to write the capital letter after a quotation that ends one.
    """
    text = _BEFORE_VOWEL.sub(r"\1n ", text)
    return _BEGINNING.sub(lambda found: found[1] + found[2].upper(), text)


def words_of(templates: Iterable[str]) -> frozenset[str]:
    """Every word that stands in templates outside their gaps, in lower case."""
    plain = (_RULE.sub(" ", _GAP.sub(" ", template)) for template in templates)
    return frozenset(re.findall(r"[a-z]+", " ".join(plain).lower()))
