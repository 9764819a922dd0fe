from __future__ import annotations

import json
import math
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import jsonschema
import numpy as np
import pytest

from refllm.conform.case import GROUPS
from refllm.conform.report import Report, environment_here, without_password
from refllm.conform.report import json as report_json
from refllm.conform.report.html import html_of
from refllm.conform.report.json import json_of
from refllm.conform.report.text import progress, text_of
from refllm.conform.report.values import compared, distance, plain, printable, shown
from refllm.conform.verdict import CONSEQUENCES, Difference, Status
from tests.support.conform_reports import STATUSES, finding, of_each_status, report, verdict

SCHEMA = json.loads(
    Path(report_json.__file__).with_name("report.schema.json").read_text(encoding="utf-8")
)

TEXT = """\
refllm conformance, suite 1.0.0, numerics revision 2, profile llama.cpp
llama-server b4404 (C++) at http://127.0.0.1:8080
2 failed, 1 error, 1 unexpected pass, 1 passed, 1 expected failure, 1 skipped, 1
not applicable: not as expected

CAUSES, the worst first
 1  NO ANSWER in 1 case
    no answer in 30 s
    api/unknown-model
 2  WRONG TEXT in 1 case
    temperature last
    sampling/crossing
 3  WRONG NUMBERS in 1 case
    other numbers
    logits/tiny-chat

NEXT: fix the first cause, and run its smallest case again
  refllm conform http://127.0.0.1:8080 --only api/unknown-model

EXAMPLE OF 1, ERROR: api/unknown-model
  proves     the answer is right
  clause     text
  reason     no answer in 30 s

EXAMPLE OF 2, FAILED: sampling/crossing
  proves     the token that crosses top_p is kept
  clause     top_p
  differs    stage top_p
  expected   [0, 1]
  got        [0]

EXAMPLE OF 3, FAILED: logits/tiny-chat
  proves     the answer is right
  clause     numerics
  differs    logit 3 of token 0
  expected   1.5
  got        1.75
  off by     3.25 times what is allowed

UNEXPECTED PASS: text/stop
  proves     the answer is right
  clause     text
  reason     the end token is not counted

                                             not          expected  unexpected
group        passed  failed  skipped  applicable  errors  failures      passes
tokenizer         1       -        1           -       -         -           -
ops               -       -        -           1       -         -           -
sampling          -       1        -           -       -         -           -
logits            -       1        -           -       -         -           -
text              -       -        -           -       -         1           1
api               -       -        -           -       1         -           -
total             1       2        1           1       1         1           1

EXPECTED FAILURES (known to the profile)
  1 case     the prompt is part of the text https://example.org/echo

SKIPPED (you can change that)
  1 case     the model stories260K is not here

NOT APPLICABLE (a target of this kind cannot be asked)
  1 case     HTTP carries no ops

8 cases in 12.3 s: 2 failed, 1 error, 1 unexpected pass, 1 passed, 1 expected
failure, 1 skipped, 1 not applicable: not as expected
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
        (["passed", "skipped", "not applicable"], 0, "all as expected"),
        (["passed", "error"], 1, "not as expected"),
        (["error", "failed"], 1, "not as expected"),
        (["error", "unexpected pass"], 1, "not as expected"),
        (["skipped", "not applicable"], 2, "nothing was tested"),
        ([], 2, "nothing was tested"),
    ],
)
def test_failed_and_unanswered_cases_decide_and_skipped_ones_do_not(
    statuses: Sequence[Status], exit_code: int, outcome: str
) -> None:
    run = report(*(verdict(f"text/{i}", status) for i, status in enumerate(statuses)))
    assert (run.exit_code, run.outcome) == (exit_code, outcome)


def test_verdicts_are_counted_by_group_and_status() -> None:
    run = of_each_status()
    assert run.groups() == ("tokenizer", "ops", "sampling", "logits", "text", "api")
    assert run.counts["tokenizer"] == dict.fromkeys(STATUSES, 0) | {"passed": 1, "skipped": 1}
    assert run.counts["quant"] == dict.fromkeys(STATUSES, 0)
    assert run.totals == dict.fromkeys(STATUSES, 1) | {"failed": 2}
    assert sum(sum(counts.values()) for counts in run.counts.values()) == len(run.verdicts)


def test_groups_come_in_the_order_of_the_suite_whatever_ran_first() -> None:
    run = report(*(verdict(f"{group}/x") for group in reversed(GROUPS)))
    assert run.groups() == GROUPS


def named(run: Report) -> list[tuple[str, int]]:
    """The causes of a report, and how many cases show each."""
    return [(cause.cause, len(cause.verdicts)) for cause in run.causes]


def test_of_equally_bad_causes_the_one_that_most_cases_show_comes_first() -> None:
    causes = ["b", "a", "c", "c"]
    run = report(*(verdict(f"text/{i}", "failed", causes=[c]) for i, c in enumerate(causes)))
    assert named(run) == [("c", 2), ("b", 1), ("a", 1)]


def test_the_worst_consequence_comes_before_the_highest_count() -> None:
    worst_last = list(enumerate(reversed(CONSEQUENCES)))
    run = report(
        *(
            verdict(f"text/{consequence}-{i}", "failed", causes=[finding(consequence, consequence)])
            for n, consequence in worst_last
            for i in range(len(CONSEQUENCES) - n)
        )
    )
    assert [cause.consequence for cause in run.causes] == list(CONSEQUENCES)


def test_a_cause_has_every_case_that_shows_it_and_the_worst_of_their_consequences() -> None:
    run = report(
        verdict("api/a", "failed", causes=[finding("echo", "wrong counts")]),
        verdict("api/b", "failed", causes=["other", "echo"]),
        verdict("api/c", "failed", causes=[finding("echo", "wrong text")]),
        verdict("api/d", "expected failure", causes=["echo"]),
    )
    [echo] = [cause for cause in run.causes if cause.cause == "echo"]
    assert echo.consequence == "wrong text"
    assert [each.case.id for each in echo.verdicts] == ["api/c", "api/b", "api/a"]
    assert echo.n_later == 1


def test_a_fault_seen_only_beside_other_faults_is_listed_after_them() -> None:
    run = report(
        *(verdict(f"text/{i}", "failed", causes=["first", "second"]) for i in range(3)),
        verdict("text/x", "failed", causes=["third"]),
    )
    assert named(run) == [("first", 3), ("third", 1), ("second", 3)]


def test_the_environment_names_the_machine_and_not_its_owner() -> None:
    environment = environment_here()
    assert set(environment) == {
        *("refllm", "python", "numpy", "numba", "system", "machine", "cpu", "cpus")
    }
    assert environment["python"].endswith(platform.python_version())
    assert all(environment.values())
    assert platform.node() not in re.split(r"[ ,]+", " ".join(environment.values()))
    assert not any("/" in value or "\\" in value for value in environment.values())


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("http://me:secret@example.org:8080/x?y", "http://example.org:8080/x?y"),
        ("https://token@example.org", "https://example.org"),
        ("http://example.org/a@b", "http://example.org/a@b"),
        ("node harness.mjs --who me@example.org", "node harness.mjs --who me@example.org"),
        ("package.module:Engine", "package.module:Engine"),
        ("http://[oops", "http://[oops"),
    ],
)
def test_a_password_in_a_url_is_in_no_report(target: str, shown: str) -> None:
    assert without_password(target) == shown
    run = report(target=target, details={"url": target})
    document = parsed(json_of(run))
    assert document["target"] == document["implementation"]["details"]["url"] == shown
    assert f"{shown}\n" in text_of(run)


@pytest.mark.parametrize(
    ("fields", "headline"),
    [
        ({}, "llama-server b4404 (C++) at http://127.0.0.1:8080"),
        ({"target": "node harness.js"}, "llama-server b4404 (C++) as node harness.js"),
        ({"target": "build/app.wasm", "name": "app.wasm", "version": ""}, "build/app.wasm (C++)"),
        ({"target": "mine:Backend", "name": "mine:Backend", "language": ""}, "mine:Backend"),
    ],
)
@pytest.mark.parametrize("write", [text_of, html_of])
def test_the_heading_names_the_target_once(
    fields: dict[str, Any], headline: str, write: Callable[[Report], str]
) -> None:
    run = report(**fields)
    assert run.headline == headline
    heading = write(run).partition("</h1>" if write is html_of else "\n\n")[0]
    heading = heading.partition("<h1>")[2] or heading
    assert heading.count(str(fields.get("target", run.target))) == 1
    assert headline in heading


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
def test_different_values_are_shown_differently(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("tolerances", "words"),
    [(1.0625, "1.06"), (18321.6, "18,322"), (3e30, "3e+30"), (math.inf, "inf"), (math.nan, "nan")],
)
def test_a_distance_is_written_for_people(tolerances: float, words: str) -> None:
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
def test_the_common_beginning_of_two_values_is_separate_from_the_difference(
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
        causes=[words],
        difference=Difference(where=words, expected="語" * 500, got=words),
    )
    run = report(failed, verdict("text/no", "skipped", reason=words), name=words, target="x" * 300)
    assert max(map(columns, text_of(run).splitlines())) == 80


def test_of_cases_that_fail_for_one_cause_one_is_shown_some_named_and_the_rest_counted() -> None:
    text = text_of(report(*(verdict(f"text/{i}", "failed", causes=["a"]) for i in range(40))))
    assert text.count("proves") == 1
    assert "    a\n    text/0, text/1, text/2 and 37 more\n" in text


def test_examples_beyond_the_first_are_left_out() -> None:
    run = report(*(verdict(f"text/{i}", "failed", causes=[str(i)]) for i in range(5)))
    text = text_of(run, max_examples=2)
    assert text.count("proves") == 2
    assert text.count("WRONG TEXT in 1 case\n") == 5


def test_a_case_that_shows_two_causes_is_an_example_of_one() -> None:
    text = text_of(report(verdict("text/x", "failed", causes=["a", "b"])))
    assert text.count("proves") == 1
    assert "WRONG TEXT in 1 case, in 1 of them behind another cause\n    b\n" in text


def test_of_an_answer_that_changes_both_answers_are_shown() -> None:
    change = Difference(where="asked again", expected="a cat", got="a dog")
    right = Difference(where="text", expected="a bat", got="a cat")
    cause = finding("it changes", "answers change")
    changed = verdict("text/x", "failed", difference=right, change=change, causes=[cause])
    text = text_of(report(changed))
    assert "CAUSES, the first makes the others uncertain\n 1  ANSWERS CHANGE in 1 case\n" in text
    assert '  first      "a cat"\n  again      "a dog"\n' in text


def test_the_next_step_is_a_command_that_can_be_copied() -> None:
    command = "refllm conform 'node my harness.js' --have tiny-chat --profile llama.cpp --seconds 9"
    run = report(verdict("text/x", "failed", causes=["a"]), command=command)
    [text] = re.findall(r"NEXT: .*?\n\n", text_of(run), re.DOTALL)
    [first] = text.strip().splitlines()[1:2]
    assert first.endswith(" \\")
    joined = " ".join(line.removesuffix("\\").strip() for line in text.strip().splitlines()[1:])
    assert shlex.split(joined) == [*shlex.split(command), "--only", "text/x"]


def test_skips_are_summed_by_reason_and_the_most_frequent_comes_first() -> None:
    reasons = ["b", "a", "c", "c"]
    run = report(*(verdict(f"text/{i}", "skipped", reason=r) for i, r in enumerate(reasons)))
    expected = "SKIPPED (you can change that)\n  2 cases    c\n  1 case     a\n  1 case     b\n"
    assert expected in text_of(run)


def test_progress_writes_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(1) as show:
        show(verdict("text/one"))
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_shows_the_cases_done(
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


def test_the_schema_is_a_valid_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_json_has_everything() -> None:
    document = parsed(json_of(of_each_status()))
    assert document["version"] == 2
    assert document["causes"][1:] == [
        {
            "cause": "temperature last",
            "consequence": "wrong text",
            "is_recognized": True,
            "cases": ["sampling/crossing"],
        },
        {
            "cause": "other numbers",
            "consequence": "wrong numbers",
            "is_recognized": False,
            "cases": ["logits/tiny-chat"],
        },
    ]
    assert document["exit_code"] == 1
    assert document["started"] == "2026-01-02T03:04:05Z"
    assert document["totals"] == dict.fromkeys(STATUSES, 1) | {"failed": 2}
    assert list(document["groups"]) == ["tokenizer", "ops", "sampling", "logits", "text", "api"]
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
        "findings": [
            {"cause": "other numbers", "consequence": "wrong numbers", "is_recognized": False}
        ],
        "change": None,
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


def test_the_schema_refuses_an_unknown_field() -> None:
    document = parsed(json_of(of_each_status()))
    document["cases"][0]["more"] = 1
    with pytest.raises(jsonschema.ValidationError, match="more"):
        jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_floats_are_read_back_exactly() -> None:
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
