"""The plot of `growth`."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import REFLLM, Entry, Figure, Fit

__all__ = ["plot_growth"]

COLUMNS = ("prompt length", "batch", "parameters", "text length")


def plot_growth(entry: Entry, path: Path) -> None:
    """Write a PNG: a panel for each thing that grows, a line for each cost that grows with it.

    Errors: `ImportError` without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    present = [name for name in COLUMNS if any(fit.against == name for fit in entry.fits)]
    canvas, axes = pyplot.subplots(
        1, len(present), figsize=(4 * len(present), 4), squeeze=False, layout="constrained"
    )
    for panel, against in zip(axes[0], present, strict=True):
        for fit in entry.fits:
            if fit.against == against:
                _draw(panel, entry.figures, fit)
        panel.set(xscale="log", yscale="log", xlabel=against, ylabel="ms")
        panel.grid(visible=True, which="major", alpha=0.3)
        panel.legend()
    canvas.savefig(path, dpi=120)
    pyplot.close(canvas)


def _draw(panel: Any, figures: Sequence[Figure], fit: Fit) -> None:
    points = [
        (float(figure.labels["x"]), figure.median(REFLLM))
        for figure in figures
        if (figure.labels["cost"], figure.labels["against"]) == (fit.cost, fit.against)
    ]
    x, costs = zip(*points, strict=True)
    panel.plot(x, costs, marker="o", label=f"{fit.cost} ∝ x^{fit.exponent:.2f}")
