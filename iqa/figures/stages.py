"""The pictures of the attention analysis: bars by level, distributions by group, one panel an image. Needs no torch.

Arrays and tables in, matplotlib figures out; what is drawn was computed by `analyze_attention`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from iqa.figures.style import COLOURS, PAGE_WIDTH, PUBLISHED_HATCH, SHADES, STYLE, new_figure, shorten

PANEL_DPI = 150
FEWEST_FOR_BOX = 3


def bars_beside_published(levels: dict[str, dict], published: dict, stages: Sequence[str]) -> Figure:
    """Measured stage weights by level (mean, whiskers +- deviation) and, beside them, the published ones.

    Args:
        levels: by level `mean` and `std` of each stage.
        published: `levels` (by level the weight of each stage), `stages` and `source`.
        stages: names of the measured stages.
    """
    figure, (ours, theirs) = new_figure(PAGE_WIDTH, 2.9, columns=2)
    names = [f"{a} (published: {b})" for a, b in zip(stages, published["stages"], strict=True)]
    mean, std = (np.array([row[key] for row in levels.values()]) for key in ("mean", "std"))  # (levels, stages)
    _bars(ours, list(levels), mean, names, np.nan_to_num(std))
    _bars(theirs, list(published["levels"]), np.array(list(published["levels"].values())), names)
    source = textwrap.fill(published["source"], 62, max_lines=2, placeholder=" ...")
    ours.set(title="measured", xlabel="quality level (fifths of mos)", ylabel="stage weight")
    theirs.set(title="published", xlabel=f"quality level\n{source}")
    figure.legend(*ours.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _bars(
    axes: Axes, groups: Sequence[str], heights: np.ndarray, names: Sequence[str], spread: np.ndarray | None = None
) -> None:
    """A bar for every stage in every group; those without a spread are published, and hatched."""
    width, positions = 0.8 / len(names), np.arange(len(groups))
    for i, name in enumerate(names):
        axes.bar(
            positions + (i - (len(names) - 1) / 2) * width, heights[:, i], width, label=name, color=SHADES[i],
            yerr=None if spread is None else spread[:, i], capsize=2, error_kw={"linewidth": 0.7},
            hatch=PUBLISHED_HATCH if spread is None else "", linewidth=0.4,
            edgecolor="grey" if spread is None else "black",
        )  # fmt: skip
    axes.set_xticks(positions, groups)
    axes.set_ylim(0, 1.05)
    axes.grid(axis="x", visible=False)


def distribution(groups: dict[str, np.ndarray], stages: Sequence[str], ylabel: str) -> Figure:
    """The weight of every stage in every group: a box (quartiles, whiskers to 1.5 interquartile ranges) and points.

    Fewer than three images are shown as points only.

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


def panel(
    title: str,
    picture: np.ndarray,
    grad_cam: np.ndarray,
    rollout: np.ndarray | None = None,
    weights: dict[str, float] | None = None,
) -> Figure:
    """One image: the picture, its stage weights, Grad-CAM over it, attention rollout over it.

    Args:
        title: name, level, mos and score.
        picture: (H, W, 3) uint8.
        grad_cam: (H, W), points of the score; drawn from blue (lowers) to red (raises), symmetric about 0.
        rollout: (H, W), 1 where attention is spread evenly; drawn from its 1st to its 99th percentile; None where
            the backbone has no window attention.
        weights: by stage; None for a fusion without stage weights.
    """
    parts = ["picture", *(["weights"] if weights else []), "grad_cam", *(["rollout"] if rollout is not None else [])]
    plt.rcParams.update(STYLE)
    width = PAGE_WIDTH / 4
    height = width * np.clip(picture.shape[0] / picture.shape[1], 0.5, 1.6)
    figure, (row, scales) = plt.subplots(
        2, len(parts), figsize=(width * len(parts), height + 1.05), squeeze=False, height_ratios=(height, 0.07),
        width_ratios=[0.8 if part == "weights" else 1 for part in parts],
    )  # fmt: skip
    for part, axes, scale in zip(parts, row, scales, strict=True):
        if part in ("picture", "weights"):
            scale.set_axis_off()
        if part == "picture":
            axes.imshow(picture)
            axes.set(title="picture")
            axes.set_axis_off()
        elif part == "weights":
            _draw_weights(axes, weights)
        elif part == "grad_cam":
            limit = max(float(np.abs(grad_cam).max()), 1e-12)
            drawn = _overlay(axes, picture, grad_cam, np.abs(grad_cam) / limit, "RdBu_r", (-limit, limit))
            axes.set_title("Grad-CAM")
            _draw_scale(scale, drawn, "points: + raises, - lowers the score", "neither")
        else:
            low, high = np.quantile(rollout, (0.01, 0.99))  # a few bright tokens would leave the rest in the dark
            strength = ((rollout - low) / max(high - low, 1e-12)).clip(0, 1)
            drawn = _overlay(axes, picture, rollout, strength, "inferno", (low, high))
            axes.set_title("attention rollout")
            _draw_scale(scale, drawn, "times an even spread", "both")
    figure.suptitle(title, fontsize=STYLE["axes.titlesize"])
    return figure


def _draw_weights(axes: Axes, weights: dict[str, float]) -> None:
    positions = np.arange(len(weights))
    bars = axes.barh(positions, list(weights.values()), color=COLOURS[: len(weights)], edgecolor="black", linewidth=0.4)
    axes.bar_label(bars, [f"{weight:.4f}" for weight in weights.values()], fontsize=6, padding=2)
    axes.set_yticks(positions, list(weights))
    axes.set(title="stage weights", xlim=(0, 1.4 * max(weights.values())), ylim=(len(weights) - 0.4, -0.6))
    axes.locator_params(axis="x", nbins=3)
    axes.grid(axis="y", visible=False)


def _overlay(
    axes: Axes,
    picture: np.ndarray,
    values: np.ndarray,
    strength: np.ndarray,
    colours: str,
    limits: tuple[float, float],
) -> AxesImage:
    """A map over the grey picture: the greater its strength (0..1), the less of the picture shows through."""
    axes.set_axis_off()
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    return axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], alpha=0.25 + 0.55 * strength)


def _draw_scale(axes: Axes, drawn: AxesImage, unit: str, extend: str) -> None:
    """The colours of a map, without its transparency, and their unit."""
    colours = plt.cm.ScalarMappable(norm=drawn.norm, cmap=drawn.cmap)
    bar = axes.figure.colorbar(colours, cax=axes, orientation="horizontal", extend=extend)
    bar.ax.tick_params(labelsize=5.5, length=2)
    bar.locator = plt.MaxNLocator(4)
    bar.set_label(unit, fontsize=6)


def save_panel(figure: Figure, file: Path) -> None:
    """Write a panel as PNG for the screen and close it."""
    figure.savefig(file, dpi=PANEL_DPI)
    plt.close(figure)
