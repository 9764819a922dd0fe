"""The text group: refllm writes every text, its certification repeats, and mistakes show."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from refllm import generate, sampling
from refllm.api import InferencingParams
from refllm.conform.models import suite_model
from refllm.engine import LocalEngine
from refllm.models.load import LlamaModel
from refllm.sampling import Penalties, apply_penalty, uniform
from tests.conftest import PROJECT
from tools.golden_text import Question, Subject, case_of, certify, questions, subject_of, write

Golden: TypeAlias = Mapping[str, Any]
Patch: TypeAlias = Callable[[pytest.MonkeyPatch], None]

FOLDER = PROJECT / "golden" / "text"
DOCUMENT = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
CASES: Mapping[str, Golden] = {case["id"]: case for case in DOCUMENT["cases"]}
QUESTIONS: Mapping[str, Question] = {question.id: question for question in questions()}
RECERTIFIED = (
    "text/chat-fact",
    "text/end-token",
    "text/five-tokens",
    "text/nothing",
    "text/penalty-once-for-each-token",
    "text/drawn-one-token",
    "text/temperature-very-high",
    "text/top-k-0",
    "text/top-p-half",
    "text/q4_0-chat-fact",
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the variants of tiny-chat are made."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def subject(models: Path) -> Callable[[str], Subject]:
    return cache(lambda name: subject_of(name, models))


@cache
def engine_of(seed: int, threads: int) -> LocalEngine:
    return LocalEngine(seed=seed, threads=threads)


# --- The file ------------------------------------------------------------------------------------


def test_every_question_has_its_case_and_every_case_its_question() -> None:
    asked = tomllib.loads((FOLDER / "inputs.toml").read_text(encoding="utf-8"))["case"]
    assert len(DOCUMENT["cases"]) == len(CASES) == len(asked)
    assert list(CASES) == [entry["id"] for entry in asked]


def test_most_texts_are_certified() -> None:
    certified = [case for case in CASES.values() if case["expected"]["certified"]]
    assert len(certified) >= 0.8 * len(CASES)


def test_a_text_is_certified_where_its_margin_is_as_large_as_the_error_to_expect() -> None:
    drawn = [case for case in CASES.values() if case["expected"]["token_ids"]]
    for case in drawn:
        expected, tolerance = case["expected"], case["tolerance"]
        is_clear = expected["smallest_margin"] >= tolerance["logit_error"]
        assert expected["certified"] == is_clear, case["id"]
        assert tolerance["logit_error"] > 3.9 * tolerance["largest_difference"], case["id"]


def test_every_clause_is_in_the_specification() -> None:
    specification = (PROJECT / "SPEC.md").read_text(encoding="utf-8")
    table = specification.split("| case | refllm |\n|---|---|\n")[1].split("\n\n")[0]
    rows = {line.split("|")[1].strip().replace("`", "") for line in table.splitlines()}
    assert {case["clause"] for case in CASES.values()} <= rows | {"the seed"}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_usage_counts_the_tokens(case: Golden) -> None:
    expected, params = case["expected"], case["input"]["params"]
    assert expected["usage"]["generated_token_count"] == len(expected["token_ids"])
    assert len(expected["token_ids"]) <= params["max_tokens"]


# --- What refllm answers -------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_refllm_writes_the_text_on_any_number_of_threads(
    case: Golden, threads: int, models: Path
) -> None:
    asked, expected = case["input"], case["expected"]
    params: dict[str, Any] = {
        name: float.fromhex(value) if isinstance(value, str) else value
        for name, value in asked["params"].items()
    }
    path = suite_model(asked["model"], models)
    assert path is not None
    engine = engine_of(int(asked["seed"]), threads)
    result = engine.infer(path, asked["prompt"], InferencingParams(**params))
    assert result.text == expected["text"]
    assert result.usage.prompt_token_count == expected["usage"]["prompt_token_count"]
    assert result.usage.generated_token_count == expected["usage"]["generated_token_count"]


@pytest.mark.parametrize("name", RECERTIFIED)
def test_the_tool_gives_the_case_again(name: str, subject: Callable[[str], Subject]) -> None:
    question = QUESTIONS[name]
    of = subject(question.model)
    writing = write(question, of.model)
    again = case_of(question, writing, certify(question, of, writing), of.model)
    assert json.loads(json.dumps(again)) == CASES[name]


def test_the_text_that_fills_the_context_has_one_token_more_than_it_holds(
    subject: Callable[[str], Subject],
) -> None:
    usage = CASES["text/full-context"]["expected"]["usage"]
    n_ctx = subject("tiny-chat").model.config.n_ctx
    assert usage["prompt_token_count"] + usage["generated_token_count"] == n_ctx + 1


def test_a_block_format_writes_what_its_decoded_file_writes() -> None:
    for block_format, decoded in (("greedy-story", "f32-story"), ("chat-fact", "f32-chat-fact")):
        first, second = (CASES[f"text/{name}"]["expected"] for name in (block_format, decoded))
        assert first == second


# --- Mistakes ------------------------------------------------------------------------------------


def penalized_for_each_occurrence(
    logits: NDArray[np.float32], previous_tokens: list[int], *, penalty: float, last_n: int
) -> tuple[NDArray[np.float64], Penalties]:
    window = previous_tokens[-last_n:] if last_n > 0 else []
    result = logits.astype(np.float64)  # [V]
    for token in window:
        result[token] = result[token] / penalty if result[token] >= 0 else result[token] * penalty
    return result, apply_penalty(logits, [], penalty=penalty, last_n=0)[1]


def penalty_for_each_occurrence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sampling, "apply_penalty", penalized_for_each_occurrence)


def penalty_over_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        sampling,
        "apply_penalty",
        lambda logits, previous, *, penalty, last_n: apply_penalty(
            logits, previous, penalty=penalty, last_n=1_000_000
        ),
    )


def temperature_last(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sampling, "_temperature_first", sampling._temperature_last)


def top_p_of_what_top_k_left(patch: pytest.MonkeyPatch) -> None:
    original = sampling.top_p
    patch.setattr(sampling, "top_p", lambda shares, p: original(shares / shares.sum(), p))


def second_number_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generate, "uniform", lambda seed, step: uniform(seed, step + 1))


def missing_bos(patch: pytest.MonkeyPatch) -> None:
    original = LlamaModel.prompt_tokens
    patch.setattr(LlamaModel, "prompt_tokens", lambda model, text: original(model, text)[1:])


MISTAKES: tuple[Patch, ...] = (
    penalty_for_each_occurrence,
    penalty_over_everything,
    temperature_last,
    top_p_of_what_top_k_left,
    second_number_first,
    missing_bos,
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_writes_another_text(
    mistake: Patch, subject: Callable[[str], Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = subject("tiny-chat").model
    mistake(monkeypatch)
    assert any(
        write(question, model).text != expected["text"] for question, expected in certified_texts()
    )


def certified_texts() -> Iterator[tuple[Question, Golden]]:
    """What tiny-chat is asked, but for the empty prompt, and what it must answer."""
    for name, question in QUESTIONS.items():
        expected = CASES[name]["expected"]
        if question.model == "tiny-chat" and question.prompt and expected["certified"]:
            yield question, expected
