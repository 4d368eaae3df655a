"""Subcommands as a user meets them: help, exit codes, one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorap_exp.commands import subcommands


def lorap(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lorap_exp", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["info"], "folder"),
        (["report"], "folder"),
        (["model"], "fetch"),
        (["model", "fetch"], "--from"),
        (["model", "list"], "usage"),
        (["data"], "fetch"),
        (["data", "fetch"], "--c4-documents"),
        (["data", "verify"], "--folder"),
        (["data", "where"], "usage"),
    ],
)
def test_every_command_has_help(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        subcommands.run([*arguments, "--help"])
    assert exit_.value.code == 0 and word in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "c5"], "must be some of wikitext2, ptb, c4, tasks, alpaca, got 'c5'"),
        (["--c4-documents", "0"], "must lie in [1, 350000], got '0'"),
    ],
)
def test_wrong_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        subcommands.run(["data", "fetch", "--folder", "x", *arguments])
    assert message in capsys.readouterr().err


def test_fetch_without_a_network_is_one_sentence(tmp_path: Path) -> None:
    home = tmp_path / "home"
    run = lorap(
        "data", "fetch", "--folder", str(tmp_path / "data"), HF_HUB_OFFLINE="1", HF_HOME=str(home)
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("error: data fetch needs 'Salesforce/wikitext wikitext-2-raw-v1'")
    assert "0 of 15 files are there and stay" in last and "Couldn't reach" in last


def test_verify_ends_in_one_sentence(tmp_path: Path) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"ptb/test.txt": entry}))
    run = lorap("data", "verify", "--folder", str(tmp_path))
    assert run.returncode == 1 and "ptb/test.txt            -  missing" in run.stdout
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("error: the files of --folder must be") and "ptb/test.txt" in line


def test_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LORAP_CACHE", "/somewhere/cache")
    subcommands.run(["data", "where"])
    out = capsys.readouterr().out
    assert "shared/data" in out and "/somewhere/cache" in out and "data=hub" in out
