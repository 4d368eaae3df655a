"""The files of a hub model, in the hub's own cache."""

from pathlib import Path

from huggingface_hub import snapshot_download

from lorap_exp.errors import one_line

DESCRIPTIONS = ("*.json", "*.model", "*.txt")
"""Files of a hub model that are read before its weights."""
ELSEWHERE = ("*/*", "consolidated*")
"""What is not the model that transformers loads."""


class HubError(Exception):
    """The hub and its cache do not give a model; the message says why, on one line."""


def descriptions(hub: str, revision: str | None) -> Path:
    """The folder of a model's files without weights; its name is the commit."""
    return _snapshot(hub, revision, DESCRIPTIONS)


def weights(hub: str, revision: str | None) -> Path:
    """The same folder with weights: safetensors, or `.bin` where there are none."""
    folder = _snapshot(hub, revision, (*DESCRIPTIONS, "*.safetensors"))
    if not list(folder.glob("*.safetensors")):
        folder = _snapshot(hub, revision, (*DESCRIPTIONS, "*.bin"))
    return folder


def _snapshot(hub: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        return Path(
            snapshot_download(
                hub,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(ELSEWHERE),
            )
        )
    except Exception as error:  # the hub's client raises of many libraries; all mean out of reach
        raise HubError(one_line(error)) from error
