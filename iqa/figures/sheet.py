"""Images in a row, from the best score to the worst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from iqa.data import open_rgb
from iqa.figures.style import PAGE_WIDTH, new_grid, shorten

MOST = 60  # images on a sheet: more are too small to see
_CELL = 400  # pixels of an image's longer side


def draw_sheet(paths: Sequence[str | Path], scores: Sequence[float], columns: int = 6) -> Figure:
    """Draw images with their scores, best first, row by row.

    Args:
        paths: image files, of which the first `MOST` of the order are drawn.
        scores: of each, 0..100.
        columns: images a row.
    """
    order = sorted(range(len(paths)), key=lambda place: -scores[place])[:MOST]
    columns = min(columns, len(order))
    figure, cells = new_grid(len(order), columns)
    images = [_thumbnail(paths[place]) for place in order]
    tallest = max(image.height / image.width for image in images)
    figure.set_size_inches(PAGE_WIDTH, -(-len(order) // columns) * (PAGE_WIDTH / columns * tallest + 0.4))
    for axes, place, image in zip(cells, order, images, strict=True):
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_title(f"{scores[place]:.1f}", fontsize=9, fontweight="bold", pad=2)
        name, place_below = shorten(Path(paths[place]).stem, 22), {"transform": axes.transAxes, "va": "top"}
        axes.text(0.5, -0.02, name, fontsize=6, ha="center", **place_below)
    return figure


def _thumbnail(path: str | Path) -> Image.Image:
    image = open_rgb(path)
    image.thumbnail((_CELL, _CELL))
    return image
