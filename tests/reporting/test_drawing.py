"""The same chart in a page and in an image."""

import re
from pathlib import Path
from xml.etree import ElementTree

from matplotlib.axes import Axes

from lorap_exp.reporting.drawing import INK, PALETTE, Chart, explain, inline, look, write_grid
from lorap_exp.reporting.tiles import Tile, heat_map


def two_points(axes: Axes) -> None:
    (line,) = axes.plot([0, 1], [2, 3], "-o", color=PALETTE[3], label="a line")
    explain(line, ["first <&", "second"], "its series")
    axes.set_xlabel("cost in $ of $")


CHART = Chart("two points", two_points)


def test_marks_carry_their_text_and_series() -> None:
    root = ElementTree.fromstring(inline(CHART))
    (series,) = (g for g in root.iter("g") if g.get("class") == "series")
    assert series.get("data-series") == "its series"
    assert [mark.findtext("title") for mark in series.iter("use")] == ["first <&", "second"]
    assert "cost in $ of $" in [text.text for text in root.iter("text")], "text, not outlines"


def test_the_page_decides_on_colours_and_width() -> None:
    text = inline(CHART)
    assert "var(--c3)" in text and "currentColor" in text
    assert INK not in text and not any(colour in text for colour in PALETTE)
    assert 'viewBox="0 0 259.2 194.4"' in text and "font-family" not in text


def test_the_same_chart_gives_the_same_text_and_names_of_its_own() -> None:
    text, other = inline(CHART), inline(Chart("another", two_points))
    assert text == inline(CHART)
    names = [set(re.findall(r'id="([^"]+)"', one)) for one in (text, other)]
    assert names[0] and not names[0] & names[1]
    assert set(re.findall(r"#(m[^\s)\"]+)", text)) == names[0], "all are referred to"


def test_images_are_a_grid(tmp_path: Path) -> None:
    sizes = []
    for columns in (1, 2):
        path = tmp_path / f"{columns}.png"
        write_grid([CHART] * 2, columns, "title", path)
        head = path.read_bytes()[:24]
        sizes.append(tuple(int.from_bytes(head[at : at + 4]) for at in (16, 20)))
    assert sizes == [(468, 702), (936, 351)]


def test_fifty_lines_look_different() -> None:
    assert len({look(number) for number in range(50)}) == 50


def test_a_heat_map_leaves_holes_and_outlines_what_is_marked() -> None:
    tiles = {("q", 0): Tile(0.0, "rank 4", marked=True), ("q", 2): Tile(1.0, "dense")}
    chart = heat_map(
        ["q"], range(3), tiles, title="t", column_name="layer", meaning="share", limits=(0, 1)
    )
    marks = [e for e in ElementTree.fromstring(inline(chart)).iter() if e.get("class") == "mark"]
    assert [mark.findtext("title") for mark in marks] == ["dense", "rank 4"]
    styles = [mark.attrib["style"] for mark in marks]
    assert "fill: #fde725" in styles[0] and "stroke" not in styles[0]
    assert "fill: #440154" in styles[1] and "stroke: #e5484d" in styles[1]
