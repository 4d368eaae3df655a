"""A chart is a function that draws on axes: alone it is inline SVG, in a grid it is a PNG.

Both come from matplotlib, so page, image and tracking show the same chart. In the page, ink is the
colour of the text, colours are variables of the style sheet (light and dark), and every mark
carries its exact numbers as a `<title>`.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from cycler import cycler
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorap_exp.workspace.files import replacing

PALETTE = (
    "#4c78a8", "#e1701a", "#2c9c4b", "#d1383f", "#7f5fc7",
    "#8c6249", "#d5569f", "#6b7280", "#a5940b", "#0f9db0",
)  # fmt: skip
MARKERS = {"o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼"}
"""matplotlib's names, and the same marks as text: readable without colour."""
INK = "#1d2129"
STYLE: Any = {
    "text.parse_math": False,  # a name may hold $
    "svg.fonttype": "none",
    "svg.hashsalt": "lorap_exp",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}
PIXELS = 4 / 3
"""Of a point."""


@dataclass(frozen=True)
class Chart:
    """A title, and what draws on axes; width and height in inches."""

    title: str
    draw: Callable[[Axes], None]
    width: float = 3.6
    height: float = 2.7


def look(number: int) -> tuple[str, str]:
    """Colour and marker of a line; both change, so that fifty lines can be told apart."""
    markers = list(MARKERS)
    return PALETTE[number % len(PALETTE)], markers[(number + number // 10) % len(markers)]


def explain(artist: Artist, titles: Sequence[str] = (), series: str = "") -> None:
    """What the page says of an artist: a title for each of its marks, and the series it is of."""
    artist.set_gid(json.dumps([series, list(titles)]))


def inline(chart: Chart, owner: str = "") -> Markup:
    """The chart alone, as an SVG element; the same chart of the same owner gives the same text."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(chart.width, chart.height), layout="constrained")
        _draw(chart, figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    _embed(root, chart.title, owner)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def write_grid(charts: Sequence[Chart], columns: int, title: str, path: Path) -> None:
    """All charts as one PNG, row by row, with one legend below unless charts have their own."""
    with mpl.rc_context(STYLE):
        rows = -(-len(charts) // columns)
        width, height = max(c.width for c in charts), max(c.height for c in charts)
        size = (width * columns, height * rows)
        figure = Figure(figsize=size, layout="constrained")
        for number, chart in enumerate(charts):
            _draw(chart, figure.add_subplot(rows, columns, number + 1))
        figure.suptitle(title, fontsize=10)
        if not any(axes.get_legend() for axes in figure.axes):
            _legend(figure, max(1, int(size[0] / 1.6)))
        with replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=130, facecolor="white")


def _legend(figure: Figure, columns: int) -> None:
    """Every line of every chart once, below them."""
    found = (axes.get_legend_handles_labels() for axes in figure.axes)
    handles = {n: h for some, names in found for h, n in zip(some, names, strict=True)}
    if handles:
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
        figure.legend(list(handles.values()), list(handles), **place)


def _draw(chart: Chart, axes: Axes) -> None:
    axes.set_title(chart.title, loc="left")
    chart.draw(axes)


def _embed(root: ElementTree.Element, title: str, owner: str) -> None:
    """What matplotlib wrote, as an element of an HTML page."""
    for element in root.iter():
        _plain(element)
    for child in [c for c in root if c.tag == "metadata" or c.find("style") is not None]:
        root.remove(child)
    width, height = (float(root.attrib.pop(n).removesuffix("pt")) for n in ("width", "height"))
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib |= {"viewBox": box, "role": "img", "aria-label": title}
    root.attrib |= {"width": f"{width * PIXELS:.0f}", "height": f"{height * PIXELS:.0f}"}
    for group in root.iter("g"):
        if group.get("id", "").startswith("["):
            _say(group, *json.loads(group.attrib.pop("id")))
    _rename(root, owner)


COLOURS = {INK: "currentColor"} | {c: f"var(--c{i})" for i, c in enumerate(PALETTE)}
FONT = re.compile("font-family: [^;]*; ")
DIGITS = re.compile(r"(\d+\.\d\d)\d+")


def _plain(element: ElementTree.Element) -> None:
    """No namespaces, no white space between elements; the colours and font of the page."""
    element.tag = element.tag.rpartition("}")[2]
    found = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    element.attrib.clear()
    for key, value in found.items():
        shown = DIGITS.sub(r"\1", " ".join(value.split())) if key in ("d", "x", "y") else value
        if key == "style":
            shown = re.sub("#[0-9a-f]{6}", lambda c: COLOURS.get(c[0], c[0]), FONT.sub("", value))
        element.set(key, shown)
    element.tail = None
    if element.tag != "text":
        element.text = (element.text or "").strip() or None


def _say(group: ElementTree.Element, series: str, titles: Sequence[str]) -> None:
    """Titles for the marks of a group, and its series for the page's legend."""
    if series:
        group.attrib |= {"class": "series", "data-series": series}
    if not titles:
        return
    hidden = {id(e) for defs in group.iter("defs") for e in defs.iter()}
    shapes = [path for path in group.iter("path") if id(path) not in hidden]
    for mark, title in zip(list(group.iter("use")) or shapes, titles, strict=True):
        mark.set("class", "mark")
        ElementTree.SubElement(mark, "title").text = title


def _rename(root: ElementTree.Element, owner: str) -> None:
    """Only names that are referred to stay, and no other chart of a page has them."""
    prefix = hashlib.sha256(owner.encode() + ElementTree.tostring(root)).hexdigest()[:8]
    refers = re.compile(r"#([\w-]+)(?=\)|$)")
    keys = ("href", "clip-path")
    used = {n for e in root.iter() for k in keys for n in refers.findall(e.get(k, ""))}
    names = {name: f"m{prefix}-{number}" for number, name in enumerate(sorted(used))}
    for element in root.iter():
        if (name := element.attrib.pop("id", None)) in names:
            element.set("id", names[name])
        for key in keys:
            if key in element.attrib:
                element.set(key, refers.sub(lambda n: f"#{names[n[1]]}", element.attrib[key]))
