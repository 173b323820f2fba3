"""Maps of attention and Grad-CAM over their image. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from iqa.figures.style import COLOURS, PAGE_WIDTH, STYLE, blank

PANEL_DPI = 150


def draw_panel(
    title: str,
    image: np.ndarray,
    grad_cam: np.ndarray,
    rollout: np.ndarray | None = None,
    weights: dict[str, float] | None = None,
) -> Figure:
    """Draw one image, its stage weights, Grad-CAM over it and attention rollout over it.

    Args:
        title: name, level, mos and score.
        image: (H, W, 3) uint8.
        grad_cam: (H, W), points of the score; drawn from blue (lowers) to red (raises), symmetric about 0.
        rollout: (H, W), 1 where attention is spread evenly; drawn from its 1st to its 99th percentile; None where
            the backbone has no window attention.
        weights: by stage; None for a fusion without stage weights.
    """
    parts = ["image", *(["weights"] if weights else []), "grad_cam", *(["rollout"] if rollout is not None else [])]
    plt.style.use(STYLE)
    width = PAGE_WIDTH / 4
    height = width * np.clip(image.shape[0] / image.shape[1], 0.5, 1.6)
    figure = blank(width * len(parts), height + 1.05)
    row, scales = figure.subplots(
        2,
        len(parts),
        squeeze=False,
        height_ratios=(height, 0.07),
        width_ratios=[0.8 if part == "weights" else 1 for part in parts],
    )
    for part, axes, scale in zip(parts, row, scales, strict=True):
        if part in ("image", "weights"):
            scale.set_axis_off()
        if part == "image":
            axes.imshow(image)
            axes.set(title="image")
            axes.set_axis_off()
        elif part == "weights":
            _draw_weights(axes, weights)
        elif part == "grad_cam":
            limit = max(float(np.abs(grad_cam).max()), 1e-12)
            drawn = _overlay(axes, image, grad_cam, (-limit, limit), "RdBu_r", _opacity(np.abs(grad_cam) / limit))
            axes.set_title("Grad-CAM")
            _draw_scale(scale, drawn, "points: + raises, - lowers the score", "neither")
        else:
            low, high = np.quantile(rollout, (0.01, 0.99))  # a few bright tokens would leave the rest in the dark
            strength = ((rollout - low) / max(high - low, 1e-12)).clip(0, 1)
            drawn = _overlay(axes, image, rollout, (low, high), "inferno", _opacity(strength))
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


def _opacity(strength: np.ndarray) -> np.ndarray:
    """Make a map cover its image the more, the stronger it is (0..1)."""
    return 0.25 + 0.55 * strength


def _overlay(
    axes: Axes,
    image: np.ndarray,
    values: np.ndarray,
    limits: tuple[float, float],
    colours: str,
    alpha: float | np.ndarray,
) -> AxesImage:
    """A map of any resolution over the whole of a grey image (H, W, 3)."""
    H, W = image.shape[:2]
    axes.set_axis_off()
    axes.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    extent = (-0.5, W - 0.5, H - 0.5, -0.5)
    return axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], alpha=alpha, extent=extent)


def _draw_scale(axes: Axes, drawn: AxesImage, unit: str, extend: str) -> None:
    """The colours of a map, without its transparency, and their unit."""
    colours = plt.cm.ScalarMappable(norm=drawn.norm, cmap=drawn.cmap)
    bar = axes.figure.colorbar(colours, cax=axes, orientation="horizontal", extend=extend)
    bar.ax.tick_params(labelsize=5.5, length=2)
    bar.locator = plt.MaxNLocator(4)
    bar.set_label(unit, fontsize=6)


def save_panel(figure: Figure, file: Path) -> None:
    """Write a panel as PNG for the screen."""
    figure.savefig(file, dpi=PANEL_DPI)


def draw_example(
    title: str, shown: dict[str, np.ndarray], captions: dict[str, str], crop: np.ndarray | None = None
) -> Figure:
    """Draw one sample's attention in each model, on one colour scale.

    Args:
        title: of the figure.
        shown: by model a map over the crop, 1 where attention is spread evenly; without a crop the weights
            (queries, tokens), NaN for tokens that do not count.
        captions: by model what stands above it.
        crop: (H, W, 3) uint8, drawn beside its maps; None where the samples are not images.
    """
    plt.style.use(STYLE)
    figure = blank(PAGE_WIDTH, 2.9)
    axes = figure.subplots(1, len(shown) + (crop is not None), squeeze=False)
    panels = list(axes[0])
    if crop is not None:
        panels[0].imshow(crop)
        panels[0].set_title("crop")
        panels[0].set_axis_off()
    limits = _common_limits(np.concatenate([values.ravel() for values in shown.values()]), is_map=crop is not None)
    for axis, (model, values) in zip(panels[-len(shown) :], shown.items(), strict=True):
        if crop is None:
            drawn = _draw_matrix(axis, values, limits)
        else:
            drawn = _overlay(axis, crop, values, limits, "viridis", 0.6)
        axis.set_title(captions[model])
    for axis in panels:
        axis.grid(visible=False)
    label = "attention weight" if crop is None else "attention rollout, times an even spread"
    bar = figure.colorbar(drawn, ax=panels, label=label, shrink=0.8, extend="neither" if crop is None else "both")
    bar.formatter.set_useOffset(False)  # 0.998 is read, 9.98e-1 plus an offset is not
    figure.suptitle(title)
    return figure


def _common_limits(values: np.ndarray, is_map: bool) -> tuple[float, float]:
    """The ends of all models' colours: of maps the 1st and 99th percentile, of weights 0 and the largest."""
    if not is_map:
        return 0.0, float(np.nanmax(values))
    low, high = np.quantile(values, (0.01, 0.99))
    return float(low), max(float(high), float(low) + 1e-6)


def _draw_matrix(axes: Axes, values: np.ndarray, limits: tuple[float, float]) -> AxesImage:
    """Queries by tokens; tokens that do not count stay grey."""
    axes.set_facecolor("0.85")
    axes.set(xlabel="token", ylabel="query")
    axes.locator_params(integer=True)
    low, high = limits
    return axes.imshow(values, "viridis", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
