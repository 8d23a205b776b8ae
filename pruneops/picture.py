"""Pictures of a checkpoint: sparsity by layer, and the histogram of its magnitudes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import numpy as np
from torch import Tensor

from .inspection import BINS_PER_DECADE, DECADES

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("pictures need matplotlib: pip install 'pruneops[plot]'") from error

_MOST_LABELS = 60
_BLUE = "#2f6db3"


def draw(path: Path, title: str, sparsities: Mapping[str, float], counts: Tensor) -> None:
    """Write a PNG with two panels: a bar for each layer's sparsity, and the histogram of abs(w).

    Args:
        path: the file to write.
        title: stands above both panels.
        sparsities: layer name -> share of zeros.
        counts: of :func:`pruneops.inspection.magnitude_histogram`.

    Raises:
        OSError: the file cannot be written.
    """
    rows = min(len(sparsities), _MOST_LABELS)
    figure = Figure(figsize=(13, max(4.0, 1.6 + 0.19 * rows)), layout="constrained")
    figure.suptitle(title, fontsize=14)
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    draw_sparsities(left, sparsities)
    draw_histogram(right, counts)
    figure.savefig(path, dpi=150, format="png")


def draw_sparsities(axes: Axes, sparsities: Mapping[str, float]) -> None:
    """Horizontal bars, the first layer on top; of many layers every k-th is named."""
    names, values = list(sparsities), [100 * share for share in sparsities.values()]
    places = range(len(names))
    axes.barh(places, values, height=0.8 if len(names) <= _MOST_LABELS else 1.0, color=_BLUE)
    step = -(-len(names) // _MOST_LABELS)
    axes.set_yticks(places[::step], short_names(names)[::step], fontsize=8)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 100), xlabel="zeros (%)", title="Sparsity by layer")
    axes.grid(axis="x", alpha=0.3)


def draw_histogram(axes: Axes, counts: Tensor) -> None:
    """Bars over a logarithmic axis of magnitude; bins too low to be seen are cut off at both ends."""
    visible = (counts > counts.max() / 1000).nonzero().flatten().tolist() or [0, len(counts) - 1]
    first, last = visible[0], visible[-1]
    axes.stairs(counts[first : last + 1] / 1e6, magnitude_edges()[first : last + 2], fill=True, color=_BLUE)
    axes.set(xscale="log", xlabel="abs(w) of the weights that are not zero", ylabel="million weights in the bin")
    axes.set_title("Histogram of the magnitudes")
    axes.grid(alpha=0.3)


def magnitude_edges() -> np.ndarray:
    """The edges of the bins of :func:`pruneops.inspection.magnitude_histogram`."""
    return 10.0 ** np.linspace(*DECADES, (DECADES[1] - DECADES[0]) * BINS_PER_DECADE + 1)


def short_names(names: list[str]) -> list[str]:
    """Tensor names without ``.weight`` and without the leading components that all of them share."""
    stems = [name.removesuffix(".weight").split(".") for name in names]
    columns = zip(*(stem[:-1] for stem in stems), strict=False)
    shared = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, columns))
    return [".".join(stem[shared:]) for stem in stems]
