"""Claims about iqa.distortions: strength grows with level, closed forms hold, bad input is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from hypothesis import given, strategies as st
from PIL import Image

from iqa.distortions import DISTORTIONS, NUM_LEVELS, distort
from iqa.errors import UserError

LEVELS = range(1, NUM_LEVELS + 1)
RANDOM_KINDS = ("white_noise", "impulse_noise", "multiplicative_noise", "motion_blur", "colour_shift")
KINDS_THAT_KEEP_FLAT_GREY = "gaussian_blur lens_blur motion_blur contrast saturation pixelation colour_shift".split()
ASKED_FOR = set(
    "gaussian_blur lens_blur motion_blur white_noise impulse_noise multiplicative_noise jpeg jpeg2000 "
    "brightening darkening contrast saturation pixelation colour_shift quantisation".split()
)


def photographs() -> list[np.ndarray]:
    """Four natural colour photographs, cut to 192 x 256."""
    folder = Path(skimage.data.__file__).parent
    images = [np.asarray(Image.open(folder / name)) for name in ("astronaut.png", "coffee.png", "chelsea.png")]
    images.append(sklearn.datasets.load_sample_image("china.jpg"))
    return [image[60:252, 100:356] for image in images]


PHOTOGRAPHS = photographs()


def flat(value: int, side: int = 128) -> np.ndarray:
    return np.full((side, side, 3), value, dtype=np.uint8)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_every_kind_that_was_asked_for_is_in_the_table_under_its_own_name() -> None:
    assert set(DISTORTIONS) == ASKED_FOR
    assert all(row.name == name and len(row.levels) == NUM_LEVELS for name, row in DISTORTIONS.items())


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_mean_absolute_error_grows_with_every_level(kind: str) -> None:
    errors = [
        np.mean([np.abs(distort(p, kind, level, generator()).astype(float) - p).mean() for p in PHOTOGRAPHS])
        for level in LEVELS
    ]
    assert errors[0] > 0.1
    assert np.all(np.diff(errors) > 0), errors


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_same_generator_state_gives_same_bytes_and_leaves_the_input_alone(kind: str) -> None:
    image = PHOTOGRAPHS[0].copy()
    first, second = (distort(image, kind, 3, generator(7)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(image, PHOTOGRAPHS[0])


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_only_noise_and_directions_depend_on_the_generator(kind: str) -> None:
    first, second = (distort(PHOTOGRAPHS[0], kind, 3, generator(seed)) for seed in (1, 2))
    assert np.array_equal(first, second) == (kind not in RANDOM_KINDS)


@given(
    kind=st.sampled_from(sorted(DISTORTIONS)),
    level=st.sampled_from(LEVELS),
    height=st.integers(32, 70),
    width=st.integers(32, 70),
)
def test_any_size_comes_back_as_uint8_of_the_same_shape(kind: str, level: int, height: int, width: int) -> None:
    image = generator(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    distorted = distort(image, kind, level, generator())
    assert distorted.shape == image.shape and distorted.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS_THAT_KEEP_FLAT_GREY)
@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_flat_grey_image_has_nothing_to_blur_shift_or_flatten(kind: str, value: int) -> None:
    distorted = distort(flat(value), kind, 5, generator())
    assert np.abs(distorted.astype(int) - value).max() <= 1


@pytest.mark.parametrize("level", LEVELS)
def test_variance_of_white_noise_is_the_parameter(level: int) -> None:
    noise = distort(flat(128, 256), "white_noise", level, generator()).astype(float) / 255 - 128 / 255
    assert noise.var() == pytest.approx(DISTORTIONS["white_noise"].levels[level - 1], rel=0.02)


def test_multiplicative_noise_leaves_black_and_grows_in_proportion_to_the_signal() -> None:
    assert not distort(flat(0), "multiplicative_noise", 5, generator()).any()
    dark, bright = (distort(flat(v, 256), "multiplicative_noise", 3, generator()).std() for v in (60, 120))
    assert bright / dark == pytest.approx(2, rel=0.02)


def test_impulse_noise_turns_its_fraction_of_samples_half_to_black_half_to_white() -> None:
    distorted = distort(flat(128, 256), "impulse_noise", 5, generator())
    density = DISTORTIONS["impulse_noise"].levels[4]
    assert (distorted == 0).mean() == pytest.approx(density / 2, rel=0.05)
    assert (distorted == 255).mean() == pytest.approx(density / 2, rel=0.05)
    assert set(np.unique(distorted)) == {0, 128, 255}


def edge_spread_variance(image: np.ndarray) -> float:
    """Variance of the line spread function of an image that was a vertical step edge."""
    line = np.clip(np.diff(image[64, :, 0].astype(float)), 0, None)
    position = np.arange(len(line))
    mean = (line * position).sum() / line.sum()
    return (line * (position - mean) ** 2).sum() / line.sum()


@pytest.mark.parametrize("level", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("kind", "variance"),
    [("gaussian_blur", lambda sigma: sigma**2), ("lens_blur", lambda radius: radius**2 / 4)],
)
def test_a_step_edge_spreads_by_the_variance_of_the_blur(kind: str, variance: object, level: int) -> None:
    edge = flat(0)
    edge[:, 64:] = 255
    parameter = DISTORTIONS[kind].levels[level - 1]
    # A disc's marginal has variance r^2/4; pixels instead of a line add about 1/12, 8 bits about as much.
    assert edge_spread_variance(distort(edge, kind, level, generator())) == pytest.approx(
        variance(parameter), rel=0.05, abs=0.25
    )


@pytest.mark.parametrize("seed", range(4))
def test_motion_blur_spreads_a_point_along_one_line_of_its_length(seed: int) -> None:
    image = flat(0)
    image[64, 64] = 255
    streak = distort(image, "motion_blur", 5, generator(seed))[:, :, 0].astype(float)
    places = np.argwhere(streak) - 64
    variances = np.linalg.eigvalsh(np.cov(places.T, fweights=streak[streak > 0].astype(int)))
    length = DISTORTIONS["motion_blur"].levels[4]
    assert variances[1] == pytest.approx(length**2 / 12, rel=0.15)  # variance of a uniform line
    assert variances[0] < 0.5


def test_brightening_and_darkening_keep_black_and_white_and_mirror_each_other() -> None:
    for kind in ("brightening", "darkening"):
        assert distort(flat(0), kind, 5, generator()).max() == 0
        assert distort(flat(255), kind, 5, generator()).min() == 255
    image = PHOTOGRAPHS[0]
    mirrored = 255 - distort(255 - image, "darkening", 3, generator()).astype(int)
    assert np.abs(mirrored - distort(image, "brightening", 3, generator())).max() <= 1


def test_contrast_scales_the_deviation_and_keeps_the_mean() -> None:
    grey = np.repeat(PHOTOGRAPHS[1][:, :, :1], 3, axis=2)
    flatter = distort(grey, "contrast", 4, generator())
    assert flatter.mean() == pytest.approx(grey.mean(), abs=0.1)
    assert flatter.std() / grey.std() == pytest.approx(DISTORTIONS["contrast"].levels[3], rel=0.01)


def test_the_strongest_saturation_change_leaves_no_colour_and_keeps_luma() -> None:
    luma = np.array([0.299, 0.587, 0.114])
    grey = distort(PHOTOGRAPHS[0], "saturation", 5, generator())
    assert np.ptp(grey, axis=2).max() == 0
    assert np.abs(grey[:, :, 0] - PHOTOGRAPHS[0] @ luma).max() <= 0.51


@pytest.mark.parametrize("level", LEVELS)
def test_quantisation_leaves_as_many_values_as_its_parameter_black_and_white_among_them(level: int) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(8, axis=0)
    values = np.unique(distort(ramp, "quantisation", level, generator()))
    assert len(values) == DISTORTIONS["quantisation"].levels[level - 1]
    assert values[0] == 0 and values[-1] == 255


def test_pixelation_makes_blocks_that_hold_the_mean_of_what_they_cover() -> None:
    image = PHOTOGRAPHS[2][:70, :70]
    blocks = distort(image, "pixelation", 5, generator())  # side 7 divides 70
    expected = image.reshape(10, 7, 10, 7, 3).mean(axis=(1, 3))
    assert np.abs(blocks[3::7, 3::7] - expected).max() <= 1  # rounded twice: Pillow averages rows, then columns
    assert np.array_equal(blocks, blocks[::7, ::7].repeat(7, axis=0).repeat(7, axis=1))


def test_colour_shift_moves_green_by_its_distance_and_nothing_else() -> None:
    image = flat(0)
    image[64, 64] = 255
    shifted = distort(image, "colour_shift", 5, generator())
    assert np.array_equal(shifted[:, :, ::2], image[:, :, ::2])
    green = shifted[:, :, 1].astype(float)
    centre = np.array([(green * axis).sum() / green.sum() for axis in np.mgrid[:128, :128]])
    assert np.hypot(*(centre - 64)) == pytest.approx(DISTORTIONS["colour_shift"].levels[4], abs=0.05)


def test_jpeg_is_what_the_codec_gives_at_that_quality(tmp_path: Path) -> None:
    Image.fromarray(PHOTOGRAPHS[3]).save(tmp_path / "4.jpg", quality=4, subsampling=2)
    expected = np.asarray(Image.open(tmp_path / "4.jpg"))
    assert np.array_equal(distort(PHOTOGRAPHS[3], "jpeg", 5, generator()), expected)


@pytest.mark.parametrize("level", [0, 6, -1, 2.5])
def test_a_level_outside_one_to_five_is_refused(level: float) -> None:
    with pytest.raises(UserError, match="level of jpeg must be 1 to 5"):
        distort(PHOTOGRAPHS[0], "jpeg", level, generator())


def test_an_unknown_kind_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(UserError, match="'fog'.*gaussian_blur.*quantisation"):
        distort(PHOTOGRAPHS[0], "fog", 1, generator())


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_anything_but_an_rgb_image_of_uint8_is_refused(image: np.ndarray) -> None:
    with pytest.raises(UserError, match="expected an RGB image"):
        distort(image, "jpeg", 1, generator())
