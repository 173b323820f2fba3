"""Stage weights as figures: means by quality level, distributions by group. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iqa.figures.style import COLOURS, PAGE_WIDTH, PUBLISHED_HATCH, SHADES, STYLE, new_figure, new_panels, shorten
from iqa.results import PublishedEntry

FEWEST_FOR_BOX = 3
PANEL_HEIGHT = 1.9  # inches


def draw_stage_weights(analyses: dict[str, dict[str, dict]], published: PublishedEntry | None = None) -> Figure:
    """Draw the mean weight of every stage by quality level, with whiskers of +- one deviation.

    Args:
        analyses: by title of its panel the levels of an analysis: by name their `mean` and `std`, a number a stage.
        published: weights to draw below them, hatched; they have no deviations.
    """
    panels = {shorten(title, 90): levels for title, levels in analyses.items()}
    stages = [f"stage {i}" for i in range(len(next(iter(next(iter(panels.values())).values()))["mean"]))]
    figure, all_axes = new_panels(PAGE_WIDTH, [PANEL_HEIGHT] * (len(panels) + (published is not None)))
    for axes, (title, levels) in zip(all_axes, panels.items(), strict=False):
        _draw_levels(axes, levels, stages)
        axes.set_title(title, loc="left")
    if published is not None:
        _draw_levels(all_axes[-1], published.rows, stages, hatched=True)
        named = ", ".join(published.content["stages"])
        title = f"published: {published.source}"
        if named != ", ".join(stages):
            title += f"\n(there the stages are called {named})"
        all_axes[-1].set_title(title, loc="left")
    top = max(axes.get_ylim()[1] for axes in all_axes)
    for axes in all_axes:
        axes.set_ylim(0, top)
    all_axes[-1].set_xlabel("quality level (fifths of mos)")
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _draw_levels(axes: Axes, levels: dict[str, dict], stages: Sequence[str], hatched: bool = False) -> None:
    """A bar for every stage in every level, dark (fine stages) to light (coarse ones)."""
    positions, width = np.arange(len(levels)), 0.8 / len(stages)
    means = np.array([level["mean"] for level in levels.values()], dtype=float)  # (levels, stages)
    for i, stage in enumerate(stages):
        errors = None if hatched else np.array([level["std"][i] for level in levels.values()], dtype=float)
        axes.bar(
            positions + (i - (len(stages) - 1) / 2) * width, means[:, i], width, label=stage, facecolor=SHADES[i],
            yerr=errors, capsize=1.5, error_kw={"linewidth": 0.6}, linewidth=0.4,
            edgecolor="grey" if hatched else "black", hatch=PUBLISHED_HATCH if hatched else "",
        )  # fmt: skip
    axes.set_xticks(positions, list(levels))
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="stage weight")


def draw_distribution(groups: dict[str, np.ndarray], stages: Sequence[str], ylabel: str) -> Figure:
    """Draw the weight of every stage in every group: points, and a box of quartiles from three images on.

    Whiskers reach to 1.5 interquartile ranges.

    Args:
        groups: by group the weights (n, stages) of its images; drawn from top to bottom.
        stages: names of the stages, one axes each.
        ylabel: what the groups are.
    """
    figure, axes = new_figure(PAGE_WIDTH, 1.0 + 0.2 * len(groups), columns=len(stages))
    rng = np.random.default_rng(0)  # moves points up and down only, so that equal ones are seen
    positions = np.arange(len(groups))
    for i, (stage, ax) in enumerate(zip(stages, axes, strict=True)):
        weights = [values[:, i] for values in groups.values()]
        boxes = [values if len(values) >= FEWEST_FOR_BOX else [] for values in weights]
        ax.boxplot(
            boxes, positions=positions, orientation="horizontal", widths=0.62, showfliers=False, patch_artist=True,
            boxprops={"facecolor": COLOURS[i], "alpha": 0.35, "linewidth": 0.6},
            medianprops={"color": "black", "linewidth": 1.2}, whiskerprops={"linewidth": 0.6},
            capprops={"linewidth": 0.6}, manage_ticks=False,
        )  # fmt: skip
        for position, values in zip(positions, weights, strict=True):
            heights = position + rng.uniform(-0.18, 0.18, len(values))
            ax.plot(values, heights, linestyle="", marker="o", markersize=2.2, color="black", alpha=0.5, mew=0)
        names = [f"{shorten(name, 24)} ({len(values)})" for name, values in groups.items()] if i == 0 else []
        ax.set_yticks(positions if i == 0 else [], names)
        ax.set(title=stage, ylim=(len(groups) - 0.5, -0.5))
        ax.margins(x=0.06)
        ax.locator_params(axis="x", nbins=3)
        ax.grid(axis="y", visible=False)
    axes[0].set_ylabel(f"{ylabel} (images)")
    figure.supxlabel("stage weight", fontsize=STYLE["axes.labelsize"])
    return figure
