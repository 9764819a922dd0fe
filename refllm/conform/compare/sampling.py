"""Whether a sampler's stages and its token are those of the case; the rule is in golden/sampling.

Ids and their order are equal. Logits after the penalty and the temperature are equal to the last
bit, each being one IEEE operation. Probabilities are within 4 ulp, those below 2^-1022 within one
unit of 2^-1074. A target may leave out stages, all of them if it only knows the token.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from refllm.conform.case import Case, Json
from refllm.conform.compare.numbers import (
    Doubles,
    MalformedAnswer,
    around,
    distances,
    first_other,
    items,
    numbers,
    text,
    whole,
    wholes,
)
from refllm.conform.verdict import Difference

__all__ = ["compare_sampling"]

PROBABILITY_ULPS = 4.0
ONE = {"logits": "logit", "probabilities": "probability"}


def compare_sampling(case: Case, result: Json) -> Difference | None:
    """The first stage that differs, else the token, else None.

    Errors: `MalformedAnswer` where the result has no token, or a stage is not one.
    """
    expected = case.expected
    token = whole(result, "token")
    stages = items(result, "stages") if result.get("stages") is not None else ()
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
    """Where each given stage stands among the known ones, which may be more; None if nowhere."""
    places: list[int] = []
    for name in given:
        first = places[-1] + 1 if places else 0
        if name not in known[first:]:
            return None
        places.append(known.index(name, first))
    return places


def _compare_stage(expected: Json, got: Json) -> Difference | None:
    name, ids = expected["stage"], wholes(got, "ids")
    for key in ONE:
        if key in got and len(items(got, key)) != len(ids):
            raise MalformedAnswer(f"stage {name} has {len(ids)} ids and not as many {key}")
    if ids != list(expected["ids"]):
        return _other_candidates(name, expected["ids"], ids)
    for key, unit in (("logits", _exactly), ("probabilities", _within_ulps)):
        if key not in expected or key not in got:
            continue
        wanted, found = np.array(expected[key]), numbers(got[key], f"{name}.{key}")
        apart = distances(found, wanted, unit(wanted))
        if (apart > 1.0).any():
            first = int(np.argmax(apart > 1.0))
            return Difference(
                where=f"stage {name}, the {ONE[key]} of token {ids[first]}",
                expected=float(wanted[first]),
                got=float(found[first]),
                tolerances=float(apart[first]) if key == "probabilities" else None,
                expected_values=around(wanted, first),
                got_values=around(found, first),
            )
    return None


def _other_candidates(stage: str, expected: Sequence[int], got: Sequence[int]) -> Difference:
    if len(expected) != len(got):
        where = f"stage {stage}, how many candidates are left"
        return Difference(where=where, expected=len(expected), got=len(got))
    first = first_other(expected, got)
    return Difference(
        where=f"stage {stage}, candidate {first}",
        expected=f"token {expected[first]}",
        got=f"token {got[first]}",
    )


def _exactly(values: Doubles) -> Doubles:
    return np.zeros_like(values)


def _within_ulps(values: Doubles) -> Doubles:
    ulps = np.where(values >= sys.float_info.min, PROBABILITY_ULPS, 1.0)
    return ulps * np.spacing(values)
