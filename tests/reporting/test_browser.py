"""The page in a real browser: its script runs, sorts and filters, and says nothing wrong."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from lorap_exp.reporting.sweep import collect, write_report

pytestmark = pytest.mark.browser
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--dump-dom",
)


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium on the PATH")
    return found


def load(chromium: str, page: Path, profile: Path, fragment: str) -> str:
    """The document after its script has run."""
    address = f"file://{quote(str(page))}#{fragment}"
    done = subprocess.run(
        [chromium, *QUIET, f"--user-data-dir={profile}", address],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    return done.stdout


@pytest.fixture
def page(sweep: Path) -> Path:
    write_report(collect(sweep))
    return sweep / "report.html"


def column(document: str, at: int) -> list[str]:
    """The visible texts of a column of the main table."""
    body = document.split('id="table"')[1].split("<tbody>")[1].split("</tbody>", maxsplit=1)[0]
    rows = re.findall(r"<tr(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>([^<]*)", row) for row in rows if not row.startswith(" hidden")]
    return [row[at] for row in cells]


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("sort=ratio", ["0.000", *["0.200"] * 3, *["0.500"] * 2, "0.700"]),
        ("sort=-ratio", ["0.700", *["0.500"] * 2, *["0.200"] * 3, "0.000"]),
        ("sort=-ratio&filter=SVD", ["0.500", "0.200"]),
    ],
)
def test_the_script_sorts_and_filters(
    chromium: str, page: Path, tmp_path: Path, fragment: str, expected: list[str]
) -> None:
    document = load(chromium, page, tmp_path / "profile", fragment)
    assert f'aria-sort="{"descending" if "=-" in fragment else "ascending"}"' in document
    assert column(document, 2) == expected
    assert f"{len(expected)} of 7 rows" in document


def test_an_error_of_the_script_would_be_seen(chromium: str, page: Path, tmp_path: Path) -> None:
    page.write_text(page.read_text().replace("</script>", "noSuchFunction();</script>"))
    with pytest.raises(AssertionError, match="noSuchFunction"):
        load(chromium, page, tmp_path / "profile", "")


def test_numbers_sort_as_numbers_and_dashes_stay_last(
    chromium: str, page: Path, tmp_path: Path
) -> None:
    for sign, ends in (("", ("10.00", "200.00")), ("-", ("200.00", "10.00"))):
        document = load(chromium, page, tmp_path / "profile", f"sort={sign}WikiText-2")
        shown = column(document, 6)
        assert (shown[0], shown[-2], shown[-1]) == (*ends, "-")


def test_every_finished_job_is_a_point_of_every_chart(
    chromium: str, page: Path, tmp_path: Path
) -> None:
    document = load(chromium, page, tmp_path / "profile", "")
    charts = document.split('id="charts"')[1].split("</section>")[0].split("<svg")[1:]
    finished = len(collect(page.parent).results)
    assert [chart.count('class="mark"') for chart in charts] == [finished] * 8


def test_the_page_of_a_real_sweep(chromium: str, tmp_path: Path) -> None:
    """Of the folder that LORAP_SWEEP names: its rows sort, and are points of every chart."""
    if "LORAP_SWEEP" not in os.environ:
        pytest.skip("LORAP_SWEEP names no sweep")
    sweep = collect(Path(os.environ["LORAP_SWEEP"]).resolve())
    write_report(sweep, tmp_path)
    page = tmp_path / "report.html"
    assert page.stat().st_size < 3_000_000
    document = load(chromium, page, tmp_path / "profile", "sort=-ratio")
    ratios = [float(text) for text in column(document, 2)]
    assert ratios == sorted(ratios, reverse=True)
    charts = document.split('id="charts"')[1].split("</section>")[0].split("<svg")[1:]
    scored = int(sweep.table()["kept"].notna().sum())
    assert [chart.count('class="mark"') for chart in charts] == [scored] * len(charts)
