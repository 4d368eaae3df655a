import re

import pytest

from lorap_exp.reporting.charts import Tile, bars, colour, heat_map
from lorap_exp.reporting.svg import Axis, Point, Series, axis, line_chart, number, tag


def test_text_and_attributes_are_escaped() -> None:
    assert tag("g", "<&", title='"x"', class_="a") == (
        '<g title="&#34;x&#34;" class="a">&lt;&amp;</g>'
    )


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 1, False), (80, 135, False), (5, 5.001, False), (10, 1e8, True), (5.4, 5.9, True)],
)
def test_ticks_are_few_round_and_inside(low: float, high: float, log: bool) -> None:
    ticks = Axis(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks) and ticks == sorted(ticks)


def test_a_logarithmic_axis_puts_factors_at_equal_distances() -> None:
    scale = Axis(1, 10000, 0, 100, log=True)
    assert [scale(value) for value in (1, 10, 100, 10000)] == pytest.approx([0, 25, 50, 100])


def test_layers_and_steps_are_numbered_in_whole_steps() -> None:
    assert Axis(0, 2, 0, 100, whole=True).ticks() == [0, 1, 2]


def test_one_value_or_none_still_has_an_axis() -> None:
    for values in ([], [0.0], [7.0]):
        found = axis(values, 0, 1)
        assert found.low < found.high


def test_marks_and_whiskers_of_a_chart() -> None:
    points = [Point(0, 10, "first", 1.0), Point(1, 0, "not on a log axis"), Point(2, 100, "last")]
    text = line_chart([Series("s", 3, points)], title="t", x_label="x", log_y=True)
    assert text.count('class="point"') == 2 and text.count('class="whisker"') == 1
    assert "<title>first</title>" in text and "not on a log axis" not in text
    coordinates = re.findall(r"translate\(([\d.]+) ([\d.]+)\)", text)
    assert float(coordinates[0][1]) > float(coordinates[1][1])


def test_short_numbers() -> None:
    assert [number(v) for v in (0.25, 1000, 3e4, 2.5e7, 1e9)] == [
        "0.25",
        "1000",
        "30k",
        "25M",
        "1G",
    ]


def test_colours_run_from_dark_to_bright() -> None:
    assert colour(-1) == colour(0) == "#440154"
    assert colour(1) == colour(2) == "#fde725"


def test_a_heat_map_leaves_holes() -> None:
    tiles = {("q", 0): Tile(0.5, "rank 4"), ("q", 2): Tile(1.0, "dense", marked=True)}
    text = heat_map(["q"], range(3), tiles, title="", column_name="layer", ends=("0", "1"))
    assert text.count('class="tile') == 2 and text.count("marked") == 1


def test_stacked_bars_lie_end_to_end() -> None:
    rows = {"job": {"load": (1.0, "l"), "compress": (3.0, "c")}}
    text = bars(rows, {"load": 0, "compress": 1}, "time", "s", stacked=True)
    found = re.findall(r'x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', text)
    (x0, w0), (x1, w1) = [(float(x), float(w)) for x, w in found]
    assert x1 == pytest.approx(x0 + w0) and w1 == pytest.approx(3 * w0)
