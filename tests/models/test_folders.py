"""What a model folder can be: one row a folder; loaded right, or refused in one sentence.

A row is a change to a sound folder and what is said of it, or None where the same logits come out.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Mistral3Config,
    PreTrainedModel,
)

from lorap_exp.errors import LorapError
from lorap_exp.models.inspection import check_complete
from lorap_exp.models.loading import load_config, load_model, load_tokenizer
from lorap_exp.models.tiny import byte_tokenizer, random_config
from lorap_exp.models.tokenizers import check_tokenizer
from lorap_exp.schema.inputs import ModelConfig, RandomModelConfig

IDS = torch.arange(12)[None]
SIZES = {"blocks": 2, "hidden_size": 64, "intermediate_size": 96, "heads": 4, "kv_heads": 2}
Tensors = dict[str, Tensor]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


def at(folder: Path) -> ModelConfig:
    return ModelConfig(name="x", path=str(folder), revision=None, random=None)


def build(folder: Path, family: str = "llama", **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = random_config(RandomModelConfig(family=family, **SIZES))
    settings.update(config)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def open_folder(folder: Path) -> PreTrainedModel:
    config = load_config(at(folder))
    check_tokenizer(load_tokenizer(at(folder)), config, ends=True)
    return load_model(at(folder), config, torch.device("cpu"), torch.float32, seed=0)


Act = Callable[[Path], object]


def each(*acts: Act) -> Act:
    return lambda folder: [act(folder) for act in acts]


def renamed(change: Callable[[str], str]) -> Act:
    return stored(lambda tensors: {change(name): tensor for name, tensor in tensors.items()})


def stored(change: Callable[[Tensors], Tensors]) -> Act:
    def act(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return act


def configured(**settings: Any) -> Act:
    def act(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return act


def written(name: str, content: str | bytes) -> Act:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def removed(*names: str) -> Act:
    return each(
        *(lambda folder, name=name: (folder / name).rename(folder / "gone") for name in names)
    )


def cut(name: str, share: float) -> Act:
    def act(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(share * len(raw))])

    return act


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Act:
    return stored(lambda tensors: tensors | {name: change(tensors[name])})


def as_bin(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_old_bin(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()


def as_shards(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")


def shard_gone(folder: Path) -> None:
    as_shards(folder)
    sorted(folder.glob("model-00002*"))[0].unlink()


def shard_cut(folder: Path) -> None:
    as_shards(folder)
    path = sorted(folder.glob("model-00002*"))[0]
    path.write_bytes(path.read_bytes()[:-100])


def evil_bin(folder: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "executed",))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))


def longer(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"xx")


def untied(folder: Path) -> None:
    configured(tie_word_embeddings=True)(folder)


def added_token(token: str, **special: str) -> Act:
    def act(folder: Path) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens([token])
        for name, value in special.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(folder)

    return act


def bare_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in raw.items() if not k.endswith("_token")}))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


HEAD, Q = "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"
FOLDERS: dict[str, tuple[Act, str | None]] = {
    "sound": (lambda folder: None, None),
    "torch.compile": (renamed(lambda n: f"_orig_mod.{n}"), None),
    "compiled decoder": (renamed(lambda n: n.replace("model.", "model._orig_mod.")), None),
    "DataParallel": (renamed(lambda n: f"module.{n}"), None),
    "both": (renamed(lambda n: f"module._orig_mod.{n}"), None),
    "language_model": (renamed(lambda n: f"language_model.{n}"), None),
    "no prefix": (renamed(lambda n: n.removeprefix("model.")), None),
    "old buffers": (
        stored(lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
        None,
    ),
    "unknown prefix": (renamed(lambda n: f"student.{n}"), "lacks 'model.embed_tokens.weight'"),
    "both names": (
        stored(lambda t: t | {f"module.{Q}": t[Q].clone()}),
        f"each tensor once, .* '{Q}'",
    ),
    "no head": (stored(lambda t: {n: x for n, x in t.items() if n != HEAD}), f"lacks '{HEAD}'$"),
    "a layer missing": (
        stored(lambda t: {n: x for n, x in t.items() if ".layers.1." not in n}),
        r"lacks 'model.layers.1.self_attn.q_proj.weight', .* and 6 more",
    ),
    "more layers configured": (
        configured(num_hidden_layers=3),
        r"lacks 'model.layers.2.self_attn.q_proj.weight'",
    ),
    "fewer layers configured": (
        configured(num_hidden_layers=1),
        r"has beside them 'model.layers.1.input_layernorm.weight'",
    ),
    "a tensor too many": (
        stored(lambda t: t | {"model.layers.0.extra.weight": torch.ones(2)}),
        "has beside them 'model.layers.0.extra.weight'$",
    ),
    "another size": (
        changed(Q, lambda x: x[:32].clone()),
        rf"'{Q}' of .*model.safetensors' must have the shape \[64, 64\] .* got \[32, 64\]",
    ),
    "transposed": (
        changed("model.layers.0.mlp.up_proj.weight", lambda x: x.T.contiguous()),
        r"must have the shape \[96, 64\] .* got \[64, 96\]",
    ),
    "vocabulary resized": (configured(vocab_size=300), r"must have the shape \[300, 64\]"),
    "two heads": (untied, r"says that 'lm_head.weight' is 'model.embed_tokens.weight'"),
    "NaN": (
        changed(Q, lambda x: x.index_fill(0, torch.tensor([3]), float("nan"))),
        f"must be finite numbers, but 64 of '{Q}' are not in float32",
    ),
    "infinite": (
        changed("model.norm.weight", lambda x: x / 0),
        "finite numbers, but 64 of 'model.norm.weight'",
    ),
    "adapter beside weights": (
        written("adapter_config.json", '{"base_model_name_or_path": "a/b"}'),
        "must be a whole model, .* with the adapter 'adapter_config.json' of 'a/b'",
    ),
    "adapter alone": (
        each(removed("config.json", "model.safetensors"), written("adapter_config.json", "{}")),
        "must be a whole model, .* with the adapter",
    ),
    **{
        f"quantised by {method}": (
            configured(quantization_config={"quant_method": method, "bits": 4}),
            f"weights in floating point, .*config.json' with weights quantised by '{method}'",
        )
        for method in ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "mxfp4")
    },
    "quantised, not said": (
        changed(Q, lambda x: x.to(torch.int8)),
        rf"weights in floating point .* got '{Q}' of .* of type I8: it is quantised",
    ),
    "fp8, not said": (
        changed(Q, lambda x: x.to(torch.float8_e4m3fn)),
        r"of type F8_E4M3: it is quantised",
    ),
    "packed": (
        renamed(lambda n: n.replace("q_proj.weight", "q_proj.qweight")),
        rf"lacks '{Q}'.* has beside them 'model.layers.0.self_attn.q_proj.qweight'",
    ),
    ".bin": (as_bin, None),
    "old .bin": (as_old_bin, None),
    ".bin that runs code": (evil_bin, "'.*pytorch_model.bin' must be tensors by name"),
    ".bin cut": (each(as_bin, cut("pytorch_model.bin", 0.5)), "and whole: "),
    "shards": (as_shards, None),
    "shard gone": (shard_gone, r"'.*model-00002-.*' is not there, but 'model.safetensors.index"),
    "shard cut": (shard_cut, r"'.*model-00002-.*' is cut: '.*' should end at byte"),
    "cut": (cut("model.safetensors", 0.7), "model.safetensors' is cut: '.*' should end at byte"),
    "cut in the header": (cut("model.safetensors", 0.001), "end inside its header"),
    "empty": (written("model.safetensors", ""), "end inside its header"),
    "longer": (
        longer,
        "has 2 bytes after its last tensor",
    ),
    "no weights": (removed("model.safetensors"), "must hold its weights in model.safetensors"),
    "LFS weights": (written("model.safetensors", LFS), "model.safetensors' is a Git LFS pointer"),
    "LFS config": (written("config.json", LFS), "config.json' is a Git LFS pointer"),
    "LFS tokenizer": (written("tokenizer.json", LFS), "tokenizer.json' is a Git LFS pointer"),
    "index without a map": (
        each(removed("model.safetensors"), written("model.safetensors.index.json", "{}")),
        "must have a weight_map",
    ),
    "index outside": (
        each(
            removed("model.safetensors"),
            written("model.safetensors.index.json", '{"weight_map": {"a": "../x"}}'),
        ),
        "must name files of its own folder, got '../x'",
    ),
    "config is no JSON": (written("config.json", "{"), "config.json' must be JSON"),
    "config is a list": (written("config.json", "[]"), "must be a JSON object, got list"),
    "config is not UTF-8": (written("config.json", b"\xff\xfe"), "config.json' must be JSON"),
    "config of nothing": (written("config.json", "{}"), "supported family|cannot be read"),
    "no config": (removed("config.json"), "a folder with config.json"),
    "unknown family": (configured(model_type="rwkv9"), "cannot be read .*rwkv9"),
    "compressed": (configured(model_type="compressed_llama"), "must say its architectures|cannot"),
    "stale auto_map": (configured(auto_map={"AutoModelForCausalLM": "gone.py--x.Y"}), None),
    "heads that do not divide": (
        configured(num_attention_heads=3),
        "num_key_value_heads|number of attention heads",
    ),
    "groups that do not divide": (
        configured(num_key_value_heads=3),
        r"must be a multiple of num_key_value_heads \(3\), got 4",
    ),
    "a word for a number": (configured(hidden_size="wide"), "model.path: "),
    "absurdly many layers": (configured(num_hidden_layers=10**9), "must be at most 1000"),
    "no layers": (configured(num_hidden_layers=0), "num_hidden_layers must be at least 1, got 0"),
    "no heads": (configured(num_attention_heads=0), "num_attention_heads must be at least 1"),
    "no groups": (configured(num_key_value_heads=0), "num_key_value_heads must be at least 1"),
    "no positions": (configured(max_position_embeddings=-1), "max_position_embeddings must be at"),
    "half a head": (configured(num_attention_heads=1.5), "num_attention_heads must be a whole"),
    "negative epsilon": (configured(rms_norm_eps=-1.0), "rms_norm_eps must be above 0, got -1"),
    "rope of nothing": (configured(rope_theta=0), "rope_theta must be above 0, got 0"),
    "unknown activation": (configured(hidden_act="foo"), "hidden_act is unknown"),
    "a text model inside": (configured(text_config={"model_type": "llama"}), "text_config"),
    "a text model of nothing": (configured(text_config=3), "text_config must be an object, got 3"),
    "quantised by nothing": (configured(quantization_config={}), "weights quantised by None"),
    "generation settings of a list": (written("generation_config.json", "[]"), "a JSON object"),
    "index of numbers": (
        each(
            removed("model.safetensors"),
            written("model.safetensors.index.json", '{"weight_map": {"a": 3}}'),
        ),
        "must name files by text, got 3",
    ),
    "index of itself": (
        each(
            removed("model.safetensors"),
            written(
                "model.safetensors.index.json",
                '{"weight_map": {"a": "model.safetensors.index.json"}}',
            ),
        ),
        "must name weight files, got itself",
    ),
    "a length of words": (
        written("tokenizer_config.json", '{"model_max_length": "x"}'),
        "model_max_length of .* must be a number, got 'x'",
    ),
    "logits that are no numbers": (
        configured(rope_parameters={"rope_type": "linear", "factor": 0.0, "rope_theta": 1e4}),
        "the logits of .* must be finite numbers|describes no model|does not compute",
    ),
    "negative size": (configured(intermediate_size=-5), "model.path: "),
    "no tokenizer": (
        removed("tokenizer.json", "tokenizer_config.json"),
        "must hold its tokenizer",
    ),
    "tokenizer is no JSON": (written("tokenizer.json", "{]"), "tokenizer.json' must be JSON"),
    "tokenizer of nothing": (written("tokenizer.json", "{}"), "its tokenizer cannot be read"),
    "an added token beyond the embedding": (added_token("<image>"), None),
    "pad beyond the embedding": (
        added_token("<pad>", pad_token="<pad>"),
        "pad_token of its tokenizer must be below the 257 tokens .* got '<pad>' with 257",
    ),
    "no special tokens": (bare_tokenizer, "must have an eos_token for tasks"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_loaded_right_or_refused(name: str, tmp_path: Path) -> None:
    act, message = FOLDERS[name]
    expected = build(tmp_path)(IDS).logits
    act(tmp_path)
    if message is None:
        torch.testing.assert_close(open_folder(tmp_path)(IDS).logits, expected)
        return
    with pytest.raises(LorapError, match=message) as caught:
        open_folder(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_float16_overflow_is_named(tmp_path: Path) -> None:
    build(tmp_path)
    changed(Q, lambda x: x * 1e7)(tmp_path)
    with pytest.raises(LorapError, match=f"of '{Q}' are not in float16"):
        load_model(
            at(tmp_path), load_config(at(tmp_path)), torch.device("cpu"), torch.float16, seed=0
        )


def test_gemma_needs_bos(tmp_path: Path) -> None:
    build(tmp_path, "gemma3_text")
    bare_tokenizer(tmp_path)
    with pytest.raises(LorapError, match="'gemma3_text' model must have a bos_token"):
        open_folder(tmp_path)


VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def wrapper(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    family = {"gemma3": "gemma3_text", "mistral3": "mistral"}[kind]
    text = random_config(RandomModelConfig(family=family, **SIZES)).to_dict()
    if kind == "gemma3":
        config: Any = Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4)
    else:
        vision = VISION | {"model_type": "pixtral"}
        config = Mistral3Config(text_config=text, vision_config=vision)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()


OLD_NAMES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
@pytest.mark.parametrize("names", ["saved", "hub", "now"])
def test_the_text_model_of_a_multimodal_one(kind: str, names: str, tmp_path: Path) -> None:
    whole = wrapper(kind)
    whole.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    tensors = {name: tensor.contiguous() for name, tensor in whole.state_dict().items()}
    if names != "saved":
        new = {
            next((name.replace(a, b) for a, b in OLD_NAMES.items() if name.startswith(a)), name)
            if names == "hub"
            else name: tensor.clone()
            for name, tensor in tensors.items()
            if not (
                kind == "gemma3" and name == "lm_head.weight" and whole.config.tie_word_embeddings
            )
        }
        save_file(new, tmp_path / "model.safetensors", {"format": "pt"})
    ids = IDS + 20
    torch.testing.assert_close(open_folder(tmp_path)(ids).logits, whole(input_ids=ids).logits)


def test_a_saved_model_must_be_complete(tmp_path: Path) -> None:
    model = build(tmp_path)
    check_complete(tmp_path, model)
    stored(lambda t: {n: x for n, x in t.items() if n != Q})(tmp_path)
    with pytest.raises(LorapError, match=f"lacks '{Q}'"):
        check_complete(tmp_path, model)
    shutil.rmtree(tmp_path)


def test_a_folder_with_only_tokenizer_model(tmp_path: Path) -> None:
    """As Vicuna v1.3 has it: sentencepiece's own file."""
    import io

    import sentencepiece

    build(tmp_path)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 50),
        model_writer=model,
        vocab_size=60,
        model_type="bpe",
        byte_fallback=False,
        minloglevel=2,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = load_tokenizer(at(tmp_path))
    check_tokenizer(tokenizer, load_config(at(tmp_path)), ends=True)
    words = tokenizer("the lazy fox", add_special_tokens=False)["input_ids"]
    assert str(tokenizer.decode(words)).strip() == "the lazy fox"
