"""compare_attention_weights.py as a user calls it: two .npz files, two runs, and what it says to bad input."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trees
from helpers import command, long
from matplotlib.figure import Figure
from PIL import Image

from compare_attention_weights import compare_attention, draw_sample
from folders import read_run_database
from iqa.attention import Measured, Samples, check_attention
from iqa.checkpoint import save_checkpoint
from iqa.config import Config
from iqa.data import write_split
from iqa.errors import exit_on_user_error
from models_swin import SmartIQA
from smart_iqa.scorer import load_model

SHARP, FLAT = [0.8, 0.1, 0.05, 0.05], [0.25, 0.25, 0.25, 0.25]
FILES = {
    "attention_statistics.csv",
    "attention_statistics_comparison.png",
    "attention_heatmap_example_1.png",
    "attention_heatmap_example_2.png",
    "attention_heatmap_example_3.png",
    "comparison.json",
}


@pytest.fixture
def rendered() -> None:
    """Asked for by the tests that are about figures too; in the others they are drawn, but not put into pixels."""


@pytest.fixture(params=[False, long(True)])
def rendered_too(request) -> None:
    """Asked for by tests whose figures are rendered in their long form."""
    if not request.param:
        request.getfixturevalue("unrendered")


@pytest.fixture(autouse=True)
def _unrendered(request) -> None:
    if not {"rendered", "rendered_too"} & set(request.fixturenames):
        request.getfixturevalue("unrendered")


def pair(folder: Path, full: dict, no_middle: dict) -> list:
    """Two .npz files and the flags that name them."""
    np.savez(folder / "full.npz", **full)
    np.savez(folder / "no_middle.npz", **no_middle)
    return ["--checkpoint_full", folder / "full.npz", "--checkpoint_no_middle", folder / "no_middle.npz"]


def rows(row: list[float], samples: int = 100, queries: int = 2) -> np.ndarray:
    return np.tile(np.array(row), (samples, queries, 1))


def random_rows(samples: int = 100, sharpness: float = 1.0, seed: int = 0) -> np.ndarray:
    logits = sharpness * np.random.default_rng(seed).normal(size=(samples, 3, 6))
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def compare(arguments: list, output: Path) -> dict:
    assert command("compare_attention_weights", *arguments, "--save_dir", output) == 0
    return json.loads((output / "comparison.json").read_text())


def test_values_worked_out_by_hand_reach_the_record_the_table_and_the_screen(tmp_path, capsys, rendered):
    error = np.linspace(1, 2, 100)
    flags = pair(tmp_path, {"attention": rows(SHARP), "error": error - 0.5}, {"attention": rows(FLAT), "error": error})
    found = compare(flags, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    entropy = found["statistics"]["entropy"]
    assert entropy["full_mean"] == pytest.approx(0.708, abs=5e-4)
    assert entropy["no_middle_mean"] == pytest.approx(1.386, abs=5e-4)
    assert entropy["difference_percent"] == pytest.approx(100 * (0.70835 / math.log(4) - 1), abs=0.01)
    assert found["statistics"]["gini"]["full_mean"] == pytest.approx(0.575)
    assert found["statistics"]["gini"]["no_middle_mean"] == pytest.approx(0)
    assert found["statistics"]["tokens_over_threshold"]["full_mean"] == 1
    assert found["finding"] == "supported" and found["n"] == 100
    table = pd.read_csv(tmp_path / "out" / "attention_statistics.csv")
    assert len(table) == 200 and set(table["model"]) == {"full", "no_middle"}
    assert table[table["model"] == "full"]["entropy"].to_numpy() == pytest.approx(0.70835, abs=1e-4)
    said = capsys.readouterr()
    assert "supported: entropy 0.7083 against 1.3863" in said.out
    assert "fewer than" not in " ".join(found["notes"])


@pytest.mark.parametrize(
    "full, no_middle, error_change, expected",
    [
        (1.5, 0.5, -0.1, "supported"),
        (1.0, 1.0, -0.1, "partly"),
        (0.5, 1.5, -0.1, "contradicted"),
        (1.5, 0.5, 0.1, "inconclusive"),
    ],
)
def test_each_finding_is_reached(tmp_path, full, no_middle, error_change, expected):
    error = np.random.default_rng(5).random(100) + 1
    flags = pair(
        tmp_path,
        {"attention": random_rows(sharpness=full, seed=1), "error": error + error_change},
        {"attention": random_rows(sharpness=no_middle, seed=2), "error": error},
    )
    assert compare(flags, tmp_path / "out")["finding"] == expected


def test_padding_counts_for_nothing_and_each_group_has_its_own_comparison(tmp_path):
    padded = np.concatenate([rows([0.4, 0.05, 0.025, 0.025]), rows([0.5])], axis=2)
    mask = np.tile([True, True, True, True, False], (100, 1))
    flat = np.concatenate([rows(FLAT), rows([0.0])], axis=2)
    group = np.where(np.arange(100) < 60, "simple", "complex")
    flags = pair(
        tmp_path,
        {"attention": padded, "mask": mask, "group": group},
        {"attention": flat, "mask": np.repeat(mask[:, None], 2, axis=1)},
    )
    found = compare(flags, tmp_path / "out")
    assert found["statistics"]["entropy"]["full_mean"] == pytest.approx(0.70835, abs=1e-4)
    assert found["statistics"]["gini"]["full_mean"] == pytest.approx(0.575)
    assert {name: group["entropy"]["n"] for name, group in found["groups"].items()} == {"complex": 40, "simple": 60}
    assert found["finding"] == "inconclusive" and found["error"] is None
    assert not any("mask" in note for note in found["notes"])
    assert any("no error is known for full and no_middle" in note for note in found["notes"])


def test_error_that_grows_with_entropy_correlates_with_it(tmp_path):
    attention = random_rows()
    entropy = -(attention * np.log(attention)).sum(axis=-1).mean(axis=-1)
    flags = pair(tmp_path, {"attention": attention, "error": entropy**2}, {"attention": attention, "error": -entropy})
    found = compare(flags, tmp_path / "out")["entropy_error_correlation"]
    assert found["full"]["rho"] == pytest.approx(1) and found["no_middle"]["rho"] == pytest.approx(-1)
    assert found["full"]["n"] == 100 and found["full"]["p"] < 1e-6


@pytest.mark.long
def test_the_same_samples_are_drawn_of_both_and_drawn_alike_each_time(tmp_path, rendered):
    arrays = {"attention": random_rows(150), "error": np.arange(150.0)}
    flags = [*pair(tmp_path, arrays, arrays), "--num_samples", 100]
    found = compare(flags, tmp_path / "one")
    assert found["n"] == 100 and found["error"]["difference"] == 0 and found["statistics"]["entropy"]["note"]
    compare(flags, tmp_path / "two")
    with Image.open(tmp_path / "one" / "attention_heatmap_example_1.png") as image:
        assert image.size[0] > 200
    for name in FILES - {"comparison.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert compare(flags[:-2], tmp_path / "all")["n"] == 150


def test_it_can_be_called_from_python_and_returns_the_record(tmp_path):
    _, full, _, no_middle = pair(tmp_path, {"attention": random_rows(9)}, {"attention": random_rows(9, seed=1)})
    record = compare_attention(full, str(no_middle), tmp_path / "out", num_samples=5)
    assert record["n"] == 5 and record["inputs"]["checkpoint_full"] == str(full)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["statistics"] == record["statistics"]


def test_few_samples_give_a_warning_and_three_are_enough_to_run(tmp_path, caplog):
    flags = pair(tmp_path, {"attention": random_rows(3)}, {"attention": random_rows(3, seed=1)})
    assert compare(flags, tmp_path / "out")["n"] == 3
    assert "3 samples, fewer than 100" in caplog.text


def test_a_finished_comparison_is_never_written_over(tmp_path, capsys):
    flags = pair(tmp_path, {"attention": random_rows()}, {"attention": random_rows(seed=1)})
    compare(flags, tmp_path / "out")
    before = (tmp_path / "out" / "comparison.json").read_bytes()
    assert command("compare_attention_weights", *flags, "--save_dir", tmp_path / "out") == 2
    assert "--save_dir" in capsys.readouterr().err
    assert before == (tmp_path / "out" / "comparison.json").read_bytes()


GOOD = {"attention": random_rows(10)}
BAD = {
    "no attention": ({"weights": GOOD["attention"]}, "no array 'attention'"),
    "two dimensions": ({"attention": GOOD["attention"][0]}, "(samples, queries, tokens)"),
    "rows": ({"attention": 2 * GOOD["attention"]}, "sums to 2, not 1"),
    "NaN": ({"attention": np.full((10, 3, 6), np.nan)}, "NaN"),
    "mask that leaves nothing": (GOOD | {"mask": np.zeros((10, 6), bool)}, "leaves nothing"),
    "mask of another shape": (GOOD | {"mask": np.ones((10, 5), bool)}, "mask has shape (10, 5)"),
    "other samples": ({"attention": random_rows(9)}, "shapes (9, 3, 6) and (10, 3, 6)"),
    "short error": (GOOD | {"error": np.ones(9)}, "error has shape (9,)"),
    "NaN error": (GOOD | {"error": np.full(10, np.nan)}, "finite"),
    "text error": (GOOD | {"error": np.full(10, "much")}, "finite"),
    "short group": (GOOD | {"group": np.full(9, "simple")}, "group has shape (9,)"),
    "other groups": (GOOD | {"group": np.full(10, "complex")}, "different groups"),
    "pickled group": (GOOD | {"group": np.array(["a", None] * 5, dtype=object)}, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, capsys, case):
    arrays, says = BAD[case]
    flags = pair(tmp_path, arrays, GOOD | {"group": np.full(10, "simple")})
    refused(flags, tmp_path, capsys, [says, "full.npz"])


def refused(flags: list, tmp_path: Path, capsys, says: list[str]) -> None:
    assert command("compare_attention_weights", *flags, "--save_dir", tmp_path / "none") == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and len(said.splitlines()) == 1, said
    assert all(text in said for text in says), said
    assert not (tmp_path / "none").exists()


def test_other_mistakes_are_one_line_too(tmp_path, capsys):
    flags = pair(tmp_path, {"attention": random_rows(2)}, {"attention": random_rows(2)})
    refused(flags, tmp_path, capsys, ["2 samples, at least 3"])
    refused([*flags, "--num_samples", 2], tmp_path, capsys, ["--num_samples 2: at least 3"])
    refused([*flags, "--batch_size", 0], tmp_path, capsys, ["--batch_size 0: at least 1"])
    refused([*flags[:3], tmp_path], tmp_path, capsys, ["two runs or two .npz files"])
    refused([*flags[:3], tmp_path / "absent.npz"], tmp_path, capsys, ["absent.npz"])
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "array.npy", random_rows())
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("attention", "text")
    for name in ("text.npz", "array.npz"):
        refused([*flags[:3], tmp_path / name], tmp_path, capsys, [f"{name} is no .npz archive", "numpy.savez"])
    refused([*flags[:3], tmp_path / "other.npz"], tmp_path, capsys, ["other.npz: attention must be numbers"])
    refused([flags[0], tmp_path / "a", flags[2], tmp_path / "b"], tmp_path, capsys, ["no run at"])


# Two runs


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """Twenty made-up images; the smoother ones have a higher mos."""
    folder = tmp_path_factory.mktemp("images")
    table = [{"image": f"{i}.png", "mos": 5.0 * i, "content": f"c{i}"} for i in range(20)]
    file = trees.table(folder / "table.csv", table)
    rng = np.random.default_rng(0)
    for i in range(20):
        coarse = rng.integers(0, 256, (24 - i, 30 - i, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return file


def make_run(folder: Path, database: Path, fusion: str, backbone: str = "nano", test_from: int = 8, **changes) -> Path:
    """A run's folder with an untrained model, as train_swin.py leaves it."""
    settings = {"dataset": "csv", "data_path": str(database), "resize": "none", "patch_size": 32, "device": "cpu"}
    config = Config(**settings | {"backbone": backbone, "fusion": fusion, "pretrained": False} | changes)
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(1)
    architecture = {"backbone": backbone, "fusion": fusion}
    save_checkpoint(folder / "best.safetensors", SmartIQA(**architecture), {"architecture": architecture})
    data = read_run_database(config)
    split = pd.Series("train", index=data.table.index)
    split.iloc[test_from:] = "test"
    write_split(folder / "split.json", data, split, seed=0)
    return folder


@pytest.fixture(scope="module")
def runs(database, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "cross_scale", database, "cross_scale")
    make_run(folder / "concat", database, "concat", test_from=10)
    return folder


def flags_of(full: Path, no_middle: Path) -> list:
    return ["--checkpoint_full", full, "--checkpoint_no_middle", no_middle]


def map_figure(full: np.ndarray, no_middle: np.ndarray) -> Figure:
    """The figure of one image whose rollout is given, in shares that sum to 1."""
    overall = {model: {"entropy": np.zeros(1)} for model in ("full", "no_middle")}
    models = {model: Measured({}, {}, None, shown[None]) for model, shown in (("full", full), ("no_middle", no_middle))}
    crop = np.zeros((32, 32, 3), dtype=np.uint8)
    return draw_sample(Samples(["a.png"], None, models, lambda row: crop, {}, []), overall, 0, 0.5)


def test_maps_of_nearly_even_attention_are_drawn_over_the_range_of_their_data_alike_in_both_models():
    rng = np.random.default_rng(0)
    full, no_middle = (1 / 64 + rng.uniform(-1, 1, (8, 8)) * spread / 64 for spread in (0.001, 0.004))
    figure = map_figure(full, no_middle)
    maps = [axes.images[-1] for axes in figure.axes if axes.get_title().startswith(("full", "no_middle"))]
    assert len(maps) == 2 and maps[0].get_clim() == maps[1].get_clim()
    low, high = maps[0].get_clim()
    assert 0.995 < low < 0.998 and 1.002 < high < 1.005
    assert figure.axes[-1].get_ylabel() == "attention rollout, times an even spread"


def test_maps_without_any_differences_have_a_scale_too():
    even = np.full((8, 8), 1 / 64)
    figure = map_figure(even, even)
    figure.canvas.draw()
    low, high = figure.axes[1].images[-1].get_clim()
    assert low < high


def test_two_runs_are_compared_on_the_images_both_were_not_trained_on(runs, tmp_path, rendered_too):
    found = compare([*flags_of(runs / "cross_scale", runs / "concat"), "--batch_size", 4], tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    assert found["n"] == 10 and any("12 and 10 images" in note for note in found["notes"])
    assert list(found["layers"]) == [f"stage {s} block {b}" for s in range(4) for b in range(2)]
    assert any("only full has cross_scale: not in the means" in note for note in found["notes"])
    assert {name: group["entropy"]["n"] for name, group in found["groups"].items()} == {"complex": 5, "simple": 5}
    table = pd.read_csv(tmp_path / "out" / "attention_statistics.csv")
    by_layer = table[(table["model"] == "full") & ~table["layer"].isin(["all", "cross_scale"])]
    means = by_layer.groupby("sample", sort=False)["entropy"].mean()
    overall = table[(table["model"] == "full") & (table["layer"] == "all")]
    assert overall["entropy"].to_numpy() == pytest.approx(means.to_numpy())
    assert found["statistics"]["entropy"]["full_mean"] == pytest.approx(means.mean())
    cross_scale = table[table["layer"] == "cross_scale"]["entropy"]
    assert cross_scale.between(0, math.log(196)).all() and len(cross_scale) == 10


def test_the_error_is_that_of_the_score_of_the_centre_crop(runs, tmp_path):
    compare(flags_of(runs / "cross_scale", runs / "concat"), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "attention_statistics.csv")
    shown = table[(table["model"] == "no_middle") & (table["layer"] == "all")].set_index("sample")
    scorer = load_model(runs / "concat", test_mode="center", test_patch_num=1)
    data = read_run_database(scorer.config).table.set_index("image", drop=False)
    data = data.loc[shown.index].reset_index(drop=True)
    expected = np.abs(scorer.score_table(data) - data["mos"].to_numpy())
    assert shown["error"].to_numpy() == pytest.approx(expected, abs=1e-3)


def test_a_model_compared_with_itself_differs_in_nothing(runs, tmp_path):
    found = compare(flags_of(runs / "cross_scale", runs / "cross_scale"), tmp_path / "out")
    assert all(statistic["difference"] == 0 for statistic in found["statistics"].values())
    assert "cross_scale" in found["layers"] and found["finding"] == "inconclusive"


def test_padding_and_the_seam_of_shifted_windows_count_as_no_tokens(runs, tmp_path):
    # 32 px: grids of 8, 4, 2 and 1 token a side in windows of 7. A token cannot be blurred over more than its grid.
    compare(flags_of(runs / "concat", runs / "concat"), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "attention_statistics.csv")
    entropy = table.groupby("layer")["entropy"].max()
    assert entropy["stage 3 block 0"] == 0 and entropy["stage 3 block 1"] == 0
    assert entropy["stage 2 block 0"] <= math.log(4) and entropy["stage 1 block 0"] <= math.log(16)


def test_models_of_other_depths_are_compared_by_their_means_and_by_the_layers_both_have(runs, database, tmp_path):
    from models_swin import BACKBONES, BackboneSpec

    options = BACKBONES["nano"].build | {"depths": (2, 2, 4, 2)}
    deeper = BackboneSpec(BACKBONES["nano"].timm_name, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "deeper", deeper)
        make_run(tmp_path / "deeper", database, "concat", backbone="deeper")
        found = compare(flags_of(tmp_path / "deeper", runs / "concat"), tmp_path / "out")
    assert len(found["layers"]) == 8
    assert any("only full has stage 2 block 2, stage 2 block 3: in the mean" in note for note in found["notes"])


def test_cnns_are_compared_by_their_cross_scale_attention_alone(database, tmp_path, capsys, rendered_too):
    a = make_run(tmp_path / "a", database, "cross_scale", backbone="test_efficientnet.r160_in1k")
    found = compare(flags_of(a, a), tmp_path / "out")
    assert list(found["layers"]) == ["cross_scale"]
    b = make_run(tmp_path / "b", database, "concat", backbone="test_efficientnet.r160_in1k")
    refused(flags_of(b, a), tmp_path, capsys, ["no window attention", "Grad-CAM"])
    c = make_run(tmp_path / "c", database, "concat")
    refused(flags_of(a, c), tmp_path, capsys, ["no kind of attention in common"])


def test_runs_that_see_images_differently_are_refused(runs, database, tmp_path, capsys):
    other = make_run(tmp_path / "larger", database, "concat", patch_size=36)
    refused(flags_of(runs / "concat", other), tmp_path, capsys, ["patch_size 32", "36"])
    apart = make_run(tmp_path / "apart", database, "concat", test_from=18)
    refused(flags_of(runs / "concat", apart), tmp_path, capsys, ["2 test images in common"])


# The worked example


@pytest.mark.long
def test_the_node_text_example_learns_and_its_files_support_the_finding(tmp_path, capsys):
    file = Path(__file__).resolve().parent.parent / "examples" / "node_text_attention.py"
    spec = importlib.util.spec_from_file_location("node_text_attention", file)
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example  # its NamedTuple looks its own module up
    spec.loader.exec_module(example)

    def run() -> None:
        before, sys.argv = sys.argv, ["node_text_attention.py", "--output", str(tmp_path / "made"), "--steps", "250"]
        try:
            exit_on_user_error(example.main)
        finally:
            sys.argv = before

    run()
    files = [tmp_path / "made" / name for name in ("full.npz", "no_middle.npz")]
    for path in files:
        with np.load(path) as arrays:
            check_attention(arrays["attention"], arrays["mask"], str(path))
            assert set(arrays["group"]) == {"simple", "complex"}
    found = compare(flags_of(*files), tmp_path / "out")
    assert found["finding"] == "supported" and found["n"] == 200
    assert found["error"]["full_mean"] < 0.5 * found["error"]["no_middle_mean"]
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2 and "--output" in capsys.readouterr().err
