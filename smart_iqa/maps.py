"""Where in an image a model looks: an image file -> maps of its size, and the image with a map over it.

For the analyses of attention and for `predict --explain`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data_loader import UNCHANGED, load_image
from iqa.attention import attention_rollout, grad_cam, has_window_attention, place_on_images, window_attention
from iqa.choices import TEST_MODES
from iqa.config import parse_resize
from models_swin import SmartIQA
from smart_iqa.scorer import Scorer

_RAISES, _LOWERS = (178, 24, 43), (33, 102, 172)  # red and blue that are told apart without colour vision, too
_STRONGEST = 0.65  # share of the colour where the map is strongest: the image shows through


class ImageMaps(NamedTuple):
    """An image as the network sees it, and where it looks."""

    image: np.ndarray  # (H, W, 3) uint8, resized
    grad_cam: np.ndarray  # (H, W), points of the score: positive raises it, negative lowers it
    rollout: np.ndarray | None  # (H, W), 1 where attention is spread evenly; None without window attention


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


def rollout_maps(model: SmartIQA, images: Tensor) -> Tensor:
    """Roll attention out over images (B, 3, H, W) -> (B, H, W), 1 where attention is spread evenly."""
    H, W = images.shape[-2:]
    backbone: Any = model.backbone
    patch = backbone.patch
    padded = F.pad(images, (0, -W % patch, 0, -H % patch), mode="replicate")  # as the backbone does
    shares = attention_rollout(window_attention(backbone.body, padded))  # (B, H0, W0), sum 1
    return place_on_images(shares * shares[0].numel(), patch, H, W)


def image_maps(scorer: Scorer, path: str) -> ImageMaps:
    """Make Grad-CAM and, for Swin, attention rollout over one image, stitched from crops that cover it."""
    pixels = _pixels(scorer, path)
    backbone: Any = scorer.model.backbone
    kinds = [grad_cam, rollout_maps] if has_window_attention(backbone.body) else [grad_cam]
    maps = [_stitched(scorer, pixels, kind) for kind in kinds]
    return ImageMaps(pixels.transpose(1, 2, 0), maps[0], maps[1] if len(maps) > 1 else None)


def score_map(scorer: Scorer, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Where an image raises its score, and where it lowers it, as the model is asked for its score.

    Args:
        scorer: scores whole images or crops; of crops the maps are stitched.
        path: an image file.

    Returns:
        The image as the network sees it (H, W, 3) uint8, and Grad-CAM (H, W) in points of the score.

    Raises:
        UserError: the file cannot be read.
    """
    pixels = _pixels(scorer, path)
    if TEST_MODES[scorer.config.test_mode].whole:
        drawn = grad_cam(scorer.model, _images(scorer, pixels[None]))[0].cpu().numpy()
    else:
        drawn = _stitched(scorer, pixels, grad_cam)
    return pixels.transpose(1, 2, 0), drawn


def overlay(image: np.ndarray, values: np.ndarray) -> Image.Image:
    """An image in grey with a map over it: red raises the score, blue lowers it, pale has no part in it.

    Args:
        image: (H, W, 3) uint8.
        values: (H, W); the colour is full where they are largest.
    """
    strength = (values / max(float(np.abs(values).max()), 1e-12))[..., None]  # -1..1
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None]
    colour = np.where(strength > 0, _RAISES, _LOWERS)
    share = _STRONGEST * np.abs(strength)
    return Image.fromarray(np.rint((1 - share) * grey + share * colour).astype(np.uint8))


def _pixels(scorer: Scorer, path: str) -> np.ndarray:
    return load_image(path, parse_resize(scorer.config.resize), scorer.config.patch_size)  # (3, H, W)


def _images(scorer: Scorer, crops: np.ndarray) -> Tensor:
    """Crops (K, 3, h, w) uint8 -> normalised images (K, 3, h, w) on the scorer's device."""
    unchanged = torch.tensor(UNCHANGED).expand(1, len(crops), -1)
    return scorer.to_images(torch.from_numpy(crops)[None], unchanged).to(scorer.accelerator.device)


def _stitched(scorer: Scorer, pixels: np.ndarray, kind: Callable[[SmartIQA, Tensor], Tensor]) -> np.ndarray:
    """A kind of map of pixels (3, H, W), from crops that cover them: (H, W)."""
    config, (H, W) = scorer.config, pixels.shape[1:]
    corners, size = covering_corners(H, W, config.patch_size), config.patch_size
    images = _images(scorer, np.stack([pixels[:, top : top + size, left : left + size] for top, left in corners]))
    maps = torch.cat([kind(scorer.model, part) for part in images.split(config.batch_size)])  # (K, size, size)
    return stitch(maps.cpu().numpy(), corners, H, W)
