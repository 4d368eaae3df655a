"""Charts made of rectangles, as inline SVG: heat maps and bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lorap_exp.reporting.svg import COLOURS, Axis, label, number, svg, tag

STOPS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Viridis: even steps for every eye, and in grey."""
CELL, NAMES, TOP = 16, 46, 22
BAR, LABEL_WIDTH, BAR_WIDTH = 5, 460, 400


@dataclass(frozen=True)
class Tile:
    """A cell of a heat map: its colour as a share from 0 to 1, and its text on hovering."""

    share: float
    title: str
    marked: bool = False


def colour(share: float) -> str:
    """A share from 0 (dark) to 1 (bright) as #rrggbb; what lies outside is clamped."""
    place = min(max(share, 0.0), 1.0) * (len(STOPS) - 1)
    index = min(int(place), len(STOPS) - 2)
    pairs = zip(STOPS[index], STOPS[index + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - index)):02x}" for a, b in pairs)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[int],
    tiles: Mapping[tuple[str, int], Tile],
    *,
    title: str,
    column_name: str,
    ends: tuple[str, str],
) -> Markup:
    """Tiles by (row, column); where there is none, the page shows through.

    `ends` says what the first and the last colour mean.
    """
    top = TOP if title else 4
    body = []
    for i, row in enumerate(rows):
        body.append(label(NAMES - 6, top + i * CELL + 12, row, "end"))
        for j, column in enumerate(columns):
            if (tile := tiles.get((row, column))) is not None:
                body.append(_tile(tile, NAMES + j * CELL, top + i * CELL))
    bottom = top + len(rows) * CELL
    every = 1 if len(columns) <= 16 else 5
    body += [
        label(NAMES + j * CELL + CELL / 2, bottom + 13, str(column), "middle")
        for j, column in enumerate(columns)
        if column % every == 0
    ]
    body.append(label(NAMES, bottom + 28, column_name))
    body += _scale(bottom + 36, *ends)
    width = max(NAMES + len(columns) * CELL + 8, 420)
    return svg(width, bottom + 54, title, body)


def _scale(y: int, low: str, high: str) -> list[Markup]:
    """The colours from `low` to `high`, named."""
    start = NAMES + 7 * len(low)
    steps = [
        tag("rect", x=start + 4 * i, y=y, width=4, height=10, fill=colour(i / 31))
        for i in range(32)
    ]
    ends = [label(start - 5, y + 9, low, "end"), label(start + 133, y + 9, high)]
    return [*steps, *ends]


def bars(
    rows: Mapping[str, Mapping[str, tuple[float, str]]],
    colours: Mapping[str, int],
    title: str,
    unit: str,
    stacked: bool,
) -> Markup:
    """Horizontal bars: for each row, stage -> (value, text on hovering), stacked or one below
    the other; `colours` by stage."""
    totals = [sum(v for v, _ in row.values()) for row in rows.values()]
    singles = [v for row in rows.values() for v, _ in row.values()]
    top = max(totals if stacked else singles, default=1) or 1
    x = Axis(0, top, LABEL_WIDTH, LABEL_WIDTH + BAR_WIDTH)
    body, y = [], float(TOP)
    for name, row in rows.items():
        height = 14 if stacked else max(14, BAR * len(row))
        body.append(label(LABEL_WIDTH - 6, y + height / 2 + 4, shorten(name), "end"))
        place = 0.0
        for i, (stage, (value, text)) in enumerate(row.items()):
            top_edge, thick = (y, 14) if stacked else (y + i * BAR, BAR - 1)
            body.append(
                tag(
                    "rect",
                    tag("title", text),
                    x=x(place),
                    y=top_edge,
                    width=x(value) - x(0),
                    height=thick,
                    class_=f"bar c{colours[stage] % COLOURS}",
                )
            )
            place += value if stacked else 0
        y += height + 6
    ticks = [label(x(v), y + 10, number(v), "middle") for v in x.ticks()]
    lines = [tag("line", x1=x(v), x2=x(v), y1=TOP, y2=y, class_="grid") for v in x.ticks()]
    name = label(x.stop, y + 26, unit, "end")
    return svg(LABEL_WIDTH + BAR_WIDTH + 24, y + 32, title, [*lines, *body, *ticks, name])


def shorten(name: str, length: int = 80) -> str:
    """A name that fits beside a bar."""
    return name if len(name) <= length else "…" + name[1 - length :]


def _tile(tile: Tile, x: int, y: int) -> Markup:
    return tag(
        "rect",
        tag("title", tile.title),
        x=x,
        y=y,
        width=CELL - 1,
        height=CELL - 1,
        fill=colour(tile.share),
        class_="tile marked" if tile.marked else "tile",
    )
