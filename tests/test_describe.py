"""A saved model says what it is, and nothing of the machine that made it."""

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.models.tiny import byte_tokenizer


def test_the_folder_describes_itself_without_paths(
    tmp_path: Path, config: Callable[..., Config], tiny: Callable[..., object]
) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "dense")  # type: ignore[attr-defined]
    byte_tokenizer().save_pretrained(tmp_path / "dense")
    cfg = config(
        "model=custom",
        f"model.path={tmp_path}/dense",
        "ratio=0.3",
        f"output_root={tmp_path}/outputs",
        "evaluation.zero_shot.limit=2",
    )
    result = pipeline.run(cfg, tmp_path / "job")
    saved = tmp_path / "job" / "model"
    card = (saved / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == "dense"
    assert "lm_eval" in card and "from_pretrained" in card
    assert json.loads((saved / "result.json").read_text())["kept"] == result.kept
    assert json.loads((saved / "plan.json").read_text())["edits"]
    for path in saved.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
        assert path.stat().st_mode & 0o044, path.name
    again = pipeline.run(cfg, tmp_path / "job")
    assert again.scores == result.scores
