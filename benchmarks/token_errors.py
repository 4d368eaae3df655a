"""Which tokens the squared error of a removed span is made of.

`python -m benchmarks.token_errors` prints, for the span of SmolLM2-135M that LLM-Streamline would
replace, how large the first token's hidden state is beside the others', and its share of the
squared error with nothing in place of the span.
"""

import torch
from lorap_exp.planning.plan import Removal

from benchmarks.cost import configuration, sample
from lorap_exp.methods.streamline.networks import front_of
from lorap_exp.models.loading import load_config, load_model

LAYERS, WINDOWS, LENGTH = range(10, 19), 16, 256


def main() -> None:
    """Print the table."""
    cfg = configuration()
    config = load_config(cfg.model)
    dense = load_model(cfg.model, config, torch.device("cpu"), torch.bfloat16, seed=0)
    ids = sample(cfg.model).flatten()[: WINDOWS * LENGTH].view(WINDOWS, LENGTH)
    states, _ = front_of(dense, Removal(tuple(LAYERS)))(ids)
    before, after = states[0].float(), states[-1].float()
    errors, norms = (after - before).square().sum(-1), after.norm(dim=-1)
    larger, share = norms[:, 0].mean() / norms[:, 1:].median(), errors[:, 0].sum() / errors.sum()
    print(f"layers {LAYERS[0]} to {LAYERS[-1]}, {WINDOWS} windows of {LENGTH} tokens")
    print(f"norm of the first token / median of the others: {larger:.1f}")
    print(f"share of the first tokens in the squared error: {share:.4f}")


if __name__ == "__main__":
    main()
