"""Maps of crops put together to a map of their image. Needs no torch.

an image's size -[covering_corners]-> crops -> a map of each -[stitch]-> a map of the image
"""

from __future__ import annotations

import math

import numpy as np


def covering_corners(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """List the top-left corners of evenly spaced crops that cover an image, neighbours at most half a crop apart."""
    tops, lefts = (
        np.linspace(0, side - size, 1 + math.ceil((side - size) / (size / 2))).round().astype(int).tolist()
        for side in (height, width)
    )
    return [(top, left) for top in tops for left in lefts]


def stitch(maps: np.ndarray, corners: list[tuple[int, int]], height: int, width: int) -> np.ndarray:
    """Put maps of crops (K, size, size) back at their places: (height, width).

    Where crops overlap their mean is taken; a crop counts less towards its border, so that no border shows.
    """
    size = maps.shape[-1]
    ramp = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2  # Hann's window
    share = np.outer(ramp, ramp)
    total, weight = np.zeros((height, width)), np.zeros((height, width))
    for crop_map, (top, left) in zip(maps, corners, strict=True):
        total[top : top + size, left : left + size] += share * crop_map
        weight[top : top + size, left : left + size] += share
    return total / weight
