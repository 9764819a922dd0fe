from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from refllm.api import LlmRuntimeError
from refllm.conform.report.html import html_of
from refllm.conform.report.plot import MAX_POINTS, plot
from refllm.conform.report.values import printable
from refllm.conform.verdict import Difference
from refllm.errors import how_to_install
from tests.support.conform_reports import NASTY, of_each_status, report, saying, verdict

VOID = frozenset({"meta", "link", "br", "hr", "img", "input", "source", "wbr"})


@dataclass
class Page:
    """What a browser makes of a page, as far as these tests look."""

    tags: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    sources: list[str] = field(default_factory=list)
    text: str = ""


class Reader(HTMLParser):
    """Reads a page, and fails where an element is not closed where it must be."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> closes itself in SVG only"
        self._look(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.page.text += data

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append(tag)
        for name, value in attrs:
            self.page.attributes.add(name)
            if name == "id":
                self.page.ids.append(value or "")
            if (tag, name) == ("a", "href"):
                self.page.links.append(value or "")
            elif name in ("src", "href", "srcset", "data", "action", "xlink:href"):
                self.page.sources.append(value or "")


def read(html: str) -> Page:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader.page


# Whatever a backend says


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_a_page_shows_texts_of_a_backend_and_executes_none(text: str) -> None:
    page = read(html_of(saying(text)))
    assert (
        printable(text).split() == (printable(text) if printable(text) in page.text else "").split()
    )
    assert {"script", "img", "iframe", "object", "link"}.isdisjoint(page.tags)
    assert not any(name.startswith("on") for name in page.attributes)


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", "data:text/html,x", "//example.org", "http://[", "x"]
)
def test_only_the_address_of_a_page_becomes_a_link(link: str) -> None:
    known = verdict("text/echo", "expected failure", reason="known", link=link)
    page = read(html_of(report(known)))
    assert all(each.startswith("#") for each in page.links)
    assert link in page.text


# The page


def test_every_case_has_one_anchor_and_a_link_to_it() -> None:
    run = of_each_status()
    page = read(html_of(run))
    assert len(page.ids) == len(set(page.ids))
    for each in run.verdicts:
        assert each.case.id in page.ids
        assert f"#{each.case.id}" in page.links


def test_a_cause_comes_before_the_groups_and_links_to_each_of_its_cases() -> None:
    run = report(*(verdict(f"text/{i}", "failed", causes=["it echoes"]) for i in range(40)))
    html = html_of(run)
    causes = html[: html.index('id="groups"')]
    links = re.findall(r'href="(#text/\d+)"', causes)
    assert links == [f"#text/{i}" for i in range(40)]
    assert "<summary>and 30 more</summary>" in causes
    assert "wrong text" in causes


def test_failures_of_one_cause_beyond_the_first_are_folded() -> None:
    run = report(
        *(verdict(f"text/{i}", "failed", causes=["it echoes"]) for i in range(40)),
        verdict("text/other", "failed", causes=["it is cut"]),
    )
    html = html_of(run)
    assert "<summary>37 more of cause 1</summary>" in html
    folded = html[html.index("<summary>37 more") :]
    assert '<article id="text/39">' in folded
    assert '<article id="text/other">' not in folded


def test_a_case_links_to_its_causes() -> None:
    html = html_of(report(verdict("text/x", "failed", causes=["it echoes", "it is drawn"])))
    article = html[html.index('<article id="text/x">') :]
    assert re.findall(r'href="(#cause-\d)"', article) == ["#cause-1", "#cause-2"]


def test_links_within_the_page_have_targets_and_links_out_are_known_deviations() -> None:
    page = read(html_of(of_each_status()))
    inside = {link for link in page.links if link.startswith("#")}
    assert inside <= {f"#{each}" for each in page.ids}
    assert set(page.links) - inside == {"https://example.org/echo"}


def test_the_page_fetches_nothing() -> None:
    html = html_of(of_each_status())
    assert read(html).sources == []
    assert re.findall(r"@import|url\(|https?:(?!//example\.org|//127\.0\.0\.1)", html) == []
    assert "default-src 'none'" in html


def test_the_page_fits_a_telephone_and_the_reader_s_colors() -> None:
    html = html_of(of_each_status())
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html


def luminance(color: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    digits = color.lstrip("#")
    full = digits if len(digits) == 6 else "".join(2 * each for each in digits)
    parts = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "ground"),
    [
        *((ink, "page") for ink in ("ink", "quiet", "link", "good", "bad", "odd")),
        ("ink", "soft"),
        ("mark-ink", "mark"),
    ],
)
def test_every_text_stands_out_as_much_as_wcag_asks(ink: str, ground: str, scheme: int) -> None:
    rules = re.findall(r":root \{(.*?)\}", html_of(report()), re.DOTALL)
    colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", rules[scheme]))
    low, high = sorted((luminance(colors[ink]), luminance(colors[ground])))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_a_failure_stands_side_by_side_with_its_plot() -> None:
    html = html_of(of_each_status())
    article = html[html.index('<article id="logits/tiny-chat">') :]
    article = article[: article.index("</article>") + len("</article>")]
    shown = read(article)
    assert shown.tags.count("pre") == 2
    assert shown.tags.count("svg") == 1
    assert shown.tags.count("tr") == 1 + 3
    assert "3.25 times what is allowed" in shown.text
    assert "<mark>1.75</mark>" in article


def test_a_failure_without_numbers_has_no_plot() -> None:
    difference = Difference(where="text", expected="a cat", got="a bat")
    html = html_of(report(verdict("text/x", "failed", difference=difference)))
    assert "<mark>c</mark>at" in html
    assert "svg" not in read(html).tags


def test_every_table_has_headings_and_headings_skip_no_level() -> None:
    html = html_of(of_each_status())
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    assert tables
    assert all('scope="row"' in table for table in tables)
    levels = [int(tag[1]) for tag in read(html).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_the_table_has_no_column_for_an_absent_status() -> None:
    html = html_of(report(verdict("text/a"), verdict("text/b", "skipped", reason="no model")))
    table = html[html.index("<table>") : html.index("</table>") + len("</table>")]
    assert read(table).text.split() == [
        *("group", "passed", "failed", "skipped"),
        *("text", "1", "0", "1"),
        *("total", "1", "0", "1"),
    ]


def test_without_jinja_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(LlmRuntimeError, match="needs the package jinja2") as refusal:
        html_of(report())
    assert refusal.value.args[1] == how_to_install("server")


# A plot


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ([1.0, 2.0], [1.0, 2.5]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([5e-324, 0.0], [0.0, -5e-324]),
        ([1.7e308, -1.7e308], [-1.7e308, 1.7e308]),
        ([math.nan, math.inf, 1.0], [1.0, -math.inf, math.nan]),
        ([math.nan, math.nan], [math.nan, math.inf]),
        ([1.0, 2.0, 3.0], [1.0, 2.0]),
        ([float(i) for i in range(1000)], [float(i) for i in range(1000)]),
    ],
)
def test_a_plot_stays_within_its_frame_whatever_the_numbers(
    expected: Sequence[float], got: Sequence[float]
) -> None:
    svg = ET.fromstring(plot(expected, got))
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    for element in svg:
        for name in ("cx", "x", "x1", "x2"):
            assert 0.0 <= float(element.get(name, "0")) <= width
        for name in ("cy", "y", "y1", "y2"):
            assert 0.0 <= float(element.get(name, "0")) <= height
        coordinates = [float(each) for each in re.findall(r"[-\d.]+", element.get("d", ""))]
        assert all(0.0 <= each <= width for each in coordinates)
    assert len(svg.findall("circle")) <= MAX_POINTS


def test_the_text_of_a_plot_has_the_place_of_the_largest_difference() -> None:
    svg = ET.fromstring(plot([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 2.5, 4.25]))
    assert svg.findtext("title") == "4 numbers; the largest difference, 0.5, is at number 2"


def test_a_difference_in_the_last_bit_is_drawn_as_high_as_its_panel() -> None:
    one = math.nextafter(1.0, 2.0)
    bars = ET.fromstring(plot([1.0, 1.0, 1.0], [1.0, one, 1.0])).find("path[@class='difference']")
    assert bars is not None
    found = re.fullmatch(r"M180\.0 (206\.0)V(146\.0)", bars.get("d", ""))
    assert found is not None


def test_values_that_are_not_finite_are_marked() -> None:
    svg = ET.fromstring(plot([1.0, 2.0, 3.0], [1.0, math.nan, 3.0]))
    assert len(svg.findall("path[@class='bad']")) == 2  # the number, and the difference
    assert len(svg.findall("circle")) == 2


def test_a_long_row_is_drawn_around_its_largest_difference() -> None:
    got = [0.0] * 1000
    got[700] = 1.0
    svg = ET.fromstring(plot([0.0] * 1000, got))
    assert len(svg.findall("circle")) == MAX_POINTS
    assert "1, is at number 700" in str(svg.findtext("title"))


@pytest.mark.parametrize(("expected", "got"), [([], []), ([1.0], [2.0]), ([1.0, 2.0], [])])
def test_fewer_than_two_numbers_are_not_drawn(expected: list[float], got: list[float]) -> None:
    assert plot(expected, got) == ""
