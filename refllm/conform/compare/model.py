"""What a whole model answers against the case: its logits, its texts, its embeddings.

T tokens of the input, P of them whose logits are all known, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import (
    MalformedAnswer,
    array,
    difference_at,
    different_ids,
    distances,
    first_difference,
    integer,
    integers,
    numbers,
    sequence,
    table,
    text,
    window,
)
from refllm.conform.verdict import Difference

__all__ = ["compare_embeddings", "compare_logits", "compare_text"]


def compare_logits(case: Case, result: Json) -> Difference | None:
    """Return the logit that is farthest off, in units of the bound b = tolerance["absolute"].

    The case has all logits of P positions, and of every position the best token and its logit. No
    other logit may be larger there by more than 2·b.

    Raises:
        MalformedAnswer: Where the result has not [T, V] logits.
    """
    expected, bound = case.expected, float(case.tolerance["absolute"])
    got = array(result, "logits")  # [T, V]
    if list(got.shape) != list(expected["shape"]):
        raise MalformedAnswer(
            f"the logits' shape is {list(got.shape)}, the case asks for {expected['shape']}"
        )
    rows = array(expected, "rows")  # [P, V]
    positions = list(map(int, expected["positions"]))
    apart = np.zeros(got.shape)  # [T, V] in units of what is allowed
    apart[positions] = distances(got[positions], rows, bound)
    best = np.array(expected["best"]["ids"], int)  # [T]
    known = array(expected["best"], "logits")  # [T]
    each = np.arange(len(got))
    apart[each, best] = np.maximum(apart[each, best], distances(got[each, best], known, bound))
    best_logits = got[each, best][:, None]  # [T, 1], as the target has them
    with np.errstate(invalid="ignore"):
        above = np.maximum(got - best_logits, 0.0) / (2 * bound)
        above = np.where(np.isfinite(best_logits), above, 0.0)
    apart = np.maximum(apart, np.where(np.isfinite(got), above, np.inf))
    if (apart <= 1.0).all():
        return None
    t, token = (int(i) for i in np.unravel_index(int(np.argmax(apart)), apart.shape))
    row = rows[positions.index(t)] if t in positions else None
    n_wrong = int((apart > 1.0).any(axis=1).sum())
    where = f"position {t}, the logit of token {token}; {n_wrong} of {len(got)} positions differ"
    if int(np.argmax(got[t])) != best[t]:
        where += f", and here the most likely token is {int(np.argmax(got[t]))}, not {best[t]}"
    right: float | str
    if row is not None:
        right = float(row[token])
    elif token == best[t]:
        right = float(known[t])
    else:
        right = f"no more than the best token's, {float(known[t]):.6g}"
    return Difference(
        where=where,
        expected=right,
        got=float(got[t, token]),
        tolerances=float(apart[t, token]),
        expected_values=() if row is None else window(row, token),
        got_values=() if row is None else window(got[t], token),
    )


def compare_text(case: Case, result: Json) -> Difference | None:
    """Return the token, else the character, at which a text differs; then the counts.

    A certified text must be equal. Any other must be equal up to the step `tied_at`, and continue
    with one of `tied_tokens`; the rest is free. Where a target gives no token ids, its text is
    compared.

    Raises:
        MalformedAnswer: Where the result lacks the text or a count.
    """
    expected = case.expected
    got = text(result, "text")
    usage = table(result, "usage")
    counts = {name: integer(usage, name) for name in expected["usage"]}
    sampled = integers(result, "token_ids") if result.get("token_ids") is not None else None
    if expected["certified"]:
        difference = _compare_whole(expected, got, sampled)
        exact = set(expected["usage"])
    else:
        difference = _compare_until_tie(expected, got, sampled)
        exact = {"prompt_token_count"}  # any number of tokens may follow the tie
    if difference is not None:
        return difference
    for name, count in expected["usage"].items():
        if name in exact and counts[name] != count:
            return Difference(where=name.replace("_", " "), expected=count, got=counts[name])
    return None


def _compare_whole(expected: Json, got: str, sampled: Sequence[int] | None) -> Difference | None:
    difference = None
    if sampled is not None:
        difference = different_ids("generated token", expected["token_ids"], sampled)
    if difference is None and got != expected["text"]:
        where = f"character {first_difference(expected['text'], got)}"
        return Difference(where=where, expected=expected["text"], got=got)
    return difference


def _compare_until_tie(
    expected: Json, got: str, sampled: Sequence[int] | None
) -> Difference | None:
    tie, tied = expected["tied_at"], expected["tied_tokens"]
    if sampled is None:
        if any(got.startswith(beginning) for beginning in expected["tied_texts"]):
            return None
        wanted = " or ".join(repr(beginning) for beginning in expected["tied_texts"])
        return Difference(
            where=f"the text up to generated token {tie}",
            expected=f"a text that begins with {wanted}",
            got=got,
        )
    difference = different_ids("generated token", expected["token_ids"][:tie], sampled[:tie])
    if difference is not None or (len(sampled) > tie and sampled[tie] in tied):
        return difference
    return Difference(
        where=f"generated token {tie}",
        expected=" or ".join(map(str, tied)),
        got=sampled[tie] if tie < len(sampled) else "the end",
    )


def compare_embeddings(case: Case, result: Json) -> Difference | None:
    """Return the first component that is farther off than tolerance["absolute"]; then the count.

    Raises:
        MalformedAnswer: Where the result lacks the vectors or the count.
    """
    expected = case.expected
    wanted = [np.array(vector, np.float64) for vector in expected["embeddings"]]
    vectors = sequence(result, "embeddings")
    usage = table(result, "usage")
    count = integer(usage, "prompt_token_count")
    if len(vectors) != len(wanted):
        where = "how many vectors there are"
        return Difference(where=where, expected=len(wanted), got=len(vectors))
    got = [numbers(vector, f"embeddings[{n}]") for n, vector in enumerate(vectors)]
    for n, (right, found) in enumerate(zip(wanted, got, strict=True)):
        if len(right) != len(found):
            where = f"how many components vector {n} has"
            return Difference(where=where, expected=len(right), got=len(found))
        apart = distances(found, right, float(case.tolerance["absolute"]))
        if (apart > 1.0).any():
            first = int(np.argmax(apart > 1.0))
            of_all = f"the first of {int((apart > 1.0).sum())} of {len(right)} that differ"
            where = f"component {first} of text {n}, {of_all}"
            return difference_at(first, where, right, found, tolerances=apart)
    wanted_count = expected["usage"]["prompt_token_count"]
    if count != wanted_count:
        return Difference(where="prompt token count", expected=wanted_count, got=count)
    return None
