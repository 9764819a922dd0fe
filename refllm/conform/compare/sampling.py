"""A sampler's stages and its token against those of the case; the rule is in golden/sampling.

Ids and their order must be equal. Logits after the penalty and the temperature must be equal to the
last bit, because each is one IEEE operation. Probabilities must be within 4 ulp, those below
2^-1022 within one unit of 2^-1074. A target may leave out stages, even all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import (
    MalformedAnswer,
    difference_at,
    distances,
    first_difference,
    integer,
    integers,
    numbers,
    sequence,
    text,
)
from refllm.conform.verdict import Difference

__all__ = ["compare_sampling"]

PROBABILITY_ULPS = 4.0
ONE = {"logits": "logit", "probabilities": "probability"}


def compare_sampling(case: Case, result: Json) -> Difference | None:
    """Return the first stage that differs, else the token, else None.

    Raises:
        MalformedAnswer: Where the result has no token, or a stage has not the fields of one.
    """
    expected = case.expected
    token = integer(result, "token")
    stages = sequence(result, "stages") if result.get("stages") is not None else ()
    got_names = [text(stage, "stage") for stage in stages]
    names = [stage["stage"] for stage in expected["stages"]]
    places = _places(got_names, names)
    if places is None:
        return Difference(
            where="the stages and their order",
            expected=", ".join(names),
            got=", ".join(got_names),
        )
    for stage, place in zip(stages, places, strict=True):
        difference = _compare_stage(expected["stages"][place], stage)
        if difference is not None:
            return difference
    if token == expected["token"]:
        return None
    return Difference(where="the token", expected=expected["token"], got=token)


def _places(given: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Return the place of each given stage among the known ones, None if one is not there."""
    places: list[int] = []
    for name in given:
        first = places[-1] + 1 if places else 0
        if name not in known[first:]:
            return None
        places.append(known.index(name, first))
    return places


def _compare_stage(expected: Json, got: Json) -> Difference | None:
    name, ids = expected["stage"], integers(got, "ids")
    for key in ONE:
        if key in got and len(sequence(got, key)) != len(ids):
            raise MalformedAnswer(f"stage {name} has {len(ids)} ids and not as many {key}")
    if ids != list(expected["ids"]):
        return _other_candidates(name, expected["ids"], ids)
    for key, one in ONE.items():
        if key not in expected or key not in got:
            continue
        wanted, found = np.array(expected[key]), numbers(got[key], f"{name}.{key}")
        if key == "logits":
            allowed = np.zeros_like(wanted)
        else:
            ulps = np.where(wanted >= sys.float_info.min, PROBABILITY_ULPS, 1.0)
            allowed = ulps * np.spacing(wanted)
        apart = distances(found, wanted, allowed)
        if (apart > 1.0).any():
            first = int(np.argmax(apart > 1.0))
            where = f"stage {name}, the {one} of token {ids[first]}"
            tolerances = apart if key == "probabilities" else None
            return difference_at(first, where, wanted, found, tolerances=tolerances)
    return None


def _other_candidates(stage: str, expected: Sequence[int], got: Sequence[int]) -> Difference:
    if len(expected) != len(got):
        where = f"stage {stage}, how many candidates are left"
        return Difference(where=where, expected=len(expected), got=len(got))
    first = first_difference(expected, got)
    return Difference(
        where=f"stage {stage}, candidate {first}",
        expected=f"token {expected[first]}",
        got=f"token {got[first]}",
    )
