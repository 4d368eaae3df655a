"""A model larger than memory: blocks are read from disk when they are opened or run, and freed.

What a method rewrites is written as one file for each block; `fill` makes a checkpoint of them. The
next block is read while this one computes. After a kill, finished blocks are not done again. The
model runs as any other does: a block that is not open is read for its forward pass.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from lorap_exp.errors import LorapError
from lorap_exp.models.families import Block, blocks_of, decoder_family, split_fused
from lorap_exp.models.forms import as_form, causal_class
from lorap_exp.models.layout import give_form
from lorap_exp.models.source import Source
from lorap_exp.models.stored_blocks import StoredBlocks
from lorap_exp.models.tensor_files import Mapped, fill, places_in, read, write
from lorap_exp.planning.edits import Edit, Plan
from lorap_exp.workspace.files import replacing, write_json
from lorap_exp.workspace.memory import return_freed_memory


class StreamedSource(Source):
    """A checkpoint of which one block at a time is in memory.

    Args:
        folder: of the checkpoint, in safetensors, one file or shards.
        config: of it.
        device: where blocks compute.
        dtype: in which they compute.
        work: folder for rewritten blocks; None for a model that is only read.

    Raises:
        LorapError: the files are no safetensors, or a tensor is not there under its name.
    """

    streamed = True

    def __init__(
        self,
        folder: Path,
        config: PreTrainedConfig,
        device: torch.device,
        dtype: torch.dtype,
        work: Path | None = None,
    ) -> None:
        return_freed_memory()
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = causal_class(config)._from_config(config, dtype=dtype)
        super().__init__(model.eval().requires_grad_(False))
        self._device, self._dtype, self._work = device, dtype, work
        self._family = decoder_family(model)
        self._files = StoredBlocks(folder, model)
        if _is_stock(model):
            split_fused(model)
        self._stored = {block.index: position for position, block in enumerate(self.blocks)}
        self._original = False
        self._open: set[int] = set()
        self._lent: set[int] = set()
        self._finished: dict[int, list[Edit]] = self._resume()
        self._formed: set[int] = set()
        """Finished blocks whose modules are already those that they were rewritten to."""
        self._noted: list[Edit] = []
        self._carry: Mapping[str, dict[str, Any]] = {}
        self._load_rest()
        self._lend()

    def _resume(self) -> dict[int, list[Edit]]:
        path = None if self._work is None else self._work / "blocks.json"
        if path is None or not path.is_file():
            return {}
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {int(index): list(Plan.from_dict(plan).edits) for index, plan in raw.items()}

    def _load_rest(self) -> None:
        """Embedding, norms and head, of which only the pages that are used are read; tied heads are
        tied."""
        own = self.model.state_dict()
        maps = {n: Mapped(place) for n, place in self._files.others.items() if n in own}
        loaded = {name: self._ready(held.tensor) for name, held in maps.items()}
        self._maps = [held for name, held in maps.items() if loaded[name] is held.tensor]
        self.model.load_state_dict(loaded, strict=False, assign=True)
        self.model.requires_grad_(False)
        self.model.tie_weights()
        for name, buffer in self.model.named_buffers():
            if buffer.device.type != "meta":
                owner, _, leaf = name.rpartition(".")
                self.model.get_submodule(owner)._buffers[leaf] = buffer.to(self._device)
        held = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        layers = self._family.layers + "."
        missing = [n for n, t in held.items() if t.is_meta and not n.startswith(layers)]
        if missing:
            raise LorapError(f"model.path must hold every tensor, but lacks {missing[0]}")

    def _lend(self) -> None:
        """A block that runs while it is not open is read for that, and freed behind it.

        So are the pages of embedding and head behind the model.
        """

        def lend(block: Block) -> None:
            def before(module: nn.Module, _: Any) -> None:
                bypassed = "forward" in vars(module)
                there = block.index in self._open | self._lent
                if module is block.module and not bypassed and not there:
                    self._read(block, original=self._original)
                    self._lent.add(block.index)

            def after(module: nn.Module, *_: Any) -> None:
                if module is block.module and block.index in self._lent:
                    self._lent.discard(block.index)
                    _free(module)

            block.module.register_forward_pre_hook(before, prepend=True)
            block.module.register_forward_hook(after, always_call=True)

        for block in self.blocks:
            lend(block)
        self.model.register_forward_hook(lambda *_: self._forget(), always_call=True)

    def _forget(self) -> None:
        for held in self._maps:
            held.forget()

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

    def hold(self, carry: Mapping[str, dict[str, Any]]) -> None:
        """Keep the tensors that steps hand on from block to block; put in what they left before a
        kill."""
        self._carry = carry
        left = [self._carry_file(index) for index in self._finished]
        for path in (path for path in left[-1:] if path.is_file()):
            for key, place in places_in(path).items():
                step, _, name = key.partition("/")
                carry[step][name] = read(place).to(self._device)

    def _carry_file(self, index: int) -> Path:
        assert self._work is not None
        return self._work / f"carry-{index:05}.safetensors"

    def _write_carry(self, index: int) -> None:
        tensors = {
            f"{step}/{name}": value
            for step, values in self._carry.items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        if tensors:
            with replacing(self._carry_file(index)) as partial:
                write(partial, tensors)

    def note(self, edits: Sequence[Edit]) -> None:
        """What was done to the open block."""
        self._noted += edits

    def adopt(self, model: PreTrainedModel) -> None:
        """Go on with a model of the same blocks, some of which are gone or replaced."""
        self.model = model
        vars(self).pop("blocks", None)
        for block in self.blocks:
            if not block.family.matrices and self._work is not None:  # a replacement, in memory
                self._write(block, [])
                _free(block.module)
        self._lend()

    def restart(self) -> None:
        """Forget what was rewritten before the process was killed."""
        self._finished.clear()

    @contextmanager
    def originals(self) -> Iterator[None]:
        """Blocks run as they were before anything was rewritten."""
        self._original = True
        try:
            yield
        finally:
            self._original = False

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
        written = self._read(block, original=original)
        self._open.add(block.index)
        self._noted = []
        try:
            yield block
            if rewrite and self._work is not None and not written:
                self._write_carry(block.index)
                self._write(block, self._noted)
                for index in list(self._finished)[:-1]:
                    self._carry_file(index).unlink(missing_ok=True)
        finally:
            self._open.discard(block.index)
            _free(block.module)

    @contextmanager
    def amended(self, block: Block) -> Iterator[Block]:
        """A block with its weights; it is written again, and what was noted of it stays."""
        with self.opened(block, rewrite=False):
            yield block
            if self._work is not None:
                self._write(block, self._finished.get(block.index, []))

    @torch.inference_mode(False)
    def _read(self, block: Block, *, original: bool) -> bool:
        """Give a block its weights; whether they are rewritten ones."""
        self._forget()
        written = self.finished(block) and not original
        if written:
            self._give_form(block)
            places = places_in(self._file(block))
            state: Mapping[str, Tensor] = {n: self._ready(read(p)) for n, p in places.items()}
        else:
            number = self._stored[block.index]
            order = [self._stored[other.index] for other in self.blocks]
            raw = self._files.read(number, order)
            state = self._files.split(number, {n: self._ready(t) for n, t in raw.items()})
        block.module.load_state_dict(state, assign=True)
        block.module.requires_grad_(False)
        return written

    def take_forms(self) -> None:
        """Give every finished block the modules that it has now, without weights."""
        for block in self.blocks:
            if self.finished(block):
                self._give_form(block)

    def _give_form(self, block: Block) -> None:
        if block.index in self._formed:
            return
        self._formed.add(block.index)
        give_form(block, self.done[block.index])

    def _file(self, block: Block) -> Path:
        assert self._work is not None
        return self._work / f"block-{block.index:05}.safetensors"

    def _write(self, block: Block, edits: Sequence[Edit]) -> None:
        assert self._work is not None
        with replacing(self._file(block)) as partial:
            write(partial, block.module.state_dict())
        self._finished[block.index] = list(edits)
        self._formed.add(block.index)
        kept = {str(i): Plan(0.0, tuple(e)).to_dict() for i, e in self._finished.items()}
        write_json(self._work / "blocks.json", kept)

    def fill(self, folder: Path, final: PreTrainedModel, form: str) -> None:
        """The weight files of the rewritten model, as `save_pretrained` would write them.

        Args:
            folder: which holds nothing but what belongs beside weights.
            final: the architecture that is saved, without weights.
            form: factored, or dense, where factors are multiplied out.
        """
        tied = set(final.all_tied_weights_keys or ())
        own = {name: tensor for name, tensor in final.state_dict().items() if name not in tied}
        parts = self._final_tensors(final, own, form)
        stored = (revert_weight_conversion(final, part) for part in parts)
        fill(folder, revert_weight_conversion(final, own), stored, final.num_parameters())

    def _final_tensors(
        self, final: PreTrainedModel, own: Mapping[str, Tensor], form: str
    ) -> Iterator[dict[str, Tensor]]:
        layers = self._family.layers
        rest = self.model.state_dict()
        yield {n: rest[n] for n in own if not n.startswith(layers + ".")}
        for position, block in enumerate(self.blocks):
            with self.opened(block, rewrite=False):
                layer = final.get_submodule(f"{layers}.{position}")
                state = as_form(layer, block.module, form, stock=_is_stock(final))
                yield {f"{layers}.{position}.{name}": t for name, t in state.items()}


def _is_stock(model: PreTrainedModel) -> bool:
    return getattr(model.config, "stock_class", None) is None


@torch.inference_mode(False)
def _free(module: nn.Module) -> None:
    """Leave the shapes; buffers that no file holds stay."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), requires_grad=False
                )
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                part._buffers[name] = torch.empty_like(buffer, device="meta")
