"""Procedural training contents."""

from __future__ import annotations

import numpy as np
import pytest

from iqa.demo import dead_leaves, two_tone


def test_the_same_generator_gives_the_same_image_and_another_one_does_not():
    first, again, other = (dead_leaves(96, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (96, 96, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_leaves_show_pieces_of_the_photographs_they_are_given():
    # A photograph of one impossible pattern: every pixel column alternates, in all channels alike.
    stripes = np.zeros((128, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    steps = []
    for textures in ((), (stripes,)):
        images = [dead_leaves(96, np.random.default_rng(seed), textures).astype(int) for seed in range(4)]
        steps.append(np.mean([np.abs(np.diff(image, axis=1)).mean() for image in images]))
    assert steps[1] > 1.3 * steps[0]


@pytest.mark.long
def test_scenes_differ_in_brightness_and_in_sharpness():
    images = [dead_leaves(48, np.random.default_rng(seed)).mean(axis=2) for seed in range(24)]
    brightness = np.array([image.mean() for image in images])
    sharpness = np.array([np.abs(np.diff(image, axis=1)).mean() for image in images])
    assert brightness.std() > 20
    assert sharpness.max() > 4 * sharpness.min()


def test_two_tones_keep_black_and_white_and_colour_what_lies_between():
    ramp = np.arange(256, dtype=np.uint8)[None]
    coloured = two_tone(ramp, np.random.default_rng(3)).astype(int)
    assert coloured[0, 0].tolist() == [0, 0, 0] and coloured[0, 255].tolist() == [255, 255, 255]
    assert np.ptp(coloured[0, 128]) > 5
