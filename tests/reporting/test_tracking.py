"""The offline W&B run, read back from its file."""

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from lorap_exp import pipeline
from lorap_exp.commands.report import show
from lorap_exp.config import Config
from lorap_exp.errors import LorapError

BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file: a seven-byte header, then LevelDB's log format."""
    wandb.teardown()  # waits for the service, which writes the file behind finish()
    data, position, buffer = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        buffer += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(buffer)
            buffer = b""
            yield record


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_offline_run_holds_the_numbers(tmp_path: Path, config: Callable[..., Config]) -> None:
    for name in ("first", "second"):
        cfg = config("logging=offline", "name=sweep", f"ratio={0.2 if name == 'first' else 0.4}")
        result = pipeline.run(cfg, tmp_path / name)
        (path,) = (tmp_path / name).glob("wandb/offline-run-*/run-*.wandb")
        logged: dict[str, Any] = {}
        exits, runs = [], []
        for record in records(path):
            if record.HasField("run"):
                runs.append(record.run)
            if record.HasField("exit"):
                exits.append(record.exit.exit_code)
            for item in record.history.item if record.HasField("history") else ():
                logged["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        assert exits == [0]
        assert runs[0].run_group == "sweep" and runs[0].display_name == name
        settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
        assert settings["ratio"] == cfg.ratio
        assert logged["perplexity/pydoc A"] == result.scores.perplexity[0].perplexity
        assert logged["mean7_paper"] == result.scores.means()["mean7_paper"]["value"]
        tables = {
            file.name.split("_")[0]: json.loads(file.read_text())
            for file in path.parent.glob("files/media/table/*.json")
        }
        assert [0, "q", "rank", result.planned.blocks[0].matrices["q"].rank] in tables["layers"][
            "data"
        ]
        assert "mean7_paper" in tables["table"]["columns"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_report_is_one_run_with_its_table_and_plots(sweep: Path) -> None:
    show([sweep], wandb="offline", project="some_project")
    (path,) = sweep.glob("wandb/offline-run-*/run-*.wandb")
    found = list(records(path))
    (run,) = (record.run for record in found if record.HasField("run"))
    assert (run.project, run.run_group, run.display_name) == (
        "some_project",
        "a_sweep",
        "a_sweep report",
    )
    exits = [record.exit.exit_code for record in found if record.HasField("exit")]
    assert exits == [0]
    (table,) = path.parent.glob("files/media/table/*.json")
    logged = json.loads(table.read_text())
    assert "WikiText-2" in logged["columns"] and len(logged["data"]) == 7
    (image,) = path.parent.glob("files/media/images/*.png")
    assert image.read_bytes() == (sweep / "report.png").read_bytes()


def test_a_report_is_not_logged_unless_asked(sweep: Path) -> None:
    show([sweep])
    assert not (sweep / "wandb").exists()


def test_a_report_needs_wandb_where_it_is_asked_for(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    show([sweep])
    with pytest.raises(LorapError, match="--wandb offline needs wandb: pip install"):
        show([sweep], wandb="offline")
