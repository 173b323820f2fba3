"""Files -> rows as a stream: batches of one size, in order, and scores that depend on the image alone."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import make_run
from hypothesis import given, strategies as st
from PIL import Image

from iqa.config import Config
from iqa.data import Found
from smart_iqa import load_model, prediction
from smart_iqa.prediction import Prepared, batches, network_scores, predict_rows, test_crops as crops_of
from smart_iqa.score_rows import STAGE_COLUMNS, score_row, table_head, table_line
from smart_iqa.scorer import Scorer

SIZES = [(40, 36), (64, 64), (40, 36), (48, 96), (64, 64), (33, 70), (40, 36)]  # width, height


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [str(folder / f"{n}.png") for n in range(len(SIZES))]
    for path, (width, height) in zip(paths, SIZES, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module", params=["full", "random"])
def scorer(request, tmp_path_factory) -> Scorer:
    folder = tmp_path_factory.mktemp("run")
    return load_model(make_run(folder, "channel", "tf_efficientnet_lite0", test_mode=request.param), "cpu")


def rows_of(paths, scorer, **options) -> list[dict]:
    return list(predict_rows(map(Found, paths), scorer.config, network_scores(scorer, **options)))


def test_a_score_is_the_scorer_s_and_the_same_alone_and_beside_others(scorer, images):
    together, scores_of = rows_of(images, scorer), network_scores(scorer)
    assert [row["image"] for row in together] == images
    scores = [row["score"] for row in together]
    assert scores == pytest.approx(scorer.score(images).tolist(), abs=2e-3)
    for path, score in zip(images, scores, strict=True):
        alone = scores_of(crops_of(path, scorer.config)[None])[0, 0].clip(0, 100)
        assert alone == pytest.approx(score, abs=1e-4)


def test_stage_weights_come_beside_the_scores_where_the_fusion_has_them(scorer, images):
    row = rows_of(images[:1], scorer, stage_weights=True)[0]
    assert sum(row[f"stage_{n}"] for n in range(4)) == pytest.approx(1, abs=1e-5)
    assert row["score"] == pytest.approx(rows_of(images[:1], scorer)[0]["score"], abs=1e-4)
    assert rows_of(images[:1], scorer)[0]["stage_0"] is None


def test_what_cannot_be_read_is_a_row_in_its_place_with_an_error(scorer, images, tmp_path):
    (tmp_path / "torn.png").write_bytes(Path(images[0]).read_bytes()[:80])
    found = [Found(images[0]), Found(str(tmp_path / "torn.png")), Found("nowhere", "no file"), Found(images[1])]
    rows = list(predict_rows(found, scorer.config, network_scores(scorer)))
    assert [row["error"] is None for row in rows] == [True, False, False, True]
    assert "torn.png cannot be read" in rows[1]["error"] and rows[2]["error"] == "no file"
    assert rows[1]["score"] is None and rows[3]["score"] is not None


def test_a_score_that_is_not_a_number_is_an_error():
    for value in (math.nan, math.inf):
        row = score_row(Found("a.png"), [value])
        assert row["score"] is None and row["error"] == f"image a.png: the model gives {value} as its score"


def test_the_table_has_the_stage_weights_where_they_are_asked_for(scorer, images):
    row = rows_of(images[:1], scorer, stage_weights=True)[0]
    assert table_head(True).split() == ["score", "low", "high", "level", *STAGE_COLUMNS, "image"]
    assert table_line(row, True).split()[4:] == [*(f"{row[stage]:.3f}" for stage in STAGE_COLUMNS), images[0]]
    assert table_line(row).split() == [f"{row['score']:.2f}", "-", "-", "-", images[0]]


def test_a_score_outside_the_scale_is_set_to_its_end():
    assert [score_row(Found("a"), [value])["score"] for value in (-3.0, 50.123456, 104.0)] == [0, 50.1235, 100]


def prepared(number: int, shape: tuple[int, int]) -> Prepared:
    return Prepared(number, Found(str(number)), np.broadcast_to(np.uint8(number % 256), (1, 3, *shape)))


@given(st.lists(st.sampled_from([(8, 8), (8, 16), (30, 30), (100, 100)]), max_size=60), st.integers(1, 2000))
def test_a_batch_is_of_one_shape_and_within_the_limit_and_every_image_is_in_one(shapes, most):
    found = list(batches((prepared(n, shape) for n, shape in enumerate(shapes)), most))
    assert Counter(image.number for batch in found for image in batch) == Counter(range(len(shapes)))
    for batch in found:
        assert len({image.crops.shape for image in batch}) == 1
        assert len(batch) == 1 or sum(image.crops.size // 3 for image in batch) <= most


def test_images_of_one_size_share_batches():
    sizes = [len(batch) for batch in batches(prepared(n, [(8, 8), (16, 16)][n % 2]) for n in range(100))]
    assert sizes == [50, 50]


SIDES = {"seven sizes": lambda n: 8 + n % 7, "all different": lambda n: 7 + n, "one beside large ones": lambda n: 900}


@pytest.mark.parametrize("sides", SIDES)
def test_files_are_decoded_a_few_ahead_and_no_more_whatever_their_number(monkeypatch, sides):
    taken = 0

    def source():
        nonlocal taken
        for taken in range(1, 2001):
            yield Found(str(taken))

    def crops(path: str, config: Config) -> np.ndarray:
        return np.zeros((1, 3, 8 if path == "1" else SIDES[sides](int(path)), 1), np.uint8)

    monkeypatch.setattr(prediction, "test_crops", crops)
    rows = predict_rows(source(), Config(), lambda crops: np.zeros((len(crops), 1)), batch_pixels=1000)
    ahead = [taken - given for given, _ in enumerate(rows, start=1)]
    assert len(ahead) == 2000 and max(ahead) <= prediction._MOST_WAITING + 20
