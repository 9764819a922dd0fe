"""What an answer would be without a fault that is known: the rest of it shows the next fault.

    "Once upon a time, there …"    without the echoed prompt    ", there …"

A text whose prompt is echoed can be drawn where it must not be, too; a vector that is not scaled
can be pooled otherwise; and counts can be wrong whatever the text is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.faults.of_tokenizer import without_special_tokens

__all__ = ["WITHOUT", "with_right_content"]

Without = Callable[[Case, Json], Json]


def _with_text(got: Json, text: str) -> Json:
    """The answer with another text, and without tokens that belong to the first."""
    return {**{key: got[key] for key in got if key != "token_ids"}, "text": text}


def _without_prompt(case: Case, got: Json) -> Json:
    prompt = str(case.input.get("prompt") or case.expected["text_does_not_begin_with"])
    text = str(got["text"])
    if text.startswith(prompt):
        return _with_text(got, text.removeprefix(prompt))
    return _with_text(got, text.lstrip().removeprefix(prompt.lstrip()))


def _without_specials(_case: Case, got: Json) -> Json:
    return _with_text(got, without_special_tokens(str(got["text"])))


def _with_first_space(_case: Case, got: Json) -> Json:
    return _with_text(got, f" {got['text']}")


def _without_first_space(_case: Case, got: Json) -> Json:
    return _with_text(got, str(got["text"]).removeprefix(" "))


def _with_count(name: str) -> Without:
    """The answer with the right count of that name."""

    def without(case: Case, got: Json) -> Json:
        return {**got, "usage": {**got["usage"], name: case.expected["usage"][name]}}

    return without


def _scaled(_case: Case, got: Json) -> Json:
    vectors = [np.array(vector, np.float64) for vector in got["embeddings"]]
    lengths = [float(np.linalg.norm(vector)) or 1.0 for vector in vectors]
    scaled = [(v / length).tolist() for v, length in zip(vectors, lengths, strict=True)]
    return {**got, "embeddings": scaled}


def _with_kind(case: Case, got: Json) -> Json:
    """The refusal with the kind and the status that the case expects."""
    expected = case.expected["error"]
    right = {**got, "error": {**got["error"], "kind": expected.get("kind")}}
    if "status" in got:
        right["status"] = expected["status"][got["protocol"]][0]
    return right


# By the name of a symptom.
WITHOUT: Mapping[str, Without] = {
    "prompt echoed in text": _without_prompt,
    "special tokens kept in text": _without_specials,
    "first space of the text lost": _with_first_space,
    "space before the text": _without_first_space,
    "BOS not counted": _with_count("prompt_token_count"),
    "BOS counted twice": _with_count("prompt_token_count"),
    "prompt count with generated": _with_count("prompt_token_count"),
    "end token not counted": _with_count("generated_token_count"),
    "embeddings not normalized": _scaled,
    "error of another kind": _with_kind,
    "status of another kind": _with_kind,
}


def with_right_content(case: Case, got: Json) -> Json | None:
    """Return the answer with the right text or vectors and its own counts; None where it has none.

    What is left to differ is how many tokens the prompt is said to have. A text that is another
    has another length: the count of generated tokens is made right, and moves that of a prompt that
    has the generated tokens in it.
    """
    if "error" in got or "error" in case.expected or not isinstance(got.get("usage"), Mapping):
        return None
    if case.group == "embeddings":
        return {**got, "embeddings": case.expected["embeddings"]}
    if case.group != "text" or not case.expected["certified"]:
        return None
    right, usage = case.expected["usage"], got["usage"]
    prompt, generated = usage["prompt_token_count"], usage["generated_token_count"]
    if prompt == right["prompt_token_count"] + generated:
        prompt = right["prompt_token_count"] + right["generated_token_count"]
    counts = {**right, "prompt_token_count": prompt}
    return {**_with_text(got, case.expected["text"]), "usage": counts}
