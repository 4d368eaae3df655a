"""A file is known by its content, however its times and size are."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lorap_exp.workspace import digests
from lorap_exp.workspace.digests import digest_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    return tmp_path / "cache"


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"B")


def by_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"B" * 100)
    other.replace(path)


@pytest.mark.parametrize("change", [in_place, by_another])
def test_equal_size_and_time_are_no_equal_content(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"A" * 100)
    before, stat = digest_file(path), path.stat()
    change(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    assert digest_file(path) != before


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"A")
    before = digest_file(path)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert digest_file(path) == before


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", "null"])
def test_a_damaged_note_is_made_anew(tmp_path: Path, cache: Path, damage: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"A")
    before = digest_file(path)
    (note,) = (cache / "digests").iterdir()
    note.write_text(damage)
    assert digest_file(path) == before


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("")
    path = tmp_path / "file"
    path.write_bytes(b"A")
    assert len(digest_file(path)) == 64
    assert "is not remembered" in capsys.readouterr().err


def test_a_file_of_this_moment_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED", 2.0)
    path = tmp_path / "file"
    path.write_bytes(b"A")
    digest_file(path)
    assert not cache.exists()
