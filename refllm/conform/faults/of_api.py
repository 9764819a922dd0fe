"""Mistakes that a request's answer shows by itself: in texts, counts, refusals and lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.faults.of_embeddings import EMBEDDINGS
from refllm.conform.faults.of_sampling import SAMPLING
from refllm.conform.faults.of_text import TEXT
from refllm.conform.faults.symptom import Symptom, seen
from refllm.interface import as_f32

__all__ = ["API"]

UNIT_ERROR = 1e-3


def _params(case: Case) -> Json:
    params: Json = case.input.get("params") or {}
    return params


def _usage(answer: Json, name: str) -> int | None:
    count = answer.get("usage", {}).get(name)
    return count if isinstance(count, int) else None


def _refuses(case: Case, got: Json) -> bool:
    return "error" in got and "error" not in case.expected


def _accepts(case: Case, got: Json) -> bool:
    return "error" in case.expected and "error" not in got


def _echoes(case: Case, got: Json) -> bool:
    # A request that only HTTP carries has its prompt in what is expected.
    prompt = case.input.get("prompt") or case.expected.get("text_does_not_begin_with", "")
    expected = case.expected.get("text", "")
    is_echo = bool(prompt.strip()) and str(got.get("text", "")).startswith(prompt)
    return is_echo and "error" not in case.expected and not expected.startswith(prompt)


def _prompt_is_off_by(n: int) -> Callable[[Case, Json], bool]:
    def sees(case: Case, got: Json) -> bool:
        expected = _usage(case.expected, "prompt_token_count")
        found = _usage(got, "prompt_token_count")
        is_infer = "embeddings" not in got
        return is_infer and expected is not None and found == expected + n

    return sees


def _counts_generated(case: Case, got: Json) -> bool:
    expected, found = (_usage(a, "prompt_token_count") for a in (case.expected, got))
    generated = _usage(got, "generated_token_count")
    return bool(generated) and expected is not None and found == expected + (generated or 0)


def _end_not_counted(case: Case, got: Json) -> bool:
    expected, found = (_usage(a, "generated_token_count") for a in (case.expected, got))
    is_same_text = "text" in case.expected and got.get("text") == case.expected["text"]
    return is_same_text and expected is not None and found == expected - 1


def _max_tokens_ignored(case: Case, got: Json) -> bool:
    generated, expected = (_usage(a, "generated_token_count") for a in (got, case.expected))
    most = _params(case).get("max_tokens", 100)
    is_infer = case.input["operation"] == "infer" and "error" not in case.expected
    return is_infer and generated is not None and generated > most and generated != expected


def _accepts_what_is_no_number(case: Case, got: Json) -> bool:
    floats = [value for value in _params(case).values() if isinstance(value, float)]
    return _accepts(case, got) and not all(math.isfinite(as_f32(value)) for value in floats)


def _accepts_any_penalty(case: Case, got: Json) -> bool:
    penalty = _params(case).get("repeat_penalty", 1.0)
    return _accepts(case, got) and as_f32(float(penalty)) <= 0


def _accepts_long_prompt(case: Case, got: Json) -> bool:
    says = case.expected.get("error", {}).get("says", ())
    is_about_length = any(str(said).isdigit() for said in says)
    return _accepts(case, got) and is_about_length and case.input["operation"] == "infer"


def _refuses_long_text(case: Case, got: Json) -> bool:
    return _refuses(case, got) and case.clause == "truncation"


def _is_cut_elsewhere(case: Case, got: Json) -> bool:
    expected, found = (_usage(a, "prompt_token_count") for a in (case.expected, got))
    return case.clause == "truncation" and found is not None and found != expected


def _refuses_top_k_0(case: Case, got: Json) -> bool:
    return _refuses(case, got) and _params(case).get("top_k") == 0


def _refuses_empty_prompt(case: Case, got: Json) -> bool:
    return _refuses(case, got) and case.input.get("prompt") == ""


def _refuses_no_texts(case: Case, got: Json) -> bool:
    return _refuses(case, got) and case.input.get("texts") == []


def _refuses_empty_text(case: Case, got: Json) -> bool:
    return _refuses(case, got) and "" in (case.input.get("texts") or ())


def _is_not_of_length_1(case: Case, got: Json) -> bool:
    if "error" in case.expected:
        return False
    lengths = [np.linalg.norm(np.array(vector, float)) for vector in got.get("embeddings", ())]
    return any(abs(length - 1.0) > UNIT_ERROR for length in lengths)


def _depends_on_others(case: Case, got: Json) -> bool:
    is_batch = len(case.input.get("texts") or ()) > 1
    is_about_vectors = "first_components" in case.expected or "same_vectors" in case.expected
    return is_batch and is_about_vectors and "embeddings" in got


def _is_of_another_kind(case: Case, got: Json) -> bool:
    expected = case.expected.get("error", {}).get("kind")
    found = got.get("error", {}).get("kind")
    return expected is not None and found is not None and found != expected


def _has_another_status(case: Case, got: Json) -> bool:
    allowed = case.expected.get("error", {}).get("status", {}).get(got.get("protocol"))
    return "error" in got and bool(allowed) and got.get("status") not in allowed


def _says_too_little(case: Case, got: Json) -> bool:
    is_silent = bool(case.expected.get("error", {}).get("says")) and "error" in got
    return is_silent and not (_is_of_another_kind(case, got) or _has_another_status(case, got))


CAUSES = {symptom.name: symptom.cause for symptom in chain(SAMPLING, TEXT, EMBEDDINGS)}
Sees = Callable[[Case, Json], bool]
# Mistakes that other groups know too are told in the same words.
KNOWN: tuple[tuple[str, Sees], ...] = (
    ("prompt echoed in text", _echoes),
    ("prompt count with generated", _counts_generated),
    ("BOS not counted", _prompt_is_off_by(-1)),
    ("BOS counted twice", _prompt_is_off_by(1)),
    ("end token not counted", _end_not_counted),
    ("max_tokens ignored", _max_tokens_ignored),
    ("parameters not checked", _accepts_what_is_no_number),
    ("penalty not checked", _accepts_any_penalty),
    ("top-k 0 refused", _refuses_top_k_0),
    ("empty prompt refused", _refuses_empty_prompt),
    ("empty list refused", _refuses_no_texts),
    ("empty text refused", _refuses_empty_text),
    ("embeddings not normalized", _is_not_of_length_1),
    ("text cut elsewhere", _is_cut_elsewhere),
)

API: tuple[Symptom, ...] = (
    *(seen(name, CAUSES[name], "api", sees) for name, sees in KNOWN),
    seen(
        "long prompt accepted",
        "A prompt that is longer than the context is cut or overwritten in silence: answer "
        "invalid-input with both lengths.",
        "api",
        _accepts_long_prompt,
    ),
    seen(
        "long text refused",
        "A text that is longer than the limit of the tokenizer's file is refused: cut it there.",
        "api",
        _refuses_long_text,
    ),
    seen(
        "batch mates matter",
        "A text's vector depends on the texts beside it: mask the padding in attention and leave "
        "it out of the mean.",
        "api",
        _depends_on_others,
        is_vague=True,
    ),
    seen(
        "error of another kind",
        "The error has another kind than the interface says: invalid-input where the request is "
        "wrong, model-not-supported where the model is, runtime-error where something broke.",
        "api",
        _is_of_another_kind,
        is_vague=True,
    ),
    seen(
        "status of another kind",
        "A wrong request gets another HTTP status than the error has: 400 where the request is "
        "wrong, 404 where there is no such model or path, 500 only where something broke.",
        "api",
        _has_another_status,
        is_vague=True,
    ),
    seen(
        "error without its subject",
        "The error's message does not say what is wrong: name the parameter, the model, or both "
        "lengths.",
        "api",
        _says_too_little,
        is_vague=True,
    ),
)
