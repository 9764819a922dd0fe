"""Writes golden/sampling/cases.json: the answers to the questions in inputs.toml.

    python tools/make_sampling_goldens.py [FOLDER]

A second implementation of the sampling rule, to check the first one against: exact fractions,
rounded by whole-number arithmetic; exp from `decimal` at 60 digits; plain lists and loops. It
shares no code with `refllm.sampling`, not even the rounding to float32. FOLDER (default:
golden/sampling) receives cases.json; inputs.toml is always read from golden/sampling.

A vector is only fair where no honest implementation can decide otherwise. So the tool refuses a
case in which the order of two candidates, the sum that crosses top_p or the draw is closer than
`MARGIN` to its border, unless every number in the case is exact. An implementation that follows
the rule with an exp within 2 ulp, and exp(x) = 1 for |x| < 2^-54, gets probabilities and sums
within (V + 4) * 2^-51 of these, which is 6.7e-13 for the largest V here.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "sampling"

MARGIN = Fraction(1, 10**9)
SIXTY_DIGITS = Context(prec=60)

# SplitMix64: five outputs for seed 1234567 as published (Rosetta Code, "Pseudo-random
# numbers/Splitmix64"), and the first for seed 0, which many implementations test against.
PUBLISHED = {
    (1234567, 0): 6457827717110365317,
    (1234567, 1): 3203168211198807973,
    (1234567, 2): 9817491932198370423,
    (1234567, 3): 4593380528125082431,
    (1234567, 4): 16408922859458223821,
    (0, 0): 0xE220A8397B1DCDAF,
}
OTHER_DRAWS = ((0, 1), (0, 99), (42, 0), (987654321, 7), (2**63, 1000), (2**64 - 1, 0))


class UnfairCaseError(Exception):
    """A case that an honest implementation could answer otherwise."""


# --- Rounding ------------------------------------------------------------------------------------


def rounded(x: Fraction, *, precision: int, lowest_exponent: int) -> Fraction:
    """`x` to `precision` bits, half to even; no bit is worth less than 2^lowest_exponent."""
    if x == 0:
        return x
    magnitude = abs(x)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1  # now 2^exponent <= |x| < 2^(exponent + 1)
    unit = Fraction(2) ** max(exponent - precision + 1, lowest_exponent)
    return round(x / unit) * unit  # Python rounds a Fraction half to even


def to_float32(x: float) -> float:
    """The nearest float32; infinite from 2^128 - 2^103 on, as IEEE 754 says."""
    if not math.isfinite(x) or x == 0:
        return x
    nearest = rounded(Fraction(x), precision=24, lowest_exponent=-149)
    if abs(nearest) >= 2**128:
        return math.copysign(math.inf, x)
    return float(nearest)


def to_float64(x: Fraction) -> float:
    """The nearest float64."""
    return float(rounded(x, precision=53, lowest_exponent=-1074))


def exp(x: float) -> float:
    """The float64 nearest to e^x, x <= 0; 0 where that is nearest."""
    if x < -800:
        return 0.0
    power = Fraction(SIXTY_DIGITS.exp(Decimal(x)))
    _refuse_a_subnormal_near_its_border(power)
    return to_float64(power)


def running_sums(values: Sequence[float]) -> list[float]:
    """Each sum rounded to float64 before the next value is added."""
    sums: list[float] = []
    total = 0.0
    for value in values:
        total = to_float64(Fraction(total) + Fraction(value))
        sums.append(total)
    return sums


# --- The rule, stage by stage --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Token:
    """A candidate; `probability` is None until a softmax gave it one."""

    token_id: int
    logit: float
    probability: float | None = None

    @property
    def score(self) -> float:
        """What candidates are ordered by."""
        return self.logit if self.probability is None else self.probability


def penalty(tokens: list[Token], case: dict[str, Any]) -> list[Token]:
    """Each token of the window once: divided from 0 up, multiplied below."""
    factor = Fraction(to_float32(case["repeat_penalty"]))
    window = set(last(case["previous_tokens"], case["repeat_penalty_last_n_token_count"]))

    def penalized(token: Token) -> Token:
        if token.token_id not in window or factor == 1 or token.logit == 0:  # 0 keeps its sign
            return token
        exact = Fraction(token.logit)
        exact = exact / factor if exact > 0 else exact * factor
        return Token(token.token_id, to_float64(exact))

    return [penalized(token) for token in tokens]


def last(tokens: list[int], n: int) -> list[int]:
    """The last `n` tokens, or all of fewer."""
    return tokens[max(0, len(tokens) - n) :]


def argmax(tokens: list[Token], _case: dict[str, Any]) -> list[Token]:
    """The token of the largest logit, of equals the lowest id."""
    winner = min(tokens, key=lambda token: (-token.logit, token.token_id))
    return [Token(winner.token_id, winner.logit, 1.0)]


def temperature(tokens: list[Token], case: dict[str, Any]) -> list[Token]:
    """Every logit divided; what probability it had is void."""
    divisor = Fraction(to_float32(case["temperature"]))
    return [
        Token(t.token_id, to_float64(Fraction(t.logit) / divisor) if t.logit else t.logit)
        for t in tokens
    ]


def softmax(tokens: list[Token], _case: dict[str, Any]) -> list[Token]:
    """exp(x - max) over their sum, summed as the tokens stand."""
    largest = Fraction(max(t.logit for t in tokens))
    powers = [exp(to_float64(Fraction(t.logit) - largest)) for t in tokens]
    total = Fraction(running_sums(powers)[-1])
    shares = [Fraction(power) / total for power in powers]
    for share in shares:
        _refuse_a_subnormal_near_its_border(share)
    return [Token(t.token_id, t.logit, to_float64(s)) for t, s in zip(tokens, shares, strict=True)]


def top_k(tokens: list[Token], case: dict[str, Any]) -> list[Token]:
    """The k first by descending score, then ascending id; all of them where k = 0."""
    ordered = sorted(tokens, key=lambda token: (-token.score, token.token_id))
    return ordered[: case["top_k"] or None]


def top_p(tokens: list[Token], case: dict[str, Any]) -> list[Token]:
    """A token is kept while the sum of those before it is below p."""
    p = to_float32(case["top_p"])
    if case["profile"] == "llama.cpp" and p <= 0:
        return tokens[:1]
    if p <= 0 or p >= 1:
        return tokens
    before = [0.0, *running_sums(probabilities(tokens))]
    _refuse_a_border_at(p, before[1:-1], tokens)
    return [token for token, total in zip(tokens, before, strict=False) if total < p]


def draw(tokens: list[Token], u: float) -> int:
    """The first token whose running sum exceeds u times the total."""
    sums = running_sums(probabilities(tokens))
    target = to_float64(Fraction(u) * Fraction(sums[-1]))
    # Sums that have reached the total exceed u * total for every u < 1, however they were rounded.
    _refuse_a_border_at(target, [total for total in sums if total != sums[-1]], tokens)
    return next(t.token_id for t, total in zip(tokens, sums, strict=True) if total > target)


def probabilities(tokens: list[Token]) -> list[float]:
    """The probability of each; every token must have one."""
    return [t.probability for t in tokens if t.probability is not None]


StageFunction = Callable[[list[Token], dict[str, Any]], list[Token]]

GREEDY: tuple[StageFunction, ...] = (penalty, argmax)
TEMPERATURE_FIRST: tuple[StageFunction, ...] = (penalty, temperature, softmax, top_k, top_p)
TEMPERATURE_LAST: tuple[StageFunction, ...] = (penalty, top_k, softmax, top_p, temperature, softmax)


def run(case: dict[str, Any], logits: list[float]) -> dict[str, Any]:
    """Every stage of the case in its order, and the token drawn."""
    if to_float32(case["temperature"]) <= 0:
        stages = GREEDY
    elif case["profile"] == "llama.cpp":
        stages = TEMPERATURE_LAST
    else:
        stages = TEMPERATURE_FIRST
    tokens = [Token(token_id, logit) for token_id, logit in enumerate(logits)]
    written = []
    for stage in stages:
        if stage is top_k:
            _refuse_an_order_by_rounding(tokens)
        tokens = stage(tokens, case)
        written.append({"stage": stage.__name__, **describe(tokens)})
    token = tokens[0].token_id if stages is GREEDY else draw(tokens, case["u"])
    return {"stages": written, "token": token}


def describe(tokens: list[Token]) -> dict[str, Any]:
    """Ids, and the number that the stage is about."""
    ids = [token.token_id for token in tokens]
    if tokens[0].probability is None:
        return {"ids": ids, "logits": [token.logit.hex() for token in tokens]}
    return {"ids": ids, "probabilities": [p.hex() for p in probabilities(tokens)]}


# --- Fairness ------------------------------------------------------------------------------------


def _refuse_a_subnormal_near_its_border(x: Fraction) -> None:
    units = x * 2**1074
    if x < Fraction(2) ** -1022 and abs(units % 1 - Fraction(1, 2)) < Fraction(1, 1000):
        raise UnfairCaseError(
            f"a subnormal number {float(units)} units large could round either way"
        )


def _refuse_an_order_by_rounding(tokens: list[Token]) -> None:
    ordered = sorted(t.score for t in tokens if t.probability is not None)
    for lower, higher in itertools.pairwise(ordered):
        if lower != higher and Fraction(higher) - Fraction(lower) < MARGIN * Fraction(higher):
            raise UnfairCaseError(f"probabilities {lower} and {higher} could change places")


def _refuse_a_border_at(border: float, sums: Sequence[float], tokens: list[Token]) -> None:
    if _is_exact(tokens):
        return
    for total in sums:
        if abs(Fraction(total) - Fraction(border)) <= MARGIN * Fraction(total):
            raise UnfairCaseError(f"a sum of {total} is too near its border {border}")


def _is_exact(tokens: list[Token]) -> bool:
    """Whether all probabilities are one power of two, or 0: then sums of them are exact too."""
    distinct = {p for p in probabilities(tokens) if p != 0}
    return len(distinct) == 1 and math.frexp(distinct.pop())[0] == 0.5


# --- Random numbers ------------------------------------------------------------------------------


def splitmix64(seed: int) -> Iterator[int]:
    """The generator's outputs one after another, as its authors wrote it: with a state."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def output(seed: int, step: int) -> int:
    """Output number `step` by walking there; checked where a published value exists."""
    outputs = splitmix64(seed)
    for _ in range(step):
        next(outputs)
    value = next(outputs)
    if PUBLISHED.get((seed, step), value) != value:
        raise ValueError(f"SplitMix64 of seed {seed}, step {step} is not the published value")
    return value


def random_logits(*, seed: int, count: int, scale: float) -> list[float]:
    """Roughly normal numbers: three uniform ones added up, centered, scaled."""
    outputs = splitmix64(seed)
    return [
        (sum(next(outputs) / 2**64 for _ in range(3)) - 1.5) * 2.0 * scale for _ in range(count)
    ]


# --- The file ------------------------------------------------------------------------------------


def golden_case(question: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """One vector: the question with every key, and its answer."""
    case = {**defaults, **question}
    given = case["logits"]
    numbers = random_logits(**given) if isinstance(given, dict) else given
    logits = [to_float32(float(number)) for number in numbers]
    try:
        answer = {"error": case["error"]} if "error" in case else run(case, logits)
    except UnfairCaseError as unfair:
        raise UnfairCaseError(f"{case['id']}: {unfair}") from unfair
    return {
        "id": case["id"],
        "proves": case["proves"],
        "clause": case["clause"],
        "profile": case["profile"],
        "logits": [logit.hex() for logit in logits],
        "params": {
            "repeat_penalty": case["repeat_penalty"].hex(),
            "repeat_penalty_last_n_token_count": case["repeat_penalty_last_n_token_count"],
            "temperature": case["temperature"].hex(),
            "top_k": case["top_k"],
            "top_p": case["top_p"].hex(),
        },
        "previous_tokens": case["previous_tokens"],
        "u": case["u"].hex(),
        **answer,
    }


def golden_draw(seed: int, step: int) -> dict[str, Any]:
    """One random number; u64 values as strings, because JSON readers round large numbers."""
    value = output(seed, step)
    u = float(Fraction(value // 2**11, 2**53))
    return {"seed": str(seed), "step": step, "output": str(value), "u": u.hex()}


def on_lines(value: Any, indent: str = "") -> str:
    """JSON with one key on each line, but a list of numbers or strings on a single line."""
    deeper = indent + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {on_lines(item, deeper)}" for key, item in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = [on_lines(item, deeper) for item in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value)
    lines = ",\n".join(deeper + item for item in items)
    return f"{opening}\n{lines}\n{indent}{closing}"


def main() -> None:
    """Writes cases.json into the folder named on the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    inputs = tomllib.loads((GOLDEN / "inputs.toml").read_text(encoding="utf-8"))
    document = {
        "format": "refllm sampling vectors, version 1",
        "uniform": [golden_draw(seed, step) for seed, step in (*PUBLISHED, *OTHER_DRAWS)],
        "cases": [golden_case(question, inputs["defaults"]) for question in inputs["case"]],
    }
    (folder / "cases.json").write_bytes((on_lines(document) + "\n").encode())


if __name__ == "__main__":
    main()
