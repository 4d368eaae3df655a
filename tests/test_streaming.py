"""A streamed model ends in the files of one in memory, byte for byte, also after a kill."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods import low_rank
from lorap_exp.models.tiny import byte_tokenizer

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
METHODS = {
    "lorap": [],
    "lorap, original inputs": ["calibration.propagation=original"],
    "lorap, group by group": ["calibration.order=group"],
    "svd_llm": ["method=svd_llm"],
    "aa_svd": ["method=aa_svd"],
    "lorap_refit": ["method=lorap_refit"],
    "hidden states on disk": ["calibration.hidden_states=disk"],
}


@pytest.fixture(params=["llama", "qwen2"])
def folder(request: pytest.FixtureRequest, tiny: Tiny, tmp_path: Path) -> Path:
    """A checkpoint in several shards; qwen2 has biases and a tied head."""
    model = tiny(request.param, blocks=4)
    model.config.tie_word_embeddings = request.param == "qwen2"
    model.tie_weights()
    model.save_pretrained(tmp_path / "dense", max_shard_size="60KB")
    byte_tokenizer().save_pretrained(tmp_path / "dense")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 2
    return tmp_path / "dense"


def run(config: Make, folder: Path, name: str, *overrides: str) -> dict[str, bytes]:
    """The files of the saved model."""
    cfg = config(
        "model=custom",
        "model.name=dense",
        f"model.path={folder}",
        "evaluation.zero_shot=null",
        "ratio=0.3",
        f"store.folder={folder.parent / name / 'store'}",
        *overrides,
    )
    pipeline.run(cfg, folder.parent / name)
    saved = folder.parent / name / "model"
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    return {name: of for name, of in files.items() if name != "result.json"}  # it holds times


@pytest.mark.parametrize("method", METHODS)
def test_files_are_those_of_a_model_in_memory(config: Make, folder: Path, method: str) -> None:
    overrides = METHODS[method]
    expected = run(config, folder, "memory", "stream=false", *overrides)
    assert run(config, folder, "streamed", "stream=true", *overrides) == expected
    assert not (folder.parent / "streamed" / "blocks").exists()


@pytest.mark.parametrize("propagation", ["compressed", "original"])
@pytest.mark.parametrize("method", ["lorap", "lorap_refit"])
def test_a_killed_job_goes_on_from_the_block(
    config: Make, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, propagation: str
) -> None:
    overrides = [f"method={method}", f"calibration.propagation={propagation}"]
    expected = run(config, folder, "memory", "stream=false", *overrides)
    factorise, calls = low_rank.factorise, []

    def dies(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return factorise(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(low_rank, "factorise", dies)
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, "streamed", "stream=true", *overrides)
    done = len(list((folder.parent / "streamed" / "blocks").glob("block-*")))
    assert 0 < done < 4
    calls.clear()

    def counts(*arguments: object) -> object:
        calls.append(arguments)
        return factorise(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(low_rank, "factorise", counts)
    assert run(config, folder, "streamed", "stream=true", *overrides) == expected
    assert 0 < len(calls) < 4 * (4 - done) + 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=streamline_none"], "layer removal and training need"),
        (["method=modegpt"], "measures or changes the whole model at once"),
        (["export=dense"], "export must be factored"),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    config: Make, folder: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(LorapError, match=message):
        run(config, folder, "streamed", "stream=true", *overrides)


def test_a_random_model_has_no_files(config: Make, tmp_path: Path) -> None:
    with pytest.raises(LorapError, match="stream must be false for a random model"):
        pipeline.run(config("stream=true", "ratio=0.3"), tmp_path / "job")


def test_blocks_are_not_in_memory(tiny: Tiny, tmp_path: Path) -> None:
    from lorap_exp.models.streaming import StreamedSource

    model = tiny(blocks=3)
    model.save_pretrained(tmp_path / "dense")
    source = StreamedSource(
        tmp_path / "dense", model.config, torch.device("cpu"), torch.float32, None
    )
    first, second, _ = source.blocks
    with source.opened(first):
        assert torch.equal(first.weight("q"), model.model.layers[0].self_attn.q_proj.weight)
        assert second.weight("q").is_meta
    assert first.weight("q").is_meta
