"""Models as one file: packing a run, what its scores mean, and the models that come with the package."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from helpers import command, make_run
from PIL import Image

from iqa.checkpoint import read_checkpoint, save_checkpoint
from iqa.choices import QUALITY_LEVELS
from iqa.data import Found
from iqa.demo.scenes import dead_leaves
from smart_iqa import load_model
from smart_iqa.commands.pack import half_width
from smart_iqa.prediction import network_scores, predict_rows
from smart_iqa.shipped import DEFAULT, Meaning, shipped_file, shipped_names

shipped = pytest.mark.skipif(DEFAULT not in shipped_names(), reason="no default model in smart_iqa/weights")


def made_up_images(folder) -> list:
    """Four images made by code: a scene of dead leaves, the scene blurred, noisy, and smaller."""
    rng = np.random.default_rng(3)
    scene = Image.fromarray(dead_leaves(320, rng))
    noisy = np.asarray(scene) + rng.normal(0, 40, (320, 320, 3))
    images = {
        "scene": scene,
        "blurred": scene.resize((40, 40)).resize((320, 320), Image.Resampling.BICUBIC),
        "noisy": Image.fromarray(noisy.clip(0, 255).astype(np.uint8)),
        "smaller": scene.resize((160, 160), Image.Resampling.LANCZOS),
    }
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in images]


def test_half_the_width_is_a_quantile_of_the_distances_that_counts_the_image_to_come():
    mos = np.zeros(19)
    scores = np.arange(1.0, 20.0)
    assert half_width(scores, mos, 0.9) == 18  # ceil(20 * 0.9) of 19
    assert half_width(scores, mos, 0.99) == 19


def test_a_score_has_a_level_and_an_interval_within_the_scale():
    meaning = Meaning(10.0, 0.9, 100, (20, 40, 60, 80))
    assert [meaning.level(score) for score in (0, 20, 59.9, 60, 99)] == ["Very Low", "Low", "Mid", "High", "Very High"]
    assert meaning.interval(5) == (0, 15)
    assert meaning.interval(95) == (85, 100)


def test_a_packed_run_scores_as_the_run_does_without_its_folder(written, tmp_path, capsys):
    run, file = written.folder / "run", tmp_path / "one.safetensors"
    assert command("pack", run, "--output", file) == 0
    assert '"half_width"' in capsys.readouterr().out
    (alone := tmp_path / "elsewhere").mkdir()
    moved = shutil.move(file, alone)
    paths = sorted((written.folder / "data").glob("*.png"))[:5]
    packed, whole = (load_model(checkpoint, "cpu").score(paths) for checkpoint in (moved, run))
    assert np.allclose(packed, whole, atol=0.2)  # half precision
    made = read_checkpoint(alone / "one.safetensors")[1]["made"]
    assert made["config"]["results_dir"] == "results"  # not the folder of who has made it
    assert made["meaning"]["coverage"] == 0.9
    assert made["measured"]["images"] > 0
    assert len(made["meaning"]["level_ends"]) == 4


def test_a_packed_run_names_what_it_started_from_and_not_where_that_lay(written, tmp_path):
    run, file = tmp_path / "run", tmp_path / "one.safetensors"
    shutil.copytree(written.folder / "run", run)
    made = read_checkpoint(run / "best.safetensors")[1]["made"]
    made["weights"] = f"{tmp_path}/first (the whole network)"
    save_checkpoint(run / "best.safetensors", load_model(run, "cpu").model, made)
    assert command("pack", run, "--output", file) == 0
    assert read_checkpoint(file)[1]["made"]["weights"] == "first (the whole network)"


def test_predict_says_interval_and_level_of_a_model_that_knows_them(written, tmp_path, capsys):
    file = tmp_path / "one.safetensors"
    assert command("pack", written.folder / "run", "--output", file) == 0
    capsys.readouterr()
    image = next((written.folder / "data").glob("*.png"))
    out = tmp_path / "scores.csv"
    assert command("predict", image, "--checkpoint", file, "--output", out, "--device", "cpu") == 0
    known = pd.read_csv(out).iloc[0]
    assert known["low"] < known["score"] < known["high"] and known["level"] in QUALITY_LEVELS
    without = ["--checkpoint", make_run(tmp_path, "concat"), "--output", out, "--overwrite"]
    assert command("predict", image, *without) == 0
    assert pd.read_csv(out).iloc[0][["low", "high", "level"]].isna().all()


def test_an_unknown_model_is_one_line_that_lists_those_of_the_package(tmp_path, capsys):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert command("predict", tmp_path / "a.png", "--checkpoint", "nowhere") == 2
    assert "no run at nowhere" in (error := capsys.readouterr().err)
    assert all(name in error for name in shipped_names())


def test_pack_of_what_is_no_finished_run_is_one_line(tmp_path, capsys):
    assert command("pack", tmp_path, "--output", tmp_path / "a.safetensors") == 2
    assert str(tmp_path) in capsys.readouterr().err


@shipped
def test_the_model_of_the_package_scores_made_up_images_as_it_did(tmp_path):
    model = load_model(device="cpu")
    scores = model.score(paths := made_up_images(tmp_path))
    assert scores == pytest.approx(EXPECTED, abs=1e-3)
    rows = predict_rows(map(Found, map(str, paths)), model.config, network_scores(model), model.meaning)
    assert [row["score"] for row in rows] == pytest.approx(EXPECTED, abs=1e-3)
    assert scores[0] > scores[1]
    assert scores[0] > scores[2]


@shipped
def test_the_model_of_the_package_says_what_it_was_measured_on():
    made = read_checkpoint(shipped_file(DEFAULT))[1]["made"]
    assert made["measured"]["srcc"] >= 0.75
    assert abs(made["measured"]["coverage"] - made["meaning"]["coverage"]) < 0.06


EXPECTED = (53.8086, 19.0871, 29.3769, 44.811)


def test_a_sheet_shows_the_images_from_best_to_worst(written, tmp_path):
    sheet = tmp_path / "sheet.png"
    arguments = ["--checkpoint", written.folder / "run", "--device", "cpu", "--sheet", sheet]
    assert command("predict", written.folder / "data", *arguments) == 0
    with Image.open(sheet) as drawn:
        assert min(drawn.size) > 300
    assert command("predict", written.folder / "data", *arguments[:-1], tmp_path / "nowhere" / "a.png") == 2
