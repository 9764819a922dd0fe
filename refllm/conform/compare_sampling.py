"""Whether a sampler's stages and its token are those of the case; the rule is in golden/sampling.

Ids and their order are equal. Logits after the penalty and the temperature are equal to the last
bit, each being one IEEE operation. Probabilities are within 4 ulp, those below 2^-1022 within one
unit of 2^-1074. A target may leave out stages, all of them if it only knows the token.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from refllm.conform.case import Json
from refllm.conform.compare_numbers import (
    Doubles,
    Finding,
    MalformedAnswer,
    around,
    distances,
    items,
    numbers,
    text,
    whole,
    wholes,
)

__all__ = ["compare_sampling"]

PROBABILITY_ULPS = 4.0
ONE = {"logits": "logit", "probabilities": "probability"}


def compare_sampling(expected: Json, result: Json) -> Finding | None:
    """The first stage that differs, else the token, else None.

    Errors: `MalformedAnswer` where the result has no token, or a stage is not one.
    """
    token = whole(result, "token")
    stages = items(result, "stages") if "stages" in result else ()
    got_names = [text(stage, "stage") for stage in stages]
    places = _places(got_names, [stage["stage"] for stage in expected["stages"]])
    if places is None:
        return Finding(
            where="the stages and their order",
            expected=", ".join(stage["stage"] for stage in expected["stages"]),
            got=", ".join(got_names),
            answer=result,
        )
    for stage, place in zip(stages, places, strict=True):
        for difference in _differences(expected["stages"][place], stage, result):
            return difference
    if token == expected["token"]:
        return None
    return Finding(where="the token", expected=expected["token"], got=token, answer=result)


def _places(given: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """Where each given stage stands among the known ones, which may be more; None if nowhere."""
    places: list[int] = []
    for name in given:
        first = places[-1] + 1 if places else 0
        if name not in known[first:]:
            return None
        places.append(known.index(name, first))
    return places


def _differences(
    expected: Mapping[str, Sequence[float]], got: Json, result: Json
) -> Iterator[Finding]:
    name = str(expected["stage"])
    ids = wholes(got, "ids")
    for key in ONE:
        if key in got and len(items(got, key)) != len(ids):
            raise MalformedAnswer(f"stage {name} has {len(ids)} ids and not as many {key}")
    if ids != list(expected["ids"]):
        yield _different_ids(name, list(map(int, expected["ids"])), ids, result)
    for key, unit in (("logits", _exactly), ("probabilities", _within_ulps)):
        if key not in expected or key not in got:
            continue
        wanted, found = np.array(expected[key]), numbers(got[key], f"{name}.{key}")
        allowed = unit(wanted)
        apart = distances(found, wanted, allowed)
        if (apart > 1.0).any():
            first = int(np.argmax(apart > 1.0))
            yield Finding(
                where=f"stage {name}, the {ONE[key]} of token {ids[first]}",
                expected=float(wanted[first]),
                got=float(found[first]),
                tolerances=float(apart[first]) if key == "probabilities" else None,
                expected_values=around(wanted, first),
                got_values=around(found, first),
                answer=result,
            )


def _different_ids(stage: str, expected: list[int], got: list[int], result: Json) -> Finding:
    if len(expected) != len(got):
        return Finding(
            where=f"stage {stage}, how many candidates are left",
            expected=len(expected),
            got=len(got),
            answer=result,
        )
    first = next(i for i, pair in enumerate(zip(expected, got, strict=True)) if pair[0] != pair[1])
    return Finding(
        where=f"stage {stage}, candidate {first}",
        expected=f"token {expected[first]}",
        got=f"token {got[first]}",
        answer=result,
    )


def _exactly(values: Doubles) -> Doubles:
    return np.zeros_like(values)


def _within_ulps(values: Doubles) -> Doubles:
    ulps = np.where(values >= sys.float_info.min, PROBABILITY_ULPS, 1.0)
    return ulps * np.spacing(values)
