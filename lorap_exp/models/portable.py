"""Makes a saved folder open in other versions of transformers, on other machines, for others.

Version 5 writes rotary positions and tokenizers in a form that version 4 reads wrongly or not at
all, so both forms are written. What tells of this machine goes.
"""

import json
from pathlib import Path
from typing import Any

from lorap_exp.models.modeling_compressed import old_rope

OF_THIS_MACHINE = ("is_local", "local_files_only", "name_or_path", "_name_or_path", "backend")
NO_LIMIT = 10**15
"""A tokenizer without a longest text says a larger number, which older versions cannot read."""


def make_portable(folder: Path) -> None:
    """Rewrite the JSON files of a saved model; all files become readable by others."""
    _edit(folder / "config.json", _config)
    if (folder / "tokenizer_config.json").is_file():
        _edit(folder / "tokenizer_config.json", _tokenizer)
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o644)
    folder.chmod(0o755)


def _edit(path: Path, change: Any) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps(change(found), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _config(config: dict[str, Any]) -> dict[str, Any]:
    return _local({**config, **old_rope(config)})


def _tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    changed = _local(config)
    if changed.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = changed.get("extra_special_tokens")
    if isinstance(extra, list):  # version 4 has another meaning for the name
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    if changed.get("model_max_length", 0) > NO_LIMIT:
        del changed["model_max_length"]
    return changed


def _local(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in OF_THIS_MACHINE}
