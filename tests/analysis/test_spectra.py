from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lorap_exp.analysis.spectra import measure_spectra
from lorap_exp.models.families import blocks_of
from lorap_exp.models.source import Source
from lorap_exp.reporting.spectra import plot_spectra

IDS = torch.arange(8 * 16).view(8, 16) % 200


def test_a_matrix_of_known_rank_is_found(
    tiny: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = tiny()
    torch.nn.init.orthogonal_(blocks_of(model)[0].weight("k"))
    query = blocks_of(model)[0].weight("q")
    query.copy_(torch.outer(torch.randn(64), torch.randn(64)))
    before = model(IDS).logits
    spectra = measure_spectra(Source(model), IDS, ["svd", "activation"], [0.9, 0.99], batch_size=4)
    assert len(spectra) == 2 * 7 * 2
    assert torch.equal(model(IDS).logits, before)
    found = {(s.block, s.matrix, s.metric): s for s in spectra}
    assert found[0, "q", "svd"].ranks == {"0.9": 1, "0.99": 1}
    assert found[0, "k", "svd"].ranks == {"0.9": 29, "0.99": 32}  # 32 equal singular values
    assert found[0, "k", "svd"].cumulative[-1] == pytest.approx(1)
    plot_spectra(spectra, "tiny", tmp_path / "spectra.png")
    assert (tmp_path / "spectra.png").stat().st_size > 5000
