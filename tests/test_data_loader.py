"""Files become upright RGB; crops depend on nothing but seed, image, epoch and crop; bytes become right images."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import platform
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

import data_loader  # pytest would take an imported `test_loader` for a test
from data_loader import (
    JITTER,
    CropDataset,
    EpochSampler,
    PixelCache,
    Preparation,
    crop_corners,
    grid_shape,
    open_rgb,
    resized_size,
    to_images,
    train_loader,
)
from iqa.choices import TEST_MODES
from iqa.config import Config
from iqa.errors import UserError
from iqa.runtime import make_accelerator

NO_CHANGE = (0.0, 1.0, 1.0, 1.0, 0.0)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def small(**settings) -> Config:
    """A Config for crops of 32 pixels."""
    return Config(**{"patch_size": 32, "resize": "none", "num_workers": 0, "test_patch_num": 3} | settings)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """Five images of noise, 60 x 48."""
    names = [f"{name}.png" for name in "abcde"]
    for seed, name in enumerate(names):
        Image.fromarray(noise(48, 60, seed)).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    return pd.DataFrame({"image": names, "path": paths, "mos": [10.0, 30, 50, 70, 90], "mos_std": math.nan})


def crops_by_image(table: pd.DataFrame, config: Config) -> dict[str, Tensor]:
    found = {}
    for batch in data_loader.test_loader(table, config):
        found |= {table["image"].iloc[int(row)]: crops for row, crops in zip(batch.index, batch.crops, strict=True)}
    return found


# Decoding: every kind of file becomes 8-bit RGB, upright.


def opened(path: Path) -> np.ndarray:
    image = open_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(noise(5, 7)).save(tmp_path / "a.png")
    assert (opened(tmp_path / "a.png") == noise(5, 7)).all()


def test_16_bit_grey_is_scaled_to_8_bits_not_clipped(tmp_path: Path) -> None:
    wide = np.array([[0, 257, 200 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png")[0].tolist() == [[v] * 3 for v in (0, 1, 200, 255)]


def test_grey_has_its_value_in_every_channel(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png")[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png")[0].tolist() == [[255] * 3, [0] * 3]


def palette_image() -> Image.Image:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([255, 0, 0, 0, 128, 0, 0, 0, 64])
    return image


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    palette_image().save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png")[0].tolist() == [[255, 0, 0], [0, 128, 0], [0, 0, 64]]


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    palette_image().save(tmp_path / "a.png", transparency=1)
    assert opened(tmp_path / "a.png")[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 64]]


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    blended = [255 + (v - 255) // 5 for v in (200, 100, 0)]  # alpha 51 is a fifth
    assert opened(tmp_path / "a.png")[0].tolist() == [[200, 100, 0], [255, 255, 255], blended]


def test_grey_with_transparency_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[100, 255], [100, 0]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png")[0].tolist() == [[100] * 3, [255] * 3]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 1), (255, 0, 0, 0)).save(tmp_path / "a.tif")
    assert opened(tmp_path / "a.tif")[0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        # What the tag says about the stored rows and columns (Exif 2.3, tag 0x0112).
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_a_cameras_orientation_is_applied(tmp_path: Path, orientation: int, upright) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(4, 6)).save(tmp_path / "a.png", exif=exif)
    assert (opened(tmp_path / "a.png") == upright(noise(4, 6))).all()


def test_a_truncated_jpeg_is_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"image .*half\.jpg cannot be read"):
        open_rgb(tmp_path / "half.jpg")


def test_a_header_that_claims_too_many_pixels_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bomb.ppm").write_bytes(b"P6 60000 60000 255\n")
    with pytest.raises(UserError, match=r"image .*bomb\.ppm cannot be read"):
        open_rgb(tmp_path / "bomb.ppm")


@pytest.mark.parametrize("content", [b"", b"no image at all", None], ids=["empty", "text", "missing"])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"image .*a\.png cannot be read"):
        open_rgb(tmp_path / "a.png")


# Resizing.


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((1024, 768), 384, (512, 384)),  # the shorter side becomes 384
        ((768, 1024), 384, (384, 512)),
        ((400, 300), 384, (400, 300)),  # never enlarged
        ((1024, 768), None, (1024, 768)),
        ((1024, 768), (512, 384), (384, 512)),  # height x width, whatever the aspect
        ((100, 50), None, (448, 224)),  # smaller than the crop: scaled up, aspect kept
        ((1000, 100), 384, (2240, 224)),
        ((300, 300), 64, (224, 224)),  # a limit below the crop is the crop
        ((300, 300), (100, 200), (448, 224)),
    ],
)
def test_size_after_resizing(size: tuple[int, int], resize, expected: tuple[int, int]) -> None:
    assert resized_size(*size, resize, least=224) == expected


sides = st.integers(1, 2000)


@given(sides, sides, st.none() | sides, st.integers(1, 500))
def test_resizing_keeps_the_aspect_ratio_and_leaves_room_for_the_crop(
    width: int, height: int, resize: int | None, least: int
) -> None:
    new_width, new_height = resized_size(width, height, resize, least)
    assert min(new_width, new_height) >= least
    scale = min(new_width, new_height) / min(width, height)
    # Rounding moves each side by half a pixel, twice where an image is made smaller and then larger again.
    error = 1 + scale if resize is None else 1 + least / min(width, height, resize)
    assert abs(max(new_width, new_height) - scale * max(width, height)) <= error * max(width, height) / min(
        width, height
    )


def test_an_image_smaller_than_the_crop_is_scaled_up_whole(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (10, 20, 30)).save(tmp_path / "a.png")
    pixels = data_loader.load_image(tmp_path / "a.png", None, least=32)
    assert pixels.shape == (3, 32, 64)
    assert pixels.mean(axis=(1, 2)).tolist() == [10, 20, 30]


# Crops.


def test_the_grid_is_as_square_as_the_number_allows() -> None:
    assert [grid_shape(n) for n in (1, 2, 4, 7, 12, 20, 25)] == [
        (1, 1), (1, 2), (2, 2), (1, 7), (3, 4), (4, 5), (5, 5),
    ]  # fmt: skip


@given(st.integers(32, 200), st.integers(32, 200), st.sampled_from([4, 6, 9, 20, 25]))
def test_a_grid_of_crops_reaches_the_four_corners_of_the_image(height: int, width: int, crops: int) -> None:
    corners = crop_corners(height, width, 32, "grid", crops, np.random.default_rng(0))
    assert len(corners) == crops
    assert {(0, 0), (0, width - 32), (height - 32, 0), (height - 32, width - 32)} <= set(corners)


def test_the_longer_side_gets_more_columns() -> None:
    assert len({left for _, left in crop_corners(100, 200, 32, "grid", 20, np.random.default_rng(0))}) == 5
    assert len({left for _, left in crop_corners(200, 100, 32, "grid", 20, np.random.default_rng(0))}) == 4


@pytest.mark.parametrize("mode", ["random", "grid", "center"])
@given(st.integers(32, 60), st.integers(32, 60))
def test_crops_lie_inside_the_image(mode: str, height: int, width: int) -> None:
    for top, left in crop_corners(height, width, 32, mode, 6, np.random.default_rng(0)):
        assert 0 <= top <= height - 32
        assert 0 <= left <= width - 32


def test_random_crops_reach_every_position() -> None:
    corners = crop_corners(34, 33, 32, "random", 200, np.random.default_rng(0))
    assert set(corners) == {(top, left) for top in range(3) for left in range(2)}


def test_the_centre_crop_is_the_middle(table: pd.DataFrame) -> None:
    batch = CropDataset(table, small(test_mode="center"))[2]
    assert batch.crops.shape == (1, 3, 32, 32)
    assert (batch.crops[0].permute(1, 2, 0).numpy() == noise(48, 60, 2)[8:40, 14:46]).all()


def test_the_mode_full_gives_the_whole_image(table: pd.DataFrame) -> None:
    batch = next(iter(data_loader.test_loader(table, small(test_mode="full"))))
    assert (batch.crops[0, 0].permute(1, 2, 0).numpy() == noise(48, 60)).all()


@pytest.mark.parametrize("mode", TEST_MODES)
def test_an_image_has_as_many_crops_as_the_settings_say_and_a_policy_of_the_whole_image_gives_it(
    table: pd.DataFrame, mode: str
) -> None:
    config = small(test_mode=mode, test_patch_num=4)
    batch = CropDataset(table, config)[0]
    size = (48, 60) if TEST_MODES[mode].whole else (32, 32)
    assert batch.crops.shape == (config.test_crops, 3, *size)
    assert config.test_crops_in_words == f"{mode}, {len(batch.crops)}"


@pytest.mark.parametrize("mode", TEST_MODES)
def test_a_batch_has_about_batch_size_crops_and_whole_images_come_alone(table: pd.DataFrame, mode: str) -> None:
    config = small(test_mode=mode, test_patch_num=4, batch_size=8)
    images = 1 if TEST_MODES[mode].whole else 8 // config.test_crops
    assert data_loader.test_loader(table, config).batch_size == images


@pytest.mark.parametrize("asked, cuda, images", [(0, False, 2), (0, True, 8), (5, True, 1), (40, False, 10)])
def test_a_test_takes_as_many_crops_at_once_as_asked_or_as_a_gpu_has_room_for(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, asked: int, cuda: bool, images: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    config = small(test_patch_num=4, batch_size=8, test_batch_size=asked, device="auto")
    assert data_loader.test_loader(table, config).batch_size == images


# Testing: one item is one image with its K crops, fixed by seed and image.


@pytest.mark.parametrize("mode", ["random", "grid"])
def test_every_test_image_comes_once_with_its_k_crops_and_labels(table: pd.DataFrame, mode: str) -> None:
    batches = list(data_loader.test_loader(table, small(batch_size=6, test_mode=mode)))
    assert [tuple(batch.crops.shape) for batch in batches] == [(2, 3, 3, 32, 32)] * 2 + [(1, 3, 3, 32, 32)]
    assert torch.cat([batch.index for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([batch.mos for batch in batches]).tolist() == table["mos"].tolist()
    assert all((batch.augment == torch.tensor(NO_CHANGE)).all() for batch in batches)


def test_test_crops_depend_neither_on_order_nor_batch_nor_workers(table: pd.DataFrame) -> None:
    expected = crops_by_image(table, small(batch_size=3))
    shuffled = table.iloc[[3, 0, 4]].reset_index(drop=True)
    for other in (
        crops_by_image(shuffled, small(batch_size=3)),
        crops_by_image(table, small(batch_size=15)),
        crops_by_image(table, small(batch_size=3, num_workers=2)),
    ):
        assert all(torch.equal(expected[image], crops) for image, crops in other.items())


def test_random_test_crops_differ_among_themselves_and_between_seeds(table: pd.DataFrame) -> None:
    crops, others = (crops_by_image(table, small(seed=seed))["a.png"] for seed in (0, 1))
    assert not torch.equal(crops[0], crops[1])
    assert not torch.equal(crops, others)


# Training: one item is one crop, fixed by seed, epoch, image and crop.


def test_a_training_crop_depends_on_seed_epoch_image_and_crop_only(table: pd.DataFrame) -> None:
    config = small(color_jitter=True)
    same = CropDataset(table.iloc[[4, 2]].reset_index(drop=True), config)
    crop = CropDataset(table, config)[2, 5, 1]
    assert torch.equal(crop.crops, same[1, 5, 1].crops)
    assert torch.equal(crop.augment, same[1, 5, 1].augment)

    others = [CropDataset(table, config)[2, 6, 1], CropDataset(table, config)[2, 5, 0]]
    others += [CropDataset(table, small(color_jitter=True, seed=1))[2, 5, 1]]
    assert all(not torch.equal(crop.augment, other.augment) for other in others)


def test_a_training_crop_is_a_part_of_its_image_with_that_images_labels(table: pd.DataFrame) -> None:
    crop = CropDataset(table, small())[3, 0, 0]
    windows = np.lib.stride_tricks.sliding_window_view(noise(48, 60, 3), (32, 32), axis=(0, 1))
    assert (windows == crop.crops[0].numpy()).all(axis=(2, 3, 4)).any()
    assert (crop.mos.item(), crop.index.item(), crop.mos_std.isnan().item()) == (70, 3, True)


def test_flips_are_half_of_the_crops_and_jitter_stays_within_its_limits(table: pd.DataFrame) -> None:
    dataset = CropDataset(table, small(color_jitter=True))
    augment = torch.cat([dataset[0, epoch, 0].augment for epoch in range(200)])
    assert 0.4 < augment[:, 0].mean() < 0.6
    change = augment[:, 1:] - torch.tensor(NO_CHANGE[1:])
    assert (change.abs() <= torch.tensor(JITTER) + 1e-6).all()
    assert (change.abs().amax(0) > 0.9 * torch.tensor(JITTER)).all()


def test_without_jitter_training_only_flips(table: pd.DataFrame) -> None:
    dataset = CropDataset(table, small(color_jitter=False))
    augment = torch.cat([dataset[0, epoch, 0].augment for epoch in range(20)])
    assert (augment[:, 1:] == torch.tensor(NO_CHANGE[1:])).all()
    assert set(augment[:, 0].tolist()) == {0.0, 1.0}


def test_an_epoch_covers_every_crop_of_every_image_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(np.zeros(7), crops=3, seed=0)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == [(row, epoch, crop) for row in range(7) for crop in range(3)]
    first, second, again = orders
    assert first == again
    assert [(row, crop) for row, _, crop in first] != [(row, crop) for row, _, crop in second]


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.libc_ver()[0] != "glibc",
    reason="what a process holds is read from Linux's /proc, and only glibc is told what to keep",
)
def test_workers_do_not_hold_on_to_what_the_run_has_freed(table: pd.DataFrame) -> None:
    make_accelerator("cpu")  # freed memory is kept from here on
    held = torch.ones(60_000_000)  # 240 MB
    del held
    config = small(num_workers=1)
    loader = data_loader.train_loader(CropDataset(table, config), config)
    before = set(multiprocessing.active_children())
    next(iter(loader))
    (worker,) = set(multiprocessing.active_children()) - before
    assert anonymous_bytes(worker.pid) < anonymous_bytes(os.getpid()) - 200e6


def anonymous_bytes(pid: int) -> int:
    found = re.search(r"^Anonymous:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return 1024 * int(found[1])


def test_training_batches_do_not_depend_on_workers(table: pd.DataFrame) -> None:
    plain, with_workers = (
        list(train_loader(table, small(train_patch_num=2, batch_size=4, num_workers=n))) for n in (0, 2)
    )
    assert [len(batch.mos) for batch in plain] == [4, 4, 2]
    for one, other in zip(plain, with_workers, strict=True):
        assert torch.equal(one.crops, other.crops)
        assert torch.equal(one.index, other.index)


# Bytes to images.


def crop_batch(low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, (2, 3, 3, 8, 10), dtype=torch.uint8)


def augmentation(*values: float) -> Tensor:
    return torch.tensor(values).expand(2, 3, 5)


def test_images_are_bytes_over_255_normalised_per_channel() -> None:
    crops = crop_batch()
    images = to_images(crops, augmentation(*NO_CHANGE), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    expected = crops.flatten(0, 1).double() / 255
    expected = tv.normalize(expected, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    torch.testing.assert_close(images.double(), expected, rtol=1e-6, atol=1e-6)


def test_only_crops_marked_for_it_are_flipped_left_to_right() -> None:
    crops, augment = crop_batch(), augmentation(*NO_CHANGE).clone()
    augment[0, 1, 0] = 1.0
    images = to_images(crops, augment, **PLAIN)
    expected = crops.flatten(0, 1).float() / 255
    expected[1] = expected[1].flip(-1)
    assert torch.equal(images, expected)


def test_jitter_that_changes_nothing_equals_no_jitter() -> None:
    crops = crop_batch()
    plain = to_images(crops, augmentation(*NO_CHANGE), **PLAIN)
    torch.testing.assert_close(to_images(crops, augmentation(*NO_CHANGE), **PLAIN, jitter=True), plain)


def test_colour_factors_are_ignored_where_jitter_is_off() -> None:
    crops = crop_batch()
    plain = to_images(crops, augmentation(*NO_CHANGE), **PLAIN)
    assert torch.equal(to_images(crops, augmentation(0.0, 1.1, 0.9, 1.1, 0.02), **PLAIN), plain)


@pytest.mark.parametrize(
    "factors",
    [(1.1, 1.0, 1.0), (0.9, 1.0, 1.0), (1.0, 1.1, 1.0), (1.0, 1.0, 0.9), (1.08, 0.92, 1.1), (0.95, 1.1, 0.9)],
)
def test_jitter_is_brightness_then_contrast_then_saturation_as_torchvision_defines_them(
    factors: tuple[float, float, float],
) -> None:
    crops = crop_batch(70, 180)  # far from the ends, where torchvision clamps after each step
    brightness, contrast, saturation = factors
    images = crops.flatten(0, 1).float() / 255
    images = tv.adjust_brightness(images, brightness)
    images = tv.adjust_contrast(images, contrast)
    images = tv.adjust_saturation(images, saturation)
    jittered = to_images(crops, augmentation(0.0, *factors, 0.0), **PLAIN, jitter=True)
    # torchvision's luma has one digit more in its weights (0.2989, 0.587, 0.114).
    torch.testing.assert_close(jittered, images, rtol=0, atol=2e-4)


def test_hue_keeps_grey_as_it_is_and_the_sum_of_the_channels() -> None:
    turn = augmentation(0.0, 1.0, 1.0, 1.0, 0.02)
    grey = torch.randint(0, 256, (2, 3, 1, 8, 10), dtype=torch.uint8).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(to_images(grey, turn, **PLAIN, jitter=True), grey.flatten(0, 1) / 255)
    crops = crop_batch(70, 180)
    turned, plain = to_images(crops, turn, **PLAIN, jitter=True), crops.flatten(0, 1) / 255
    torch.testing.assert_close(turned.sum(1), plain.sum(1))
    assert (turned - plain).abs().max() > 0.01


def test_a_third_of_a_turn_of_hue_moves_red_to_green_to_blue() -> None:
    crops = crop_batch()
    turned = to_images(crops, augmentation(0.0, 1.0, 1.0, 1.0, 1 / 3), **PLAIN, jitter=True)
    torch.testing.assert_close(turned, crops.flatten(0, 1).roll(1, dims=1) / 255, rtol=1e-5, atol=1e-5)


def test_jitter_clips_nothing() -> None:
    crops = crop_batch()
    brighter = to_images(crops, augmentation(0.0, 1.1, 1.0, 1.0, 0.0), **PLAIN, jitter=True)
    torch.testing.assert_close(brighter, 1.1 * crops.flatten(0, 1) / 255)
    assert brighter.max() > 1


# The cache of decoded images.


@pytest.mark.parametrize("resize", ["none", "40", "36x50"])
@pytest.mark.parametrize("mode", ["random", "grid", "center", "full"])
def test_cached_images_give_the_crops_of_decoded_ones(
    table: pd.DataFrame, tmp_path: Path, resize: str, mode: str
) -> None:
    config = small(resize=resize, test_mode=mode, color_jitter=True)
    for _ in range(2):  # the second time every image is there already
        cache = PixelCache(tmp_path / "cache", table, config)
        cached, plain = CropDataset(table, config, cache), CropDataset(table, config)
        for indices in ([0, 1, 2, 3, 4], [(2, 1, 0), (0, 1, 1), (2, 1, 3)]):
            for one, other in zip(cached.__getitems__(indices), plain.__getitems__(indices), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_an_image_is_decoded_once(table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    plain = data_loader.load_image
    monkeypatch.setattr(data_loader, "load_image", lambda path, *how: (decoded.append(path), plain(path, *how))[1])
    for _ in range(2):
        dataset = CropDataset(table, small(), PixelCache(tmp_path / "cache", table, small()))
        list(data_loader.test_loader(dataset, small()))
        list(train_loader(dataset, small()))
    assert sorted(decoded) == sorted(table["path"])


def test_a_changed_image_is_decoded_anew(table: pd.DataFrame, tmp_path: Path) -> None:
    PixelCache(tmp_path / "cache", table, small()).read(table["path"][0])
    Image.new("RGB", (60, 48), "red").save(table["path"][0])
    pixels = PixelCache(tmp_path / "cache", table, small()).read(table["path"][0])
    assert pixels.mean(axis=(1, 2)).tolist() == [255, 0, 0]


def test_a_worker_that_opens_its_cache_late_reads_its_own_images(table: pd.DataFrame, tmp_path: Path) -> None:
    mine = PixelCache(tmp_path / "csv", table, small())
    sent_to_worker = pickle.dumps(mine)
    other = table.assign(path=table["path"][::-1].to_numpy())  # another table of the same names, sizes and sum
    PixelCache(tmp_path / "csv", other, small()).read(other["path"][0])
    path = table["path"][0]
    assert np.array_equal(
        pickle.loads(sent_to_worker).read(path), data_loader.load_image(path, None, small().patch_size)
    )


def test_an_image_turned_by_its_camera_has_its_place_upright(tmp_path: Path) -> None:
    turned = Image.fromarray(noise(40, 60, 0))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned.save(tmp_path / "a.jpg", exif=exif)
    table = pd.DataFrame({"image": ["a.jpg"], "path": [str(tmp_path / "a.jpg")], "mos": [1.0], "mos_std": [1.0]})
    assert PixelCache(tmp_path / "cache", table, small()).read(table["path"][0]).shape == (3, 60, 40)


def test_a_cache_covers_its_own_images_only(table: pd.DataFrame, tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "cache", table[:3], small())
    assert cache.covers(table[1:3]) and not cache.covers(table)


def test_images_outside_the_cache_are_prepared_as_those_in_it(table: pd.DataFrame, tmp_path: Path) -> None:
    network = SimpleNamespace(backbone=SimpleNamespace(mean=(0.5,) * 3, std=(0.25,) * 3))
    cache = PixelCache(tmp_path / "cache", table[:3], small())
    cached, plain = Preparation(network, small(), cache), Preparation(network, small())
    assert cached.dataset(table[:3]).cache is cache
    assert cached.dataset(table).cache is None
    one, other = (p.to_images(*p.dataset(table[:3]).__getitems__([0, 2])[:2]) for p in (cached, plain))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_large_jpeg_decoded_at_a_fraction_looks_as_if_decoded_whole(tmp_path: Path) -> None:
    smooth = Image.fromarray(noise(20, 30, 0)).resize((1200, 800), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=95)
    fraction = data_loader.load_image(tmp_path / "a.jpg", 100, least=32).astype(float)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = np.asarray(image.convert("RGB").resize((150, 100), Image.Resampling.BICUBIC), dtype=float)
    assert fraction.shape == (3, 100, 150)
    assert np.abs(fraction - whole.transpose(2, 0, 1)).mean() < 1.0  # of 255
