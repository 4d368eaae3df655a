"""`python -m lorap_exp info <folder>`: what was done to each layer of a saved model."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedConfig

from lorap_exp.errors import LorapError
from lorap_exp.models.checkpoint import load_config
from lorap_exp.models.counting import count_parameters, part_of
from lorap_exp.models.families import family_of, meta_model
from lorap_exp.models.headers import read_header
from lorap_exp.models.openness import openness, size_advice
from lorap_exp.models.structure import Family

WIDTH = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4}
"""Bytes of a value by the safetensors name of its type."""
LEGEND = (
    "r = rank of the factors, o = outputs kept, i = inputs kept, s, g = rows and columns held, "
    "+b = with a bias, - = as it was"
)


def describe(folder: Path) -> str:
    """Shapes layer by layer, parameters and bytes by part; weights are not read.

    Raises:
        LorapError: the folder holds no checkpoint.
    """
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        jobs = sorted(path.parent.parent for path in folder.glob("*/model/config.json"))
        hint = f", a sweep; its first job with a model is '{jobs[0]}'" if jobs else ""
        raise LorapError(f"a model's folder holds config.json, got '{folder}'{hint}")
    config = load_config(folder)
    family = family_of(config)
    lines = [
        f"{folder}: {(config.architectures or ['?'])[0]}, {config.num_hidden_layers} layers",
        "",
    ]
    lines += _layers(config, family)
    counts, sizes = count_parameters(meta_model(config)), _bytes(folder, family)
    lines += ["", f"{'part':<12} {'parameters':>15} {'bytes':>15}"]
    lines += [f"{part:<12} {n:>15,} {sizes[part]:>15,}" for part, n in counts.items()]
    lines += ["", openness(config), *filter(None, [size_advice(config)])]
    return "\n".join(lines)


def _layers(config: PreTrainedConfig, family: Family) -> list[str]:
    changed = getattr(config, "compressed_modules", None) or {}
    numbers = getattr(config, "original_layers", None)
    if not changed and numbers is None:
        return ["every layer has the stock shape of this configuration"]
    replaced = getattr(config, "replaced_layers", None) or {}
    names = list(family.matrices)
    lines = ["layer original  " + "".join(f"{name:>12}" for name in names)]
    for index in range(config.num_hidden_layers):
        original = index if numbers is None else numbers[index]
        cells = [_cell(changed.get(family.path(index, name), {})) for name in names]
        text = "".join(f"{cell:>12}" for cell in cells)
        if str(index) in replaced:
            text = f"  replaced by {replaced[str(index)]['kind']}"
        lines.append(f"{index:>5} {original:>8}  {text}")
    lines.append(LEGEND)
    if numbers is not None:
        lines.append("original = number of the layer in the model before layers were removed")
    return lines


def _cell(form: dict[str, Any]) -> str:
    short = {"rank": "r", "out_features": "o", "in_features": "i", "scatter": "s", "gather": "g"}
    cells = [f"{short[key]}{size}" for key, size in form.items() if key in short]
    if form.get("form") == "pivoted":
        cells.append("pivoted")
    return " ".join([*cells, *(["+b"] if form.get("bias") else [])]) or "-"


def _bytes(folder: Path, family: Family) -> Counter[str]:
    """Bytes on disk of each part, from the headers of the files."""
    sizes: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        read_header(path)  # says what is wrong with a damaged file
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                size = math.prod(tensor.get_shape()) * WIDTH[tensor.get_dtype()]
                part = part_of(name, family)
                sizes.update({part: size, "total": size})
                if part in ("attention", "mlp"):
                    sizes["decoder"] += size
    return sizes
