"""Finished folders in other forms, on the hub, with their card."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedModel

from lorap_exp.commands.export import convert, push, report
from lorap_exp.commands.subcommands import run
from lorap_exp.errors import LorapError
from lorap_exp.models.card import Origin, model_card
from lorap_exp.models.checkpoint import load, load_config, save
from lorap_exp.models.families import blocks_of, decoder_family
from lorap_exp.models.forms import as_compressed, export
from lorap_exp.models.openness import awkward_sizes, openness, size_advice
from lorap_exp.models.tiny import byte_tokenizer
from lorap_exp.workspace.extras import EXTRAS
from tests.models.compressing import IDS, rewrite

Tiny = Callable[..., PreTrainedModel]
ORIGIN = Origin("org/Base-1B", "apache-2.0", "lorap", {"ratio": 0.3}, ["LoRAP, arXiv 2404.09695"])
RESULT: dict[str, Any] = {
    "config": {"dtype": "float32", "evaluation": {"zero_shot": {"batch_size": 8}}},
    "kept": 0.7,
    "parameters": {"dense": {"total": 2_000_000}, "compressed": {"total": 1_500_000}},
    "scores": {
        "perplexity": [
            {
                "label": "WikiText-2",
                "split": "test",
                "tokens": 512,
                "length": 128,
                "perplexity": 9.5,
            }
        ],
        "tasks": [
            {
                "task": "piqa",
                "samples": 40,
                "metric": "acc",
                "value": 0.6,
                "stderr": 0.05,
            }
        ],
    },
}


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A factored model as a job leaves it."""
    model = tiny()
    config = model.config
    result = as_compressed(model, rewrite(model), config)
    folder = tmp_path / "job" / "model"
    folder.parent.mkdir()
    save(result, byte_tokenizer(), folder)
    card = model_card(result.config, decoder_family(result), ORIGIN, RESULT, {"ratio": 0.3})
    (folder / "README.md").write_text(card)
    (folder / "plan.json").write_text("{}")
    return folder


def test_a_factored_folder_becomes_dense(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["export", str(folder.parent), "--to", "dense"])
    said = capsys.readouterr().out
    output = folder.parent / "model-dense"
    assert f"{output}: stock LlamaForCausalLM: opens wherever" in said
    dense = AutoModelForCausalLM.from_pretrained(output)
    torch.testing.assert_close(dense(IDS).logits, load(folder)(IDS).logits, atol=1e-4, rtol=1e-4)
    assert not list(output.glob("*.py")) and (output / "plan.json").is_file()
    card = (output / "README.md").read_text()
    assert "trust_remote_code" not in card and "stock LlamaForCausalLM" in card
    assert "custom_code" in (folder / "README.md").read_text() and "custom_code" not in card
    with pytest.raises(LorapError, match="--output must not be there yet"):
        convert(folder, "dense", None)


def test_what_has_no_stock_form_says_why(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("mistral")
    config = model.config
    settings = {"branches": {"0": 2}}
    blocks_of(model)[0].add_branch(2)
    save(as_compressed(model, settings, config), byte_tokenizer(), tmp_path / "model")
    with pytest.raises(LorapError, match="--to stock needs .* 1 of its MLPs have a branch"):
        convert(tmp_path / "model", "stock", None)
    assert "no form of it is stock: 1 of its MLPs" in openness(load_config(tmp_path / "model"))


def test_gguf_needs_the_converter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(folder, "stock", None)
    with pytest.raises(LorapError, match="--type is of --to gguf, got q8_0 with --to dense"):
        convert(folder, "dense", None, "q8_0")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LorapError, match="convert_hf_to_gguf.py: put it on the PATH"):
        convert(folder.parent / "model-stock", "gguf", None)


def test_a_failing_converter_is_quoted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(folder, "stock", None)
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit('no such tokenizer')")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(LorapError, match="failed on .*: no such tokenizer"):
        convert(folder.parent / "model-stock", "gguf", None)


def test_integers_need_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "compressed-tensors", ("no_such_package", "quantise"))
    with pytest.raises(LorapError, match=r"--to int8 needs compressed-tensors: pip install 'lorap"):
        convert(folder, "int8", None)


def test_rows_that_four_bits_cannot_take_are_named(folder: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the extra quantise is not there")
    with pytest.raises(LorapError, match=r"--to int4 needs rows .* got 14, 22, 123: round_to=32"):
        convert(folder, "int4", None)


def test_int8_opens_again(folder: Path) -> None:
    """Factors are quantised too; the written folder was read back and compared."""
    pytest.importorskip("compressed_tensors", reason="the extra quantise is not there")
    said = convert(folder, "int8", None)
    found = re.search(r"([\d.]+) MiB of ([\d.]+), perplexity .* ([\d.]+) -> ([\d.]+);", said)
    assert found is not None
    small, large, before, after = map(float, found.groups())
    assert small < large and abs(after / before - 1) < 0.05
    output = folder.parent / "model-int8"
    written = json.loads((output / "config.json").read_text())
    assert written["quantization_config"]["quant_method"] == "compressed-tensors"
    card, records = (output / "README.md").read_text(), output / "plan.json"
    assert "integers of 8 bits" in card and "pip install compressed-tensors" in card
    assert "Measured before the weights were rounded." in card and records.is_file()
    assert "compressed-tensors" not in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_gguf_with_llama_cpp(tmp_path: Path, kind: str) -> None:
    """The real converter on the real model; it reads factors by way of the stock form."""
    if "LLAMA_CPP" not in os.environ:
        pytest.skip("LLAMA_CPP does not name the folder of llama.cpp")
    job = ["model=smollm2_135m", "data=embedded", "calibration=embedded", "calibration.samples=16"]
    job += ["evaluation=perplexity", "evaluation.perplexity.max_tokens=256", "logging=disabled"]
    sizes = {}
    for method in (["dense", "ratio=0"], ["lorap", "ratio=0.2", "method.stages.mlp.round_to=32"]):
        place = [f"output_root={tmp_path}", f"name={method[0]}", f"method={method[0]}", *method[1:]]
        subprocess.run([sys.executable, "-m", "lorap_exp", *job, *place], check=True)
        (saved,) = (tmp_path / method[0]).glob("*/model")
        output = tmp_path / f"{method[0]}.gguf"
        assert "perplexity within 0." in convert(saved, "gguf", output, kind)
        sizes[method[0]] = output.stat().st_size
    assert sizes["lorap"] < sizes["dense"]


def test_sizes_that_quantisers_cannot_take(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    config = load_config(folder)
    found = awkward_sizes(config)
    assert found == {22: 4, 14: 4, 123: 2}  # q and o, k and v, down, in two layers
    assert "10 matrices have rows of 14, 22, 123 values" in str(size_advice(config))
    assert "round_to=32" in report(folder)
    model = tiny()
    stock = export(as_compressed(model, {}, model.config), model.config, "factored")
    stock.config.intermediate_size = 1229
    assert awkward_sizes(stock.config) == {1229: 2}
    stock.config.intermediate_size = 1216
    assert size_advice(stock.config) is None


def test_the_card_says_what_a_user_needs(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    known = yaml.safe_load(metadata)
    assert known["base_model"] == "org/Base-1B" and known["license"] == "apache-2.0"
    assert known["library_name"] == "transformers" and "custom_code" in known["tags"]
    for part in (
        "70.0% of the weights",
        "| perplexity, WikiText-2 (test, 512 tokens in windows of 128) | 9.500 | |",
        "| piqa, acc (40 questions) | 0.6000 | 0.0500 |",
        "trust_remote_code=True",
        "--tasks piqa --batch_size 8",
        "softmax_dtype=float32",
        "`q_proj`",
        "arXiv 2404.09695",
        "8 of its projections are factors",
    ):
        assert part in text, part


def test_push_without_a_hub_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LorapError, match="push to 'me/model' needs a hub within reach") as caught:
        push(folder, "me/model", private=True)
    assert "\n" not in str(caught.value)


def test_push_uploads_the_model_of_a_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Hub:
        def create_repo(self, repo_id: str, **settings: Any) -> None:
            seen["repo"] = (repo_id, settings["private"])

        def upload_folder(self, folder_path: Path, repo_id: str) -> str:
            seen["folder"] = folder_path
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("lorap_exp.commands.export.HfApi", Hub)
    assert push(folder.parent, "me/model", private=False) == "https://hub/me/model"
    assert seen == {"repo": ("me/model", False), "folder": folder}
    assert json.loads((folder / "config.json").read_text())["model_type"] == "compressed_llama"


@pytest.mark.parametrize(
    "words", [["export", "/nowhere", "--to", "dense"], ["push", "/nowhere", "a/b"]]
)
def test_a_folder_without_a_model_is_named(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="error: a model's folder holds config.json"):
        run(words)
