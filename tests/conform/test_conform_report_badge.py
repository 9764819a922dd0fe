from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from refllm.conform.report.badge import badge_of
from refllm.conform.verdict import Status
from tests.support.conform_reports import report, verdict


@pytest.mark.parametrize(
    ("counts", "message", "color"),
    [
        ({"passed": 312}, "312/312", "#2d7d32"),
        ({"passed": 300, "skipped": 12}, "300/300, 12 skipped", "#2d7d32"),
        ({"passed": 300, "expected failure": 12}, "300/312", "#6b7010"),
        ({"passed": 300, "failed": 2}, "2 failed", "#c62828"),
        ({"failed": 2, "unexpected pass": 1}, "2 failed, 1 unexpected pass", "#c62828"),
        ({"passed": 300, "skipped": 12, "not applicable": 9}, "300/300, 12 skipped", "#2d7d32"),
        ({"passed": 1, "error": 3}, "3 errors", "#c62828"),
        ({"failed": 1, "error": 1}, "1 failed, 1 error", "#c62828"),
        ({"skipped": 5, "not applicable": 1}, "nothing tested", "#616161"),
        ({}, "nothing tested", "#616161"),
    ],
)
def test_the_badge_has_the_result_in_words_and_color(
    counts: dict[Status, int], message: str, color: str
) -> None:
    run = report(
        *(verdict(f"text/{status}-{i}", status) for status, n in counts.items() for i in range(n))
    )
    badge = ET.fromstring(badge_of(run))
    svg = "{http://www.w3.org/2000/svg}"
    assert badge.findtext(f"{svg}title") == f"refllm conformance: {message}"
    assert badge.get("aria-label") == f"refllm conformance: {message}"
    assert {text.text for text in badge.iter(f"{svg}text")} == {"refllm conformance", message}
    assert color in [rect.get("fill") for rect in badge.iter(f"{svg}rect")]


def test_the_badge_has_room_for_its_text() -> None:
    run = report(*(verdict(f"text/{i}") for i in range(312)))
    badge = ET.fromstring(badge_of(run))
    texts = badge.findall(".//{*}text")
    drawn = {str(text.text): float(text.get("textLength", "0")) / 10 for text in texts}
    # Six digits and a slash, which Verdana at 11 px makes 7 px and 5 px wide.
    assert drawn["312/312"] == pytest.approx(6 * 7 + 5)
    assert float(badge.get("width", "0")) == pytest.approx(sum(drawn.values()) + 4 * 5, abs=1)
