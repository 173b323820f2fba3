"""Distortions of whole batches on their own device, of continuous strength: 31 kinds, one to four in a row.

`iqa.distortions` makes files of five levels, one image at a time, with real codecs. Here a training step distorts
hundreds of crops where they lie, so codecs are imitated by what they do to an image: quantised block transforms,
with deblocking where the codec has it. `KINDS` is the list, a row for each kind; `draw_chains` and `distort_batch`
are the way in. Kinds of cameras and codecs follow KADID-10k (Lin, Hosu and Saupe, QoMEX 2019); `checkerboard`,
`over_smoothing`, `over_sharpening`, `ringing`, `palette` and `interpolation` are what image generators leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from iqa.system import device_constant, to_device

MAX_CHAIN = 4
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

Apply = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class BatchDistortion:
    """One kind of distortion.

    Attributes:
        name: of the kind.
        weak: the parameter at strength 0, in the unit that `apply` documents.
        strong: the parameter at strength 1; between them it changes by equal factors.
        apply: maps images (B, 3, H, W) in 0..1, the parameter (B,) and a generator on their device to images, not
            yet clipped.
        share: how often the kind is drawn, relative to the others.
    """

    name: str
    weak: float
    strong: float
    apply: Apply
    share: float = 1.0

    def parameter(self, strength: Tensor) -> Tensor:
        """The parameter (B,) of strengths (B,) in 0..1."""
        return self.weak * (self.strong / self.weak) ** strength


class Chains(NamedTuple):
    """What happens to each image of a batch, in order; on the CPU, so that no device is waited for."""

    kinds: Tensor  # (B, 4) row of `KINDS`, or -1 for nothing
    strengths: Tensor  # (B, 4), 0..1


def draw_chains(batch: int, generator: torch.Generator, single: float = 0.5) -> Chains:
    """One to four different kinds for each image.

    Args:
        batch: number of images.
        generator: on the CPU.
        single: share of the images with one kind; two, three and four share the rest evenly.

    Returns:
        Chains whose strengths are uniform in 0..1 and weaker the more there are of them.
    """
    waits = -torch.log1p(-torch.rand(batch, len(KINDS), generator=generator))  # whose rate is a kind's share
    order = (waits / torch.tensor([kind.share for kind in KINDS])).argsort(dim=1)[:, :MAX_CHAIN]
    more = torch.randint(2, MAX_CHAIN + 1, (batch,), generator=generator)
    length = torch.where(torch.rand(batch, generator=generator) < single, 1, more)
    strengths = torch.rand(batch, MAX_CHAIN, generator=generator) / length[:, None].sqrt()
    kinds = torch.where(torch.arange(MAX_CHAIN) < length[:, None], order, -1)
    return Chains(kinds, strengths)


def distort_batch(images: Tensor, chains: Chains, generator: torch.Generator) -> Tensor:
    """Distort each image of a batch by its own chain.

    Args:
        images: (B, 3, H, W) in 0..1, sides of at least 32.
        chains: what happens to each.
        generator: on the images' device; the same state gives the same result.

    Returns:
        (B, 3, H, W) in 0..1, rounded to 8 bits.
    """
    images = images.clone()
    strengths, orders = to_device(chains.strengths, images.device), chains.kinds.T.argsort(dim=1, stable=True)
    rows_of = to_device(orders, images.device)
    for place in range(MAX_CHAIN):
        kinds = chains.kinds[orders[place], place]
        for kind, rows in zip(*_runs(kinds, rows_of[place]), strict=True):
            distortion = KINDS[kind]
            parameter = distortion.parameter(strengths[rows, place])
            images[rows] = distortion.apply(images[rows], parameter, generator).clamp(0, 1)
    return (images * 255).round() / 255


def _runs(kinds: Tensor, rows: Tensor) -> tuple[list[int], list[Tensor]]:
    """The kinds in an ascending list (B,), and the rows of each; those of no kind (-1) are left out."""
    found, counts = kinds.unique_consecutive(return_counts=True)
    pieces = rows.split(counts.tolist())
    skip = int(found[0] < 0)
    return found.tolist()[skip:], list(pieces[skip:])


def _column(parameter: Tensor) -> Tensor:
    return parameter[:, None, None, None]


def _normal(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)


def _uniform(images: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape or images.shape, generator=generator, device=images.device, dtype=images.dtype)


def _filter(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image with its own kernel (B, h, w) of odd sides; borders are mirrored."""
    B, C, H, W = images.shape
    down, across = (side // 2 for side in kernels.shape[-2:])
    padded = F.pad(images, (across, across, down, down), mode="reflect")
    weight = kernels.repeat_interleave(C, dim=0)[:, None]
    return F.conv2d(padded.reshape(1, B * C, *padded.shape[-2:]), weight, groups=B * C).view(B, C, H, W)


def _offsets(radius: int, like: Tensor) -> Tensor:
    return torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)


def _gaussian(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    weights = (-0.5 * (_offsets(radius, sigma) / sigma[:, None]) ** 2).exp()
    weights = weights / weights.sum(dim=1, keepdim=True)
    return _filter(_filter(images, weights[:, None, :]), weights[:, :, None])


def _gaussian_blur(images: Tensor, sigma: Tensor, _: torch.Generator) -> Tensor:
    """Gaussian of standard deviation `sigma` pixels."""
    return _gaussian(images, sigma, radius=12)


def _shape_kernel(depth: Tensor) -> Tensor:
    """Kernel (B, k, k) of a shape from its depth in pixels inside its edge, smooth at the edge."""
    kernel = (depth + 0.5).clamp(0, 1)
    return kernel / kernel.sum(dim=(1, 2), keepdim=True)


def _lens_blur(images: Tensor, radius: Tensor, _: torch.Generator) -> Tensor:
    """Circle of confusion: a flat disc of `radius` pixels."""
    place = _offsets(8, radius)
    return _filter(images, _shape_kernel(radius[:, None, None] - torch.hypot(place[:, None], place)))


def _motion_blur(images: Tensor, length: Tensor, generator: torch.Generator) -> Tensor:
    """Straight camera motion over `length` pixels in a random direction."""
    angle = math.pi * _uniform(images, generator, len(images))[:, None, None]
    place = _offsets(10, length)
    along = (place * angle.cos() + place[:, None] * angle.sin()).abs()
    across = (place[:, None] * angle.cos() - place * angle.sin()).abs()
    return _filter(images, _shape_kernel(torch.minimum(length[:, None, None] / 2 - along, 0.5 - across)))


def _white_noise(images: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of this standard deviation (full range is 1), independent in each channel."""
    return images + _column(deviation) * _normal(images, generator)


def _colour_noise(images: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise in the two colour differences alone."""
    noise = _normal(images, generator)
    return images + _column(deviation) * (noise - _grey(noise))


def _impulse_noise(images: Tensor, density: Tensor, generator: torch.Generator) -> Tensor:
    """Salt and pepper: this fraction of the samples becomes 0 or 1."""
    draw, half = _uniform(images, generator), _column(density) / 2
    return torch.where(draw < half, 0.0, torch.where(draw > 1 - half, 1.0, images))


def _multiplicative_noise(images: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """Speckle: every sample times 1 + Gaussian noise of this standard deviation."""
    return images * (1 + _column(deviation) * _normal(images, generator))


def _grain(images: Tensor, deviation: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of patches of about two pixels, as after a denoiser or an enlargement."""
    noise = _gaussian(_normal(images, generator), torch.ones_like(deviation), radius=3)
    return images + _column(3.5 * deviation) * noise  # the blur leaves a deviation of 1 / 3.5


def _grey(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W)."""
    return (images * device_constant(_LUMA, images.device)[:, None, None]).sum(dim=1, keepdim=True)


# ITU-T T.81, annex K.1 and K.2: the tables that libjpeg scales by its quality.
_JPEG_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_JPEG_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip


def _cosines(n: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II matrix (n, n): row by frequency."""
    place = torch.arange(n, device=like.device, dtype=like.dtype)
    matrix = (math.pi / n * (place[None] + 0.5) * place[:, None]).cos() * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def _quantise_blocks(planes: Tensor, steps: Tensor) -> Tensor:
    """Round the DCT coefficients of each n x n block to multiples of steps (B, n, n); planes (B, C, H, W)."""
    (H, W), n = planes.shape[-2:], steps.shape[-1]
    padded = F.pad(planes, (0, -W % n, 0, -H % n), mode="replicate")
    blocks = padded.unflatten(3, (-1, n)).unflatten(2, (-1, n)).transpose(3, 4)  # (B, C, rows, columns, n, n)
    cosines, steps = _cosines(n, planes), steps[:, None, None, None]
    coefficients = cosines @ blocks @ cosines.T
    blocks = cosines.T @ ((coefficients / steps).round() * steps) @ cosines
    return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :H, :W]


def _to_ycc(images: Tensor) -> tuple[Tensor, Tensor]:
    """Luma (B, 1, H, W) and colour differences (B, 2, H, W), centred on 0, in steps of 8 bits."""
    luma = _grey(images)
    differences = (images[:, [2, 0]] - luma) / device_constant((1.772, 1.402), images.device)[:, None, None]
    return 255 * luma - 128, 255 * differences


def _from_ycc(luma: Tensor, differences: Tensor) -> Tensor:
    luma, (blue, red) = (luma + 128) / 255, (differences / 255).split(1, dim=1)
    blue, red = luma + 1.772 * blue, luma + 1.402 * red
    green = (luma - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1]
    return torch.cat([red, green, blue], dim=1)


def _code_blocks(images: Tensor, luma_steps: Tensor, chroma_steps: Tensor) -> Tensor:
    """Transform coding with colour at half resolution."""
    luma, differences = _to_ycc(images)
    small = F.avg_pool2d(differences, 2, ceil_mode=True)
    differences = F.interpolate(_quantise_blocks(small, chroma_steps), size=luma.shape[-2:], mode="bilinear")
    return _from_ycc(_quantise_blocks(luma, luma_steps), differences)


def _jpeg(images: Tensor, quality: Tensor, _: torch.Generator) -> Tensor:
    """JPEG of libjpeg's `quality`: blocks of 8."""
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]
    tables = (device_constant(table, images.device) for table in (_JPEG_LUMA, _JPEG_CHROMA))
    return _code_blocks(images, *(((table * scale + 50) / 100).floor().clamp(1, 255) for table in tables))


def _deblocked(images: Tensor, coded: Tensor, n: int) -> Tensor:
    """Blocks of n smoothed across their borders, as the loop filters of later codecs do."""
    smooth = F.avg_pool2d(F.pad(coded, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    rows, columns = (
        ((place % n == 0) | (place % n == n - 1)) & (place > 0)
        for place in (torch.arange(side, device=images.device) for side in images.shape[-2:])
    )
    return torch.where(rows[:, None] | columns, smooth, coded)


def _flat_steps(step: Tensor, n: int) -> Tensor:
    """Steps (B, n, n) that double from the lowest to the highest frequency."""
    place = torch.arange(n, device=step.device, dtype=step.dtype) / n
    return step[:, None, None] * (1 + (place[:, None] + place) / 2)


def _webp(images: Tensor, step: Tensor, _: torch.Generator) -> Tensor:
    """As WebP and VP8: blocks of 4 with a loop filter; `step` in 8-bit values."""
    return _deblocked(images, _code_blocks(images, _flat_steps(step, 4), _flat_steps(step, 4)), 4)


def _avif(images: Tensor, step: Tensor, _: torch.Generator) -> Tensor:
    """As AVIF and AV1: blocks of 16 with a loop filter; `step` in 8-bit values."""
    return _deblocked(images, _code_blocks(images, _flat_steps(step, 16), _flat_steps(step, 16)), 16)


def _wavelet(images: Tensor, step: Tensor, _: torch.Generator) -> Tensor:
    """As JPEG 2000: details of four octaves, small ones dropped, the others in steps (8-bit values) that halve."""
    base, details = images, []
    for octave in range(4):
        smaller = F.avg_pool2d(base, 2, ceil_mode=True)
        detail = base - F.interpolate(smaller, size=base.shape[-2:], mode="bicubic")
        size = _column(step / 255 / 2**octave)
        details.append((detail / size).trunc() * size)
        base = smaller
    for detail in reversed(details):
        base = detail + F.interpolate(base, size=detail.shape[-2:], mode="bicubic")
    return base


def _brightening(images: Tensor, exponent: Tensor, _: torch.Generator) -> Tensor:
    """Tone curve 1 - (1 - v)^exponent."""
    return 1 - (1 - images) ** _column(exponent)


def _darkening(images: Tensor, exponent: Tensor, _: torch.Generator) -> Tensor:
    """Tone curve v^exponent."""
    return images ** _column(exponent)


def _contrast(images: Tensor, factor: Tensor, _: torch.Generator) -> Tensor:
    """Distance of every sample from the image's mean luma, times `factor`; above 1 the ends are clipped."""
    middle = _grey(images).mean(dim=(2, 3), keepdim=True)
    return middle + _column(factor) * (images - middle)


def _saturation(images: Tensor, factor: Tensor, _: torch.Generator) -> Tensor:
    """Distance of every pixel from its own grey, times `factor`."""
    grey = _grey(images)
    return grey + _column(factor) * (images - grey)


def _colour_cast(images: Tensor, gain: Tensor, generator: torch.Generator) -> Tensor:
    """Wrong white balance: channels times or over `gain`, red against blue at random."""
    direction = 2 * _uniform(images, generator, len(images), 3, 1, 1) - 1
    return images * _column(gain) ** direction


def _haze(images: Tensor, share: Tensor, _: torch.Generator) -> Tensor:
    """This share of every sample replaced by light grey."""
    return images + _column(share) * (0.8 - images)


def _block_places(images: Tensor, side: Tensor) -> Tensor:
    """Where each pixel's block of `side` has its middle: a sampling grid (B, H, W, 2)."""
    axes = []
    for size in (images.shape[3], images.shape[2]):
        place = torch.arange(size, device=images.device, dtype=images.dtype) + 0.5
        middle = ((place / side[:, None]).floor() + 0.5) * side[:, None]
        axes.append(2 * middle.clamp(max=size - 0.5) / size - 1)
    x, y = axes
    shape = (len(images), *images.shape[2:])
    return torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)


def _boxes(side: Tensor, radius: int) -> Tensor:
    depth = side[:, None] / 2 - _offsets(radius, side).abs()
    weights = (depth + 0.5).clamp(0, 1)
    return weights / weights.sum(dim=1, keepdim=True)


def _pixelation(images: Tensor, side: Tensor, _: torch.Generator) -> Tensor:
    """Blocks of `side` pixels, each of one colour."""
    box = _boxes(side, 5)
    smooth = _filter(_filter(images, box[:, None, :]), box[:, :, None])
    return F.grid_sample(smooth, _block_places(images, side), padding_mode="border", align_corners=False)


def _interpolation(images: Tensor, side: Tensor, generator: torch.Generator) -> Tensor:
    """Made `side` times smaller and enlarged again, linearly."""
    box = _boxes(side, 5)
    return _filter(_filter(_pixelation(images, side, generator), box[:, None, :]), box[:, :, None])


def _moved(images: Tensor, places: Tensor) -> Tensor:
    """Sample images at places moved by (B, H, W, 2) pixels."""
    B, _, H, W = images.shape
    still = F.affine_grid(
        device_constant(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), images.device).expand(B, 2, 3), (B, 1, H, W), False
    )
    return F.grid_sample(
        images, still + 2 * places / device_constant((W, H), images.device), padding_mode="border", align_corners=False
    )


def _colour_shift(images: Tensor, distance: Tensor, generator: torch.Generator) -> Tensor:
    """Green moved by `distance` pixels in a random direction: coloured fringes at edges."""
    angle = 2 * math.pi * _uniform(images, generator, len(images))
    move = distance[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    green = _moved(images[:, 1:2], move[:, None, None].expand(-1, *images.shape[2:], 2))
    return torch.cat([images[:, :1], green, images[:, 2:]], dim=1)


def _jitter(images: Tensor, distance: Tensor, generator: torch.Generator) -> Tensor:
    """Every pixel taken from up to `distance` pixels beside it."""
    draw = 2 * _uniform(images, generator, len(images), *images.shape[2:], 2) - 1
    return _moved(images, _column(distance) * draw)


def _quantisation(images: Tensor, values: Tensor, _: torch.Generator) -> Tensor:
    """Evenly spaced values, this many in each channel."""
    steps = _column(values) - 1
    return (images * steps).round() / steps


def _palette(images: Tensor, values: Tensor, _: torch.Generator) -> Tensor:
    """Smooth areas in bands: few values of luma, half as many of colour."""
    luma, differences = _to_ycc(images)
    step = 255 / _column(values)
    return _from_ycc((luma / step).round() * step, (differences / step / 2).round() * step * 2)


def _checkerboard(images: Tensor, gain: Tensor, generator: torch.Generator) -> Tensor:
    """What transposed convolutions leave: gains that alternate with a period of 2 or 4 pixels."""
    period = 1 + torch.randint(0, 2, (len(images), 1), generator=generator, device=images.device)
    rows, columns = ((torch.arange(n, device=images.device) // period) % 2 for n in images.shape[2:])
    pattern = 1 - 2 * ((rows[:, :, None] + columns[:, None]) % 2).to(images.dtype)
    return images * (1 + _column(gain) * pattern[:, None])


def _over_smoothing(images: Tensor, strength: Tensor, _: torch.Generator) -> Tensor:
    """Flat areas without texture, edges kept: a guided filter of radius 4 whose `strength` is its epsilon.

    Source: He, Sun and Tang, "Guided Image Filtering", ECCV 2010.
    """

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(values, (4, 4, 4, 4), mode="reflect"), 9, stride=1)

    middle = mean(images)
    variance = (mean(images**2) - middle**2).clamp(min=0)
    slope = variance / (variance + _column(strength))
    return mean(slope) * images + mean((1 - slope) * middle)


def _over_sharpening(images: Tensor, amount: Tensor, _: torch.Generator) -> Tensor:
    """Unsharp mask: `amount` times the difference from a blur of 1.2 pixels is added."""
    return images + _column(amount) * (images - _gaussian(images, torch.full_like(amount, 1.2), radius=4))


def _ringing(images: Tensor, cutoff: Tensor, _: torch.Generator) -> Tensor:
    """No frequencies above `cutoff` (1 is the highest there is) and a sharp end: echoes beside edges."""
    H, W = images.shape[2:]
    frequency = torch.hypot(
        2 * torch.fft.fftfreq(H, device=images.device)[:, None], 2 * torch.fft.rfftfreq(W, device=images.device)
    )
    spectrum = torch.fft.rfft2(images.float())
    return torch.fft.irfft2(spectrum * (frequency <= _column(cutoff)), s=(H, W)).to(images.dtype)


def _block_loss(images: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
    """This share of the 16 x 16 blocks lost in transmission and replaced by the block to the left."""
    B, _, H, W = images.shape
    lost = _uniform(images, generator, B, 1, -(-H // 16), -(-W // 16)) < _column(share)
    lost = lost.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)[:, :, :H, :W]
    return torch.where(lost, images.roll(16, dims=3), images)


# Where HaarPSI sees little and people see more (tone and colour), and where levels lie close, more examples are needed.
KINDS: tuple[BatchDistortion, ...] = (
    BatchDistortion("gaussian_blur", 0.4, 5.0, _gaussian_blur),
    BatchDistortion("lens_blur", 0.7, 7.5, _lens_blur),
    BatchDistortion("motion_blur", 2.0, 20.0, _motion_blur, share=2),
    BatchDistortion("white_noise", 0.01, 0.2, _white_noise),
    BatchDistortion("colour_noise", 0.015, 0.3, _colour_noise),
    BatchDistortion("impulse_noise", 0.0005, 0.06, _impulse_noise),
    BatchDistortion("multiplicative_noise", 0.015, 0.3, _multiplicative_noise),
    BatchDistortion("grain", 0.008, 0.12, _grain),
    BatchDistortion("jpeg", 70.0, 3.0, _jpeg, share=5),
    BatchDistortion("wavelet", 8.0, 180.0, _wavelet),
    BatchDistortion("webp", 8.0, 150.0, _webp),
    BatchDistortion("avif", 12.0, 300.0, _avif),
    BatchDistortion("brightening", 1.1, 5.0, _brightening, share=5),
    BatchDistortion("darkening", 1.1, 5.0, _darkening, share=9),
    BatchDistortion("contrast", 0.9, 0.12, _contrast, share=4),
    BatchDistortion("over_contrast", 1.2, 5.0, _contrast),
    BatchDistortion("saturation", 0.8, 0.02, _saturation, share=9),
    BatchDistortion("over_saturation", 1.3, 6.0, _saturation, share=2),
    BatchDistortion("colour_cast", 1.1, 3.0, _colour_cast, share=2),
    BatchDistortion("haze", 0.08, 0.85, _haze, share=2),
    BatchDistortion("pixelation", 1.3, 8.0, _pixelation),
    BatchDistortion("interpolation", 1.3, 8.0, _interpolation),
    BatchDistortion("colour_shift", 0.4, 8.0, _colour_shift, share=3),
    BatchDistortion("jitter", 0.3, 5.0, _jitter),
    BatchDistortion("quantisation", 24.0, 4.0, _quantisation),
    BatchDistortion("palette", 28.0, 4.0, _palette),
    BatchDistortion("checkerboard", 0.02, 0.35, _checkerboard),
    BatchDistortion("over_smoothing", 0.0005, 0.08, _over_smoothing),
    BatchDistortion("over_sharpening", 0.6, 8.0, _over_sharpening),
    BatchDistortion("ringing", 0.7, 0.1, _ringing),
    BatchDistortion("block_loss", 0.01, 0.4, _block_loss),
)
