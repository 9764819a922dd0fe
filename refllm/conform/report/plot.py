"""Two rows of numbers and their difference, as an SVG inside a page.

The upper panel shows the expected numbers as a line and the target's as dots, the lower panel the
differences as bars. Each has its own scale, so that a difference in the last bit is visible. The
page colors the classes `expected`, `got`, `difference`, `axis` and `bad`; their shapes differ, too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["MAX_POINTS", "plot"]

MAX_POINTS = 160

# In units of the drawing, about one px each on a telephone.
WIDTH = 360
LEFT, RIGHT = 6, 354
UPPER_TOP, UPPER_BOTTOM = 22, 112
LOWER_TOP, LOWER_BOTTOM = 146, 206
HEIGHT = 214


def plot(expected: Sequence[float], got: Sequence[float]) -> str:
    """Return an `<svg>` element, or "" unless both rows have at least two numbers.

    Of more than `MAX_POINTS` numbers, those around the largest difference are drawn. A number that
    is not finite is marked at the top of its panel.

    Args:
        expected: The right numbers.
        got: The target's, perhaps fewer or more.
    """
    if min(len(expected), len(got)) < 2:
        return ""
    shared = min(len(expected), len(got))
    differences = [_difference(expected[i], got[i]) for i in range(shared)]
    begin = _begin(differences)
    end = min(begin + MAX_POINTS, max(len(expected), len(got)))
    right, theirs = expected[begin:end], got[begin:end]
    off = differences[begin:end]
    place = _Places(first=begin, last=max(begin + 1, end - 1))
    upper = _Scale.of([*right, *theirs], UPPER_TOP, UPPER_BOTTOM)
    lower = _Scale.of([0.0, *off], LOWER_TOP, LOWER_BOTTOM)
    radius = _number(max(1.2, min(3.0, place.step / 2.5)))
    parts = (
        *_labels(upper, UPPER_TOP, "expected (line), got (dots)"),
        *_line(right, place, upper),
        *(
            f'<circle cx="{_number(place.x(offset))}" cy="{_number(upper.y(value))}" r="{radius}" '
            'class="got"/>'
            for offset, value in enumerate(theirs)
            if math.isfinite(value)
        ),
        *_labels(lower, LOWER_TOP, "got − expected"),
        *_bars(off, place, lower),
        *_marks(right, place, UPPER_TOP),
        *_marks(theirs, place, UPPER_TOP),
        *_marks(off, place, LOWER_TOP),
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="plot">\n'
        f"<title>{_described(off, begin)}</title>\n" + "\n".join(parts) + "\n</svg>"
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """The vertical scale of a panel: `low` at the bottom, `high` at the top.

    Numbers are divided by `unit`, the largest magnitude, so that no difference overflows.
    """

    low: float
    high: float
    unit: float
    top: int
    bottom: int

    @classmethod
    def of(cls, values: Sequence[float], top: int, bottom: int) -> _Scale:
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        return cls(low, high, max(abs(low), abs(high)) or 1.0, top, bottom)

    def y(self, value: float) -> float:
        low, high = self.low / self.unit, self.high / self.unit
        if high == low:
            return (self.top + self.bottom) / 2
        fraction = (value / self.unit - low) / (high - low)
        return self.bottom - fraction * (self.bottom - self.top)


@dataclass(frozen=True, slots=True)
class _Places:
    """The horizontal places of the numbers from index `first` to `last`."""

    first: int
    last: int

    def x(self, offset: int) -> float:
        return LEFT + 4 + offset * self.step

    @property
    def step(self) -> float:
        return (RIGHT - LEFT - 8) / (self.last - self.first)


def _difference(expected: float, got: float) -> float:
    """Return the difference, the largest float64 where it is larger, nan where one is nan."""
    if expected == got or (math.isnan(expected) and math.isnan(got)):
        return 0.0
    difference = got - expected
    if math.isfinite(expected) and math.isfinite(got) and math.isinf(difference):
        return math.copysign(sys.float_info.max, difference)
    return difference


def _begin(differences: Sequence[float]) -> int:
    """Return the first index to draw, so that the largest difference is in the middle."""
    if len(differences) <= MAX_POINTS:
        return 0
    sizes = [abs(each) if math.isfinite(each) else math.inf for each in differences]
    worst = sizes.index(max(sizes))
    return max(0, min(worst - MAX_POINTS // 2, len(differences) - MAX_POINTS))


def _labels(scale: _Scale, top: int, title: str) -> Iterator[str]:
    """Yield the panel's title, the numbers at its edges, and its frame."""
    yield f'<text x="{LEFT}" y="{top - 8}">{title}</text>'
    yield (
        f'<text x="{RIGHT}" y="{top - 8}" text-anchor="end">'
        f"{scale.low:.4g} … {scale.high:.4g}</text>"
    )
    yield (
        f'<rect x="{LEFT}" y="{top - 4}" width="{RIGHT - LEFT}" '
        f'height="{scale.bottom - top + 8}" class="axis"/>'
    )
    if scale.low <= 0.0 <= scale.high and scale.low != scale.high:
        y = _number(scale.y(0.0))
        yield f'<line x1="{LEFT}" y1="{y}" x2="{RIGHT}" y2="{y}" class="axis"/>'


def _line(values: Sequence[float], place: _Places, scale: _Scale) -> Iterator[str]:
    """Yield the numbers as a line that is interrupted where one is not finite."""
    command, steps = "M", []
    for offset, value in enumerate(values):
        if not math.isfinite(value):
            command = "M"
            continue
        steps.append(f"{command}{_number(place.x(offset))} {_number(scale.y(value))}")
        command = "L"
    yield f'<path d="{"".join(steps)}" class="expected"/>'


def _bars(values: Sequence[float], place: _Places, scale: _Scale) -> Iterator[str]:
    zero, steps = _number(scale.y(0.0)), []
    for offset, value in enumerate(values):
        if math.isfinite(value) and value != 0.0:
            steps.append(f"M{_number(place.x(offset))} {zero}V{_number(scale.y(value))}")
    width = _number(max(1.2, min(8.0, place.step * 0.6)))
    yield f'<path d="{"".join(steps)}" stroke-width="{width}" class="difference"/>'


def _marks(values: Sequence[float], place: _Places, top: int) -> Iterator[str]:
    """Yield a cross where a number is not finite."""
    for offset, value in enumerate(values):
        if not math.isfinite(value):
            x = place.x(offset)
            left, right = _number(x - 3), _number(x + 3)
            yield (
                f'<path d="M{left} {top - 3}L{right} {top + 3}M{left} {top + 3}L{right} {top - 3}" '
                'class="bad"/>'
            )


def _described(differences: Sequence[float], begin: int) -> str:
    """Return the text alternative for the plot."""
    n_bad = sum(not math.isfinite(each) for each in differences)
    finite = [abs(each) if math.isfinite(each) else 0.0 for each in differences]
    text = f"{len(differences)} numbers"
    if any(finite):
        worst = finite.index(max(finite))
        text += f"; the largest difference, {max(finite):.4g}, is at number {begin + worst}"
    if n_bad:
        text += f"; {n_bad} differ by what is not finite"
    return text


def _number(value: float) -> str:
    """Return a coordinate, to a tenth."""
    return f"{value:.1f}".replace("-0.0", "0.0")
