"""Mistakes in what is given back of a text: seen in the text and its counts."""

from __future__ import annotations

from collections.abc import Callable

from refllm.conform.case import Case, Json
from refllm.conform.faults.of_tokenizer import (
    REPLACEMENT,
    TOKENIZER_CAUSES,
    without_special_tokens,
)
from refllm.conform.faults.symptom import Symptom, seen

__all__ = ["TEXT"]

# What begins with less begins so by chance.
CONTEXT = 512  # tokens, of tiny-chat
LONG_ENOUGH = 8


def _is_right_but_for_counts(case: Case, got: Json) -> bool:
    return bool(case.expected["certified"]) and got["text"] == case.expected["text"]


def _texts(case: Case, got: Json) -> tuple[str, str]:
    return got["text"], case.expected["text"]


def _counts(usage: Json) -> tuple[int, int]:
    return int(usage["prompt_token_count"]), int(usage["generated_token_count"])


def _off(case: Case, got: Json) -> tuple[int, int]:
    """By how much the two counts are too large."""
    (prompt, generated), (p, g) = _counts(case.expected["usage"]), _counts(got["usage"])
    return p - prompt, g - generated


def _begins_with_prompt(case: Case, got: Json) -> bool:
    prompt, text, expected = case.input["prompt"], got["text"], case.expected["text"]
    is_echo = bool(prompt.strip()) and text.lstrip().startswith(prompt.lstrip())
    return is_echo and not expected.lstrip().startswith(prompt.lstrip())


def _bos_not_counted(case: Case, got: Json) -> bool:
    return _is_right_but_for_counts(case, got) and _off(case, got) == (-1, 0)


def _bos_counted_twice(case: Case, got: Json) -> bool:
    return _is_right_but_for_counts(case, got) and _off(case, got) == (1, 0)


def _generated_counted_twice(case: Case, got: Json) -> bool:
    n_generated = case.expected["usage"]["generated_token_count"]
    return _off(case, got) == (n_generated, 0) != (0, 0)


def _ends_by_itself(case: Case) -> bool:
    n_generated = int(case.expected["usage"]["generated_token_count"])
    return n_generated < int(case.input["params"].get("max_tokens", 100))


def _end_not_counted(case: Case, got: Json) -> bool:
    is_right = _is_right_but_for_counts(case, got) and _ends_by_itself(case)
    return is_right and _off(case, got) == (0, -1)


def _special_kept(case: Case, got: Json) -> bool:
    text, expected = _texts(case, got)
    plain = without_special_tokens(text)
    return text not in (plain, expected) and plain.strip() == expected.strip()


def _broken_characters(case: Case, got: Json) -> bool:
    text, expected = _texts(case, got)
    place = text.find(REPLACEMENT)
    is_broken = 0 <= place < len(expected) and text[:place] == expected[:place]
    return is_broken and not expected[place].isascii() and REPLACEMENT not in expected


def _first_space_lost(case: Case, got: Json) -> bool:
    text, expected = _texts(case, got)
    return text != expected and text == expected.removeprefix(" ")


def _stripped(case: Case, got: Json) -> bool:
    text, expected = _texts(case, got)
    return text != expected and text == expected.strip()


def _space_added(case: Case, got: Json) -> bool:
    return bool(got["text"] == f" {case.expected['text']}")


def _fills_the_context(case: Case) -> bool:
    usage = case.expected["usage"]
    return bool(usage["prompt_token_count"] + usage["generated_token_count"] == CONTEXT + 1)


def _context_overrun(case: Case, got: Json) -> bool:
    text, expected = _texts(case, got)
    return _fills_the_context(case) and text != expected and text.startswith(expected)


def _end_ignored(case: Case, got: Json) -> bool:
    if _fills_the_context(case):
        return False
    drawn, right = got.get("token_ids"), list(case.expected["token_ids"])
    if drawn is not None:
        return _ends_by_itself(case) and list(drawn) != right == list(drawn[: len(right)])
    text, expected = _texts(case, got)
    is_longer = len(without_special_tokens(text)) > len(expected) >= LONG_ENOUGH
    return _ends_by_itself(case) and is_longer and text.startswith(expected)


def _one_too_many(case: Case, got: Json) -> bool:
    text, expected = _texts(case, got)
    return text.startswith(expected) and _off(case, got)[1] == 1 and not _ends_by_itself(case)


def _most(case: Case) -> int:
    return int(case.input["params"].get("max_tokens", 100))


def _max_tokens_ignored(case: Case, got: Json) -> bool:
    generated = _counts(got["usage"])[1]
    return generated > _most(case) and not _one_too_many(case, got)


def _ends_too_early(case: Case, got: Json) -> bool:
    text, expected = _texts(case, got)
    return 0 < len(text) < len(expected) and expected.startswith(text) and _off(case, got)[1] < -1


def _one_too_few(case: Case, got: Json) -> bool:
    text, expected = _texts(case, got)
    return expected.startswith(text) and _off(case, got)[1] == -1 and not _ends_by_itself(case)


def _prompt_cut(case: Case, got: Json) -> bool:
    return _off(case, got)[0] < -1 and len(case.input["prompt"]) > 0


def _refuses_top_k_0(case: Case, got: Json) -> bool:
    return "error" in got and case.input["params"].get("top_k") == 0


def _refuses_empty(case: Case, got: Json) -> bool:
    return "error" in got and case.input["prompt"] == ""


Sees = Callable[[Case, Json], bool]
SEEN: tuple[tuple[str, str, Sees], ...] = (
    (
        "prompt echoed in text",
        "The text begins with the prompt: return only what was generated.",
        _begins_with_prompt,
    ),
    (
        "BOS not counted",
        "The prompt's count is one too small: BOS belongs to the prompt.",
        _bos_not_counted,
    ),
    (
        "BOS counted twice",
        "The prompt's count is one too large: BOS is counted twice.",
        _bos_counted_twice,
    ),
    (
        "prompt count with generated",
        "The prompt's count has the generated tokens in it: count the prompt alone.",
        _generated_counted_twice,
    ),
    (
        "end token not counted",
        "The generated count lacks the end token: it was drawn, so count it.",
        _end_not_counted,
    ),
    ("special tokens kept in text", TOKENIZER_CAUSES["special tokens kept in text"], _special_kept),
    ("bytes not joined", TOKENIZER_CAUSES["bytes not joined"], _broken_characters),
    (
        "first space of the text lost",
        "The text lacks the space before its first word: it continues a prompt, so the space is "
        "part of it.",
        _first_space_lost,
    ),
    (
        "text stripped",
        "White space at the ends of the text is lost: it was generated, so return it.",
        _stripped,
    ),
    (
        "space before the text",
        "A space stands before the text that no token wrote.",
        _space_added,
    ),
    (
        "context overrun",
        "The text goes on where the context is full: stop there.",
        _context_overrun,
    ),
    (
        "end token ignored",
        "The text goes on after the end token: stop there.",
        _end_ignored,
    ),
    (
        "one token too many",
        "One token more than max_tokens is generated.",
        _one_too_many,
    ),
    (
        "max_tokens ignored",
        "More tokens are generated than max_tokens allows: take it from the request, and not a "
        "default.",
        _max_tokens_ignored,
    ),
    (
        "text ends too early",
        "The text ends before max_tokens and before the end token: take max_tokens from the "
        "request, not a default, and stop at nothing else.",
        _ends_too_early,
    ),
    (
        "one token too few",
        "One token less than max_tokens is generated.",
        _one_too_few,
    ),
    (
        "prompt cut",
        "The prompt's count is too small: a long prompt is cut, or read by another tokenizer. "
        "Refuse a prompt that does not fit the context, and read any other whole.",
        _prompt_cut,
    ),
    ("top-k 0 refused", "A top_k of 0 is refused: it switches top-k off.", _refuses_top_k_0),
    (
        "empty prompt refused",
        "An empty prompt is refused: it is BOS alone where the tokenizer has one.",
        _refuses_empty,
    ),
)
TEXT: tuple[Symptom, ...] = tuple(seen(name, cause, "text", sees) for name, cause, sees in SEEN)
