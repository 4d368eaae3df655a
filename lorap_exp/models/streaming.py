"""A model larger than memory: blocks are read from disk when they are opened, and freed.

What a method rewrites is written as one file for each block; `finish` makes a checkpoint of them.
The next block is read while this one computes. After a kill, finished blocks are not done again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block, blocks_of, decoder_family
from lorap_exp.models.headers import weight_files
from lorap_exp.models.layout import block_forms
from lorap_exp.models.modeling_compressed import reshape_linear
from lorap_exp.models.source import Source
from lorap_exp.models.tensor_files import Place, gather, mapped, merged, places_in, read, write
from lorap_exp.planning.edits import Edit, Plan
from lorap_exp.workspace.files import replacing, write_json


class StreamedSource(Source):
    """A checkpoint of which one block at a time is in memory.

    Args:
        folder: of the checkpoint, in safetensors, one file or shards.
        config: of it.
        device: where blocks compute.
        dtype: in which they compute.
        work: folder for rewritten blocks; None for a model that is only read.

    Raises:
        LorapError: the architecture has fused projections, or a block lacks a tensor.
    """

    def __init__(
        self,
        folder: Path,
        config: PreTrainedConfig,
        device: torch.device,
        dtype: torch.dtype,
        work: Path | None = None,
    ) -> None:
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        super().__init__(model.eval().requires_grad_(False))
        self._device, self._dtype, self._work = device, dtype, work
        self._places = merged(weight_files(folder))
        self._family = decoder_family(model)
        if self._family.fused:
            raise LorapError(
                f"stream must be false for '{config.model_type}' models: their fused projections "
                f"are split in memory"
            )
        self._pool = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[dict[str, Tensor]]] | None = None
        self._finished: dict[int, list[Edit]] = self._resume()
        self._formed: set[int] = set()
        """Finished blocks whose modules are already those that they were rewritten to."""
        self._noted: list[Edit] = []
        self._load_rest()

    def _resume(self) -> dict[int, list[Edit]]:
        path = None if self._work is None else self._work / "blocks.json"
        if path is None or not path.is_file():
            return {}
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {int(index): list(Plan.from_dict(plan).edits) for index, plan in raw.items()}

    def _load_rest(self) -> None:
        """Embedding, norms and head, of which only the pages that are used are read; tied heads are
        tied."""
        layers = self._family.layers + "."
        rest = {name: p for name, p in self._places.items() if not name.startswith(layers)}
        loaded = {name: self._ready(mapped(place)) for name, place in rest.items()}
        self.model.load_state_dict(loaded, strict=False, assign=True)
        self.model.tie_weights()
        for name, buffer in self.model.named_buffers():
            if buffer.device.type != "meta":
                owner, _, leaf = name.rpartition(".")
                self.model.get_submodule(owner)._buffers[leaf] = buffer.to(self._device)
        held = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        missing = [n for n, t in held.items() if t.is_meta and not n.startswith(layers)]
        if missing:
            raise LorapError(f"model.path must hold every tensor, but lacks {missing[0]}")

    def _ready(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, dtype, non_blocking=True)

    @property
    def device(self) -> torch.device:
        return self._device

    @cached_property
    def blocks(self) -> Sequence[Block]:
        return blocks_of(self.model)

    @property
    def done(self) -> Mapping[int, list[Edit]]:
        return self._finished

    def finished(self, block: Block) -> bool:
        """It was rewritten before the process was killed."""
        return block.index in self.done

    def note(self, edits: Sequence[Edit]) -> None:
        """What was done to the open block."""
        self._noted += edits

    @contextmanager
    def opened(
        self, block: Block, *, rewrite: bool = True, original: bool = False
    ) -> Iterator[Block]:
        """The block with its weights in memory.

        Args:
            block: one of `blocks`.
            rewrite: keep what it becomes.
            original: as it was before anything was rewritten.
        """
        position = self.blocks.index(block)
        written = self.finished(block) and not original
        if written:
            self._give_form(block)
            state = self._rename(places_in(self._file(block)), position)
        else:
            state = self._read_ahead(position)
        block.module.load_state_dict(state, assign=True)
        block.module.requires_grad_(False)
        del state
        self._noted = []
        try:
            yield block
            if rewrite and self._work is not None and not written:
                self._write(block, position)
        finally:
            block.module.to("meta")

    def _read_ahead(self, position: int) -> dict[str, Tensor]:
        """The tensors of a block, and a thread that reads those of the next one."""
        if self._ahead is not None and self._ahead[0] == position:
            state = self._ahead[1].result()
        else:
            state = self._block_tensors(position)
        self._ahead = None
        if position + 1 < len(self.blocks):
            following = position + 1
            self._ahead = (following, self._pool.submit(self._block_tensors, following))
        return {name: self._ready(tensor) for name, tensor in state.items()}

    def _block_tensors(self, position: int) -> dict[str, Tensor]:
        prefix = self._prefix(position)
        mine = {n: p for n, p in self._places.items() if n.startswith(prefix)}
        return {name.removeprefix(prefix): read(place) for name, place in mine.items()}

    def _prefix(self, position: int) -> str:
        return f"{self._family.layers}.{position}."

    def _rename(self, places: Mapping[str, Place], position: int) -> dict[str, Tensor]:
        prefix = self._prefix(position)
        return {n.removeprefix(prefix): self._ready(read(p)) for n, p in places.items()}

    def take_forms(self) -> None:
        """Give every finished block the modules that it has now, without weights."""
        for block in self.blocks:
            if self.finished(block):
                self._give_form(block)

    def _give_form(self, block: Block) -> None:
        if block.index in self._formed:
            return
        self._formed.add(block.index)
        for name, form in block_forms(self.done[block.index], block).items():
            block.replace(name, reshape_linear(block.linear(name), **form))

    def _file(self, block: Block) -> Path:
        assert self._work is not None
        return self._work / f"block-{block.index:05}.safetensors"

    def _write(self, block: Block, position: int) -> None:
        assert self._work is not None
        prefix = self._prefix(position)
        state = {f"{prefix}{n}": tensor for n, tensor in block.module.state_dict().items()}
        with replacing(self._file(block)) as partial:
            write(partial, state)
        self._finished[block.index] = list(self._noted)
        self._formed.add(block.index)
        kept = {str(i): Plan(0.0, tuple(e)).to_dict() for i, e in self._finished.items()}
        write_json(self._work / "blocks.json", kept)

    def finish(self, path: Path, names: Sequence[str], note: Any = lambda _: None) -> None:
        """One safetensors file with these tensors of the rewritten model.

        Raises:
            LorapError: one of them was not written.
        """
        assert self._work is not None
        rest = self._work / "rest.safetensors"
        layers = self._family.layers + "."
        state = self.model.state_dict()
        write(rest, {n: t for n, t in state.items() if n in names and not n.startswith(layers)})
        places = merged([rest, *(self._file(block) for block in self.blocks)])
        missing = [name for name in names if name not in places]
        if missing:
            raise LorapError(f"the rewritten model lacks {missing[0]}")
        gather(path, {name: places[name] for name in names}, note)
