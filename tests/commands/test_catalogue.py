from pathlib import Path

import pytest

from lorap_exp.commands.catalogue import KINDS, catalogue, conf_folder, kind_of


def test_every_method_stands_below_its_kind() -> None:
    lines = iter(catalogue().splitlines())
    assert any(line == "method=" for line in lines)
    found: dict[str, str] = {}
    kind = ""
    for line in lines:
        if not line:
            break
        if line.strip() in KINDS:
            kind = line.strip()
        else:
            found[line.split()[0]] = kind
    files = sorted((conf_folder() / "method").glob("*.yaml"))
    assert found == {path.stem: kind_of(path) for path in files}


def test_a_method_without_a_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("# what it does\n# kind: magic\nname: odd\n")
    with pytest.raises(ValueError, match="odd.yaml: the second comment must be # kind: one of low"):
        kind_of(path)


def test_every_method_has_a_section() -> None:
    """Those of `docs/methods.md`; the older ones are described in the README."""
    text = (conf_folder().parent / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in ("asvd", "flap", "laco", "llm_pruner", "replaceme", "shortened_llama", "shortgpt"):
        assert f"### {name}\n" in text
    for name in ("sleb", "slimgpt", "uidl", "wanda_sp"):
        assert f"### {name}\n" in text
