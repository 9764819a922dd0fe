"""Which tokens may be drawn where every logit is a little off.

Two correct backends add the same float32 numbers in another order, so their logits differ by a
small error, and now and then a draw hangs on it. `possible_tokens` says which tokens can come out
when each logit may be off by up to `error`, every one by another amount and in the worst way; where
that is a single token, no correct backend can draw another. A text of which every step is so is
certified.

The reasoning, for a draw at a temperature above 0. Each logit lies between two bounds, penalty and
temperature keep their order, and so each candidate's weight w = e^score lies between a and b. Let
X(i) be the sum of the i largest weights. A sum of the i largest never falls when a weight rises,
so A(i) ≤ X(i) ≤ B(i), where A and B are the sums of the i largest a and b; in the same way

    A(n) − A(i) ≤ X(n) − X(i) ≤ B(n) − B(i)

for the weights of ranks i+1 to n. The share of the first i in all V lies between
A(i) / (A(i) + B(V) − B(i)) and B(i) / (B(i) + A(V) − A(i)); so top-p keeps a number of candidates
that lies between two numbers. Rank r is drawn from n candidates where X(r−1) ≤ u·X(n) < X(r), or

    (1−u)·X(r−1) ≤ u·(X(n) − X(r−1))   and   u·(X(n) − X(r)) < (1−u)·X(r)

and is ruled out where the bounds leave no room for that. What is left is a range of ranks, and a
token is possible where it can stand at one of them.

V tokens in the vocabulary; everything is float64.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refllm.api import InferencingParams
from refllm.interface import as_f32
from refllm.sampling import exp

__all__ = ["Drawing", "first_tie", "largest_harmless_error", "possible_tokens"]

Floats = NDArray[np.float64]

# What a float64 sampler's own rounding can do to a score, and far more.
SLACK = 1e-9
# 1.0e-6, 1.1e-6, … 9.9: every number of two digits.
ERRORS = tuple(float(f"{digits}e{power}") for power in range(-7, 0) for digits in range(10, 100))


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What one token was drawn from: logits [V], the tokens before it, and the random number."""

    logits: NDArray[np.float32]
    previous_tokens: Sequence[int]
    u: float


def possible_tokens(drawing: Drawing, params: InferencingParams, *, error: float) -> list[int]:
    """Ids, ascending, of the tokens that can be drawn when no logit is off by more than `error`.

    Never too few; at an error of 0 the drawn token, and such as it is tied with.
    """
    exact = drawing.logits.astype(np.float64)  # [V]
    lower, upper = (
        _penalized(exact + off, drawing.previous_tokens, params) for off in (-error, error)
    )
    temperature = as_f32(params.temperature)
    if temperature <= 0.0:
        return np.flatnonzero(upper >= lower.max()).tolist()
    lower, upper = lower / temperature - SLACK, upper / temperature + SLACK
    first, last = _possible_ranks(lower, upper, params, drawing.u)
    # So many others stand before a token for certain, and so many can.
    n_before = len(lower) - np.searchsorted(np.sort(lower), upper, side="right")  # [V]
    most_before = len(upper) - np.searchsorted(np.sort(upper), lower, side="left") - 1  # [V]
    return np.flatnonzero((n_before < last) & (most_before + 1 >= first)).tolist()


def first_tie(
    drawings: Sequence[Drawing], params: InferencingParams, *, error: float
) -> int | None:
    """The number of the first drawing that can end in two ways, None where there is none."""
    for i, drawing in enumerate(drawings):
        if len(possible_tokens(drawing, params, error=error)) > 1:
            return i
    return None


def largest_harmless_error(drawings: Sequence[Drawing], params: InferencingParams) -> float:
    """By how much every logit may be off before any drawing can end otherwise; two digits, at
    most 9.9, and 0.0 where 1e-6 is too much already.
    """
    place = bisect_left(
        ERRORS, True, key=lambda error: first_tie(drawings, params, error=error) is not None
    )
    return ERRORS[place - 1] if place > 0 else 0.0


def _penalized(logits: Floats, previous_tokens: Sequence[int], params: InferencingParams) -> Floats:
    """Each distinct token among the last n once; the larger logit stays the larger."""
    penalty, last_n = as_f32(params.repeat_penalty), params.repeat_penalty_last_n_token_count
    recent = sorted(set(previous_tokens[-last_n:])) if last_n > 0 else []
    result = logits.copy()
    result[recent] = np.where(
        logits[recent] < 0, logits[recent] * penalty, logits[recent] / penalty
    )
    return result


def _possible_ranks(
    lower: Floats, upper: Floats, params: InferencingParams, u: float
) -> tuple[int, int]:
    """The first and the last rank, counted from 1, that can be drawn from scores in bounds [V]."""
    top = upper.max()
    a, b = (_sums_of_largest(exp(scores - top)) for scores in (lower, upper))  # [V + 1]
    least, most = _kept(a, b, params)
    before, upto = np.arange(most), np.arange(1, most + 1)  # rank r is drawn from before to upto
    can_reach = (1 - u) * a[before] <= u * (b[most] - b[before])
    can_stop = u * (a[least] - a[upto]) < (1 - u) * b[upto]
    ranks = np.flatnonzero(can_reach & can_stop) + 1
    return int(ranks[0]), int(ranks[-1])


def _sums_of_largest(weights: Floats) -> Floats:
    """Element i is the sum of the i largest weights [V]: [V + 1]."""
    return np.concatenate([[0.0], np.add.accumulate(np.sort(weights)[::-1])])


def _kept(a: Floats, b: Floats, params: InferencingParams) -> tuple[int, int]:
    """How many candidates top-k and top-p keep at least and at most."""
    n_vocab = len(a) - 1
    limit = min(params.top_k or n_vocab, n_vocab)
    p = as_f32(params.top_p)
    if p <= 0.0 or p >= 1.0:
        return limit, limit
    least_share = a / (a + (b[-1] - b))
    most_share = b / (b + (a[-1] - a))
    least, most = (int((share[1:limit] < p).sum()) + 1 for share in (most_share, least_share))
    return least, most
