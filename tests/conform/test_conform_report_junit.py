from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from refllm.conform.report import Report
from refllm.conform.report.badge import badge_of
from refllm.conform.report.html import html_of
from refllm.conform.report.json import json_of
from refllm.conform.report.junit import junit_of
from refllm.conform.report.text import text_of
from refllm.conform.report.values import printable
from tests.support.conform_reports import NASTY, of_each_status, saying

Writer = Callable[[Report], str]
WRITERS: dict[str, Writer] = {
    "text": text_of,
    "json": json_of,
    "html": html_of,
    "junit": junit_of,
    "badge": badge_of,
}


def cases_by_name(run: Report) -> dict[str, ET.Element]:
    root = ET.fromstring(junit_of(run).encode())
    return {f"{case.get('classname')}/{case.get('name')}": case for case in root.iter("testcase")}


# Whatever a backend says, in every report


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_report_can_be_written_and_read_whatever_texts_it_holds(write: Writer, text: str) -> None:
    written = write(saying(text))
    assert written.encode("utf-8").decode("utf-8") == written
    assert written.endswith("\n")
    unprintable = {c for c in written if not c.isprintable()} - {"\n", "\t"}
    assert unprintable == set()


@pytest.mark.parametrize("write", [text_of, html_of, junit_of])
def test_a_huge_text_makes_no_huge_report(write: Writer) -> None:
    short, long = write(saying("x")), write(saying("x" * 1_000_000))
    assert len(long) - len(short) < 1_000_000


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_xml_keeps_the_text_of_a_reason(text: str) -> None:
    case = cases_by_name(saying(text))["conform.text/1"]
    failure = case.find("failure")
    assert failure is not None
    assert f"differs: {printable(text)}\n" in (failure.text or "")
    assert " ".join(printable(text).split()) in failure.get("message", "")


# For CI systems


def test_each_case_is_a_testcase_whose_end_is_an_element() -> None:
    cases = cases_by_name(of_each_status())
    ends = {name: [child.tag for child in case] for name, case in cases.items()}
    assert ends == {
        "conform.tokenizer/ascii": [],
        "conform.tokenizer/accents": ["skipped"],
        "conform.sampling/crossing": ["failure"],
        "conform.logits/tiny-chat": ["failure"],
        "conform.text/echo": ["skipped"],
        "conform.text/stop": ["failure"],
        "conform.api/unknown-model": ["error"],
        "conform.ops/rope": ["skipped"],
    }


def test_messages_have_one_line() -> None:
    messages = {
        name: child.get("message")
        for name, case in cases_by_name(of_each_status()).items()
        for child in case
    }
    assert messages == {
        "conform.tokenizer/accents": "the model stories260K is not here",
        "conform.sampling/crossing": "differs: stage top_p; likely cause: temperature last",
        "conform.logits/tiny-chat": "differs: logit 3 of token 0",
        "conform.text/echo": "expected failure: the prompt is part of the text",
        "conform.text/stop": "unexpected pass: the end token is not counted",
        "conform.api/unknown-model": "no answer in 30 s",
        "conform.ops/rope": "not applicable: HTTP carries no ops",
    }


def test_a_failure_has_its_values_below_it() -> None:
    failure = cases_by_name(of_each_status())["conform.logits/tiny-chat"].find("failure")
    assert failure is not None
    assert (failure.text or "").splitlines() == [
        "id: logits/tiny-chat",
        "proves: the answer is right",
        "clause: numerics",
        "differs: logit 3 of token 0",
        "expected: 1.5",
        "got: 1.75",
        "off by: 3.25 times what is allowed",
    ]


def test_the_type_of_a_failure_is_its_consequence() -> None:
    cases = cases_by_name(of_each_status())
    failures = [cases[name].find("failure") for name in cases if "sampling" in name]
    assert [each.get("type") for each in failures if each is not None] == ["wrong text"]


def test_each_suite_has_the_causes_of_the_run_the_worst_first() -> None:
    for suite in ET.fromstring(junit_of(of_each_status()).encode()):
        named = {each.get("name"): each.get("value") for each in suite.iter("property")}
        causes = [value for name, value in named.items() if str(name).startswith("cause.")]
        assert causes == [
            "no answer, 1 of 8 cases, such as api/unknown-model: no answer in 30 s",
            "wrong text, 1 of 8 cases, such as sampling/crossing: temperature last",
            "wrong numbers, 1 of 8 cases, such as logits/tiny-chat: other numbers",
        ]


def test_the_counts_of_a_testsuite_match_its_testcases() -> None:
    root = ET.fromstring(junit_of(of_each_status()).encode())
    assert root.tag == "testsuites"
    assert root.get("time") == "12.340"
    assert [suite.get("name") for suite in root] == [
        *("tokenizer", "ops", "sampling", "logits", "text", "api")
    ]
    for element in (root, *root):
        assert element.get("tests") == str(len(list(element.iter("testcase"))))
        for attribute, tag in (
            *(("failures", "failure"), ("errors", "error"), ("skipped", "skipped")),
        ):
            assert element.get(attribute) == str(len(list(element.iter(tag))))


def test_a_suite_has_what_readers_of_junit_look_for_in_the_order_they_do() -> None:
    for suite in ET.fromstring(junit_of(of_each_status()).encode()):
        assert set(suite.attrib) == {
            *("name", "tests", "failures", "errors", "skipped", "time", "timestamp")
        }
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp", ""))
        tags = [child.tag for child in suite]
        assert tags == ["properties", *["testcase"] * (len(tags) - 1)]
        for case in suite.iter("testcase"):
            assert set(case.attrib) == {"classname", "name", "time"}


def test_names_stay_the_same_from_run_to_run() -> None:
    first = of_each_status()
    second = replace(
        first,
        started=first.started.replace(year=2027),
        seconds=99.0,
        target="other",
        verdicts=tuple(replace(each, status="failed", seconds=9.0) for each in first.verdicts),
    )
    assert list(cases_by_name(first)) == list(cases_by_name(second))
