"""Images of one table that another table holds too: the same bytes, or the same to the eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from iqa.data import file_hash, find_overlap, near_duplicates, overlap, perceptual_hashes


def table_of(folder: Path, names: list[str]) -> pd.DataFrame:
    paths = [folder / name for name in names]
    hashes = [file_hash(path) for path in paths]
    return pd.DataFrame({"image": names, "path": list(map(str, paths)), "file_hash": hashes})


def textured(path: Path, seed: int) -> None:
    """An image with more to see than a perceptual hash can hold."""
    path.parent.mkdir(exist_ok=True)
    corners = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(corners).resize((192, 160), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def learned(tmp_path: Path) -> pd.DataFrame:
    names = [f"{i}.png" for i in range(6)]
    for seed, name in enumerate(names):
        textured(tmp_path / "learned" / name, seed)
    return table_of(tmp_path / "learned", names)


@pytest.fixture
def tested(tmp_path: Path, learned: pd.DataFrame) -> pd.DataFrame:
    """A copy of image 1, image 2 as JPEG, and an image of its own."""
    folder = tmp_path / "tested"
    textured(folder / "own.png", seed=99)
    (folder / "copy.png").write_bytes(Path(learned["path"][1]).read_bytes())
    Image.open(learned["path"][2]).save(folder / "again.jpg", quality=50)
    return table_of(folder, ["again.jpg", "copy.png", "own.png"])


def test_copies_and_images_encoded_again_are_found(tested, learned, tmp_path):
    found = find_overlap(tested, learned, str(tmp_path / "cache"))
    assert found.identical == [("copy.png", "1.png")] and found.near == [("again.jpg", "2.png")]
    assert found.record() == {
        "images": 3,
        "training_images": 6,
        "identical_images": 1,
        "near_identical_images": 1,
        "examples": [["copy.png", "1.png"], ["again.jpg", "2.png"]],
    }
    identical, near = found.in_words()
    assert identical.startswith("1 of 3 images are byte-identical to training images, for example copy.png and 1.png")
    assert near.startswith("1 of 3 images are near-identical to training images, for example again.jpg and 2.png")


def test_where_nothing_is_shared_nothing_is_said(tested, learned, tmp_path):
    found = find_overlap(tested[2:], learned, str(tmp_path / "cache"))
    assert found.in_words() == [] and found.record()["near_identical_images"] == 0


def test_an_image_is_hashed_once_whatever_its_place(tested, learned, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    before = perceptual_hashes(learned["path"].tolist(), learned["file_hash"].tolist(), cache)
    monkeypatch.setattr(near_duplicates, "perceptual_hash", None)  # nothing is left to compute
    moved = [f"/elsewhere/{name}" for name in learned["image"]]
    again = perceptual_hashes(moved[::-1], learned["file_hash"].tolist()[::-1], cache)
    assert np.array_equal(before[::-1], again)


def test_too_many_images_to_hash_are_compared_by_bytes_alone_and_that_is_said(tested, learned, tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "MOST_TO_HASH", 7)
    cache = str(tmp_path / "cache")
    found = find_overlap(tested, learned, cache)
    assert found.identical and found.near is None and found.record()["near_identical_images"] is None
    assert found.in_words()[-1].startswith("near-identical images were not looked for: 8 images")
    perceptual_hashes(learned["path"].tolist(), learned["file_hash"].tolist(), cache)
    assert find_overlap(tested, learned, cache).near  # few are left to hash
