"""The statistics of two models' attention as a figure. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iqa.figures.style import COLOURS, PAGE_WIDTH, STYLE, blank

LEAST_SPAN = 0.02  # of an axis, relative to its values: what differs by less should not look different


class LayerDifference(NamedTuple):
    """A paired difference in one layer, with its interval."""

    name: str
    mean: float
    low: float
    high: float
    is_significant: bool


def draw_attention_comparison(
    title: str, statistics: dict[str, dict[str, np.ndarray]], layers: Sequence[LayerDifference]
) -> Figure:
    """Draw both models' samples of each statistic side by side; below them the difference by layer.

    Args:
        title: of the figure.
        statistics: by title of its axes the values (n,) of each model.
        layers: differences in entropy; one alone is not drawn, since it is what the first axes show.
    """
    plt.style.use(STYLE)
    names = list(statistics)
    rows = [names] + ([["by layer"] * len(names)] if len(layers) > 1 else [])
    figure = blank(PAGE_WIDTH, 2.6 * len(rows))
    axes = figure.subplot_mosaic(rows)
    for name, by_model in statistics.items():
        _draw_boxes(axes[name], by_model)
        axes[name].set_title(name)
    if len(layers) > 1:
        _draw_layers(axes["by layer"], layers)
    figure.suptitle(title)
    return figure


def _draw_boxes(axes: Axes, by_model: dict[str, np.ndarray]) -> None:
    boxes = axes.boxplot(
        list(by_model.values()), tick_labels=list(by_model), widths=0.6, whis=(5, 95), showfliers=False,
        showmeans=True, patch_artist=True, medianprops={"color": "black"},
        meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"},
    )  # fmt: skip
    for box, colour, hatch in zip(boxes["boxes"], COLOURS, ("", "//"), strict=False):
        box.set(facecolor=colour, hatch=hatch)
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max((high - low) / 2, LEAST_SPAN * abs(low + high) / 4)
    axes.set_ylim(middle - half, middle + half)
    axes.grid(axis="x", visible=False)


def _draw_layers(axes: Axes, layers: Sequence[LayerDifference]) -> None:
    for place, layer in enumerate(layers):
        whiskers = [[layer.mean - layer.low], [layer.high - layer.mean]]
        axes.errorbar(place, layer.mean, whiskers, fmt="o", markersize=4, linewidth=1, capsize=3, color=COLOURS[0])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(layers)), [layer.name + "*" * layer.is_significant for layer in layers])
    axes.set(xlabel="stage.block", ylabel="difference (nats)")
    axes.set_title(
        "entropy by layer, full - no_middle: mean, 95 % interval; * = not 0 at a false discovery rate of 5 %"
    )
    axes.grid(axis="x", visible=False)
