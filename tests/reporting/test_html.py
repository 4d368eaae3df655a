"""The page, read back as a browser without a script would."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from lorap_exp.planning.edits import Factor
from lorap_exp.reporting.result import Result
from lorap_exp.reporting.sweep import collect, write_report
from tests.reporting.conftest import write_job

VOID = {"meta", "link", "input", "br"}


class Reader(HTMLParser):
    """Elements, references to resources and visible text; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def count(self, tag: str, class_: str) -> int:
        found = (a.get("class") or "" for t, a in self.elements if t == tag)
        return sum(class_ in names.split() for names in found)


def page(folder: Path) -> tuple[str, Reader]:
    write_report(collect(folder))
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Reader(text)


def test_every_job_and_every_section_is_there(sweep: Path) -> None:
    _, reader = page(sweep)
    shown = " ".join(reader.text)
    for job in collect(sweep).jobs:
        assert job.name in shown
    identifiers = {a["id"] for _, a in reader.elements if "id" in a}
    sections = (
        "comparisons results failed scores sizes selections spectra training costs provenance"
    )
    assert identifiers >= set(sections.split())
    rows = [a for t, a in reader.elements if t == "tr"]
    assert len(rows) == (1 + 7) + (1 + 5), "the table, and what is retained"
    assert "abc123" in shown and "2.13.0" in shown


def test_nothing_is_loaded_from_elsewhere(sweep: Path) -> None:
    text, reader = page(sweep)
    for _, attributes in reader.elements:
        for name in ("src", "href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    assert not re.search(r"https?://|url\((?!#)|@import", text)


def test_a_failed_job_says_why_and_stays_text(sweep: Path) -> None:
    text, reader = page(sweep)
    assert "<script>alert" not in text and "<b>" not in text
    shown = "".join(reader.text)
    assert "OutOfMemoryError: <script>alert(1)</script>" in shown
    assert 'File "walk.py", line 3' in shown


def test_one_mark_for_each_row_in_each_chart(sweep: Path) -> None:
    text, reader = page(sweep)
    charts = text.split('id="charts"')[1].split("</section>")[0].split("<svg")[1:]
    finished = 6
    assert [chart.count('class="mark"') for chart in charts] == [finished] * 2 * 4
    assert reader.count("td", "best") == 8


def test_the_legend_names_every_line(sweep: Path) -> None:
    _, reader = page(sweep)
    buttons = {a["data-series"] for t, a in reader.elements if t == "button" and "data-series" in a}
    lines = {a["data-series"] for t, a in reader.elements if t == "g" and "data-series" in a}
    assert buttons == lines == {"dense", "lorap", "svd_all", "lorap_lora", "Pareto front"}


def test_charts_shrink_with_the_page_and_need_no_script(sweep: Path) -> None:
    text, reader = page(sweep)
    drawn = [a for t, a in reader.elements if t == "svg"]
    assert drawn and all("viewbox" in a and a["role"] == "img" for a in drawn)
    script = text.split("<script>")[1]
    assert "<svg" not in script and "createElement" not in script
    identifiers = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def test_names_of_models_are_escaped(tmp_path: Path, make: Callable[..., Result]) -> None:
    result = make(model={"name": '<img src="x" onerror="alert(1)">&'})
    write_job(tmp_path / "job", replace(result, source="</style><script>"))
    text, reader = page(tmp_path)
    assert "<img" not in text and "</style><script>" not in text
    assert '<img src="x" onerror="alert(1)">&' in "".join(reader.text)


def test_a_sweep_without_results_has_a_page(tmp_path: Path) -> None:
    write_job(tmp_path / "job", None, state="failed", error="ratio must be less")
    _, reader = page(tmp_path)
    assert "ratio must be less" in "".join(reader.text)
    assert not [a for t, a in reader.elements if t == "svg"]


def test_twelve_jobs_of_a_large_model_stay_below_three_megabytes(
    tmp_path: Path, make: Callable[..., Result]
) -> None:
    for number in range(12):
        result = make(ratio=0.2 + number / 100)
        shapes = tuple(replace(result.shapes[0], index=i) for i in range(80))
        edits = tuple(Factor(i, name, 31) for i in range(80) for name in shapes[0].matrices)
        large = replace(result, plan=replace(result.plan, edits=edits), shapes=shapes)
        write_job(tmp_path / str(number), large)
    text, _ = page(tmp_path)
    assert len(text.encode()) < 3_000_000


def test_the_command_of_the_sweep(sweep: Path) -> None:
    overrides = "{hydra: [hydra.mode=MULTIRUN], task: [experiment=quickstart, 'a.b=[1, 2]']}"
    (sweep / "multirun.yaml").write_text(
        f"hydra: {{overrides: {overrides}, sweeper: {{params: {{ratio: '0.2,0.5', a.b: x}}}}}}"
    )
    _, reader = page(sweep)
    shown = "".join(reader.text)
    assert "python -m lorap_exp -m experiment=quickstart 'a.b=[1, 2]'\nswept ratio=0.2,0.5" in shown
    assert "swept a.b" not in shown, "the command line has the last word"
    assert "python -m lorap_exp 'ratio=<0.7>'" in shown, "of the failed job"


def test_a_selection_with_missing_keys_is_no_obstacle(sweep: Path) -> None:
    (sweep / "ratio=0" / "selection.json").write_text(json.dumps({"removed": [3]}))
    _, reader = page(sweep)
    assert "selections" in {a.get("id") for _, a in reader.elements}, "of another job"
