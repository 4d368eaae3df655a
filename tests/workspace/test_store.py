"""The store: shared, sound, bounded."""

import errno
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor
from transformers import PreTrainedModel

from lorap_exp import pipeline
from lorap_exp.calibration.evidence import Sharing
from lorap_exp.calibration.statistics import SquaredNorm
from lorap_exp.calibration.walk import Walk
from lorap_exp.config import Config
from lorap_exp.errors import LorapError
from lorap_exp.methods import low_rank
from lorap_exp.models.digests import digest_tokenizer
from lorap_exp.models.tiny import byte_tokenizer
from lorap_exp.workspace.store import Store
from tests.methods.stacks import compress, stack_of

Make = Callable[..., Config]
IDS = torch.arange(8 * 16).view(8, 16) % 200


def never(*_: Any) -> Any:
    raise AssertionError("computed again")


def test_an_entry_is_computed_once(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**6)
    assert store.json("k", {"a": 1}, lambda: [1, 2]) == [1, 2]
    assert store.json("k", {"a": 1}, never) == [1, 2]
    assert store.json("k", {"a": 2}, lambda: 3) == 3
    one = {"x": torch.arange(3)}
    assert torch.equal(store.tensors("t", {"a": 1}, lambda: one)["x"], one["x"])
    assert torch.equal(store.tensors("t", {"a": 1}, never)["x"], one["x"])


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "{", "{}", "[]", "null", '"x"'])
def test_a_damaged_entry_is_rebuilt_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    store = Store(tmp_path, 10**6)
    store.json("k", {}, lambda: "value")
    (path,) = tmp_path.glob("k/*.bin")
    if damage == "flip":
        path.write_bytes(b"X" + path.read_bytes()[1:])
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    elif damage == "gone":
        path.unlink()
    else:
        path.with_suffix(".json").write_text(damage)
        assert store.json("other", {}, lambda: 1) == 1, "no obstacle to others"
    assert not store.sound("k", {})
    assert store.json("k", {}, lambda: "value") == "value"
    assert "is damaged and is computed again" in capsys.readouterr().err
    assert store.json("k", {}, never) == "value"


def test_a_full_disk_costs_the_sharing_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path, 10**6)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert store.json("k", {}, lambda: "value") == "value"
    assert "is not stored, only this job has it" in capsys.readouterr().err
    assert store.json("k", {}, lambda: "anew") == "anew"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**6)
    store.json("k", {}, lambda: 1)
    half, whole, busy = (c * 32 for c in "abc")
    for name in (f"{half}.bin", f"{whole}.bin.partial", f"{busy}.bin.partial"):
        (tmp_path / "k" / name).write_bytes(b"0" * 100)
        (tmp_path / "k" / f"{name[:32]}.lock").touch()
    with FileLock(tmp_path / "k" / f"{busy}.lock"):
        assert not store.prune(10**6)
    left = {path.name for path in tmp_path.glob("k/*bin*")}
    assert f"{busy}.bin.partial" in left and len(left) == 2
    assert store.json("k", {}, never) == 1


FOREIGN = ["a/weights.bin", "a/x.bin.partial", "a/x.json", f"k/{'d' * 32}.bin", "k/notes.json"]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_never_touched(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    store = Store(tmp_path, 10**6).open()
    store.json("k", {}, lambda: 1)
    assert len(store.prune(0)) == 1
    assert path.read_text() == "{}"


def test_a_folder_without_the_mark_is_not_pruned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorap_exp.commands import subcommands

    for command in ("prune", "list"):
        with pytest.raises(SystemExit, match="--folder must be a store"):
            subcommands.run(["store", command, "--folder", str(tmp_path)])
    Store(tmp_path, 0).open()
    subcommands.run(["store", "prune", "--folder", str(tmp_path)])
    assert "0 entries removed" in capsys.readouterr().out


def test_a_link_leads_the_store_nowhere(tmp_path: Path) -> None:
    other, store = Store(tmp_path / "other", 10**6).open(), Store(tmp_path / "own", 0).open()
    other.json("k", {}, lambda: 1)
    (tmp_path / "own" / "k").symlink_to(tmp_path / "other" / "k")
    assert store.prune(0) == [] and len(other.entries()) == 1


def hold(folder: Path, ready: Path) -> None:
    """A process that needs an entry, until it is killed."""
    store = Store(folder, 10**6)
    assert store.pin("k", [{}])
    ready.touch()
    time.sleep(60)


def test_what_another_process_needs_is_not_pruned(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", 10**6).open()
    store.json("k", {}, lambda: 1)
    store.json("k", {"a": 1}, lambda: 2)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=hold, args=(tmp_path / "store", tmp_path / "ready"))
    process.start()
    while not (tmp_path / "ready").exists():
        assert process.is_alive()
        time.sleep(0.05)
    assert [entry.key for entry in store.prune(0)] == [{"a": 1}]
    process.kill()
    process.join()
    assert [entry.key for entry in store.prune(0)] == [{}], "pins of the dead hold nothing"


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, config: Make) -> None:
    (tmp_path / "file").write_text("")
    cfg = config(f"store.folder={tmp_path}/file/store")
    with pytest.raises(LorapError, match="store.folder must be a folder that can be written to"):
        pipeline.run(cfg, tmp_path / "job")


def test_a_computation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**6)
    with pytest.raises(AssertionError):
        store.json("k", {}, never)
    assert store.entries() == []
    assert store.json("k", {}, lambda: 1) == 1


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path, 250)
    for name in "abc":
        store.json("k", {"name": name}, lambda: "x" * 98)
        time.sleep(0.02)
        if name == "b":
            store.json("k", {"name": "a"}, never)
            time.sleep(0.02)
    assert [entry.key["name"] for entry in store.entries()] == ["a", "c"]
    assert store.prune(100)[0].key == {"name": "a"}
    assert sum(entry.bytes for entry in store.entries()) == 100


def work(folder: Path, marks: Path, number: int) -> None:
    """One of several processes that want the same entry."""

    def compute() -> int:
        (marks / str(number)).touch()
        time.sleep(0.3)
        return 7

    assert Store(folder, 10**6).json("k", {}, compute) == 7


def test_processes_wait_for_one_another(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(tmp_path / "store", marks, i)) for i in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(marks.iterdir())) == 1


@pytest.mark.parametrize("metric", ["svd", "awsvd", "activation"])
@pytest.mark.parametrize("propagation", ["original", "compressed"])
def test_sharing_changes_no_number(
    tiny: Callable[..., PreTrainedModel],
    config: Make,
    tmp_path: Path,
    metric: str,
    propagation: str,
) -> None:
    stack = stack_of(config, f"method.stages.attention.metric={metric}")
    sharing = Sharing(Store(tmp_path, 10**9), {"model": "tiny"}, {"calibration": "ids"})
    logits = []
    for keep in (None, sharing, sharing):
        model = tiny(blocks=3)
        compress(model, stack, 0.4, IDS, Walk(4, propagation), sharing=keep)
        logits.append(model(IDS).logits)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_one_calibration_serves_every_ratio(
    tmp_path: Path, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second ratio measures and factorises nothing, and has the numbers of a lonely job."""
    settings = ["calibration.propagation=original", "evaluation.zero_shot=null"]
    together = [*settings, f"store.folder={tmp_path}/together"]
    pipeline.run(config(*together, "ratio=0.5"), tmp_path / "one")
    lonely = config(*settings, f"store.folder={tmp_path}/alone", "ratio=0.4")
    expected = pipeline.run(lonely, tmp_path / "alone")
    monkeypatch.setattr(SquaredNorm, "update", never)
    monkeypatch.setattr(low_rank, "principal_outputs", never)
    second = pipeline.run(config(*together, "ratio=0.4"), tmp_path / "two")
    assert [p.nll for p in second.scores.perplexity] == [p.nll for p in expected.scores.perplexity]


def test_other_calibration_texts_are_not_mixed_up(tmp_path: Path, config: Make) -> None:
    settings = ["calibration.propagation=original", "evaluation.zero_shot=null"]
    settings += [f"store.folder={tmp_path}/store"]
    for index, change in enumerate(["seed=0", "seed=1", "calibration.samples=7", "dtype=bfloat16"]):
        pipeline.run(config(*settings, change), tmp_path / str(index))
    kinds = [entry.kind for entry in Store(tmp_path / "store", 0).entries()]
    assert kinds.count("statistics") == 4 * 2 * len(("q", "o", "up", "down"))
    entries = Store(tmp_path / "store", 0).entries()
    keys = {json.dumps(entry.key, sort_keys=True) for entry in entries}
    assert len(keys) == len(kinds)


def test_damaged_statistics_are_taken_anew(
    tmp_path: Path, config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["calibration.propagation=original", "evaluation.zero_shot=null"]
    settings += [f"store.folder={tmp_path}/store"]
    first = pipeline.run(config(*settings), tmp_path / "a")
    for path in (tmp_path / "store").glob("*/*.bin"):
        path.write_bytes(path.read_bytes()[:-1])
    second = pipeline.run(config(*settings), tmp_path / "b")
    assert "is damaged and is computed again" in capsys.readouterr().err
    assert [p.nll for p in second.scores.perplexity] == [p.nll for p in first.scores.perplexity]


def test_a_store_that_is_too_small_only_shares_less(
    tmp_path: Path, config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["calibration.propagation=original", "evaluation.zero_shot=null"]
    expected = pipeline.run(config(*settings), tmp_path / "roomy")
    crowded = config(*settings, f"store.folder={tmp_path}/small", "store.limit_gib=0")
    found = pipeline.run(crowded, tmp_path / "crowded")
    assert "store.limit_gib does not hold the statistics" in capsys.readouterr().err
    assert [p.nll for p in found.scores.perplexity] == [p.nll for p in expected.scores.perplexity]


def test_factors_do_not_push_out_the_statistics_of_their_walk(tmp_path: Path, config: Make) -> None:
    """A store that holds the statistics but not the factors beside them."""
    settings = ["calibration.propagation=original", "evaluation.zero_shot=null"]
    settings += ["method.stages.attention.metric=activation", "model.random.blocks=6"]
    expected = pipeline.run(config(*settings, "ratio=0.3"), tmp_path / "roomy")
    entries = Store(tmp_path / "store", 0).entries()
    size = sum(entry.bytes for entry in entries if entry.kind == "statistics")
    limit = f"store.limit_gib={1.1 * size / 2**30}"
    small = config(*settings, "ratio=0.3", f"store.folder={tmp_path}/small", limit)
    found = pipeline.run(small, tmp_path / "crowded")
    assert [p.nll for p in found.scores.perplexity] == [p.nll for p in expected.scores.perplexity]
    kept = Store(tmp_path / "small", 0).entries()
    assert sum(entry.bytes for entry in kept if entry.kind == "statistics") == size


def test_another_tokenizer_is_not_scored_from_the_store() -> None:
    one, other = byte_tokenizer(), byte_tokenizer()
    assert digest_tokenizer(one) == digest_tokenizer(other)
    other.add_tokens(["the"])
    assert digest_tokenizer(one) != digest_tokenizer(other)


def test_two_methods_measure_what_they_share_once(
    tiny: Callable[..., PreTrainedModel],
    config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """lorap asks for the norms of q, o, up and down, svd for those of up and down alone."""
    updates: list[int] = []
    real = SquaredNorm.update

    def counted(self: SquaredNorm, x_TI: Tensor, other_TO: Tensor | None = None) -> None:
        updates.append(len(x_TI))
        real(self, x_TI, other_TO)

    monkeypatch.setattr(SquaredNorm, "update", counted)
    how, blocks, batches = Walk(4, "original"), 3, 2

    def job(method: str, ratio: float, folder: str) -> int:
        updates.clear()
        sharing = Sharing(Store(tmp_path / folder, 10**9), {"model": "tiny"}, {"ids": "those"})
        stack = stack_of(config, f"method={method}")
        compress(tiny(blocks=blocks), stack, ratio, IDS, how, sharing=sharing)
        return len(updates)

    assert job("lorap", 0.4, "one") == blocks * batches * 4
    assert job("svd", 0.4, "one") == job("svd", 0.3, "one") == job("lorap", 0.2, "one") == 0
    assert job("svd", 0.4, "other") == blocks * batches * 2
    assert job("lorap", 0.4, "other") == blocks * batches * 2, "q and o alone are missing"
