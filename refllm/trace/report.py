"""A comparison in words: for a terminal, as JSON and as a page for a browser.

`report.html.jinja` beside this file is the page's template; it fetches nothing.
`comparison.schema.json` describes the JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refllm.errors import LlmRuntimeError, how_to_install
from refllm.trace.compare import Comparison, Growth, ValueDifference
from refllm.trace.expected import layer_of
from refllm.trace.metadata import Metadata

__all__ = ["Line", "html_of", "json_of", "lines_of", "require_html"]

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MAX_CAUSES = 3
MAX_BAR = 24  # characters
SMALLEST = 1e-8  # a share below the rounding of float32 has no bar


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the report, and its role: "head", "bad", "good", "plain" or "bar"."""

    text: str
    role: str = "plain"


def lines_of(found: Comparison, names: tuple[str, str], a: Metadata) -> list[Line]:
    """Return the report for a terminal.

    Args:
        found: The comparison.
        names: What A and B are called.
        a: The metadata of A.
    """
    lines = [Line(f"A  {names[0]}", "head"), Line(f"B  {names[1]}", "head")]
    lines += [Line(f"   {each.name}: {each.a} in A, {each.b} in B") for each in found.settings]
    lines.append(Line(""))
    if found.tokens is not None:
        token = found.tokens
        lines += [
            Line(f"First difference: token {token.position} of text {token.text}", "bad"),
            Line(f"  A has {token.a}"),
            Line(f"  B has {token.b}"),
        ]
        if token.cause:
            lines.append(Line(f"It looks like: {token.cause}", "head"))
        lines.append(Line("With other tokens every value is another one; none was compared."))
        return lines
    lines.append(
        Line(
            f"{found.n_values:,} values: {found.n_equal:,} are equal in every bit, "
            f"{found.n_values - found.n_equal:,} are not"
            + (f"; {found.n_alone:,} are in one trace alone" if found.n_alone else "")
        )
    )
    if found.is_bounded and found.n_unbounded:
        lines.append(
            Line(
                f"{found.n_unbounded:,} of them could not be computed from their inputs: such a "
                "value counts as different beyond 0.1 %"
            )
        )
    if not found.is_bounded:
        lines.append(
            Line(
                f"The weights of {a.model} are not here, so no value can be computed from its "
                "inputs: a value counts as different beyond 0.1 %; --model names the weights"
            )
        )
    if found.first is not None:
        lines += _first(found.first, a)
        lines += _others(found.first, found.others)
    elif found.draw is None:
        lines.append(
            Line(
                "No difference: rounding in another order explains all"
                if found.n_equal < found.n_values
                else "No difference",
                "good",
            )
        )
    if found.draw is not None:
        draw = found.draw
        why = "" if draw.is_own else ", because the logits before it differ"
        role = "bad" if found.first is None else "plain"
        lines.append(Line(f"Draw {draw.draw} differs at {draw.stage}{why}", role))
        lines += [Line(f"  A: {draw.a}"), Line(f"  B: {draw.b}")]
    if found.n_equal < found.n_values:
        lines += _growth(found)
    return lines


def _first(first: ValueDifference, a: Metadata) -> Iterator[Line]:
    is_in_layer = first.layer >= 0 and not first.name.startswith("result_")  # a dense layer's
    where = f", layer {first.layer}" if is_in_layer else ""
    yield Line(f"First difference: {first.name}{where}, {_call(first.call, a)}", "bad")
    if first.shapes is not None:
        shapes = [" × ".join(map(str, shape)) for shape in first.shapes]
        yield Line(f"  A is {shapes[0]}, B is {shapes[1]}")
        return
    index = ", ".join(map(str, first.index))
    text = a.texts[a.calls[first.call].text]
    piece = f" {text.pieces[first.token]!r}" if text.pieces else ""
    is_of_text = first.name.startswith("result_embd")  # and so of no token
    token = "" if is_of_text else f", token {first.token}{piece}"
    yield Line(f"  furthest at [{index}]{token}: A {first.a:.6g}, B {first.b:.6g}")
    if first.wrong:
        side = first.wrong if len(first.wrong) == 1 else "A and B"
        verb = "does" if len(first.wrong) == 1 else "do"
        of = "its" if len(first.wrong) == 1 else "their"
        times = f": {_times(first.times)} what rounding can change"
        yield Line(
            f"  {side} {verb} not follow from {of} inputs, which give {first.expected:.6g}"
            + (times if math.isfinite(first.times) else "")
        )
    else:
        yield Line(f"  B is {first.share:.2g} of A's size away from A")
    if first.causes:
        yield Line("It looks like:", "head")
        for cause in first.causes[:MAX_CAUSES]:
            how = "exactly" if cause.share == 1 else f"{100 * cause.share:.0f} % of it"
            yield Line(f"  {cause.name} ({how}): {cause.text}")
    else:
        yield Line("No known fault reproduces the value.", "head")


def _times(times: float) -> str:
    if times < 10:
        return f"{times:.1f} times"
    return f"{times:,.0f} times" if times < 1e6 else f"{times:.0e} times".replace("e+0", "e")


def _call(call: int, a: Metadata) -> str:
    span = a.calls[call]
    if a.architecture == "bert":
        return f"text {span.text}"
    text = a.texts[span.text]
    if span.first < text.n_given:
        return "the prompt" if span.first == 0 else f"the prompt from token {span.first} on"
    return f"drawn token {span.first - text.n_given}"


def _others(first: ValueDifference, others: Sequence[ValueDifference]) -> Iterator[Line]:
    layers: dict[str, list[int]] = {}
    for each in (first, *others):
        base, layer = layer_of(each.name)
        layers.setdefault(base, []).append(layer)
    if not others:
        yield Line("Every other value of this call follows from its inputs.")
        return
    named = [
        base if found == [-1] else f"{base} (layers {_ranges(found)})"
        for base, found in layers.items()
    ]
    yield Line(f"Of this call do not follow from their inputs: {', '.join(named)}")


def _ranges(numbers: Sequence[int]) -> str:
    """Return 0–3, 5 for 0, 1, 2, 3, 5."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in parts)


def _growth(found: Comparison) -> Iterator[Line]:
    call = found.first.call if found.first is not None else 0
    shown = [each for each in found.growth if each.call == call]
    if not shown:
        return
    yield Line("B − A as a part of A, root mean square:", "head")
    width = max(len(each.name) for each in shown)
    for each in shown:
        yield Line(f"  {each.name:<{width}}  {each.share:7.1e}  {_bar(each)}".rstrip(), "bar")


def _bar(each: Growth) -> str:
    """Return a bar: one character for a third of a power of ten above the rounding of float32."""
    if each.share <= SMALLEST:
        return ""
    return "█" * min(MAX_BAR, round(3 * math.log10(min(each.share, 1e8) / SMALLEST)))


def json_of(found: Comparison, names: tuple[str, str]) -> Mapping[str, Any]:
    """Return the comparison as JSON's types; a number that is not finite is null."""
    value: Mapping[str, Any] = {
        "a": names[0],
        "b": names[1],
        "is_different": found.is_different,
        **asdict(found),
    }
    finite = json.loads(json.dumps(value), parse_constant=lambda _name: None)
    assert isinstance(finite, dict)
    return finite


def require_html() -> None:
    """Check that the page can be made.

    Raises:
        LlmRuntimeError: Where jinja2 is not installed, with how to install it.
    """
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError as error:
        raise LlmRuntimeError(
            f"the HTML page needs the package {error.name}", how_to_install("server")
        ) from error


def html_of(found: Comparison, names: tuple[str, str], a: Metadata) -> str:
    """Return the report as a page in UTF-8.

    Raises:
        LlmRuntimeError: Where jinja2 is not installed.
    """
    require_html()
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    calls = {each.call for each in found.growth}
    return template.render(
        names=names,
        lines=[line for line in lines_of(found, names, a) if line.role != "bar"],
        growth=[
            (_call(call, a), [(each, _width(each)) for each in found.growth if each.call == call])
            for call in sorted(calls)
        ],
        differences=[] if found.first is None else [found.first, *found.others],
    )


def _width(each: Growth) -> int:
    """Return the width of a bar in percent."""
    return round(100 * len(_bar(each)) / MAX_BAR)
