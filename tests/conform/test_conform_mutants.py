from __future__ import annotations

from collections.abc import Sequence

import pytest

from refllm.conform.case import Case
from refllm.conform.faults.causes import likely_cause, symptom_named
from refllm.conform.reply import Answer, Reply
from refllm.conform.runner import verdict_of
from refllm.conform.suite import load_suite
from refllm.conform.targets.python import EntryPointTarget
from refllm.conform.verdict import Verdict
from tests.support.mutants import Mutant, applied
from tests.support.mutants_of_networks import MUTANTS_OF_NETWORKS
from tests.support.mutants_of_sampling import MUTANTS_OF_SAMPLING
from tests.support.mutants_of_texts import MUTANTS_OF_TEXTS

MUTANTS: tuple[Mutant, ...] = (*MUTANTS_OF_TEXTS, *MUTANTS_OF_SAMPLING, *MUTANTS_OF_NETWORKS)
REFLLM = "refllm.conform.targets.itself:Refllm"
SHIPPED = frozenset({"tiny-chat", "tiny-embed"})
# A suite of what takes long is asked in part: so many cases with the fewest tokens.
FEW = 2


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    return tuple(case for case in load_suite().cases if SHIPPED.issuperset(case.models))


def asked_of(mutant: Mutant, cases: Sequence[Case]) -> list[Case]:
    of_groups = [case for case in cases if case.group in mutant.groups]
    long = ("logits", "text", "embeddings")
    exact = [c for c in of_groups if c.group == "logits" and c.input["numerics"] == "exact"]
    shortest = sorted(exact, key=lambda case: len(case.input["token_ids"]))[:FEW]
    quick = [case for case in of_groups if case.group in long[1:] and case.is_quick]
    return [*(case for case in of_groups if case.group not in long), *shortest, *quick]


def verdicts_of(cases: Sequence[Case], *, shows_tokens: bool = True) -> list[Verdict]:
    """Those of refllm as it is now, loaded anew; perhaps as a server shows it, without tokens."""
    target = EntryPointTarget(REFLLM)
    target.start()
    try:
        replies = [(case, target.run(case)) for case in cases]
    finally:
        target.stop()
    if not shows_tokens:
        replies = [(case, without_tokens(reply)) for case, reply in replies]
    return [verdict_of(case, reply) for case, reply in replies]


def without_tokens(reply: Reply) -> Reply:
    if not isinstance(reply, Answer):
        return reply
    return Answer({key: value for key, value in reply.result.items() if key != "token_ids"})


def test_refllm_passes_every_case_that_a_mutant_is_asked(cases: tuple[Case, ...]) -> None:
    asked = {case.id: case for mutant in MUTANTS for case in asked_of(mutant, cases)}
    wrong = [v for v in verdicts_of(list(asked.values())) if not v.is_as_expected]
    assert wrong == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_fails_and_is_told_its_mistake_and_no_other(
    mutant: Mutant, cases: tuple[Case, ...]
) -> None:
    with applied(mutant):
        verdicts = verdicts_of(asked_of(mutant, cases))
    causes = likely_cause(verdicts)
    assert [verdict.reason for verdict in verdicts if verdict.status == "error"] == []
    assert any(verdict.status == "failed" for verdict in verdicts)
    assert set(causes.values()) <= {symptom_named(name).cause for name in mutant.symptoms}
    assert causes


@pytest.mark.parametrize(
    "name",
    [
        "GQA by modulo",
        "RoPE of halves",
        "cache off by one",
        "other random numbers",
        "penalty without the prompt",
        "scores not scaled",
    ],
)
def test_texts_alone_tell_what_is_wrong_inside(name: str, cases: tuple[Case, ...]) -> None:
    [mutant] = [mutant for mutant in MUTANTS if mutant.name == name]
    texts = [case for case in cases if case.group == "text" and case.is_quick]
    with applied(mutant):
        verdicts = verdicts_of(texts, shows_tokens=False)
    causes = likely_cause(verdicts)
    assert set(causes.values()) == {symptom_named(symptom).cause for symptom in mutant.symptoms}


def test_mutants_have_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_every_group_has_a_mutant_that_it_fails() -> None:
    groups = {group for mutant in MUTANTS for group in mutant.groups}
    assert groups == {
        "tokenizer",
        "quant",
        "ops",
        "sampling",
        "logits",
        "text",
        "embeddings",
        "api",
    }
