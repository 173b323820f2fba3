"""Images made by a formula, as further training contents of the `demo` database.

Photographs in the installed wheels are few; a network that sees few scenes takes a smooth sky for blur. Dead
leaves images have the edges, occlusions and scale invariance of photographs (Lee, Mumford and Huang, IJCV
2001); here leaves and background may also show pieces of the training photographs in other colours, and what
lies behind may be out of focus, as in many photographs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

_OVERSAMPLING = 2  # painted larger, so that averaging smooths the leaves' edges


def dead_leaves(side: int, rng: np.random.Generator, textures: Sequence[np.ndarray] = ()) -> np.ndarray:
    """A dead leaves image with leaves in and out of focus.

    Args:
        side: height and width in pixels.
        rng: source of all randomness.
        textures: photographs (H, W, 3) uint8, with sides of at least `side`, that leaves may show pieces of.

    Returns:
        (side, side, 3) uint8.
    """
    canvas_side = _OVERSAMPLING * side
    on_photograph = bool(textures) and rng.random() < 0.3
    canvas = (
        _photograph_piece(canvas_side, canvas_side, textures, rng) if on_photograph else _gradient(canvas_side, rng)
    )
    palette = _palette(8, rng)
    _lay_leaves(canvas, int(np.exp(rng.uniform(np.log(5), np.log(1000)))), palette, textures, rng)
    if rng.random() < 0.5:  # what lies so far is out of focus, and sharp leaves cover part of it
        canvas = gaussian_filter(canvas, (blur := rng.uniform(3, 25), blur, 0))
        _lay_leaves(canvas, int(np.exp(rng.uniform(np.log(5), np.log(300)))), palette, textures, rng)
    pixels = canvas.reshape(side, _OVERSAMPLING, side, _OVERSAMPLING, 3).mean(axis=(1, 3))  # (side, side, 3)
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def two_tone(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour a greyscale photograph: shadows and middle tones get a hue each, black and white stay.

    Args:
        grey: (H, W) uint8.
        rng: chooses the hues.

    Returns:
        (H, W, 3) uint8.
    """
    shadows, middle = (rng.uniform(-0.22, 0.22, size=3) for _ in range(2))
    level = np.linspace(0, 1, 256)[:, None]
    hues = np.sin(np.pi * level) * (shadows * (1 - level) + middle * level)
    table = np.rint(np.clip(level + hues, 0, 1) * 255).astype(np.uint8)  # (256, 3)
    return table[grey]


def _gradient(side: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side, 3): a smooth change between two colours in some direction, like a sky or a wall."""
    first, second = _palette(2, rng)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.ogrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    share = 0.5 + 0.35 * (x * np.cos(angle) + y * np.sin(angle))
    return (first + share[:, :, None] * (second - first)).astype(np.float32)


def _palette(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) in 0..1: any lightness, and colours from muted to vivid, as scenes differ in it."""
    lightness = rng.uniform(0.05, 0.95, size=(count, 1))
    return np.clip(lightness + rng.uniform(0.07, 0.18) * rng.standard_normal((count, 3)), 0, 1)


def _lay_leaves(
    canvas: np.ndarray, count: int, palette: np.ndarray, textures: Sequence[np.ndarray], rng: np.random.Generator
) -> None:
    """Lay `count` leaves whose radii follow the density r^-3, which gives natural images' scale invariance."""
    smallest, largest = rng.uniform(10, 60), len(canvas) / 2
    spread = rng.random(count) * (smallest**-2 - largest**-2)
    for radius in (smallest**-2 - spread) ** -0.5:  # inverse of the cumulative distribution of r^-3
        _lay_leaf(canvas, radius, palette[rng.integers(len(palette))], textures, rng)


def _lay_leaf(
    canvas: np.ndarray, radius: float, colour: np.ndarray, textures: Sequence[np.ndarray], rng: np.random.Generator
) -> None:
    """Paint one shaded ellipse over what lies there: plain, grated, or showing a piece of a photograph."""
    side = len(canvas)
    centre_y, centre_x = rng.uniform(0, side, size=2)
    angle, elongation, shading = rng.uniform(0, np.pi), rng.uniform(1, 2.5), rng.uniform(-0.2, 0.2)
    top, bottom = max(0, int(centre_y - radius)), min(side, int(centre_y + radius) + 1)
    left, right = max(0, int(centre_x - radius)), min(side, int(centre_x + radius) + 1)
    y, x = np.ogrid[top:bottom, left:right]
    along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
    across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
    inside = along**2 + (elongation * across) ** 2 <= radius**2
    if textures and rng.random() < 0.4:
        surface = _photograph_piece(bottom - top, right - left, textures, rng)
    else:
        frequency, phase, strength = rng.uniform(0.02, 0.2), rng.uniform(0, 2 * np.pi), rng.exponential(0.05)
        grating = strength * np.cos(2 * np.pi * frequency * along + phase)
        surface = colour + rng.normal(0, 0.04, size=3) + grating[:, :, None]
    canvas[top:bottom, left:right][inside] = (surface + (shading * along / radius)[:, :, None])[inside]


def _photograph_piece(height: int, width: int, textures: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) in about 0..1: a piece of a photograph at the canvas's scale, channels exchanged."""
    photograph = textures[rng.integers(len(textures))]
    rows, columns = -(-height // _OVERSAMPLING), -(-width // _OVERSAMPLING)
    top, left = rng.integers(photograph.shape[0] - rows + 1), rng.integers(photograph.shape[1] - columns + 1)
    piece = photograph[top : top + rows, left : left + columns, rng.permutation(3)] / np.float32(255)
    return piece.repeat(_OVERSAMPLING, axis=0).repeat(_OVERSAMPLING, axis=1)[:height, :width]
