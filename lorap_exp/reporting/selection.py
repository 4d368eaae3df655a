"""The search for layers to remove, as an image."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lorap_exp.methods.streamline.selection import CONTIGUOUS, Selection


def plot_selection(selection: Selection, model: str, path: Path) -> None:
    """Similarity for every (start, length) as a map, the choice marked on it."""
    size = max(start + length for start, length, _ in selection.map)
    grid = np.full((size, size), np.nan)
    for start, length, value in selection.map:
        grid[length - 1, start] = value
    figure, axis = plt.subplots(figsize=(7, 5.4))
    image = axis.imshow(
        grid, origin="lower", cmap="viridis", extent=(-0.5, size - 0.5, 0.5, size + 0.5)
    )
    figure.colorbar(image, label="mean cosine of h[start] and h[start + length]")
    chosen = selection.removed
    if selection.criterion in CONTIGUOUS:
        label = f"{selection.criterion}: layers {chosen[0]} to {chosen[-1]} go"
        axis.plot(chosen[0], len(chosen), "r*", markersize=14, label=label)
    else:
        label = f"{selection.criterion}: layers {', '.join(map(str, chosen))} go"
        axis.plot(chosen, [1] * len(chosen), "r*", markersize=10, label=label)
    axis.set(xlabel="start", ylabel="length", title=f"similarity of hidden states, {model}")
    axis.legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
