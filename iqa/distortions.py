"""Synthetic distortions of five strengths, after the kinds of KADID-10k (Lin, Hosu and Saupe, QoMEX 2019).

First arrow of the demo database: undistorted tile -[distortions]-> distorted tile. `DISTORTIONS` is the
whole list, one row for each kind; `distort` is the way in. The strengths are like KADID-10k's, with two
differences: every parameter moves one way from level 1 to level 5 (KADID-10k's contrast change alternates),
and the steps are spread more evenly, so that no two levels look the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from iqa.errors import UserError

NUM_LEVELS = 5
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601

Apply = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Distortion:
    """One kind of distortion.

    Attributes:
        name: the key in `DISTORTIONS`.
        levels: the parameter of levels 1 to 5, in the unit that `apply` documents.
        apply: maps pixels (H, W, 3), float32 in 0..1, a parameter and a generator to pixels of the same
            shape, not yet clipped. `distort` does the rounding and clipping.
    """

    name: str
    levels: tuple[float, float, float, float, float]
    apply: Apply


def distort(image: np.ndarray, kind: str, level: int, rng: np.random.Generator) -> np.ndarray:
    """Distort an image; the input is left unchanged.

    Args:
        image: (H, W, 3) uint8, sRGB.
        kind: a key of `DISTORTIONS`.
        level: strength, 1 (weakest) to 5.
        rng: source of noise samples and directions; the same state gives the same result.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UserError: unknown kind, level outside 1..5, or an image of another shape or type.
    """
    if kind not in DISTORTIONS:
        raise UserError(f"unknown distortion {kind!r}: choose one of {', '.join(DISTORTIONS)}")
    if level not in range(1, NUM_LEVELS + 1):
        raise UserError(f"distortion level of {kind} must be 1 to {NUM_LEVELS}, got {level!r}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"expected an RGB image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
    distortion = DISTORTIONS[kind]
    pixels = image.astype(np.float32) / 255
    return _to_uint8(distortion.apply(pixels, distortion.levels[level - 1], rng))


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _gaussian_blur(pixels: np.ndarray, sigma: float, _rng: np.random.Generator) -> np.ndarray:
    """Gaussian of standard deviation `sigma` pixels."""
    return ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="mirror")


def _lens_blur(pixels: np.ndarray, radius: float, _rng: np.random.Generator) -> np.ndarray:
    """Circle of confusion: a flat disc of `radius` pixels."""
    return _filter_channels(pixels, _coverage(lambda x, y: radius - np.hypot(x, y), radius))


def _motion_blur(pixels: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """Straight camera motion over `length` pixels in a random direction."""
    angle = rng.uniform(0, np.pi)

    def inside_track(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        along = np.abs(x * np.cos(angle) + y * np.sin(angle))
        across = np.abs(y * np.cos(angle) - x * np.sin(angle))
        return np.minimum(length / 2 - along, 0.5 - across)

    return _filter_channels(pixels, _coverage(inside_track, length / 2))


def _coverage(depth: Callable[[np.ndarray, np.ndarray], np.ndarray], reach: float) -> np.ndarray:
    """Kernel of a shape from its depth (pixels inside its edge, negative outside), smooth at the edge."""
    half = int(np.ceil(reach)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    kernel = np.clip(depth(x, y) + 0.5, 0, 1)
    return kernel / kernel.sum()


def _filter_channels(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return ndimage.convolve(pixels, kernel[:, :, None], mode="mirror")


def _white_noise(pixels: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Additive Gaussian noise of this variance (full range is 1), independent in each channel."""
    return pixels + np.sqrt(variance) * rng.standard_normal(pixels.shape, dtype=np.float32)


def _impulse_noise(pixels: np.ndarray, density: float, rng: np.random.Generator) -> np.ndarray:
    """Salt and pepper: this fraction of the samples becomes 0 or 1, evenly, in each channel."""
    draw = rng.random(pixels.shape, dtype=np.float32)
    return np.where(draw < density / 2, 0, np.where(draw > 1 - density / 2, 1, pixels))


def _multiplicative_noise(pixels: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Speckle: every sample times 1 + Gaussian noise of this variance."""
    return pixels * (1 + np.sqrt(variance) * rng.standard_normal(pixels.shape, dtype=np.float32))


def _jpeg(pixels: np.ndarray, quality: float, _rng: np.random.Generator) -> np.ndarray:
    """JPEG of libjpeg's `quality`, chroma at half resolution."""
    return _encode_and_decode(pixels, "JPEG", quality=int(quality), subsampling="4:2:0")


def _jpeg2000(pixels: np.ndarray, ratio: float, _rng: np.random.Generator) -> np.ndarray:
    """JPEG 2000, irreversible wavelet, compressed by `ratio` to one."""
    return _encode_and_decode(pixels, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True)


def _encode_and_decode(pixels: np.ndarray, codec: str, **options: object) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(_to_uint8(pixels)).save(stream, codec, **options)
    with Image.open(stream) as decoded:
        return np.asarray(decoded.convert("RGB"), dtype=np.float32) / 255


def _brightening(pixels: np.ndarray, exponent: float, _rng: np.random.Generator) -> np.ndarray:
    """Tone curve 1 - (1 - v)^exponent: lifts the middle, keeps black and white."""
    return 1 - (1 - pixels) ** exponent


def _darkening(pixels: np.ndarray, exponent: float, _rng: np.random.Generator) -> np.ndarray:
    """Tone curve v^exponent."""
    return pixels**exponent


def _contrast(pixels: np.ndarray, factor: float, _rng: np.random.Generator) -> np.ndarray:
    """Distance of every sample from the image's mean luma, times `factor`."""
    mean_luma = (pixels @ _LUMA).mean()
    return mean_luma + factor * (pixels - mean_luma)


def _saturation(pixels: np.ndarray, factor: float, _rng: np.random.Generator) -> np.ndarray:
    """Distance of every pixel from its own grey, times `factor`; 0 leaves no colour."""
    grey = (pixels @ _LUMA)[:, :, None]
    return grey + factor * (pixels - grey)


def _pixelation(pixels: np.ndarray, side: float, _rng: np.random.Generator) -> np.ndarray:
    """Blocks of `side` by `side` pixels, each of one colour (its mean)."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(_to_uint8(pixels))
    blocks = image.resize((max(1, round(width / side)), max(1, round(height / side))), Image.Resampling.BOX)
    return np.asarray(blocks.resize((width, height), Image.Resampling.NEAREST), dtype=np.float32) / 255


def _colour_shift(pixels: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Green channel moved by `distance` pixels in a random direction: coloured fringes at edges."""
    angle = rng.uniform(0, 2 * np.pi)
    offset = (distance * np.sin(angle), distance * np.cos(angle))
    shifted = pixels.copy()
    shifted[:, :, 1] = ndimage.shift(pixels[:, :, 1], offset, order=1, mode="nearest")
    return shifted


def _quantisation(pixels: np.ndarray, steps: float, _rng: np.random.Generator) -> np.ndarray:
    """Evenly spaced values, `steps` of them, in each channel."""
    return np.rint(pixels * (steps - 1)) / (steps - 1)


# A pixelation of side 2 is left out: measures that first halve the image, as HaarPSI does, cannot see it.
DISTORTIONS: dict[str, Distortion] = {
    row.name: row
    for row in (
        Distortion("gaussian_blur", (0.6, 1.0, 1.6, 2.6, 5.0), _gaussian_blur),
        Distortion("lens_blur", (1.0, 2.0, 4.0, 6.0, 8.0), _lens_blur),
        Distortion("motion_blur", (3.0, 5.0, 9.0, 13.0, 21.0), _motion_blur),
        Distortion("white_noise", (0.001, 0.002, 0.005, 0.01, 0.03), _white_noise),
        Distortion("impulse_noise", (0.001, 0.005, 0.01, 0.02, 0.05), _impulse_noise),
        Distortion("multiplicative_noise", (0.001, 0.005, 0.01, 0.02, 0.05), _multiplicative_noise),
        Distortion("jpeg", (43, 30, 18, 9, 4), _jpeg),
        Distortion("jpeg2000", (16, 32, 60, 110, 170), _jpeg2000),
        Distortion("brightening", (1.2, 1.5, 2.0, 3.0, 5.0), _brightening),
        Distortion("darkening", (1.2, 1.5, 2.0, 3.0, 5.0), _darkening),
        Distortion("contrast", (0.8, 0.6, 0.45, 0.3, 0.15), _contrast),
        Distortion("saturation", (0.7, 0.5, 0.3, 0.15, 0.0), _saturation),
        Distortion("pixelation", (1.33, 2.5, 3.5, 5.0, 7.0), _pixelation),
        Distortion("colour_shift", (0.5, 1.0, 2.0, 4.0, 8.0), _colour_shift),
        Distortion("quantisation", (20, 16, 13, 10, 7), _quantisation),
    )
}
