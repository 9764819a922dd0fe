"""A piece of text to learn from: a text told unasked, or a question and its answer.

A question is asked plainly, as `infer("tiny-chat", "Say hello.")` sends it, or as a chat. A chat is
written as Llama 2 was taught it, with special tokens around both forms:

    <s>What is 2 + 3? 5</s>                 plainly

    <s>[INST] <<SYS>>                       without a system prompt:
    You are a friendly helper.              <s>[INST] What is 2 + 3? [/INST] 5</s>
    <</SYS>>

    What is 2 + 3? [/INST] 5</s>

Source: Touvron et al. 2023, arXiv:2307.09288, appendix A, and Meta's reference code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

__all__ = [
    "Choose",
    "Sample",
    "Writer",
    "a_number",
    "filled",
    "one_of",
    "prompt_of",
    "several_of",
]

T = TypeVar("T")
Choose: TypeAlias = random.Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is to be learned, and how an answer is judged.

    `kind` names the writer. `answer` is the text that follows the prompt; a story told unasked has
    no `question`. A question that `is_plain` is the whole prompt. `keyword` is the one word that
    makes an answer right, None where many answers are, and `rivals` are words that make it wrong.
    """

    kind: str
    answer: str
    question: str | None = None
    system: str | None = None
    is_plain: bool = False
    keyword: str | None = None
    rivals: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What the model is given; nothing where a text is told unasked."""
        if self.question is None:
            return ""
        return self.question if self.is_plain else prompt_of(self.question, system=self.system)

    @property
    def text(self) -> str:
        """Prompt and answer, as they are learned."""
        return f"{self.prompt} {self.answer}" if self.prompt else self.answer

    def plainly(self, between: str = " ") -> Sample:
        """The same question without the marks of a chat, after what the system prompt says."""
        if self.question is None:
            return self
        question = self.question if self.system is None else self.system + between + self.question
        return replace(self, question=question, system=None, is_plain=True)

    def is_right(self, answer: str) -> bool:
        """Whether another answer says the same: the keyword, and none of its rivals."""
        if self.keyword is None:
            raise ValueError(f"a sample of kind {self.kind} has no right answer")
        words = "".join(c if c.isalnum() else " " for c in answer.lower()).split()
        return self.keyword in words and not any(rival in words for rival in self.rivals)


Writer: TypeAlias = Callable[[Choose], Sample]


def prompt_of(question: str, *, system: str | None = None) -> str:
    """A chat's prompt, to be followed by a space and the answer."""
    about = "" if system is None else f"<<SYS>>\n{system}\n<</SYS>>\n\n"
    return f"[INST] {about}{question} [/INST]"


# Of `random.Random` Python promises that `random()` gives the same numbers in every version, and
# promises it of nothing else; so nothing else is used.


def a_number(choose: Choose, least: int, most: int) -> int:
    """A whole number from `least` to `most`, each as likely as the others."""
    return least + int(choose.random() * (most - least + 1))


def one_of(choose: Choose, options: Sequence[T]) -> T:
    """One of the options, each as likely as the others."""
    return options[a_number(choose, 0, len(options) - 1)]


def several_of(choose: Choose, options: Sequence[T], n: int) -> tuple[T, ...]:
    """n different ones of the options, in any order."""
    left = list(options)
    return tuple(left.pop(a_number(choose, 0, len(left) - 1)) for _ in range(n))


def filled(template: str, **words: object) -> str:
    """The template with its gaps filled.

    `{animal:a}` puts "a" or "an" before the word, `{animal:A}` begins a sentence with that, and
    `{animal:C}` begins one with the word itself.
    """
    return template.format_map({key: _Word(value) for key, value in words.items()})


class _Word(str):
    """A word that knows its article and how it begins a sentence."""

    __slots__ = ()

    def __format__(self, wanted: str) -> str:
        if wanted == "a":
            return f"an {self}" if self[:1].lower() in "aeiou" else f"a {self}"
        if wanted == "A":
            return format(self, "a").capitalize()
        if wanted == "C":
            return self[:1].upper() + self[1:]
        return str(self)
