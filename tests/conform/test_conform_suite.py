"""The suite is whole: ids differ, files have the hashes of the manifest, refllm conforms."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from refllm.api import InvalidInput
from refllm.conform.case import GROUPS
from refllm.conform.runner import run_cases
from refllm.conform.suite import Suite, chosen, load_suite
from refllm.conform.targets.itself import Refllm
from refllm.conform.targets.python import EntryPointTarget
from refllm.conform.verdict import Verdict
from refllm.models.bundled import ROOT
from tools.goldens import GOLDEN, SUITE_VERSION, manifest, unlike

MANIFEST = json.loads((GOLDEN / "manifest.json").read_text("utf-8"))


@cache
def suite() -> Suite:
    return load_suite()


def test_the_manifest_is_the_one_that_its_tool_writes() -> None:
    assert manifest(GOLDEN) == MANIFEST
    assert suite().version == SUITE_VERSION


@pytest.mark.parametrize("entry", MANIFEST["files"], ids=lambda entry: str(entry["path"]))
def test_a_file_is_the_one_of_the_manifest(entry: dict[str, str]) -> None:
    assert hashlib.sha256((GOLDEN / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("entry", MANIFEST["models"], ids=lambda entry: str(entry["name"]))
def test_a_model_is_the_one_of_the_manifest(entry: dict[str, str]) -> None:
    assert hashlib.sha256((ROOT / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


def test_no_two_cases_have_the_same_id() -> None:
    counts = Counter(case.id for case in suite().cases)
    assert [case_id for case_id, n in counts.items() if n > 1] == []


def test_every_id_begins_with_its_group() -> None:
    assert [case.id for case in suite().cases if not case.id.startswith(f"{case.group}/")] == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_cases_and_quick_ones(group: str) -> None:
    n_cases, n_quick = (
        len(chosen(suite(), groups=[group], quick=is_quick)) for is_quick in (False, True)
    )
    assert 0 < n_quick < n_cases


def test_every_case_has_its_claim_and_its_clause() -> None:
    assert [case.id for case in suite().cases if not case.proves or not case.clause] == []


def test_the_suite_has_at_least_150_sampling_cases() -> None:
    assert len(chosen(suite(), groups=["sampling"])) >= 150


def test_a_pattern_chooses_the_cases_that_match() -> None:
    found = chosen(suite(), only=["ops/rope-*", "quant/*"])
    assert {case.group for case in found} == {"ops", "quant"}
    assert all(case.id.startswith(("ops/rope-", "quant/")) for case in found)


@pytest.mark.parametrize(
    ("options", "named"), [({"groups": ["opps"]}, "opps"), ({"only": ["ops/rop"]}, "ops/rop")]
)
def test_a_group_or_pattern_that_matches_nothing_is_an_error_that_names_it(
    options: dict[str, list[str]], named: str
) -> None:
    with pytest.raises(InvalidInput, match=named):
        chosen(suite(), **options)  # type: ignore[arg-type]


@cache
def own_verdicts() -> tuple[Verdict, ...]:
    target = EntryPointTarget("refllm.conform.targets.itself:Refllm")
    implementation = target.start()
    try:
        return run_cases(target, implementation, suite().cases)
    finally:
        target.stop()


def test_refllm_itself_conforms() -> None:
    bad = [
        f"{each.case.id}: {each.difference}" for each in own_verdicts() if each.status == "failed"
    ]
    assert bad == []
    assert [each.reason for each in own_verdicts() if each.status == "error"] == []


def test_refllm_answers_every_case_except_http_and_absent_models() -> None:
    skipped = [each for each in own_verdicts() if each.status == "skipped"]
    assert {each.case.group for each in skipped} <= {"api", "embeddings", "tokenizer"}
    unexplained = [each.case.id for each in skipped if not each.reason]
    assert unexplained == []


def test_every_group_is_answered(tmp_path: Path) -> None:
    passed = Counter(each.case.group for each in own_verdicts() if each.status == "passed")
    assert set(passed) == set(GROUPS) == set(Refllm().start()["groups"])


@pytest.mark.slow
def test_every_golden_file_is_what_its_tool_writes(tmp_path: Path) -> None:
    assert list(unlike(tmp_path)) == []
