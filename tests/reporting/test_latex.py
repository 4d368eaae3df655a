import re
from pathlib import Path

import pandas as pd

from lorap_exp.reporting.latex import escape, latex
from lorap_exp.reporting.sweep import collect, write_report


def test_every_special_character_is_escaped() -> None:
    assert escape("a_b & 50% #1 {x} $y") == r"a\_b \& 50\% \#1 \{x\} \$y"
    assert escape("\\~^<>") == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
    )


def test_the_table_of_a_sweep(sweep: Path) -> None:
    write_report(collect(sweep))
    lines = (sweep / "report.tex").read_text().splitlines()
    assert lines[0] == r"% \usepackage{booktabs}"
    assert r"\caption{a\_sweep}" in lines
    spec = next(re.search(r"tabular}\{([lr]+)\}", line) for line in lines if "tabular}{" in line)
    rows = [line for line in lines if line.endswith(r"\\")]
    assert spec is not None and len(rows) == 8
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(spec[1])}
    best = next(row for row in rows if "& lorap\\_lora & 0.200" in row)
    assert r"\textbf{15.00}" in best
    other = next(row for row in rows if r"svd\_all & 0.200" in row)
    assert "textbf" not in other and r"$\pm$ 5.00" in other
    assert sum(line == r"\midrule" for line in lines) == 4
    dense = next(row for row in rows if "& dense &" in row)
    assert "textbf" not in dense


def test_a_bold_number_keeps_its_error_plain_and_a_dash_is_a_dash() -> None:
    table = pd.DataFrame({"method": ["a", "b"], "x": [1.0, None], "x ±": [0.1, None]})
    text = latex(table, frozenset({(0, "x")}), "t")
    assert r"a & \textbf{1.00} $\pm$ 0.10 \\" in text and r"b & -- \\" in text
