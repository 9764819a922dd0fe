"""What tools/certification.py calls possible: whatever an error can do, and not much more.

Letters: V tokens in the vocabulary.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from refllm.api import InferencingParams
from refllm.sampling import sample
from tools.certification import Drawing, first_tie, largest_harmless_error, possible_tokens

GREEDY = InferencingParams(repeat_penalty=1.0, temperature=0.0)
PLAIN = InferencingParams(repeat_penalty=1.0, temperature=1.0, top_k=0, top_p=1.0)
# Kept free for the rounding of a logit to float32.
NEARLY_ALL = 0.999


def drawing(*logits: float, u: float = 0.0, previous: tuple[int, ...] = ()) -> Drawing:
    return Drawing(np.array(logits, np.float32), previous, u)


@st.composite
def parameters(draw: st.DrawFn) -> InferencingParams:
    return InferencingParams(
        repeat_penalty=draw(st.sampled_from([0.7, 1.0, 1.1, 2.0])),
        repeat_penalty_last_n_token_count=draw(st.integers(0, 6)),
        temperature=draw(st.sampled_from([0.0, 0.3, 0.8, 1.0, 3.0])),
        top_k=draw(st.integers(0, 8)),
        top_p=draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0])),
    )


@st.composite
def drawings(draw: st.DrawFn) -> Drawing:
    logits = draw(st.lists(st.integers(-40, 40), min_size=2, max_size=10))
    previous = draw(st.lists(st.integers(0, len(logits) - 1), max_size=8))
    u = draw(st.floats(0, 1, exclude_max=True))
    return Drawing(np.array(logits, np.float32) / np.float32(16), previous, u)


@st.composite
def errors(draw: st.DrawFn, n_vocab: int) -> NDArray[np.float64]:
    """Of each logit, in units of the largest error: mostly at an end, where the worst are."""
    one = st.one_of(st.sampled_from([-1.0, 1.0]), st.floats(-1, 1))
    return np.array(draw(st.lists(one, min_size=n_vocab, max_size=n_vocab)))


@settings(max_examples=600, deadline=None)
@given(data=st.data(), what=drawings(), params=parameters())
def test_every_token_sampled_from_perturbed_logits_was_certified_as_possible(
    data: st.DataObject, what: Drawing, params: InferencingParams
) -> None:
    error = data.draw(st.sampled_from([1e-3, 0.01, 0.06, 0.3, 1.0]))
    off = data.draw(errors(len(what.logits))) * error * NEARLY_ALL  # [V]
    logits = (what.logits + off).astype(np.float32)
    token = sample(logits, params, what.previous_tokens, what.u).token
    assert token in possible_tokens(what, params, error=error)


@settings(max_examples=300, deadline=None)
@given(what=drawings(), params=parameters())
def test_a_larger_error_makes_no_token_impossible(what: Drawing, params: InferencingParams) -> None:
    possible = [set(possible_tokens(what, params, error=error)) for error in (0.0, 0.01, 0.1, 1.0)]
    assert all(fewer <= more for fewer, more in itertools.pairwise(possible))


def test_of_two_logits_the_better_one_is_certain_until_the_error_is_half_their_distance() -> None:
    two = drawing(1.5, 1.0)
    assert possible_tokens(two, GREEDY, error=0.2499) == [0]
    assert possible_tokens(two, GREEDY, error=0.2501) == [0, 1]
    assert largest_harmless_error([two], GREEDY) == 0.24


def test_equal_logits_are_tied_without_any_error() -> None:
    assert possible_tokens(drawing(1.0, 3.0, 3.0), GREEDY, error=0.0) == [1, 2]


def test_the_penalty_counts_before_the_distance() -> None:
    params = InferencingParams(repeat_penalty=2.0, temperature=0.0)
    penalized = drawing(4.0, 2.5, -1.0, previous=(0, 0, 2))
    assert possible_tokens(penalized, params, error=0.3) == [1]
    # 2.5 − e and (4 + e) / 2 meet at e = 1/3.
    assert possible_tokens(penalized, params, error=0.34) == [0, 1]


@pytest.mark.parametrize("u", [0.6, 0.7, 0.8])
def test_the_border_of_a_sample_follows_from_the_weights(u: float) -> None:
    # Tokens 0 and 1 at distance d: the first is drawn while u < 1 / (1 + e^−d). Two logits that are
    # off by e in opposite directions move d by 2·e; up to d / 2 they keep their order.
    d = 1.0
    border = abs(np.log(u / (1 - u)) - d) / 2
    two = drawing(d, 0.0, u=u)
    assert len(possible_tokens(two, PLAIN, error=border * 0.99)) == 1
    assert possible_tokens(two, PLAIN, error=border * 1.01) == [0, 1]


def test_a_candidate_that_top_p_may_drop_leaves_the_draw_open() -> None:
    # Shares 0.665, 0.245 and 0.090 at top_p 0.67: two are kept; 0.03 more, and it is one.
    three = drawing(3.0, 2.0, 1.0, u=0.9)
    params = InferencingParams(repeat_penalty=1.0, temperature=1.0, top_k=0, top_p=0.67)
    assert possible_tokens(three, params, error=0.005) == [1]
    assert possible_tokens(three, params, error=0.03) == [0, 1]


def test_the_first_tie_is_found() -> None:
    certain, tied = drawing(5.0, 1.0), drawing(2.0, 2.0)
    assert first_tie([certain, certain], GREEDY, error=0.1) is None
    assert first_tie([certain, tied, tied], GREEDY, error=0.1) == 1
    assert largest_harmless_error([certain, tied], GREEDY) == 0.0
