"""Claims about make_demo_database: the plan keeps the parts apart, the same seed gives the same bytes."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import long
from PIL import Image

from iqa.distortions import DISTORTIONS, NUM_LEVELS, distort
from iqa.errors import UserError, exit_on_user_error
from smart_iqa.commands import make_demo_database as demo

FULL_PLAN = demo.plan(seed=0)
SMALL = tuple(replace(content, images=3) for content in demo.CONTENTS if content.name in ("moon", "chelsea"))
SMALL += (replace(demo.PROCEDURAL[0], images=3),)


def images_of(part: str) -> list[tuple[str, int]]:
    return [cell for tile in FULL_PLAN if tile.content.split == part for cell in tile.cells]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "demo"
    demo.make_database(folder, seed=3, workers=1, force=False, contents=SMALL)
    return folder


def test_the_plan_has_the_size_that_was_asked_for() -> None:
    assert sum(len(tile.cells) for tile in FULL_PLAN) >= 600
    assert len(images_of("test")) >= 100
    test_photographs = {tile.content.name for tile in FULL_PLAN if tile.content.split == "test" and tile.content.files}
    assert len(test_photographs) >= 4


def test_no_photograph_and_no_content_is_in_two_parts() -> None:
    parts = defaultdict(set)
    for tile in FULL_PLAN:
        parts[tile.content.name].add(tile.content.split)
        if tile.file:
            parts[tile.file].add(tile.content.split)
    assert all(len(found) == 1 for found in parts.values())
    assert set.union(*parts.values()) == {"train", "val", "test"}


def test_both_views_of_the_stereo_pair_are_one_content() -> None:
    pair = {tile.file: tile.content.name for tile in FULL_PLAN if "motorcycle" in tile.file}
    assert len(pair) == 2 and set(pair.values()) == {"motorcycle"}


def test_generated_images_are_for_training_only() -> None:
    assert {tile.content.split for tile in FULL_PLAN if not tile.file} == {"train"}


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_every_kind_at_every_level_and_undistorted_tiles_occur_in_each_part(part: str) -> None:
    assert set(images_of(part)) == {demo.UNDISTORTED, *demo.ALL_CELLS}


def test_every_image_has_a_name_of_its_own() -> None:
    names = [tile.image(*cell) for tile in FULL_PLAN for cell in tile.cells]
    assert len(names) == len(set(names))


def test_tiles_lie_inside_their_photograph_and_neighbours_share_little() -> None:
    corners = defaultdict(list)
    for tile in FULL_PLAN:
        if not tile.file:
            continue
        with Image.open(demo._locate(tile.file)) as photograph:
            width, height = (round(side * tile.scale) for side in photograph.size)
        assert 0 <= tile.left <= width - demo.TILE_SIDE and 0 <= tile.top <= height - demo.TILE_SIDE
        corners[tile.file, tile.scale].append((tile.left, tile.top))
    for places in corners.values():
        for (left, top), (other_left, other_top) in itertools.combinations(places, 2):
            assert max(abs(left - other_left), abs(top - other_top)) >= demo.TILE_SIDE - demo.MAX_OVERLAP


def test_no_undistorted_tile_is_grey() -> None:
    for content in {tile.content for tile in FULL_PLAN if tile.file}:
        tile = next(tile for tile in FULL_PLAN if tile.content == content)
        pixels = demo.undistorted(tile, 0).astype(int)
        assert (pixels.max(axis=2) - pixels.min(axis=2)).mean() > 3, content.name


def test_the_seed_deals_the_distortions_and_leaves_the_parts() -> None:
    other = demo.plan(seed=1)
    assert [(t.content, t.left, t.top) for t in other] == [(t.content, t.left, t.top) for t in FULL_PLAN]
    assert [t.cells for t in other] != [t.cells for t in FULL_PLAN]


@pytest.mark.parametrize("tiles", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [long(kind) if place % 4 else kind for place, kind in enumerate(DISTORTIONS)])
def test_the_label_falls_with_every_level(kind: str, tiles: int) -> None:
    references = [
        demo.undistorted(tile, 0)
        for name in ("coffee", "china")
        for tile in [tile for tile in FULL_PLAN if tile.content.name == name][:tiles]
    ]
    assert len(references) == 2 * tiles
    rng = np.random.default_rng(0)
    levels = range(1, NUM_LEVELS + 1)
    mos = [demo.pseudo_mos(r, [distort(r, kind, level, rng) for level in levels]) for r in references]
    means = np.mean(mos, axis=0)
    assert means[0] < 100 and np.all(np.diff(means) < 0), means


def test_same_seed_gives_same_bytes_with_any_number_of_workers(built: Path, tmp_path: Path) -> None:
    demo.make_database(tmp_path / "again", seed=3, workers=3, force=False, contents=SMALL)
    assert digests(tmp_path / "again") == digests(built)


def test_another_seed_gives_other_images_of_the_same_photographs(built: Path, tmp_path: Path) -> None:
    demo.make_database(tmp_path / "other", seed=4, workers=2, force=False, contents=SMALL)
    ours, theirs = digests(built), digests(tmp_path / "other")
    shared = {name for name in ours if ours[name] == theirs.get(name)}
    assert "images/moon_00_undistorted_0.png" in shared
    assert "labels.csv" not in shared


def test_labels_name_every_image_and_lie_in_0_to_100(built: Path) -> None:
    labels = pd.read_csv(built / "labels.csv")
    assert tuple(labels.columns) == demo.COLUMNS
    assert sorted(labels["image"]) == sorted(f"images/{path.name}" for path in (built / "images").iterdir())
    assert labels["mos"].between(0, 100).all()
    assert (labels["mos"] == 100)[labels["level"] == 0].all()
    assert (labels["mos"] < 100)[labels["level"] > 0].all()
    assert dict(zip(labels["content"], labels["source"], strict=True)) == {
        "chelsea": "photograph",
        "moon": "photograph",
        "dead_leaves_000": "procedural",
    }


def test_a_label_is_the_measure_of_the_stored_files(built: Path) -> None:
    labels = pd.read_csv(built / "labels.csv")
    reference = np.asarray(Image.open(built / "images/moon_00_undistorted_0.png"))
    assert reference.shape == (demo.TILE_SIDE, demo.TILE_SIDE, 3)
    rows = labels[labels["content"] == "moon"]
    images = [np.asarray(Image.open(built / name)) for name in rows["image"]]
    assert demo.pseudo_mos(reference, images) == pytest.approx(rows["mos"].tolist(), abs=0.011)


def test_the_readme_calls_the_label_a_measure_and_not_human(built: Path) -> None:
    text = (built / "README.txt").read_text()
    assert "pseudo-mos = 100 x HaarPSI" in text and "not human opinion" in text


def test_a_second_run_finds_the_database_and_touches_nothing(built: Path) -> None:
    before = (built / "labels.csv").stat().st_mtime_ns
    line = demo.make_database(built, seed=3, workers=1, force=False, contents=SMALL)
    assert "is there already" in line
    assert (built / "labels.csv").stat().st_mtime_ns == before


def test_other_settings_are_refused_until_force_replaces_the_database(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    demo.make_database(output, seed=0, workers=1, force=False, contents=SMALL[:1])
    with pytest.raises(UserError, match="other settings: add --force"):
        demo.make_database(output, seed=1, workers=1, force=False, contents=SMALL[:1])
    demo.make_database(output, seed=1, workers=1, force=True, contents=SMALL[:1])
    assert demo._same_settings(output, demo.settings(1, SMALL[:1]))
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_someone_else_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not made by this script"):
        demo.make_database(tmp_path, seed=0, workers=1, force=force, contents=SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(demo, "render", full_disk)
    with pytest.raises(OSError, match="no space"):
        demo.make_database(tmp_path / "demo", seed=0, workers=1, force=False, contents=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into .*choose another --output"):
        demo.make_database(tmp_path / "file" / "demo", seed=0, workers=1, force=False, contents=SMALL)


@pytest.mark.parametrize("file", ["skimage.data/nobody.png", "no_such_package/photo.png"])
def test_a_missing_photograph_is_named_with_the_way_to_get_it(file: str) -> None:
    with pytest.raises(UserError, match="(nobody|no_such_package).*pip install"):
        demo.plan(0, [replace(SMALL[0], files=(file,))])


@pytest.mark.parametrize("flags", [["--workers", "0"], ["--seed", "-1"]])
def test_the_command_ends_with_one_line_and_code_2_on_a_bad_number(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["smart-iqa make-demo-database", "--output", str(tmp_path / "demo"), *flags]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        exit_on_user_error(demo.main)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --seed must be 0 or more")


def test_the_default_folder_is_in_the_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IQA_DATA_ROOT", "/data")
    assert demo.default_output() == Path("/data/demo")
    monkeypatch.delenv("IQA_DATA_ROOT")
    assert demo.default_output() == Path("datasets/demo")
