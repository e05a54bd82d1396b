"""Line charts as SVG, written by hand: a page with them needs nothing else.

Lines differ in dashes and markers as well as in colour, so that they can be told apart in print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 12, 48
_COLOURS = ("#1b6ca8", "#b5452c", "#2f7d4f", "#6b4c9a", "#8a6d1d", "#444444")
_DASHES = ("none", "7 3", "2 3", "9 3 2 3", "1 2", "14 4")
_MOST_TICKS = 8


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One direction of a chart."""

    label: str  # with its unit
    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False  # ticks at whole numbers only

    def place(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        low, high, value = (
            math.log10(x) if self.logarithmic else x for x in (self.low, self.high, value)
        )
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Round values along the axis."""
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            step = max(1, math.ceil((last - first) / _MOST_TICKS))
            return [10.0**power for power in range(first, last + 1, step)]
        rough = max((self.high - self.low) / _MOST_TICKS, 1e-12)
        step_size = 10 ** math.floor(math.log10(rough))
        step_size *= next(factor for factor in (1, 2, 5, 10) if factor * step_size >= rough)
        step_size = max(1.0, step_size) if self.whole else step_size
        first = math.ceil(self.low / step_size - 1e-9)
        last = math.floor(self.high / step_size + 1e-9)
        return [number * step_size for number in range(first, last + 1)]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    marked: bool = False  # a dot at every point


def line_chart(x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """An SVG element with the lines and a legend above them."""
    legend_height = 20 * len(lines)
    height = _HEIGHT + legend_height
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    parts += [_legend(line, number) for number, line in enumerate(lines)]
    parts.append(f'<g transform="translate(0 {legend_height})">')
    parts += [_x_tick(x, value) for value in x.ticks()]
    parts += [_y_tick(y, value) for value in y.ticks()]
    parts.append(_frame(x, y))
    parts += [_line(x, y, line, number) for number, line in enumerate(lines)]
    return "\n".join([*parts, "</g>", "</svg>"])


def _across(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _down(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM)


def _x_tick(axis: Axis, value: float) -> str:
    x = _across(axis, value)
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="#e4e4e4"/>'
        f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value:g}</text>'
    )


def _y_tick(axis: Axis, value: float) -> str:
    y = _down(axis, value)
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _frame(x: Axis, y: Axis) -> str:
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return (
        f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" '
        'stroke="#222"/>'
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">'
        f"{escape(x.label)}</text>"
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>"
    )


def _style(number: int) -> str:
    return (
        f'stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="2" fill="none" '
        f'stroke-dasharray="{_DASHES[number % len(_DASHES)]}"'
    )


def _legend(line: Line, number: int) -> str:
    y = 20 * number + 14
    return (
        f'<line x1="{_LEFT}" x2="{_LEFT + 40}" y1="{y}" y2="{y}" {_style(number)}/>'
        f'<text x="{_LEFT + 48}" y="{y + 4}">{escape(line.name)}</text>'
    )


def _line(x: Axis, y: Axis, line: Line, number: int) -> str:
    places = [(_across(x, a), _down(y, b)) for a, b in line.points]
    text = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    drawn = f'<polyline points="{text}" {_style(number)}/>'
    if line.marked:
        colour = _COLOURS[number % len(_COLOURS)]
        drawn += "".join(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{2.5 + number % 3}" fill="{colour}"/>'
            for a, b in places
        )
    return drawn
