from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import pytest

from refllm.conform.case import GROUPS, Case
from refllm.conform.faults.causes import fault_named, likely_cause
from refllm.conform.reply import Answer, Reply
from refllm.conform.runner import verdict_of
from refllm.conform.suite import load_suite
from refllm.conform.targets.python import EntryPointTarget
from refllm.conform.verdict import Verdict
from tests.support.mutants import MUTANTS, Mutant, applied

REFLLM = "refllm.conform.targets.itself:Refllm"
SHIPPED = frozenset({"tiny-chat", "tiny-embed"})
# Of the logits, which take long, so many cases with the fewest tokens are asked.
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


@contextmanager
def started() -> Iterator[EntryPointTarget]:
    target = EntryPointTarget(REFLLM)
    target.start()
    try:
        yield target
    finally:
        target.stop()


@pytest.fixture(scope="module")
def refllm() -> Iterator[EntryPointTarget]:
    """refllm with its models, loaded once and unchanged."""
    with started() as target:
        yield target


def verdicts_of(
    cases: Sequence[Case], refllm: EntryPointTarget, mutant: Mutant, *, shows_tokens: bool = True
) -> list[Verdict]:
    """The mutant's verdicts; perhaps as a server shows its answers, without tokens.

    A mutant that changes models as they are loaded has models of its own.
    """
    with applied(mutant), started() if mutant.reloads else nullcontext(refllm) as target:
        replies = [(case, target.run(case)) for case in cases]
    if not shows_tokens:
        replies = [(case, without_tokens(reply)) for case, reply in replies]
    return [verdict_of(case, reply) for case, reply in replies]


def without_tokens(reply: Reply) -> Reply:
    if not isinstance(reply, Answer):
        return reply
    return Answer({key: value for key, value in reply.result.items() if key != "token_ids"})


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_fails_and_the_diagnosis_names_its_fault_and_no_other(
    mutant: Mutant, cases: tuple[Case, ...], refllm: EntryPointTarget
) -> None:
    verdicts = verdicts_of(asked_of(mutant, cases), refllm, mutant)
    causes = likely_cause(verdicts)
    assert [verdict.reason for verdict in verdicts if verdict.status == "error"] == []
    assert any(verdict.status == "failed" for verdict in verdicts)
    assert set(causes.values()) <= {fault_named(name).cause for name in mutant.faults}
    assert causes


@pytest.mark.parametrize(
    "name",
    [
        "GQA heads by modulo",
        "RoPE layout swapped",
        "KV cache off by one",
        "other random numbers",
        "penalty without the prompt",
        "scores not scaled",
    ],
)
def test_texts_alone_show_which_part_is_wrong(
    name: str, cases: tuple[Case, ...], refllm: EntryPointTarget
) -> None:
    [mutant] = [mutant for mutant in MUTANTS if mutant.name == name]
    texts = [case for case in cases if case.group == "text" and case.is_quick]
    causes = likely_cause(verdicts_of(texts, refllm, mutant, shows_tokens=False))
    assert set(causes.values()) == {fault_named(fault).cause for fault in mutant.faults}


def test_refllm_passes_every_case_after_all_mutants(
    cases: tuple[Case, ...], refllm: EntryPointTarget
) -> None:
    asked = {case.id: case for mutant in MUTANTS for case in asked_of(mutant, cases)}
    verdicts = [verdict_of(case, refllm.run(case)) for case in asked.values()]
    assert [verdict for verdict in verdicts if not verdict.is_as_expected] == []


def test_mutants_have_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_every_group_has_a_mutant_that_it_fails() -> None:
    groups = {group for mutant in MUTANTS for group in mutant.groups}
    assert groups == set(GROUPS)
