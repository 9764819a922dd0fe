"""The embeddings group: whose vectors they are, what refllm answers, and which faults show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm.conform.faults.embeddings import vectors as wrong_vectors
from refllm.conform.models import suite_model
from refllm.engine import LocalEngine
from refllm.models.bundled import ROOT
from tests.conftest import PROJECT
from tests.support.golden_networks import EMBEDDINGS_FILE, OF_TINY_EMBED, vectors_of
from tests.support.golden_networks import VECTOR_TOLERANCE as TOLERANCE
from tools import golden_embeddings
from tools.golden_embeddings import Question, questions, token_ids_of
from tools.plain_bert import PlainBert, bert_of_gguf

Golden: TypeAlias = Mapping[str, Any]
Vectors: TypeAlias = NDArray[np.float64]

FOLDER = PROJECT / "golden" / "embeddings"
TEXT = (FOLDER / "cases.json").read_text(encoding="utf-8")
CASES: Mapping[str, Golden] = {case["id"]: case for case in EMBEDDINGS_FILE["cases"]}
OF_MINILM = [case for case in CASES.values() if case["models"] == ["all-minilm-l6-v2"]]
PADDED = [case for case in OF_TINY_EMBED if case["id"].startswith("embeddings/mates-")][1:]


@pytest.fixture(scope="module")
def bert() -> PlainBert:
    return bert_of_gguf(ROOT / "bert" / "tiny-embed.gguf")


@pytest.fixture(scope="module")
def asked() -> Mapping[str, Question]:
    return {question.id: question for question in questions()}


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine()


def check_answer(engine: LocalEngine, model: str | Path, case: Golden) -> None:
    """The vectors within the tolerance, and the count."""
    asked = case["input"]
    result = engine.generate_embeddings(model, asked["texts"], max_tokens=asked.get("max_tokens"))
    expected = vectors_of(case)
    assert len(result.embeddings) == len(expected)
    if len(expected) > 0:
        off = np.abs(np.array(result.embeddings) - expected)  # [N, D]
        assert off.max() <= case["tolerance"]["absolute"]
    assert result.usage.prompt_token_count == case["expected"]["usage"]["prompt_token_count"]


# --- The file ------------------------------------------------------------------------------------


def test_the_tool_writes_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["golden_embeddings", str(tmp_path)])
    golden_embeddings.main()
    assert (tmp_path / "cases.json").read_text(encoding="utf-8") == TEXT


def test_every_clause_is_in_the_specification() -> None:
    specification = (PROJECT / "SPEC.md").read_text(encoding="utf-8")
    table = specification.split("| case | refllm |\n|---|---|\n")[1].split("\n\n")[0]
    rows = {line.split("|")[1].strip().replace("`", "") for line in table.splitlines()}
    assert {case["clause"] for case in CASES.values()} <= rows


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_vector_has_length_one_in_float32(case: Golden) -> None:
    vectors = vectors_of(case)  # [N, D]
    assert np.array_equal(vectors.astype(np.float32), vectors)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max(initial=0.0) <= TOLERANCE


# --- The answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", OF_TINY_EMBED, ids=itemgetter("id"))
def test_refllm_answers_for_tiny_embed(case: Golden, engine: LocalEngine) -> None:
    check_answer(engine, ROOT / "bert" / "tiny-embed.gguf", case)


@pytest.mark.network
@pytest.mark.parametrize("case", OF_MINILM, ids=itemgetter("id"))
def test_refllm_answers_for_minilm(case: Golden, engine: LocalEngine, minilm_dir: Path) -> None:
    path = suite_model("all-minilm-l6-v2", minilm_dir, roots=[minilm_dir.parent])
    assert path is not None
    check_answer(engine, path, case)


def test_a_text_has_one_vector_in_whatever_company() -> None:
    text = "The ferry leaves at noon."
    alone, *in_company = [
        vectors_of(case)[case["input"]["texts"].index(text)]
        for case in CASES.values()
        if case["id"].startswith("embeddings/mates-")
    ]
    assert len(in_company) >= 3
    assert all(np.array_equal(vector, alone) for vector in in_company)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("only-spaces", "empty-text"),
        ("cut-to-2", "empty-text"),
        ("upper-case", "mates-none"),
        ("spaces-between", "mates-none"),
        ("minilm-one-token-too-long", "minilm-just-fits"),
    ],
)
def test_cases_that_differ_in_nothing_relevant_have_equal_vectors(one: str, other: str) -> None:
    first, second = (CASES[f"embeddings/{case}"] for case in (one, other))
    assert first["input"] != second["input"]
    assert first["expected"] == second["expected"]


def test_the_token_that_is_cut_off_makes_a_difference() -> None:
    cut, whole = (
        vectors_of(CASES[f"embeddings/{case}"]) for case in ("one-token-too-long", "just-fits")
    )
    assert np.abs(cut - whole).max() > 100 * TOLERANCE


# --- The tolerance -------------------------------------------------------------------------------


def off(case: Golden, fault: str) -> Vectors:
    """By how much a BERT with the fault is off in each text's worst component, [N]."""
    wrong = wrong_vectors(fault, tuple(case["input"]["texts"]), case["input"].get("max_tokens"))
    return np.asarray(np.abs(wrong - vectors_of(case)).max(axis=1))


WITH_TEXTS: Sequence[Golden] = [case for case in OF_TINY_EMBED if case["input"]["texts"]]


@pytest.mark.parametrize("case", WITH_TEXTS, ids=itemgetter("id"))
@pytest.mark.parametrize(
    ("fault", "n_tolerances"),
    [("tanh GELU", 5), ("CLS pooling", 1000), ("embeddings not normalized", 1000)],
)
def test_a_fault_falls_outside_the_tolerance_in_every_text(
    case: Golden, fault: str, n_tolerances: int
) -> None:
    assert off(case, fault).min() > n_tolerances * TOLERANCE


@pytest.mark.parametrize("case", PADDED, ids=itemgetter("id"))
def test_averaging_over_padding_falls_outside_in_every_padded_text(
    case: Golden, asked: Mapping[str, Question], bert: PlainBert
) -> None:
    lengths = [len(ids) for ids in token_ids_of(asked[case["id"]], bert)]
    is_padded = np.array(lengths) < max(lengths)  # [N]
    assert off(case, "padding in the mean")[is_padded].min() > 1000 * TOLERANCE


@pytest.mark.parametrize("case", PADDED, ids=itemgetter("id"))
def test_attention_to_padding_falls_outside(case: Golden) -> None:
    assert off(case, "no attention mask").max() > 1000 * TOLERANCE


def test_float32_is_well_inside_the_tolerance() -> None:
    tolerances = [case["tolerance"] for case in CASES.values() if case["input"]["texts"]]
    for tolerance in tolerances:
        assert tolerance["absolute"] == TOLERANCE
        assert 2 * tolerance["largest_float32_float64_difference"] < TOLERANCE
        assert tolerance["smallest_tanh_gelu_difference"] > 5 * TOLERANCE
