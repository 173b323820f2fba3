"""The one style of every figure, and the few kinds of plots that several scripts draw. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend has to be chosen first)
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
COLUMN_WIDTH, PAGE_WIDTH = 3.5, 7.16  # inches, of a two-column paper
PUBLISHED_HATCH = "/////"  # of published numbers, in every figure of the paper, and of nothing else there
# From dark to light, so that they are told apart in grey without a hatch.
SHADES = ("#08306B", "#2E7EBB", "#8FC1DE", "#DCEAF6")
MARKERS, LINES = "osD^v*", ("-", "--", ":", "-.")
LABEL_LENGTH = 38  # characters of a name that fit beside bars
ROW_HEIGHT = 0.19  # inches of a bar with its label

STYLE: dict[str, Any] = {
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


def blank(width: float, height: float) -> Figure:
    """Make a figure without axes, `width` x `height` inches; nothing keeps it once it is no longer used."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def new_figure(width: float = COLUMN_WIDTH, height: float = 2.4, columns: int = 1) -> tuple[Figure, list]:
    """Make a figure in the style, `width` x `height` inches, with `columns` axes beside each other."""
    plt.style.use(STYLE)  # not for a moment only: legends and titles added later read it too
    figure = blank(width, height)
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write `path` as PDF and PNG."""
    files = [path.with_name(path.name + ending) for ending in (".pdf", ".png")]
    for file in files:
        # Without the date the same results give the same bytes.
        metadata = {"CreationDate": None} if file.suffix == ".pdf" else {}
        figure.savefig(file, metadata=metadata)
        figure.set_layout_engine("none")  # laid out by now; a second time takes as long again
    return files


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: NaN is drawn as absent, `low` and `high` as a whisker where both are finite."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    text: str = ""
    published: bool = False


def shorten(name: str, length: int = LABEL_LENGTH) -> str:
    """Leave out the middle of a long name; its ends tell runs apart.

    >>> shorten("a_name_that_is_too_long", 11)
    'a_nam…_long'
    """
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def new_panels(width: float, heights: Sequence[float]) -> tuple[Figure, list]:
    """Make a figure in the style with axes under each other, `heights` inches each."""
    plt.style.use(STYLE)
    figure = blank(width, sum(heights))
    axes = figure.subplots(len(heights), 1, height_ratios=list(heights), squeeze=False)
    return figure, list(axes[:, 0])


def bars_height(bars: Sequence[Bar]) -> float:
    """Count the inches that a panel of these bars needs, with its title and axis label."""
    return 0.7 + ROW_HEIGHT * len(bars)


def draw_bars(axes, bars: Sequence[Bar], xlabel: str, top: float | None = None, absent: str = "undefined") -> None:
    """Draw bars under each other with their text at the end.

    Args:
        axes: to draw on.
        bars: from top to bottom.
        xlabel: what is measured.
        top: where the axis ends (1 for a correlation); default: the longest bar.
        absent: written where a bar's value is NaN.
    """
    for i, bar in enumerate(bars):
        style = {"color": "white", "hatch": PUBLISHED_HATCH} if bar.published else {"color": COLOURS[0]}
        if math.isfinite(bar.value):
            axes.barh(i, bar.value, height=0.7, edgecolor="black", linewidth=0.4, **style)
        if math.isfinite(bar.low) and math.isfinite(bar.high):
            axes.plot([bar.low, bar.high], [i, i], color="black", linewidth=1, marker="|", markersize=5)
        ends = [end for end in (0, bar.value, bar.high) if math.isfinite(end)]
        text = bar.text if math.isfinite(bar.value) else absent
        axes.annotate(text, (max(ends), i), (4, 0), textcoords="offset points", va="center", fontsize=6.5)
    known = [end for bar in bars for end in (bar.value, bar.low, bar.high) if math.isfinite(end)]
    top = top or max([*known, 0]) or 1
    bottom = min([*known, 0])
    axes.set_yticks(range(len(bars)), [shorten(bar.label) for bar in bars])
    axes.set(
        xlabel=xlabel,
        ylim=(len(bars) - 0.4, -0.6),
        xlim=(bottom * 1.05, bottom + (top - bottom) / _share_of_bars(axes, bars)),
    )
    axes.set_xticks([tick for tick in axes.get_xticks() if bottom * 1.05 <= tick <= top * 1.0001])
    axes.spines["bottom"].set_bounds(bottom, top)
    axes.grid(axis="y", visible=False)


def _share_of_bars(axes, bars: Sequence[Bar]) -> float:
    """Work out how much of the axes' width the longest bar may take, so that its text still fits on the page."""
    columns = axes.get_subplotspec().get_gridspec().ncols
    names = max(len(shorten(bar.label)) for bar in bars)
    free = axes.figure.get_figwidth() / columns - 0.2 - 0.062 * names / columns
    return max(0.4, 1 - (0.15 + 0.055 * max(len(bar.text) for bar in bars)) / max(free, 0.5))


def published_legend(figure: Figure, measured: str = "measured") -> None:
    """Say above a figure what is measured and what is published."""
    handles = [
        Patch(facecolor=COLOURS[0], edgecolor="black", linewidth=0.4, label=measured),
        Patch(facecolor="white", edgecolor="black", linewidth=0.4, hatch=PUBLISHED_HATCH, label="published"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    figure.set_figheight(figure.get_figheight() + 0.25)


def line_style(index: int) -> dict:
    """Choose colour, line and marker of the `index`-th series; the first 24 all differ, also in grey."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINES[index // len(COLOURS) % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1,
    }


def legend_above(figure: Figure, axes, names: Sequence[str]) -> None:
    """Put a legend of the axes' series above the figure, in as many columns as names of their length allow."""
    columns = max(1, min(len(names), int(100 / (max(map(len, names)) + 9))))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.14 * (math.ceil(len(names) / columns) - 1))


def new_grid(panels: int, columns: int | None = None) -> tuple[Figure, list]:
    """Make a figure of page width with this many nearly square axes, in `columns` columns (default: by number)."""
    columns = columns or (panels if panels <= 3 else 3 if panels <= 9 else 4)
    rows = math.ceil(panels / columns)
    width = PAGE_WIDTH if panels > 1 else COLUMN_WIDTH
    plt.style.use(STYLE)
    size = (width, min(9.0, 0.4 + rows * (width / columns + 0.15)))
    figure = blank(*size)
    axes = figure.subplots(rows, columns, squeeze=False)
    for unused in axes.flat[panels:]:
        unused.set_axis_off()
    return figure, list(axes.flat[:panels])
