"""golden/api: that its cases are sound, and that refllm's operations answer as they say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from refllm.api import InferencingParams, InvalidInput
from refllm.conform.case import Case
from refllm.conform.compare.api import compare_api
from refllm.spin.dialects import API_TYPES
from tests.support.golden_api import CASES, FOLDER, answer, name
from tools.golden_api import document

DOCUMENT: dict[str, Any] = json.loads((FOLDER / "cases.json").read_text(encoding="ascii"))
SPELLINGS = ("python", "spin", "openai")
OPERATIONS = [case for case in CASES if case.input["operation"] != "http"]
INFERENCES = [case for case in OPERATIONS if case.input["operation"] == "infer"]


def test_the_tool_writes_the_file_byte_for_byte() -> None:
    written = json.dumps(document(), indent=1) + "\n"
    assert written == (FOLDER / "cases.json").read_text(encoding="ascii")


def test_each_protocol_is_asked_a_few_quick_cases() -> None:
    quick = [case for case in CASES if case.is_quick]
    assert len(quick) < 20
    for spelling in SPELLINGS:
        assert sum(spelling not in case.input.get("not_in", {}) for case in quick) >= 8


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_spelling_is_there_or_there_is_a_reason(case: Case) -> None:
    spellings = case.input["spellings"]
    missing = {spelling for spelling, request in spellings.items() if request is None}
    if case.input["operation"] == "http":
        missing.add("python")
    assert missing == case.input.get("not_in", {}).keys()
    assert len(missing) < len(SPELLINGS)


def is_sent_by_spin(case: Case) -> bool:
    """Whether Spin's types hold the parameters, and its protocol the request."""
    try:
        InferencingParams(**case.input.get("params", {})).check()
    except InvalidInput:
        return False
    return case.input["spellings"]["spin"] is not None


def test_spin_sends_most_requests() -> None:
    assert sum(map(is_sent_by_spin, INFERENCES)) > len(INFERENCES) / 2


@pytest.mark.parametrize("case", [case for case in INFERENCES if is_sent_by_spin(case)], ids=name)
def test_spin_s_request_is_the_one_that_spin_would_send(case: Case) -> None:
    request = case.input["spellings"]["spin"]
    params = InferencingParams(**case.input.get("params", {}))
    spin = API_TYPES["default"]
    asked = spin.infer_request(case.input["model"], case.input["prompt"], params)
    assert request["path"] == spin.infer_path
    assert rounded(json.loads(request["body"])) == rounded(asked)


def rounded(asked: Any) -> Any:
    """The request with its numbers as many digits as a float32 holds."""
    options = {key: pytest.approx(value, rel=1e-7) for key, value in asked["options"].items()}
    return {**asked, "options": options}


@pytest.mark.parametrize("case", OPERATIONS, ids=name)
def test_the_operation_gives_the_expected_answer_of_the_case(case: Case) -> None:
    assert compare_api(case, answer(case)) is None
