"""Plots as inline SVG: numbers in, markup out, nothing known of experiments.

Colours are classes (`c0` to `c9`) that the page's style sheet fills in for light and dark; every
mark carries its exact numbers as a `<title>`.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM, LINE = 44, 12, 26, 40, 14
COLOURS = 10
MARKS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
    "M-3.5,-3.5h7v7h-7z",
    "M0,-4.8L4.4,3.2H-4.4z",
    "M0,-5L4.6,0L0,5L-4.6,0z",
)
"""Circle, square, triangle, diamond: readable without colour."""


@dataclass(frozen=True)
class Point:
    """A mark at (x, y) with the text shown on hovering; `error` is drawn as a whisker."""

    x: float
    y: float
    title: str = ""
    error: float = math.nan


@dataclass(frozen=True)
class Series:
    """A line through `path` (default: its points) with a mark at each point, in one style."""

    label: str
    style: int
    points: Sequence[Point]
    path: Sequence[Point] = field(default=())
    marks: bool = True


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels, linear or logarithmic; `whole` has ticks at integers only."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False
    whole: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (self._map(v) for v in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (at - low) / (high - low)

    def _map(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[float]:
        """About five round numbers inside the range."""
        found = _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)
        return [tick for tick in found if not self.whole or tick == round(tick)]


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element; `class_` is class, `stroke_width` is stroke-width, and text is escaped."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    text = "".join(f' {key}="{escape(_short(value))}"' for key, value in pairs)
    return Markup(f"<{name}{text}>{Markup('').join(children)}</{name}>")


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    whole_x: bool = False,
    log_y: bool = False,
    legend: bool = False,
) -> Markup:
    """Lines and marks over two axes; a logarithmic axis leaves out what is not positive.

    `whole_x` numbers that axis in whole steps; `legend` names the series below the title, in
    their colours.
    """
    shown = [p for s in series for p in (*s.points, *s.path) if math.isfinite(p.y)]
    x = replace(axis([p.x for p in shown], LEFT, WIDTH - RIGHT), whole=whole_x)
    ends = [p.y + sign * (0 if math.isnan(p.error) else p.error) for p in shown for sign in (-1, 1)]
    top = TOP + LINE if legend else TOP
    y = axis([end for end in ends if end > 0 or not log_y], HEIGHT - BOTTOM, top, log_y)
    body = [*_frame(x, y, x_label), *(_series(s, x, y) for s in series)]
    body += [_names(series)] if legend else []
    return svg(WIDTH, HEIGHT, title, body)


def axis(values: Sequence[float], start: float, stop: float, log: bool = False) -> Axis:
    """An axis that holds the values with a margin; a single value gets room around it."""
    low, high = (min(values), max(values)) if values else (1, 2)
    if log:
        margin = max((high / low) ** 0.06, 1.1)
        return Axis(low / margin, min(high * margin, sys.float_info.max), start, stop, log)
    margin = high * 0.06 - low * 0.06 or abs(high) * 0.1 or 1
    return Axis(low - margin, high + margin, start, stop)


def number(value: float) -> str:
    """A short label: 0.25, 12, 30k, 25M, 3G."""
    for power, unit in ((9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power and (unit != "k" or abs(value) >= 1e4):
            return f"{value / 10**power:.4g}{unit}"
    return f"{value:.4g}"


def label(x: float, y: float, text: str, anchor: str = "start", **attributes: object) -> Markup:
    """A piece of text; `anchor` is start, middle or end."""
    return tag("text", text, x=x, y=y, text_anchor=anchor, **attributes)


def svg(width: float, height: float, title: str, body: Sequence[Markup]) -> Markup:
    """A plot of a natural size that shrinks with the page."""
    heading = label(0, 13, title, class_="title") if title else Markup("")
    box = f"0 0 {_short(width)} {_short(height)}"
    return tag(
        "svg", heading, *body, viewBox=box, width=width, height=height, role="img", aria_label=title
    )


def _names(series: Sequence[Series]) -> Markup:
    spans = [
        tag("tspan", s.label, dx=0 if i == 0 else 10, class_=f"name c{s.style % COLOURS}")
        for i, s in enumerate(series)
    ]
    return tag("text", *spans, x=LEFT, y=TOP + 4)


def _frame(x: Axis, y: Axis, x_label: str) -> list[Markup]:
    """Grid lines with their numbers, and the names of the axes."""
    found = []
    for value in x.ticks():
        found.append(tag("line", x1=x(value), x2=x(value), y1=y.start, y2=y.stop, class_="grid"))
        found.append(label(x(value), y.start + 14, number(value), "middle"))
    for value in y.ticks():
        found.append(tag("line", x1=x.start, x2=x.stop, y1=y(value), y2=y(value), class_="grid"))
        found.append(label(x.start - 5, y(value) + 3.5, number(value), "end"))
    found.append(label((x.start + x.stop) / 2, y.start + 30, x_label, "middle"))
    return found


def _series(series: Series, x: Axis, y: Axis) -> Markup:
    def visible(points: Sequence[Point]) -> list[Point]:
        return [p for p in points if math.isfinite(p.y) and (p.y > 0 or not y.log)]

    line = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in visible(series.path or series.points))
    parts = [tag("polyline", points=line, class_="line")]
    for point in visible(series.points) if series.marks else ():
        if point.error > 0:
            low = point.y - point.error
            low = max(low, y.low) if y.log else low
            ends = {"y1": y(low), "y2": y(point.y + point.error)}
            parts.append(tag("line", x1=x(point.x), x2=x(point.x), class_="whisker", **ends))
        place = f"translate({x(point.x):.1f} {y(point.y):.1f})"
        parts.append(
            tag(
                "path",
                tag("title", point.title),
                d=mark(series.style),
                transform=place,
                class_="point",
            )
        )
    return tag("g", *parts, class_=f"series c{series.style % COLOURS}", data_series=series.label)


def mark(style: int) -> str:
    """The path of a style's mark, around the origin."""
    return MARKS[(style + style // COLOURS) % len(MARKS)]


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    span = math.log10(high / low)
    factors = (1.0,) if span > 3 else (1.0, 3.0) if span > 1.5 else (1.0, 2.0, 5.0)
    found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
    if len(found) < 2:
        return _ticks(low, high)
    return found[:: max(1, round(len(found) / 5))]


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
