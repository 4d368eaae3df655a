"""`python -m lorap_exp export FOLDER` and `push`: a finished folder in another form, on the hub."""

import shutil
import tempfile
from pathlib import Path

import torch
from httpx2 import HTTPError
from huggingface_hub import HfApi
from transformers import PreTrainedModel

from lorap_exp.commands.quantised import find_converter, to_gguf, to_integers
from lorap_exp.errors import LorapError
from lorap_exp.models.card import restate
from lorap_exp.models.checkpoint import check_reload, load, load_config, save
from lorap_exp.models.forms import export
from lorap_exp.models.openness import openness, size_advice
from lorap_exp.models.stock import stock_base, stock_settings
from lorap_exp.models.tokenizers import open_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the warm sun."
RECORDS = ("plan.json", "result.json")


def model_folder(folder: Path) -> Path:
    """The saved model in a job's folder, or the folder itself.

    Raises:
        LorapError: there is no saved model.
    """
    inner = folder / "model"
    folder = inner if (inner / "config.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise LorapError(f"a model's folder holds config.json, got '{folder}'")
    return folder


def convert(folder: Path, to: str, output: Path | None, kind: str | None = None) -> str:
    """Write a finished folder in another form beside it, reload checked; what came of it.

    Args:
        folder: a saved model, or the job that holds it.
        to: dense (factors multiplied out, stock where a stock configuration describes it), stock
            (the same, or an error that says why not), gguf (by way of stock), int8 or int4.
        output: where it goes; by default beside `folder`, with `to` in its name.
        kind: how a gguf file stores weights: auto, f32, f16, bf16 or q8_0.

    Raises:
        LorapError: the form is impossible, or something that it needs is missing.
    """
    if kind is not None and to != "gguf":
        raise LorapError(f"--type is of --to gguf, got {kind} with --to {to}")
    folder = model_folder(folder)
    output = output or folder.with_name(f"{folder.name}-{to}" + (".gguf" if to == "gguf" else ""))
    if output.exists():
        raise LorapError(f"--output must not be there yet, got '{output}'")
    if to == "gguf":
        return _to_gguf(folder, output, kind or "auto")
    if to in ("int8", "int4"):
        said = to_integers(folder, output, to)
        _tell(folder, output)
        return said
    model, tokenizer = load(folder), open_tokenizer(folder)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    before = model(ids).logits.float()
    model = export(model, stock_base(model.config), "dense")
    reason = stock_settings(model.config)
    if to == "stock" and isinstance(reason, str):
        raise LorapError(f"--to stock needs a model that a stock configuration describes: {reason}")
    _check(before, model(ids).logits.float(), model)
    save(model, tokenizer, output)
    check_reload(model, output, ids)
    _tell(folder, output)
    return report(output)


def _tell(folder: Path, output: Path) -> None:
    """Give a folder in another form the records and the card of the one it was made from."""
    for name in RECORDS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)
    if (card := folder / "README.md").is_file():
        configs = load_config(folder), load_config(output)
        (output / "README.md").write_text(restate(card.read_text("utf-8"), *configs), "utf-8")


def _to_gguf(folder: Path, output: Path, kind: str) -> str:
    config = load_config(folder)
    if getattr(config, "stock_class", None) is None:
        found = to_gguf(folder, output, kind)
        advice = size_advice(config)
        return found + (f"\n{advice}" if advice else "")
    find_converter()
    with tempfile.TemporaryDirectory() as place:
        convert(folder, "stock", Path(place) / "stock")
        return _to_gguf(Path(place) / "stock", output, kind)


def _check(before: torch.Tensor, after: torch.Tensor, model: PreTrainedModel) -> None:
    """Raise unless the other form computes the same, up to rounding in the model's dtype."""
    difference = float((before - after).norm() / before.norm())
    most = 1e-4 if model.dtype == torch.float32 else 0.05
    if not difference <= most:
        raise LorapError(
            f"the exported model must compute the same, but its logits differ by {difference:.2g}"
        )


def report(folder: Path) -> str:
    """What a folder opens in, and what quantisers would say of its sizes."""
    config = load_config(folder)
    lines = [f"{folder}: {openness(config)}", size_advice(config)]
    return "\n".join(line for line in lines if line)


def push(folder: Path, repo_id: str, private: bool) -> str:
    """Upload a saved folder to the hub; its address.

    Raises:
        LorapError: there is no saved model, or the hub says no.
    """
    folder = model_folder(folder)
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        found = api.upload_folder(folder_path=folder, repo_id=repo_id)
    except (OSError, HTTPError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise LorapError(
            f"push to '{repo_id}' needs a hub within reach and `hf auth login`: {first}"
        ) from error
    return str(found)
