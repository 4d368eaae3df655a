"""A streamed model ends in the files of one in memory, byte for byte, also after a kill."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods import laco, low_rank, slicegpt
from lorap_exp.models.tiny import byte_tokenizer, random_config
from lorap_exp.schema.inputs import RandomModelConfig

Make = Callable[..., Config]
Tiny = Callable[..., PreTrainedModel]
LAYERS = "method.stages.layers"
PLUS = [
    "method=lorap_plus",
    "method.stages.all.gradient_samples=4",
    "method.stages.all.trial_samples=2",
]
METHODS = {
    "lorap": [],
    "lorap, original inputs": ["calibration.propagation=original"],
    "lorap, group by group": ["calibration.order=group"],
    "svd_llm": ["method=svd_llm"],
    "aa_svd": ["method=aa_svd"],
    "lorap_refit": ["method=lorap_refit"],
    "hidden states on disk": ["calibration.hidden_states=disk"],
    "factors multiplied out": ["export=dense"],
    "lorap_plus": PLUS,
    "lorap, then gains": [
        "+stage@method.stages.gains=norm_gains",
        "method.stages.gains.held_out=2",
    ],
    "pifa": ["method=pifa"],
    "flap": ["method=flap"],
    "asvd": ["method=asvd", "method.stages.all.samples=2"],
    "modegpt": ["method=modegpt"],
    "olica": ["method=olica"],
    "slimgpt": ["method=slimgpt"],
    "shortgpt": ["method=shortgpt"],
    "sleb": ["method=sleb"],
    "taylor": ["method=streamline_none", f"{LAYERS}.criterion=taylor", f"{LAYERS}.protect=[0,0]"],
    "layers, then lorap": ["method=streamline_lorap", f"{LAYERS}.replacement=none", "ratio=0.5"],
    "layers merged": ["method=laco", f"{LAYERS}.threshold=0.999", f"{LAYERS}.samples=4"],
    "slicegpt": ["method=slicegpt"],
    "replaceme": ["method=replaceme"],
    "a linear map, then lorap": [
        "method=streamline_lorap",
        f"{LAYERS}.replacement=linear",
        "ratio=0.5",
    ],
    "a merged map, then lorap": [
        "method=streamline_lorap",
        f"{LAYERS}.replacement=linear_merged",
        "ratio=0.5",
    ],
    "nothing": ["method=dense", "ratio=0"],
}
EXPERTS = "+stage@method.stages.experts=expert_pruning"
SIZES = {"blocks": 3, "hidden_size": 64, "intermediate_size": 176, "heads": 4, "kv_heads": 2}
FUSED = ["phi3", "gpt2", "gpt_neox"]
"""Fused projections, and turned ones."""


@pytest.fixture(params=["llama", "qwen2"])
def folder(request: pytest.FixtureRequest, tiny: Tiny, tmp_path: Path) -> Path:
    """A checkpoint in several shards; qwen2 has biases and a tied head."""
    model = tiny(request.param, blocks=4)
    model.config.tie_word_embeddings = request.param == "qwen2"
    model.tie_weights()
    return saved(model, tmp_path / "dense")


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size="60KB")
    byte_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def run(config: Make, folder: Path, name: str, *overrides: str) -> dict[str, bytes]:
    """The files of the saved model, and its scores."""
    cfg = config(
        "model=custom",
        "model.name=dense",
        f"model.path={folder}",
        "evaluation.zero_shot=null",
        "ratio=0.3",
        f"store.folder={folder.parent / name / 'store'}",
        *overrides,
    )
    scores = pipeline.run(cfg, folder.parent / name).scores.perplexity
    model = folder.parent / name / "model"
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    files["result.json"] = str([score.nll for score in scores]).encode()  # the file holds times
    return files


@pytest.mark.parametrize("method", METHODS)
def test_files_are_those_of_a_model_in_memory(config: Make, folder: Path, method: str) -> None:
    overrides = METHODS[method]
    expected = run(config, folder, "memory", "stream=false", *overrides)
    assert run(config, folder, "streamed", "stream=true", *overrides) == expected
    assert not (folder.parent / "streamed" / "blocks").exists()


@pytest.mark.parametrize("export", ["factored", "dense"])
@pytest.mark.parametrize("family", FUSED)
def test_fused_projections(config: Make, tmp_path: Path, family: str, export: str) -> None:
    torch.manual_seed(0)
    drawn = random_config(RandomModelConfig(family=family, **SIZES))
    folder = saved(AutoModelForCausalLM.from_config(drawn), tmp_path / "dense")
    expected = run(config, folder, "memory", "stream=false", f"export={export}")
    assert run(config, folder, "streamed", "stream=true", f"export={export}") == expected


def test_tasks_and_the_dense_answers(config: Make, folder: Path) -> None:
    """Whatever is scored, blocks come from disk."""
    asked = [
        "evaluation=quick",
        "evaluation.zero_shot.limit=3",
        "evaluation.zero_shot.stability=true",
    ]
    results = []
    for stream in ("false", "true"):
        cfg = config(
            *["model=custom", "model.name=dense", f"model.path={folder}", "ratio=0.3", *asked],
            *[f"stream={stream}", f"store.folder={folder.parent / stream}"],
        )
        results.append(pipeline.run(cfg, folder.parent / f"job {stream}").scores)
    memory, streamed = results
    assert [task.acc for task in streamed.tasks] == [task.acc for task in memory.tasks]
    assert streamed.stability == memory.stability != ()


@pytest.mark.parametrize("propagation", ["compressed", "original"])
@pytest.mark.parametrize("method", ["lorap", "lorap_refit", "layers, then lorap"])
def test_a_killed_job_goes_on_from_the_block(
    config: Make, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, propagation: str
) -> None:
    overrides = METHODS[method] or [f"method={method}"]
    overrides = [*overrides, f"calibration.propagation={propagation}"]
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
    done = len(list((folder.parent / "streamed").glob("blocks*/block-*")))
    assert 0 < done < 4
    calls.clear()

    def counts(*arguments: object) -> object:
        calls.append(arguments)
        return factorise(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(low_rank, "factorise", counts)
    assert run(config, folder, "streamed", "stream=true", *overrides) == expected
    assert 0 < len(calls) < 4 * (4 - done) + 1


@pytest.mark.parametrize(
    ("overrides", "owner", "name", "fatal"),
    [
        (["method=slicegpt"], slicegpt.SliceResidual, "_block", 3),
        (["method=slicegpt"], slicegpt.SliceResidual, "_ends", 1),
        (METHODS["layers merged"], laco, "shortened", 1),
        (METHODS["a merged map, then lorap"], low_rank, "factorise", 7),
    ],
)
def test_what_blocks_hand_on_survives_a_kill(
    config: Make,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    owner: object,
    name: str,
    fatal: int,
) -> None:
    """Rotations of the residual stream go on; merged layers are merged again from the original."""
    expected = run(config, folder, "memory", "stream=false", *overrides)
    original, calls = getattr(owner, name), []

    def dies(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(owner, name, staticmethod(dies) if name == "_ends" else dies)
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, "streamed", "stream=true", *overrides)
    assert list((folder.parent / "streamed").rglob("block-*")), "nothing was rewritten before"
    monkeypatch.setattr(owner, name, staticmethod(original) if name == "_ends" else original)
    assert run(config, folder, "streamed", "stream=true", *overrides) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [
                "method=lorap_lora",
                "method.stages.recovery.text=embedded",
                "method.stages.recovery.samples=4",
                "method.stages.recovery.validation_samples=1",
            ],
            "trains the whole model",
        ),
        (
            ["+evaluation.efficiency={prompt:8,tokens:4,batches:[1],repeats:2,compiled:null}"],
            "speed is measured of models that are in memory",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    config: Make, folder: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(LorapError, match=message):
        run(config, folder, "streamed", "stream=true", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.stages.mlp=null", "ratio=0.05"],
        ["method.stages.attention=null", "method.stages.mlp=null", EXPERTS],
        ["method=shortgpt", "ratio=0.4"],
    ],
)
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_that_are_merged_on_loading(
    config: Make, tmp_path: Path, family: str, overrides: list[str]
) -> None:
    """Their files hold each expert apart, and do so again when the model is saved."""
    torch.manual_seed(0)
    drawn = random_config(RandomModelConfig(family=family, **SIZES))
    folder = saved(AutoModelForCausalLM.from_config(drawn), tmp_path / "dense")
    expected = run(config, folder, "memory", "stream=false", *overrides)
    assert run(config, folder, "streamed", "stream=true", *overrides) == expected


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
