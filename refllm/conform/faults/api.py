"""Faults that a request's answer shows by itself: in texts, counts, refusals and lengths."""

from __future__ import annotations

import math

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.faults.catalog import Faults
from refllm.conform.faults.embeddings import EMBEDDINGS
from refllm.conform.faults.sampling import SAMPLING
from refllm.conform.faults.text import TEXT
from refllm.interface import as_f32

__all__ = ["API"]

# Faults that other groups have too share their causes.
API = Faults("api", SAMPLING, TEXT, EMBEDDINGS)

MAX_UNIT_ERROR = 1e-3


def _params(case: Case) -> Json:
    params: Json = case.input.get("params") or {}
    return params


def _usage(answer: Json, name: str) -> int | None:
    count = answer.get("usage", {}).get(name)
    return count if isinstance(count, int) else None


def _off(case: Case, got: Json, name: str) -> int | None:
    """Return by how much the count of that name is too large; None without an expected count."""
    expected, found = _usage(case.expected, name), _usage(got, name)
    return None if expected is None or found is None else found - expected


def _refuses(case: Case, got: Json) -> bool:
    return "error" in got and "error" not in case.expected


def _accepts(case: Case, got: Json) -> bool:
    return "error" in case.expected and "error" not in got


@API.seen("prompt echoed in text")
def _prompt_echoed(case: Case, got: Json) -> bool:
    """The text begins with the prompt; one that only HTTP carries is in what is expected."""
    prompt = case.input.get("prompt") or case.expected.get("text_does_not_begin_with", "")
    expected = case.expected.get("text", "")
    is_echo = bool(prompt.strip()) and str(got.get("text", "")).startswith(prompt)
    return is_echo and "error" not in case.expected and not expected.startswith(prompt)


@API.seen("prompt count with generated")
def _prompt_count_with_generated(case: Case, got: Json) -> bool:
    generated = _usage(got, "generated_token_count")
    return bool(generated) and _off(case, got, "prompt_token_count") == generated


API.seen("BOS not counted")(
    lambda case, got: "embeddings" not in got and _off(case, got, "prompt_token_count") == -1
)
API.seen("BOS counted twice")(
    lambda case, got: "embeddings" not in got and _off(case, got, "prompt_token_count") == 1
)


@API.seen("end token not counted")
def _end_token_not_counted(case: Case, got: Json) -> bool:
    is_same_text = "text" in case.expected and got.get("text") == case.expected["text"]
    return is_same_text and _off(case, got, "generated_token_count") == -1


@API.seen("max_tokens ignored")
def _max_tokens_ignored(case: Case, got: Json) -> bool:
    generated = _usage(got, "generated_token_count")
    is_infer = case.input["operation"] == "infer" and "error" not in case.expected
    is_more = generated is not None and generated > _params(case).get("max_tokens", 100)
    return is_infer and is_more and generated != _usage(case.expected, "generated_token_count")


@API.seen("parameters not checked")
def _parameters_not_checked(case: Case, got: Json) -> bool:
    floats = [value for value in _params(case).values() if isinstance(value, float)]
    return _accepts(case, got) and not all(math.isfinite(as_f32(value)) for value in floats)


API.seen("penalty not checked")(
    lambda case, got: (
        _accepts(case, got) and as_f32(float(_params(case).get("repeat_penalty", 1.0))) <= 0
    )
)
API.seen("top-k 0 refused")(
    lambda case, got: _refuses(case, got) and _params(case).get("top_k") == 0
)
API.seen("empty prompt refused")(
    lambda case, got: _refuses(case, got) and case.input.get("prompt") == ""
)
API.seen("empty list refused")(
    lambda case, got: _refuses(case, got) and case.input.get("texts") == []
)
API.seen("empty text refused")(
    lambda case, got: _refuses(case, got) and "" in (case.input.get("texts") or ())
)


@API.seen("embeddings not normalized")
def _embeddings_not_normalized(case: Case, got: Json) -> bool:
    if "error" in case.expected:
        return False
    lengths = [np.linalg.norm(np.array(vector, float)) for vector in got.get("embeddings", ())]
    return any(abs(length - 1.0) > MAX_UNIT_ERROR for length in lengths)


@API.seen("text cut elsewhere")
def _text_cut_elsewhere(case: Case, got: Json) -> bool:
    """The count of a long text is another."""
    found = _usage(got, "prompt_token_count")
    is_other = found is not None and found != _usage(case.expected, "prompt_token_count")
    return case.clause == "truncation" and is_other


@API.seen(
    "long prompt accepted",
    "A prompt that is longer than the context is cut or overwritten in silence: answer "
    "invalid-input with both lengths.",
)
def _long_prompt_accepted(case: Case, got: Json) -> bool:
    """A refusal that names lengths is expected, and there is an answer."""
    says = case.expected.get("error", {}).get("says", ())
    is_about_length = any(str(part).isdigit() for part in says)
    return _accepts(case, got) and is_about_length and case.input["operation"] == "infer"


API.seen(
    "long text refused",
    "A text that is longer than the limit of the tokenizer's file is refused: cut it there.",
)(lambda case, got: _refuses(case, got) and case.clause == "truncation")


@API.seen(
    "batch mates matter",
    "A text's vector depends on the texts beside it: mask the padding in attention and leave it "
    "out of the mean.",
    is_vague=True,
)
def _batch_mates_matter(case: Case, got: Json) -> bool:
    """The vectors of a batch are not those of its texts alone."""
    is_batch = len(case.input.get("texts") or ()) > 1
    is_about_vectors = "first_components" in case.expected or "same_vectors" in case.expected
    return is_batch and is_about_vectors and "embeddings" in got


def _with_kind(case: Case, got: Json) -> Json:
    """Return the refusal with the kind and the status that the case expects."""
    expected = case.expected["error"]
    right = {**got, "error": {**got["error"], "kind": expected.get("kind")}}
    if "status" in got:
        right["status"] = expected["status"][got["protocol"]][0]
    return right


@API.seen(
    "error of another kind",
    "The error has another kind than the interface says: invalid-input where the request is wrong, "
    "model-not-supported where the model is, runtime-error where something broke.",
    is_vague=True,
    repair=_with_kind,
)
def _error_of_another_kind(case: Case, got: Json) -> bool:
    expected = case.expected.get("error", {}).get("kind")
    found = got.get("error", {}).get("kind")
    return expected is not None and found is not None and found != expected


@API.seen(
    "status of another kind",
    "A wrong request gets another HTTP status than the error has: 400 where the request is wrong, "
    "404 where there is no such model or path, 500 only where something broke.",
    is_vague=True,
    repair=_with_kind,
)
def _status_of_another_kind(case: Case, got: Json) -> bool:
    allowed = case.expected.get("error", {}).get("status", {}).get(got.get("protocol"))
    return "error" in got and bool(allowed) and got.get("status") not in allowed


@API.seen(
    "error without its subject",
    "The error's message does not say what is wrong: name the parameter, the model, or both "
    "lengths.",
    is_vague=True,
)
def _error_without_its_subject(case: Case, got: Json) -> bool:
    """The kind and the status are right, and the message must name something."""
    must_name = bool(case.expected.get("error", {}).get("says")) and "error" in got
    is_other = _error_of_another_kind(case, got) or _status_of_another_kind(case, got)
    return must_name and not is_other
