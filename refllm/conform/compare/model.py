"""Whether a whole model answers as the case says: its logits, its texts, its embeddings.

T tokens that were given, P of them whose logits are all known, V vocabulary, N texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import (
    Doubles,
    MalformedAnswer,
    around,
    array,
    different_ids,
    distances,
    first_other,
    items,
    numbers,
    table,
    text,
    whole,
    wholes,
)
from refllm.conform.verdict import Difference

__all__ = ["compare_embeddings", "compare_logits", "compare_text"]


def compare_logits(case: Case, result: Json) -> Difference | None:
    """The logit that is farthest off, in units of the bound b = tolerance["absolute"].

    Known are all logits of some positions, and of every position the best token and its logit;
    no other may be larger there by more than 2·b. Errors: `MalformedAnswer` where there are not
    [T, V] logits.
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
    own = got[each, best][:, None]  # [T, 1], the best tokens' logits here
    with np.errstate(invalid="ignore"):
        above = np.where(np.isfinite(own), np.maximum(got - own, 0.0) / (2 * bound), 0.0)
    apart = np.maximum(apart, np.where(np.isfinite(got), above, np.inf))
    if (apart <= 1.0).all():
        return None
    t, token = (int(i) for i in np.unravel_index(int(np.argmax(apart)), apart.shape))
    is_known = t in positions
    row = rows[positions.index(t)] if is_known else None
    n_wrong = int((apart > 1.0).any(axis=1).sum())
    said = f"position {t}, the logit of token {token}; {n_wrong} of {len(got)} positions differ"
    if int(np.argmax(got[t])) != best[t]:
        said += f", and here the most likely token is {int(np.argmax(got[t]))}, not {best[t]}"
    return Difference(
        where=said,
        expected=_known_logit(row, token, is_best=token == best[t], best=float(known[t])),
        got=float(got[t, token]),
        tolerances=float(apart[t, token]),
        expected_values=() if row is None else around(row, token),
        got_values=() if row is None else around(got[t], token),
    )


def _known_logit(row: Doubles | None, token: int, *, is_best: bool, best: float) -> float | str:
    if row is not None:
        return float(row[token])
    return best if is_best else f"no more than the best token's, {best:.6g}"


def compare_text(case: Case, result: Json) -> Difference | None:
    """The token, else the character, at which a text leaves the expected one; then the counts.

    A certified text is equal. Any other is equal up to the step `tied_at`, and goes on with one of
    `tied_tokens`; what follows is anybody's. A target that gives no token ids is held to the text.
    """
    expected = case.expected
    got = text(result, "text")
    usage = table(result, "usage")
    counts = {name: whole(usage, name) for name in expected["usage"]}
    drawn = wholes(result, "token_ids") if result.get("token_ids") is not None else None
    if expected["certified"]:
        difference = _compare_whole(expected, got, drawn)
        exact = set(expected["usage"])
    else:
        difference = _compare_until_tie(expected, got, drawn)
        exact = {"prompt_token_count"}  # how many tokens follow the tie is anybody's
    if difference is not None:
        return difference
    for name, count in expected["usage"].items():
        if name in exact and counts[name] != count:
            return Difference(where=name.replace("_", " "), expected=count, got=counts[name])
    return None


def _compare_whole(expected: Json, got: str, drawn: Sequence[int] | None) -> Difference | None:
    difference = None
    if drawn is not None:
        difference = different_ids("generated token", expected["token_ids"], drawn)
    if difference is None and got != expected["text"]:
        where = f"character {first_other(expected['text'], got)}"
        return Difference(where=where, expected=expected["text"], got=got)
    return difference


def _compare_until_tie(expected: Json, got: str, drawn: Sequence[int] | None) -> Difference | None:
    tie, tied = expected["tied_at"], expected["tied_tokens"]
    if drawn is None:
        if any(got.startswith(beginning) for beginning in expected["tied_texts"]):
            return None
        wanted = " or ".join(repr(beginning) for beginning in expected["tied_texts"])
        return Difference(
            where=f"the text up to generated token {tie}",
            expected=f"a text that begins with {wanted}",
            got=got,
        )
    difference = different_ids("generated token", expected["token_ids"][:tie], drawn[:tie])
    if difference is not None or (len(drawn) > tie and drawn[tie] in tied):
        return difference
    return Difference(
        where=f"generated token {tie}",
        expected=" or ".join(map(str, tied)),
        got=drawn[tie] if tie < len(drawn) else "the end",
    )


def compare_embeddings(case: Case, result: Json) -> Difference | None:
    """The first component that is farther off than tolerance["absolute"]; then the count."""
    expected = case.expected
    wanted = [np.array(vector, np.float64) for vector in expected["embeddings"]]
    vectors = items(result, "embeddings")
    usage = table(result, "usage")
    count = whole(usage, "prompt_token_count")
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
            n_wrong = int((apart > 1.0).sum())
            return Difference(
                where=f"component {first} of text {n}, the first of {n_wrong} of {len(right)} "
                "that differ",
                expected=float(right[first]),
                got=float(found[first]),
                tolerances=float(apart[first]),
                expected_values=around(right, first),
                got_values=around(found, first),
            )
    wanted_count = expected["usage"]["prompt_token_count"]
    if count != wanted_count:
        return Difference(where="prompt token count", expected=wanted_count, got=count)
    return None
