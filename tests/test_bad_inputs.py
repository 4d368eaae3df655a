"""Bad input: one row a command; one sentence that says the setting, and an exit code that is not 0.

Rows run in this process, as the console entry does.
"""

import sys
from pathlib import Path

import pytest

from lorap_exp.commands import main, sweep

BASE = [
    "model=tiny",
    "data=embedded",
    "calibration=embedded",
    "logging=disabled",
    "dtype=float32",
    "evaluation=perplexity",
    "evaluation.perplexity.max_tokens=256",
    "calibration.samples=4",
    "calibration.length=16",
]
STAGE = "method.stages.recovery"
RECOVERY = "method=lorap_lora method.stages.recovery.text=embedded"
LACO = "method=laco ratio=0.5 method.stages.layers.lowest=0"
ROWS = {
    "seed=1000000000000000000000000000000": "seed must lie in",
    "seed=-1": "seed must be greater than or equal to 0, got -1",
    "seed=4294967296": "seed must be less than 4294967296",
    "ratio=inf": "ratio must be a finite number, got inf",
    "ratio=true": "ratio must not be true or false, got true",
    "ratio=0.2 ratio=0.3": "ratio must be given once, got '0.2' and '0.3'",
    "ratio=0.2 ratio=0.2": "ratio must be given once",
    "ratio=0.2,0.3": "ratio must have one value without -m",
    "ratio==0.2": "ratio must be a number, got '=0.2'",
    "ratio": "'ratio' cannot be read",
    "name=../x": "name must be a folder's name",
    "name=/x": "name must be a folder's name",
    "name=": "name must be a folder's name",
    "output_root=": "output_root must be a folder, got ''",
    "output_root=null": "output_root must be a folder, got null",
    "output_root=/proc/x": "output_root, store.folder or a file in them cannot be used",
    "store.folder=": "store.folder must be a folder",
    "store.folder=/proc/x": "store.folder must be a folder that can be written to",
    "store.limit_gib=inf": "store.limit_gib must be a finite number",
    "device=cdua": "device must be auto, cpu, cuda or cuda:N, got 'cdua'",
    "model.random.heads=3": "model.random.hidden_size must be a multiple of 2 x heads (6)",
    "model.random.kv_heads=3": "model.random.heads must be a multiple of kv_heads (3)",
    "model.random.blocks=1000000000": "model.random.blocks must be less than or equal to 1000",
    "model.random.hidden_size=1000000000000": "describes no model",
    "model=custom model.path=": "model.path must be a hub id or a folder",
    "method.stages.attention.targets=[]": "method.stages.attention.targets must have at least one",
    "method.stages.attention.exponent=inf": "method.stages.attention.exponent must be a finite",
    "method.stages.attention._target_=subprocess.Popen": "_target_ must name a class",
    "method.stages.attention=3": "method.stages.attention must be a section of settings",
    "calibration.samples=1000000000": "calibration.samples x calibration.length must be at most",
    "calibration.length=100000": "calibration.length must be at most 4096, the positions",
    "calibration.text=foo": "must be one of 'wikitext2', 'ptb', 'c4', 'embedded', 'files'",
    "calibration=text calibration.files=[/bin/sh]": "calibration.files must be UTF-8 text",
    "evaluation.perplexity=null": "zero_shot, generation and efficiency must not all be null",
    "evaluation.perplexity.texts=[ptb,ptb]": "must name each entry once",
    "evaluation=quick evaluation.zero_shot.tasks=[boolq,boolq]": "must name each entry once",
    "evaluation.perplexity.max_tokens=100": "must leave at least one chunk of 128",
    "analysis=spectrum analysis.shares=[2]": "analysis.shares.0 must be less than 1, got 2",
    "data=local data.folder=/nowhere": "data.folder must hold MANIFEST.json",
    "stream=maybe": "stream must be one of 'auto', true, false, got 'maybe'",
    "method.name=../x": "method.name must be a folder's name",
    f"{RECOVERY} {STAGE}.samples=8 {STAGE}.learning_rate=1e30": "less than or equal to 10",
    "foo=1": "'foo' is not a setting",
    "training=small": "training belongs to a stage",
    "hydra/launcher=null": "hydra/launcher must be one of",
    "experiment=foo": "ablation/rank_allocation",
    "-m seed=range(0,0)": "seed must have at least one value, got 'range(0,0)'",
    "-m method=glob(zzz*)": "method must have at least one value",
    "method.protect=[0,0,0]": "method.protect must be two whole numbers",
    "method.protect=[1]": "method.protect must be two whole numbers",
    "method.protect=[true,false]": "method.protect must be two whole numbers",
    "method.stages.mlp.seed=true": "seed must not be true or false, got true",
    "method.stages.attention.targets=[q,q]": "attention.targets must name each entry once",
    "method.stages.attention.exponent=100": "exponent must be less than or equal to 8, got 100",
    "method=lorap_refit method.stages.refit.targets=[o,o]": "refit.targets must name each entry",
    "+method.allocation={rule:proportions,factors:{foo:7}}": "factors must name some of",
    "+method.allocation={rule:uniform,factors:{q:2}}": "factors must be empty unless",
    "method=asvd method.stages.all.samples=1000": "samples must be at most calibration.samples (4)",
    f"{LACO} method.stages.layers.samples=1000": "samples must be at most calibration.samples (4)",
    "calibration.files=[/etc/passwd]": "calibration.files must be [] unless text is files",
    "data.folder=/nowhere": "data.folder must be null when source is embedded",
    "model.revision=main": "model.revision must be null for a random model",
    "store.limit_gib=1e300": "store.limit_gib must be less than or equal to",
    "evaluation=efficiency evaluation.efficiency.prompt=5000": "prompt + tokens must be at most",
    f"{RECOVERY} {STAGE}.samples=8 {STAGE}.file=/nowhere": "file must be null unless text is",
    "hydra/launcher=foo": "hydra/launcher must be one of",
    f"{RECOVERY} method.stages.recovery.learning_rate=inf": "must be a finite number, got inf",
    f"{RECOVERY} {STAGE}.samples=8 {STAGE}.cutoff=100000": "recovery.cutoff must be at most 4096",
    "method.stages=[]": "method.stages must be of the kind that it has in conf/, got '[]'",
    "ratio=${foo}": "'ratio=${foo}' leaves a setting without a value",
    "~name": "'~name' leaves a setting without a value",
    "-m ratio=interval(0,1)": "ratio must be a list of values",
    "method.stages.foo.bar=1": "allowed here: method.stages.attention, method.stages.mlp",
    "=0.2": "a setting is typed as key=value, got '=0.2'",
    "hydra/sweeper=foo": "hydra/sweeper must be one of basic",
    "--config-name=foo": "Cannot find primary config 'foo'",
    "logging=offline logging.project=a/b": "logging.project must be a name of W&B",
    "logging=offline logging.project=": "logging.project must be a name of W&B",
    "method=lorap_plus method.stages.all.trial_samples=5": "trial_samples must be at most cal",
    "target.bytes=1000000 ratio=0.3": "ratio must be null where target.bytes is set, got 0.3",
    "target.bytes=100000 target.perplexity=9": "bytes and perplexity must not both be set",
    "target.bytes=1000000000": "target.bytes must be less than",
    "target.bytes=1000": "target.bytes must lie in [",
    "target.bytes=0": "target.bytes must be greater than or equal to 1, got 0",
    "target.perplexity=1": "target.perplexity must be greater than 1, got 1",
    "ratio=null": "ratio must lie in [0, 1) where no target is set, got null",
    "method=dense target.bytes=1000": "ratio must be null where target.bytes is set, got 0.0",
    f"{RECOVERY} {STAGE}.samples=8 target.bytes=300000": "target.bytes: method must not train",
    "method=auto choose.candidates=[lorap,foo]": "(`--help` lists them; neither auto nor dense)",
    "method=auto choose.candidates=[dense]": "neither auto nor dense), got 'dense'",
    "method=auto choose.candidates=[auto]": "neither auto nor dense), got 'auto'",
    "method=auto choose.candidates=[lorap,lorap]": "choose.candidates must name each entry once",
    "method=auto choose.candidates=[lorap,lorap_plus_refined]": "choose.candidates must not train",
    "method=auto choose.candidates=[shortgpt]": "ratio 0.2 cannot be planned",
    "method=auto choose.samples=5": "choose.samples must be at most calibration.samples (4), got 5",
    "method=auto choose.held_out=100000": "choose.held_out must be at most",
    "method=auto choose.seconds=-1": "choose.seconds must be greater than or equal to 0, got -1",
    "method=auto ratio=0": "ratio must be above 0 where method is auto, got 0",
    "choose.candidates=[lorap]": "choose.candidates must be [] unless method is auto",
    "method=streamline_lorap method.stages.layers.training.final_rate=1": "at most learning_rate",
}


@pytest.mark.parametrize("row", ROWS)
def test_one_sentence_and_no_weight_read(
    row: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = command([f"output_root={tmp_path}", *BASE], row.split(), monkeypatch)
    assert isinstance(code, str) and code.startswith("error: ") and "\n" not in code
    assert ROWS[row] in code
    assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.rglob("model.safetensors"))


def command(base: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """What `sys.exit` is called with; a word of the row takes the place of the same setting."""
    from lorap_exp.steps import compress

    given = {word.partition("=")[0] for word in words}
    kept = [word for word in base if word.partition("=")[0] not in given]
    monkeypatch.setattr(sys, "argv", ["lorap_exp", *kept, *words])
    monkeypatch.setattr(compress, "load_model", None)
    sweep.begun.clear()
    with pytest.raises(SystemExit) as caught:
        main.main()
    return caught.value.code


NAMES = ["ratio=0.2", "method=svd,ratio=0.2", "a b", "a(1)[2]", "caf\u00e9", "it's", "a#b!c"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    from lorap_exp.commands.overrides import quoted
    from tests.conftest import compose

    folder = tmp_path / name / "model"
    folder.mkdir(parents=True)
    found = compose(["model=custom", quoted(f"model.path={folder}")])
    assert found["model"]["path"] == str(folder)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("ratio=0.2", "ratio=0.2"),
        ("ratio=0.2,0.5", "ratio=0.2,0.5"),
        ("model.path=~/x", "model.path='~/x'"),
        ("model.path=a/ratio=0.2/m,a/ratio=0.3/m", "model.path='a/ratio=0.2/m','a/ratio=0.3/m'"),
        ("calibration.files=[a=b.txt,c.txt]", "calibration.files=['a=b.txt',c.txt]"),
        ("model.path='a=b'", "model.path='a=b'"),
        ("~method", "~method"),
        ("-m", "-m"),
    ],
)
def test_quoting(argument: str, expected: str) -> None:
    from lorap_exp.commands.overrides import quoted

    assert quoted(argument) == expected


def test_names_that_hydra_leaves_out_are_those_that_change_no_number() -> None:
    import yaml

    from lorap_exp.commands.catalogue import conf_folder
    from lorap_exp.config import bookkeeping

    raw = yaml.safe_load((conf_folder() / "config.yaml").read_text())
    left_out = raw["hydra"]["job"]["config"]["override_dirname"]["exclude_keys"]
    assert left_out == ["experiment", *bookkeeping()]
