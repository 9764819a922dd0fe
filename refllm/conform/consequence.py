"""What a difference does to the users of a backend: the order in which causes are reported."""

from __future__ import annotations

from refllm.conform.case import Case
from refllm.conform.verdict import CONSEQUENCES, Consequence, Difference

__all__ = ["consequence_of", "rank"]

ABOUT_MESSAGE = ("the error's message", "the form of the error's body")


def consequence_of(case: Case, difference: Difference) -> Consequence:
    """Return what it means that the case was answered with this difference.

    Args:
        case: The question and its right answer.
        difference: The first thing that differs, with the whole answer.
    """
    is_refusal = "error" in difference.answer
    if "error" in case.expected:
        if not is_refusal:
            return "accepted"
        return "unclear error" if difference.where in ABOUT_MESSAGE else "wrong error"
    if is_refusal:
        return "refused"
    if difference.where.removeprefix("usage.").replace("_", " ").endswith("token count"):
        return "wrong counts"
    return "wrong text" if _is_about_text(case, difference) else "wrong numbers"


def rank(consequence: Consequence) -> int:
    """Return the place of a consequence, 0 for the worst."""
    return CONSEQUENCES.index(consequence)


def _is_about_text(case: Case, difference: Difference) -> bool:
    if case.group == "api":
        return "embeddings" not in difference.answer
    if case.group == "sampling":  # candidates decide the token, probabilities alone may not
        return difference.answer.get("token") != case.expected.get("token")
    return case.group in ("tokenizer", "text")
