"""The one style of every figure, and the few kinds of plots that several scripts draw. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend has to be chosen first)
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# Okabe and Ito's colours, told apart with any colour vision; hatches tell them apart in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
HATCHES = ("", "//", "..", "xx", "\\\\", "oo")
COLUMN_WIDTH, PAGE_WIDTH = 3.5, 7.16  # inches, of a two-column paper

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "smart-iqa",
}


def new_figure(width: float = COLUMN_WIDTH, height: float = 2.4, columns: int = 1) -> tuple[Figure, list]:
    """A figure in the style, `width` x `height` inches, with `columns` axes beside each other."""
    plt.rcParams.update(STYLE)  # not for a moment only: legends and titles added later read it too
    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False)
    return figure, list(axes[0])


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write `path` as PDF and PNG and close the figure."""
    files = [path.with_name(path.name + ending) for ending in (".pdf", ".png")]
    for file in files:
        # Without the date the same results give the same bytes.
        metadata = {"CreationDate": None} if file.suffix == ".pdf" else {}
        figure.savefig(file, metadata=metadata)
    plt.close(figure)
    return files


def grouped_bars(
    groups: Sequence[str],
    values: dict[str, Sequence[float]],
    spread: dict[str, Sequence[float]] | None = None,
    ylabel: str = "",
    xlabel: str = "",
) -> Figure:
    """A bar for every series in every group, with whiskers of +- `spread` where given."""
    figure, (axes,) = new_figure(PAGE_WIDTH, 2.6)
    width = 0.8 / len(values)
    positions = np.arange(len(groups))
    for i, (name, heights) in enumerate(values.items()):
        errors = None if spread is None else np.nan_to_num(spread[name])
        axes.bar(
            positions + (i - (len(values) - 1) / 2) * width, heights, width, label=name, yerr=errors, capsize=2,
            color=COLOURS[i % len(COLOURS)], hatch=HATCHES[i % len(HATCHES)], edgecolor="black", linewidth=0.4,
            error_kw={"linewidth": 0.7},
        )  # fmt: skip
    axes.set_xticks(positions, groups)
    axes.grid(axis="x", visible=False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.legend(loc="outside upper center", ncols=len(values))
    return figure
