"""What a caller of `Scorer` holds -> what the network takes: files and pixels, or batches with their gradients.

    path, PIL image, array (H, W, 3), tensor (B, 3, H, W) -[as_images]-> files and 8-bit images, as a table holds them
    tensor (B, 3, H, W) in 0..1 -[crops_of]-> crops (B, K, 3, h, w), differentiable

Both ways resize and crop alike: the first with Pillow, as a file is, the second as Pillow does, with gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data_loader import resized_size, test_places
from iqa.config import Config, parse_resize
from iqa.errors import UserError

OneImage = str | os.PathLike | Image.Image | np.ndarray
Images = OneImage | Tensor | Iterable[OneImage | Tensor]
SLACK = 1e-3  # a quarter of an 8-bit step: what rounding may leave outside 0..1
_KINDS = "a path, a PIL image, an array (H, W, 3), a tensor (B, 3, H, W), or a list of these"


def is_one(images: object) -> bool:
    """Whether this is one image; a tensor is a batch."""
    return isinstance(images, OneImage)


def as_images(images: Images) -> list[str | Image.Image]:
    """Files as they are named, and pixels as 8-bit RGB images: what saving them without loss would keep.

    Args:
        images: as `Scorer.score` takes them.

    Raises:
        UserError: of another kind, shape or range.
    """
    if is_one(images) or isinstance(images, Tensor):
        return list(_each(images))
    if not isinstance(images, Iterable):
        raise UserError(f"images: expected {_KINDS}; got {type(images).__name__}")
    return [image for given in images for image in _each(given)]


def _each(given: object) -> Iterator[str | Image.Image]:
    if isinstance(given, str | os.PathLike):
        yield os.fspath(given)
    elif isinstance(given, Image.Image):
        yield given
    elif isinstance(given, np.ndarray):
        yield _of_array(given)
    elif isinstance(given, Tensor):
        check_batch(given, (torch.uint8,))
        batch = given.detach().cpu()
        batch = batch if batch.dtype == torch.uint8 else batch.float()  # numpy has no bfloat16
        yield from (_of_array(pixels) for pixels in batch.permute(0, 2, 3, 1).contiguous().numpy())
    else:
        raise UserError(f"images: expected {_KINDS}; got {type(given).__name__}")


def _of_array(pixels: np.ndarray) -> Image.Image:
    """Pixels (H, W, 3), uint8 or float in 0..1, as an image."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(f"images: expected an array (H, W, 3), got {pixels.shape}")
    if np.issubdtype(pixels.dtype, np.floating):
        _check_range(float(pixels.min()), float(pixels.max()))
        pixels = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise UserError(f"images: expected uint8, or float in 0..1; got {pixels.dtype}")
    return Image.fromarray(pixels)


def check_batch(images: Tensor, further_types: Sequence[torch.dtype] = ()) -> None:
    """Refuse what is not a batch of float RGB images (B, 3, H, W) in 0..1, or of one of some further types.

    Raises:
        UserError: of another shape, type or range; says what was expected and what came.
    """
    expected = "images: expected a tensor (B, 3, H, W)"
    if not isinstance(images, Tensor):
        raise UserError(f"{expected}, got {type(images).__name__}")
    if images.ndim == 3 and images.shape[0] == 3:
        raise UserError(f"{expected}, got {tuple(images.shape)}: one image is images[None]")
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise UserError(f"{expected}, got {tuple(images.shape)}")
    if images.dtype in further_types:
        return
    if not images.is_floating_point():
        raise UserError(f"{expected} of float in 0..1, got {images.dtype}: 8-bit pixels are divided by 255")
    _check_range(*(value.item() for value in images.detach().aminmax()))


def _check_range(low: float, high: float) -> None:
    if not (low >= -SLACK and high <= 1 + SLACK):  # so written, NaN is refused too
        what = "8-bit pixels are divided by 255" if high > 2 else "images.clamp(0, 1) cuts off what is outside"
        raise UserError(f"images: expected values in 0..1, got {low:g} to {high:g}: {what}")


def crops_of(images: Tensor, config: Config) -> Tensor:
    """The crops that a test takes of images, resized before as files are; gradients reach the images.

    Args:
        images: (B, 3, H, W) in 0..1.
        config: gives resize, patch_size, test_mode, test_patch_num. Random crops lie as those of an image without a
            name: the same in every call, and for every image of one size.

    Returns:
        (B, K, 3, h, w) in 0..1; K is 1 and the crop the whole image where `test_mode` is `full`.
    """
    H, W = images.shape[-2:]
    width, height = resized_size(W, H, parse_resize(config.resize), config.patch_size)
    images = _resized(images, (H, width), (height, width))
    corners, (high, wide) = test_places(height, width, config, "")
    return torch.stack([images[..., top : top + high, left : left + wide] for top, left in corners], dim=1)


def _resized(images: Tensor, *sizes: tuple[int, int]) -> Tensor:
    """Images resized as Pillow does it: to one size after the other, rounded to 8 bits each time.

    Without the rounding, which gradients pass by, scores differ by up to 0.2.
    """
    for size in sizes:
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
            images = images + (images.mul(255).round().div(255) - images).detach()
    return images


def clip_scores(scores: Tensor) -> Tensor:
    """Scores set into 0..100, with the gradient of the scores as they were.

    A plain clip has no gradient outside: what scores below 0 could never learn to be better.

    >>> scores = torch.tensor([-3.0, 50.0, 104.0], requires_grad=True)
    >>> clip_scores(scores)
    tensor([  0.,  50., 100.], grad_fn=<AddBackward0>)
    >>> torch.autograd.grad(clip_scores(scores).sum(), scores)
    (tensor([1., 1., 1.]),)
    """
    return scores.detach().clamp(0, 100) + (scores - scores.detach())
