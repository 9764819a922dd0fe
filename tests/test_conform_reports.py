from __future__ import annotations

import json
import math
import platform
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import jsonschema
import numpy as np
import pytest

from refllm.conform import report_json
from refllm.conform.case import GROUPS
from refllm.conform.report import environment_here, without_password
from refllm.conform.report_json import json_of
from refllm.conform.report_text import progress, text_of
from refllm.conform.report_values import compared, distance, plain, printable, shown
from refllm.conform.verdict import Difference, Status
from tests.conform_reports import STATUSES, of_each_status, report, verdict

SCHEMA = json.loads(
    Path(report_json.__file__).with_name("report.schema.json").read_text(encoding="utf-8")
)

TEXT = """\
refllm conformance, suite 1.0.0, profile llama.cpp
llama-server b4404 (C++) at http://127.0.0.1:8080

                                                           expected unexpected
group            passed     failed    skipped     errors   failures     passes
tokenizer             1          -          1          -          -          -
sampling              -          1          -          -          -          -
logits                -          1          -          -          -          -
text                  -          -          -          -          1          1
api                   -          -          -          1          -          -
total                 1          2          1          1          1          1

FAILED sampling/crossing
  proves     the token that crosses top_p is kept
  clause     top_p
  differs    stage top_p
  expected   [0, 1]
  got        [0]
  cause      temperature last

FAILED logits/tiny-chat
  proves     the answer is right
  clause     numerics
  differs    logit 3 of token 0
  expected   1.5
  got        1.75
  off by     3.25 times what is allowed

UNEXPECTED PASS text/stop
  proves     the answer is right
  clause     text
  reason     the end token is not counted

ERRORS (the harness broke, which says nothing about the backend)
  1 case     api/unknown-model: no answer in 30 s

EXPECTED FAILURES (the profile knows)
  1 case     the prompt is part of the text https://example.org/echo

SKIPPED
  1 case     the model stories260K is not here

LIKELY CAUSES
  1 case     temperature last

7 cases in 12.3 s: 1 passed, 2 failed, 1 skipped, 1 error, 1 expected failure, 1
unexpected pass: not as expected
"""


def parsed(text: str) -> dict[str, Any]:
    """The report as a program reads it, once it is sure that it is one."""
    document: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    return document


def columns(line: str) -> int:
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in line)


# What a run found out


@pytest.mark.parametrize(
    ("statuses", "exit_code", "outcome"),
    [
        (["passed"], 0, "all as expected"),
        (["passed", "skipped", "expected failure"], 0, "all as expected"),
        (["passed", "failed"], 1, "not as expected"),
        (["passed", "unexpected pass"], 1, "not as expected"),
        (["passed", "error"], 2, "the harness broke"),
        (["error", "failed"], 1, "not as expected"),
        (["error", "unexpected pass"], 1, "not as expected"),
        (["skipped", "skipped"], 2, "nothing was tested"),
        ([], 2, "nothing was tested"),
    ],
)
def test_a_failure_goes_before_an_error_and_both_before_success(
    statuses: Sequence[Status], exit_code: int, outcome: str
) -> None:
    run = report(*(verdict(f"text/{i}", status) for i, status in enumerate(statuses)))
    assert (run.exit_code, run.outcome) == (exit_code, outcome)


def test_verdicts_are_counted_by_group_and_status() -> None:
    run = of_each_status()
    assert run.groups() == ("tokenizer", "sampling", "logits", "text", "api")
    assert run.counts["tokenizer"] == dict.fromkeys(STATUSES, 0) | {"passed": 1, "skipped": 1}
    assert run.counts["quant"] == dict.fromkeys(STATUSES, 0)
    assert run.totals == dict.fromkeys(STATUSES, 1) | {"failed": 2}
    assert sum(sum(counts.values()) for counts in run.counts.values()) == len(run.verdicts)


def test_groups_come_in_the_order_of_the_suite_whatever_ran_first() -> None:
    run = report(*(verdict(f"{group}/x") for group in reversed(GROUPS)))
    assert run.groups() == GROUPS


def test_the_cause_that_explains_most_comes_first() -> None:
    causes = ["b", "a", "c", "c", None]
    run = report(*(verdict(f"text/{i}", "failed", cause=cause) for i, cause in enumerate(causes)))
    assert list(run.causes.items()) == [("c", 2), ("a", 1), ("b", 1)]


def test_the_environment_says_what_matters_and_not_whose_it_is() -> None:
    environment = environment_here()
    assert set(environment) == {
        *("refllm", "python", "numpy", "numba", "system", "machine", "cpu", "cpus")
    }
    assert environment["python"].endswith(platform.python_version())
    assert all(environment.values())
    assert platform.node() not in re.split(r"[ ,]+", " ".join(environment.values()))
    assert not any("/" in value or "\\" in value for value in environment.values())


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("http://me:secret@example.org:8080/x?y", "http://example.org:8080/x?y"),
        ("https://token@example.org", "https://example.org"),
        ("http://example.org/a@b", "http://example.org/a@b"),
        ("node harness.mjs --who me@example.org", "node harness.mjs --who me@example.org"),
        ("package.module:Engine", "package.module:Engine"),
        ("http://[oops", "http://[oops"),
    ],
)
def test_a_password_in_a_url_is_in_no_report(target: str, told: str) -> None:
    assert without_password(target) == told
    run = report(target=target, details={"url": target})
    document = parsed(json_of(run))
    assert document["target"] == document["implementation"]["details"]["url"] == told
    assert f" at {told}\n" in text_of(run)


# How values are shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        ("a\n\u202eb", '"a\\n\\u202eb"'),
        ("\ud800", '"\\ud800"'),
        ("\x7f\ufeff", '"\\x7f\\ufeff"'),
        ([1, 2.5, True, None], "[1, 2.5, true, null]"),
        ({"b": 1, "a": (2,)}, '{"a": [2], "b": 1}'),
        ({3, 1, 2}, "[1, 2, 3]"),
        (b"\x00\xff", '"00ff"'),
        (np.float32(0.1), "0.10000000149011612"),
        (np.array([[1.0], [-0.0]]), "[[1.0], [-0.0]]"),
        (math.nan, "NaN"),
        (3 + 4j, '"(3+4j)"'),
    ],
)
def test_a_value_is_shown_so_that_it_can_be_told_from_others(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("tolerances", "words"),
    [(1.0625, "1.06"), (18321.6, "18,322"), (3e30, "3e+30"), (math.inf, "inf"), (math.nan, "nan")],
)
def test_a_distance_is_said_as_people_read_it(tolerances: float, words: str) -> None:
    assert distance(tolerances) == f"{words} times what is allowed"


def test_prose_keeps_its_lines_and_nothing_else_that_does_not_print() -> None:
    assert printable("a\tb\nc\r\x00\u200f") == "a\tb\nc\\r\\x00\\u200f"


@pytest.mark.parametrize(
    ("expected", "got", "parts"),
    [
        ("a cat", "a bat", ('"a ', "c", "b", 'at"')),
        ("aa", "aaa", ('"aa', "", "a", '"')),
        ([1, 2, 3], [1, 3], ("[1, ", "2, ", "", "3]")),
        (1.25, 1.5, ("", "1.25", "1.5", "")),
        ("same", "same", ('"same"', "", "", "")),
    ],
)
def test_what_two_values_share_is_told_from_what_differs(
    expected: object, got: object, parts: tuple[str, str, str, str]
) -> None:
    found = compared(expected, got, length=100)
    assert (found.before, found.expected, found.got, found.after) == parts


def test_long_values_are_cut_around_what_differs() -> None:
    found = compared("x" * 500 + "a" + "y" * 500, "x" * 500 + "b" + "y" * 500, length=90)
    assert (found.expected, found.got) == ("a", "b")
    assert found.before == "…" + "x" * 30
    assert found.after == "y" * 59 + "…"


# For a terminal


def test_the_text_is_this() -> None:
    assert text_of(of_each_status()) == TEXT


def test_no_line_is_wider_than_a_terminal() -> None:
    words = " ".join(["word"] * 100) + "x" * 300 + "語" * 100
    failed = verdict(
        "text/long",
        "failed",
        proves=words,
        reason=words,
        cause=words,
        difference=Difference(where=words, expected="語" * 500, got=words),
    )
    run = report(failed, verdict("text/no", "skipped", reason=words), name=words, target="x" * 300)
    assert max(map(columns, text_of(run).splitlines())) == 80


def test_failures_beyond_the_first_are_only_named() -> None:
    run = report(*(verdict(f"text/{i}", "failed") for i in range(5)))
    text = text_of(run, most_explained=2)
    assert text.count("proves") == 2
    assert "AND 3 MORE\n  failed: text/2\n  failed: text/3\n  failed: text/4\n" in text


def test_skips_are_summed_by_reason_and_the_most_frequent_comes_first() -> None:
    reasons = ["b", "a", "c", "c"]
    run = report(*(verdict(f"text/{i}", "skipped", reason=r) for i, r in enumerate(reasons)))
    expected = "SKIPPED\n  2 cases    c\n  1 case     a\n  1 case     b\n"
    assert expected in text_of(run)


def test_errors_are_summed_by_reason_and_the_first_case_is_named() -> None:
    reasons = ["late", "dead", "dead"]
    run = report(*(verdict(f"text/{i}", "error", reason=r) for i, r in enumerate(reasons)))
    said = "  2 cases    text/1 and others: dead\n  1 case     text/0: late\n"
    assert said in text_of(run)


def test_progress_writes_nothing_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(1) as show:
        show(verdict("text/one"))
    assert capsys.readouterr() == ("", "")


def test_progress_tells_a_terminal_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress(2) as show:
        show(verdict("text/[red]one", "failed"))
        show(verdict("api/two"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "api, 1 not as expected" in err
    assert "2/2" in err


# For programs


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_json_has_everything() -> None:
    document = parsed(json_of(of_each_status()))
    assert document["version"] == 1
    assert document["exit_code"] == 1
    assert document["started"] == "2026-01-02T03:04:05Z"
    assert document["totals"] == dict.fromkeys(STATUSES, 1) | {"failed": 2}
    assert list(document["groups"]) == ["tokenizer", "sampling", "logits", "text", "api"]
    assert document["cases"][3] == {
        "id": "logits/tiny-chat",
        "group": "logits",
        "status": "failed",
        "proves": "the answer is right",
        "clause": "numerics",
        "models": ["tiny-chat"],
        "reason": "",
        "link": None,
        "cause": None,
        "difference": {
            "where": "logit 3 of token 0",
            "expected": 1.5,
            "got": 1.75,
            "tolerances": 3.25,
            "expected_values": [1.0, -2.0, 1.5],
            "got_values": [1.0, -2.0, 1.75],
        },
        "seconds": 0.25,
    }


def test_the_schema_refuses_a_field_that_it_does_not_know() -> None:
    document = parsed(json_of(of_each_status()))
    document["cases"][0]["more"] = 1
    with pytest.raises(jsonschema.ValidationError, match="more"):
        jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_floats_come_back_as_they_were() -> None:
    values = (0.1, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3, float(np.float32(0.1)))
    special = (math.nan, math.inf, -math.inf)
    difference = Difference(
        where="x",
        expected=math.nan,
        got=np.float32(0.1),
        tolerances=math.inf,
        expected_values=values,
        got_values=special,
    )
    run = report(verdict("ops/x", "failed", difference=difference))
    found = parsed(json_of(run))["cases"][0]["difference"]
    assert [each.hex() for each in found["expected_values"]] == [each.hex() for each in values]
    assert found["got_values"] == ["nan", "inf", "-inf"]
    assert (found["expected"], found["tolerances"]) == ("nan", "inf")
    assert np.float32(found["got"]) == np.float32(0.1)


def test_the_same_report_gives_the_same_bytes_whatever_the_order_of_a_mapping() -> None:
    def run(keys: str) -> str:
        difference = Difference(where="x", expected={}, got=dict.fromkeys(keys, 1))
        failed = verdict("api/x", "failed", difference=difference)
        return json_of(report(failed, environment=dict.fromkeys(keys, "")))

    assert run("abc") == run("cba")


def test_the_time_is_utc_wherever_the_run_was() -> None:
    tokyo = timezone(timedelta(hours=9))
    run = report(started=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=tokyo))
    assert parsed(json_of(run))["started"] == "2026-01-01T18:04:05Z"


def test_a_value_of_an_unknown_kind_is_its_text() -> None:
    assert plain({1: Path("a")}) == {"1": "a"}
