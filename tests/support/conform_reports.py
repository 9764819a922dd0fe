"""Reports made by hand, for tests of how they are written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

from refllm.conform.bits import Bits
from refllm.conform.case import Case, Group
from refllm.conform.reply import Implementation
from refllm.conform.report import Report
from refllm.conform.verdict import Consequence, Difference, Finding, Status, Verdict

STATUSES: tuple[Status, ...] = get_args(Status)


# What a backend may say, and what of it a reader must find.
NASTY = {
    "markup": "<script>alert('1')</script>",
    "quotes": "\"'><img src=x onerror=alert(1)>&amp;",
    "end of CDATA": "a ]]> b",
    "NUL": "a\0b",
    "lone surrogate": "a\ud800b",
    "not a character": "a\ufffe\uffffb",
    "turns the text around": "a\u202eb\u2066c",
    "right to left": "שלום",
    "terminal control": "\x1b[31mred",
    "template": "{{ report.name }} {% if %}",
    "lines": "a\r\nb",
    "joined emoji": "👩\u200d🔬",
}


def finding(
    cause: str, consequence: Consequence = "wrong text", *, is_recognized: bool = True
) -> Finding:
    """A fault that a case shows."""
    return Finding(cause=cause, consequence=consequence, is_recognized=is_recognized)


def verdict(case_id: str, status: Status = "passed", **fields: Any) -> Verdict:
    """A verdict on a case of the group that the id begins with; `causes` become its findings."""
    group: Group = case_id.partition("/")[0]  # type: ignore[assignment]
    case = Case(
        id=case_id,
        group=group,
        proves=fields.pop("proves", "the answer is right"),
        clause=fields.pop("clause", "text"),
        input={},
        expected={},
        models=("tiny-chat",),
    )
    causes = fields.pop("causes", ())
    findings = tuple(finding(each) if isinstance(each, str) else each for each in causes)
    return Verdict(case=case, status=status, **{"seconds": 0.25, "findings": findings, **fields})


def report(*verdicts: Verdict, **fields: Any) -> Report:
    """A run that found these, of a server that does not exist."""
    implementation = Implementation(
        name=fields.pop("name", "llama-server"),
        version=fields.pop("version", "b4404"),
        language=fields.pop("language", "C++"),
        groups=frozenset({"tokenizer", "sampling", "text"}),
        details=fields.pop("details", {"url": "http://127.0.0.1:8080"}),
    )
    standard: dict[str, Any] = {
        "implementation": implementation,
        "target": "http://127.0.0.1:8080",
        "verdicts": verdicts,
        "suite_version": "1.0.0",
        "numerics_revision": 2,
        "profile": "llama.cpp",
        "environment": {"python": "CPython 3.12.3", "machine": "x86_64"},
        "started": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "seconds": 12.34,
    }
    return Report(**{**standard, **fields})


def of_each_status() -> Report:
    """A run in which everything happened once."""
    return report(
        verdict("tokenizer/ascii"),
        verdict("tokenizer/accents", "skipped", reason="the model stories260K is not here"),
        verdict(
            "sampling/crossing",
            "failed",
            proves="the token that crosses top_p is kept",
            clause="top_p",
            difference=Difference(where="stage top_p", expected=[0, 1], got=[0]),
            causes=["temperature last"],
        ),
        verdict(
            "logits/tiny-chat",
            "failed",
            clause="numerics",
            difference=Difference(
                where="logit 3 of token 0",
                expected=1.5,
                got=1.75,
                tolerances=3.25,
                expected_values=(1.0, -2.0, 1.5),
                got_values=(1.0, -2.0, 1.75),
            ),
            causes=[finding("other numbers", "wrong numbers", is_recognized=False)],
        ),
        verdict(
            "text/echo",
            "expected failure",
            reason="the prompt is part of the text",
            link="https://example.org/echo",
            difference=Difference(where="text", expected="a cat", got="Once a cat"),
        ),
        verdict("text/stop", "unexpected pass", reason="the end token is not counted"),
        verdict(
            "api/unknown-model",
            "error",
            reason="no answer in 30 s",
            causes=[finding("no answer in 30 s", "no answer")],
        ),
        verdict("ops/rope", "not applicable", reason="HTTP carries no ops"),
    )


def saying(text: str) -> Report:
    """A report with the text wherever a text can be, in every way that a case can end."""
    difference = Difference(
        where=text,
        expected=[text],
        got={text: text},
        expected_values=(1.0, 2.0),
        got_values=(1.0, 3.0),
    )
    verdicts = (
        verdict(
            f"text/{i}",
            status,
            proves=text,
            clause=text,
            reason=text,
            causes=[text],
            link=text,
            difference=difference,
        )
        for i, status in enumerate(STATUSES)
    )
    return report(
        *verdicts,
        name=text,
        version=text,
        language=text,
        details={text: text},
        target=text,
        suite_version=text,
        command=text,
        profile=text,
        environment={text: text},
        bits=Bits(reason=text),
    )
