"""Sections of an experiment that say what is read: the model, the calibration text, the data."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lorap_exp.schema.values import (
    BOOKKEEPING,
    Name,
    Section,
    Seed,
)

TextName = Literal["wikitext2", "ptb", "c4", "embedded"]


class RandomModelConfig(Section):
    """Sizes of a randomly initialised model for tests."""

    family: str
    blocks: Annotated[int, Field(ge=1, le=1000)]
    hidden_size: Annotated[int, Field(ge=2)]
    intermediate_size: Annotated[int, Field(ge=2)]
    heads: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _divisible(self) -> "RandomModelConfig":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 x heads ({2 * self.heads}), "
                f"got {self.hidden_size}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads ({self.kv_heads}), got {self.heads}"
            )
        return self


class ModelConfig(Section):
    """Where a dense model comes from: a folder, or the hub, or what was fetched for its hub id.

    Attributes:
        path: a hub id or a folder.
        revision: of a hub id; asks the hub, whatever was fetched.
    """

    name: str
    path: str | None
    revision: str | None
    random: RandomModelConfig | None

    @model_validator(mode="after")
    def _one_source(self) -> "ModelConfig":
        if (self.path is None) == (self.random is None):
            raise ValueError("path must be a hub id or a local folder (null for a random model)")
        if self.random is not None and self.revision is not None:
            raise ValueError(f"revision must be null for a random model, got {self.revision!r}")
        return self


class CalibrationConfig(Section):
    """Windows of text on which statistics are taken.

    Attributes:
        text: whose; `files` takes those of `files`.
        split: of the text.
        files: paths of .txt, .jsonl, .jsonl.gz or .parquet.
        separator: what ends a document in a text file.
        samples: windows.
        length: tokens of a window.
        batch_size: windows at a time.
        propagation: inputs of a block come from the compressed blocks before it, or the originals.
        order: measured before a block is rewritten, or again behind each rewritten group.
        hidden_states: where they wait between blocks.
    """

    name: Name
    text: TextName | Literal["files"]
    split: Literal["train", "validation"]
    files: tuple[str, ...]
    separator: Literal["line", "blank_line", "file"]
    samples: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=2)]
    seed: Seed
    batch_size: Annotated[int, Field(ge=1)]
    propagation: Literal["compressed", "original"]
    order: Literal["block", "group"]
    hidden_states: Literal["device", "host", "disk"]

    @model_validator(mode="after")
    def _files_when_text_is_files(self) -> "CalibrationConfig":
        if self.text == "files" and not self.files:
            raise ValueError("files must name at least one file when text is files")
        if self.text != "files" and self.files:
            raise ValueError(f"files must be [] unless text is files, got {list(self.files)}")
        return self


class DataConfig(Section):
    """The source of every text and question."""

    source: Literal["hub", "local", "embedded"]
    folder: Annotated[str | None, BOOKKEEPING]

    @model_validator(mode="after")
    def _folder_when_local(self) -> "DataConfig":
        if self.source == "local" and self.folder is None:
            raise ValueError("folder must be set when source is local, got null")
        if self.source == "embedded" and self.folder is not None:
            raise ValueError(f"folder must be null when source is embedded, got {self.folder!r}")
        return self
