"""`docs/settings.md`: every setting with its values and default, from the classes that check it."""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import hydra
import yaml
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.config import Config, bookkeeping

INTRODUCTION = """\
# Settings

Generated from the classes that check them (`make docs`). A setting is typed as `key=value`; a
section's keys follow its name after a dot: `calibration.samples=64`. Defaults are those of `conf/`;
a method or an experiment may set others (`--cfg job` prints what a command gives). What is out of
range is refused before any weight is read.
"""
STAGES = """\
## Stages of a method

`conf/method/` stacks them; a field is set by the name that the stage has there:
`method=lorap method.stages.attention.exponent=0.5`. [Methods](methods.md) explains what they do.
"""
HEAD = "| setting | values | default | |\n| --- | --- | --- | --- |"


def page() -> str:
    """The whole page."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = hydra.compose("config")
    defaults: Any = OmegaConf.to_container(composed, resolve=False)
    schema = Config.model_json_schema()
    plain = {n: f for n, f in schema["properties"].items() if _section(schema, f) is None}
    rows = _rows(schema | {"properties": plain}, schema, defaults, "")
    parts = [INTRODUCTION, "## The whole experiment\n", HEAD, *rows, ""]
    for name, field in schema["properties"].items():
        if (section := _section(schema, field)) is not None:
            known = defaults.get(name) or {}
            rows = _rows(section, schema, known, f"{name}.")
            parts += [f"## {name}\n", _summary(section["description"]), "", HEAD, *rows, ""]
    parts.append(STAGES)
    for target, given in sorted(_stages().items()):
        parts += [*_stage(target, given), ""]
    return "\n".join(parts).rstrip() + "\n"


def _summary(docstring: str) -> str:
    return " ".join(docstring.partition("\n\n")[0].split())


def _section(schema: Mapping[str, Any], field: Mapping[str, Any]) -> Any:
    """The section that a field is, or may be; None for a plain value."""
    for one in field.get("anyOf", [field]):
        if "$ref" in one:
            return schema["$defs"][one["$ref"].rpartition("/")[2]]
    return None


def _rows(
    section: Mapping[str, Any], schema: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str
) -> list[str]:
    """One row a setting; those of sections in it follow with their names in front."""
    meanings, rows, without_effect = meanings_in(section["description"]), [], bookkeeping()
    for name, field in section["properties"].items():
        default = defaults.get(name, field.get("default"))
        if (inner := _section(schema, field)) is not None:
            known = default if isinstance(default, Mapping) else {}
            rows += _rows(inner, schema, known, f"{prefix}{name}.")
            continue
        shown = f"`{_plain(default)}`" if name in defaults or "default" in field else ""
        said = meanings.get(name, "")
        if f"{prefix}{name}" in without_effect and not prefix:
            said = f"{said} Changes no number.".strip()
        rows.append(f"| `{prefix}{name}` | {values(field)} | {shown} | {said} |")
    return rows


def values(field: Mapping[str, Any]) -> str:
    """What a setting may be, in words, from its JSON schema."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(values(one) for one in field["anyOf"]))
    if "enum" in field or "const" in field:
        allowed = field.get("enum", [field.get("const")])
        return ", ".join(f"`{_plain(value)}`" for value in allowed)
    kind = field.get("type")
    if kind == "array":
        items = field.get("prefixItems") or [field.get("items", {})]
        return f"list of {', '.join(values(item) for item in items)}"
    names = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    names |= {"string": "text", "null": "`null`", "object": "section"}
    word = names.get(str(kind), "any")
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]}" for key, sign in limits.items() if key in field]
    return " ".join([word, *bounds])


def _plain(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).replace("\n...", "").strip()


def _stages() -> dict[str, dict[str, Any]]:
    """Every class that a method can be made of: its defaults in the stage that is its own."""
    found: dict[str, dict[str, Any]] = {}
    files = [*(conf_folder() / "stage").glob("*.yaml"), *(conf_folder() / "method").glob("*.yaml")]
    for path in files:
        for target, fields in _targets(yaml.safe_load(path.read_text(encoding="utf-8"))):
            found.setdefault(target, fields)
    return found


def _targets(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"], {k: v for k, v in node.items() if k != "_target_"}
        for value in node.values():
            yield from _targets(value)


def _stage(target: str, given: Mapping[str, Any]) -> list[str]:
    """A stage's fields, and what their docstring says of them."""
    cls = hydra.utils.get_class(target)
    text = inspect.getdoc(cls) or ""
    schema = TypeAdapter(cls).json_schema()
    lines = [f"### {cls.__name__}\n", _summary(text)]
    if not schema.get("properties"):
        return lines
    return [*lines, "", HEAD, *_rows(schema | {"description": text}, schema, given, "")]


def meanings_in(docstring: str) -> dict[str, str]:
    """What the `Attributes` of a docstring say of each field."""
    _, _, listed = docstring.partition("Attributes:\n")
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", listed.partition("\n\n")[0], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


if __name__ == "__main__":
    print(page(), end="")
