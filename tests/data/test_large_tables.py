"""A million images: names without an object each, files read once, near copies found without comparing all pairs."""

from __future__ import annotations

import gc
import pickle
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from benchmarks.cost import linked_pictures, settings
from data_loader import CropDataset, PixelCache
from folders import read_run_database
from iqa.config import Config
from iqa.data import HASH_BITS, Names, close_pairs, images

MILLION = 1_000_000
TEXTS = st.lists(st.text(st.characters(exclude_categories=[]), max_size=5))  # names of files need not be UTF-8


@given(TEXTS, TEXTS)
def test_names_are_what_was_given_and_are_found_as_a_dictionary_finds_them(texts, asked):
    names, row_of = pickle.loads(pickle.dumps(Names(texts))), {text: row for row, text in enumerate(texts)}
    assert list(names) == texts
    assert names.find(asked + texts).tolist() == [row_of.get(text, -1) for text in asked + texts]
    assert [names.row(text) for text in texts] == [row_of[text] for text in texts]
    for text in set(asked) - set(texts):
        with pytest.raises(KeyError):
            names.row(text)


def objects_made(make: Callable[[], object]) -> int:
    """How many small Python objects there are more once the result is made."""
    gc.collect()
    before = sys.getallocatedblocks()
    kept = make()
    gc.collect()
    made = sys.getallocatedblocks() - before
    del kept
    return made


def made_up_table(count: int) -> pd.DataFrame:
    """A table that nobody has to look at images for."""
    names = [f"image_{row:07d}.png" for row in range(count)]
    paths = [f"/nowhere/{name}" for name in names]
    sizes = {"image_width": 40, "image_height": 36}
    return pd.DataFrame({"image": names, "path": paths, "mos": 50.0, "mos_std": np.nan, "file_hash": names} | sizes)


@pytest.mark.long
def test_what_workers_get_holds_no_object_for_each_image(tmp_path):
    config, table = Config(patch_size=32, resize="none"), made_up_table(5_000)

    def dataset(rows: int) -> CropDataset:
        part = table[:rows]
        return CropDataset(part, config, PixelCache(tmp_path / str(rows), part, config))

    dataset(10)  # what is made once
    assert objects_made(lambda: dataset(5_000)) < objects_made(lambda: dataset(10)) + 1_000


@pytest.mark.slow
def test_a_million_rows_are_read_once_and_again_from_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = settings(linked_pictures(tmp_path, MILLION, 40, 36), patch_size=32, num_workers=0)
    checked, check = [], images.check_image
    monkeypatch.setattr(images, "check_image", lambda path: (checked.append(None), check(path))[1])
    monkeypatch.setattr("data_loader.image_sizes", None)  # headers were read by then
    for _ in range(2):
        table = read_run_database(config).table
        assert len(table) == len(checked) == MILLION
    cache = PixelCache(tmp_path / "cache", table, config)
    assert objects_made(lambda: CropDataset(table, config, cache)) < MILLION / 100
    assert cache.read(table["path"].iloc[-1]).shape == (3, 36, 40)


@pytest.mark.slow
def test_near_copies_among_a_million_are_found_among_fewer_than_all_pairs(monkeypatch):
    rng, counted = np.random.default_rng(0), 0
    hashes = rng.integers(0, 2**64, (MILLION, HASH_BITS // 64), dtype=np.uint64)
    hashes[-3:] = hashes[:3] ^ np.uint64(0b111)  # twelve bits
    count = np.bitwise_count

    def counting(words: np.ndarray) -> np.ndarray:
        nonlocal counted
        counted += len(words)
        return count(words)

    monkeypatch.setattr(np, "bitwise_count", counting)
    pairs = close_pairs(hashes, hashes)
    apart = pairs.first != pairs.second
    assert sorted(zip(pairs.first[apart].tolist(), pairs.second[apart].tolist(), strict=True)) == sorted(
        pair for i in range(3) for pair in ((i, MILLION - 3 + i), (MILLION - 3 + i, i))
    )
    assert counted < MILLION**2 / 100
