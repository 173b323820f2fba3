"""Stage weights by level and group, and maps over an image: closed forms, places, and what the command writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TINY, command, fill, long, make_run, published_shapes
from hypothesis import given, strategies as st
from scipy.stats import kruskal
from torch import nn
from trees import koniq, koniq_rows

from analyze_attention import (
    STAGES,
    by_group,
    by_level,
    group_differences,
    groups_in_words,
    sample_by_level,
    trends,
    trends_in_words,
    weights_table,
    with_groups,
)
from iqa.attention import grad_cam, place_on_images
from iqa.errors import UserError
from iqa.figures import draw_panel
from iqa.metrics import QUALITY_LEVELS as LEVELS, quality_levels
from models_swin import FUSIONS, SmartIQA
from smart_iqa.maps import covering_corners, image_maps, rollout_maps, stitch
from smart_iqa.scorer import load_model

# Grad-CAM


class LinearHead(nn.Module):
    """A network whose score is a weighted sum of the global averages of stage 3 (two channels at stride 2)."""

    def __init__(self, weights: list[float]):
        super().__init__()
        self.weights = torch.tensor(weights)
        self.backbone = lambda images: [images[:, :2]] * 3 + [nn.functional.avg_pool2d(images[:, :2], 2)]
        self.backbone.strides = [1, 1, 1, 2]

    def from_stages(self, content_stages, fusion_stages) -> SimpleNamespace:
        return SimpleNamespace(scores=fusion_stages[3].mean(dim=(2, 3)) @ self.weights)


def test_for_a_linear_head_on_global_averages_the_map_is_the_weighted_features_and_its_mean_the_score():
    # Selvaraju et al. 2017, section 3.1: on such a head Grad-CAM is CAM.
    images, model = torch.randn(3, 3, 8, 12), LinearHead([2.0, -5.0])
    stage = model.backbone(images)[3]
    maps = grad_cam(model, images)
    expected = place_on_images(2 * stage[:, 0] - 5 * stage[:, 1], 2, 8, 12)
    torch.testing.assert_close(maps, expected)
    same_size = torch.kron(torch.randn(1, 3, 1, 1), torch.ones(1, 1, 8, 12))  # interpolation changes no constant
    score = model.from_stages(None, model.backbone(same_size)).scores
    torch.testing.assert_close(grad_cam(model, same_size).mean(dim=(1, 2)), score)


def test_a_feature_that_raises_the_score_is_positive_where_it_is_and_one_that_lowers_it_negative():
    images = torch.zeros(1, 3, 8, 16)
    images[:, 0, :, :8] = 1  # raises
    images[:, 1, :, 8:] = 1  # lowers
    relevance = grad_cam(LinearHead([1.0, -1.0]), images)[0]
    assert (relevance[:, :7] > 0).all() and (relevance[:, 9:] < 0).all()


@pytest.mark.parametrize(
    ("backbone", "fusion"),
    [
        *(("test_efficientnet.r160_in1k", fusion) for fusion in FUSIONS),
        *(("nano", fusion) if fusion == "channel" else long("nano", fusion) for fusion in FUSIONS),
    ],
)
def test_every_fusion_and_backbone_has_a_map_of_the_images_size_that_depends_on_its_image_only(backbone, fusion):
    model = SmartIQA(backbone, fusion).eval()
    images = torch.randn(2, 3, 72, 50)
    maps = grad_cam(model, images)
    assert maps.shape == (2, 72, 50) and maps.isfinite().all() and maps.any()
    torch.testing.assert_close(grad_cam(model, images[1:]), maps[1:], rtol=1e-3, atol=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_each_stage_has_a_map_and_another_number_is_refused():
    model, images = SmartIQA("nano", "concat").eval(), torch.randn(1, 3, 64, 64)
    maps = [grad_cam(model, images, stage) for stage in range(4)]
    assert all(not torch.equal(maps[i], maps[3]) for i in range(3))
    with pytest.raises(ValueError, match=r"a stage of 0\.\.3, got 4"):
        grad_cam(model, images, stage=4)


def test_what_hangs_over_the_edge_is_cut_off_and_not_squeezed_in():
    positions = torch.arange(5.0)[None, None].expand(1, 5, 5)  # 144 pixels are 4.5 strides of 32
    placed = place_on_images(positions, 32, 144, 144)
    assert placed.shape == (1, 144, 144)
    inner = 32 * torch.arange(1, 4)  # outside the first centre there is nothing to interpolate with
    torch.testing.assert_close((placed[0, 72, inner + 15] + placed[0, 72, inner + 16]) / 2, torch.arange(1.0, 4.0))


# Maps of crops, back on their image


@given(st.integers(0, 60), st.integers(0, 60), st.integers(8, 24))
def test_crops_cover_every_pixel_and_stitched_they_are_the_image(more_rows, more_columns, size):
    height, width = size + more_rows, size + more_columns
    image = np.random.default_rng(0).random((height, width))
    corners = covering_corners(height, width, size)
    crops = np.stack([image[top : top + size, left : left + size] for top, left in corners])
    assert crops.shape[1:] == (size, size)  # no crop hangs over the edge
    np.testing.assert_allclose(stitch(crops, corners, height, width), image)


@given(st.integers(16, 200), st.integers(8, 16))
def test_neighbouring_crops_are_at_most_half_a_crop_apart(side, size):
    lefts = sorted({left for _, left in covering_corners(size, side, size)})
    assert lefts[0] == 0 and lefts[-1] == side - size
    assert max(np.diff(lefts), default=0) <= math.ceil(size / 2)


def test_where_crops_disagree_no_border_shows():
    corners = covering_corners(32, 96, 32)
    maps = np.stack([np.full((32, 32), float(i)) for i in range(len(corners))])
    steps = np.abs(np.diff(stitch(maps, corners, 32, 96), axis=1))
    assert steps.max() < 0.12  # of differences of 1 between neighbours


def test_a_rollout_map_has_the_images_size_and_is_one_on_average():
    model = SmartIQA("nano", "concat").eval()
    maps = rollout_maps(model, torch.randn(2, 3, 64, 64))
    assert maps.shape == (2, 64, 64) and (maps >= 0).all()
    torch.testing.assert_close(maps.mean(dim=(1, 2)), torch.ones(2), rtol=0.02, atol=0)
    assert rollout_maps(model, torch.randn(1, 3, 50, 67)).shape == (1, 50, 67)


# Statistics


def weighed(groups: list[str], stage_2: list[float]) -> pd.DataFrame:
    """Images whose weight of stage 2 is given; stages 0 and 1 are constant and stage 3 is the rest."""
    rest = 0.8 - np.array(stage_2)
    columns = dict(zip(STAGES, (0.1, 0.1, stage_2, rest), strict=True))
    return pd.DataFrame({"group": groups, "mos": np.linspace(5, 95, len(groups)), "score": 50.0, **columns})


def test_groups_are_tested_as_scipy_tests_them_and_groups_of_one_image_are_left_out():
    images = weighed(["a"] * 4 + ["b"] * 3 + ["alone"], [0.1, 0.2, 0.15, 0.12, 0.6, 0.7, 0.65, 0.3])
    found = group_differences(images)
    expected = kruskal([0.1, 0.2, 0.15, 0.12], [0.6, 0.7, 0.65])
    assert found["stage 2"]["h"] == pytest.approx(expected.statistic)
    assert found["stage 2"]["p"] == pytest.approx(expected.pvalue)
    assert found["stage 2"]["n"] == 7 and found["stage 2"]["groups"] == 2
    assert math.isnan(found["stage 0"]["p"])
    words = groups_in_words(found, "distortion", alone=1)
    assert words[0] == "The weight of stage 0 is the same in every image."
    assert words[-1] == "Groups of one image, in the table but in no test: 1."


def test_nothing_is_tested_where_fewer_than_two_groups_have_two_images():
    images = weighed(["a", "a", "b", "c"], [0.1, 0.2, 0.3, 0.4])
    assert group_differences(images) == {}
    assert groups_in_words({}, "content", alone=2)[0].startswith("Nothing is tested")
    assert math.isnan(by_group(images, "group")["b"]["std"][2])
    assert "| b | 1 | 65.0 | 50.0 | 0.1000 | 0.1000 | 0.3000 | 0.5000 |" in weights_table(by_group(images, "group"))


@pytest.mark.parametrize(("p", "says"), [(0.012, "rises"), (0.013, "No relation")])
def test_a_trend_is_claimed_only_if_it_survives_the_number_of_stages_tested(p, says):
    trend = {stage: {"srcc": 0.5, "p": p, "n": 20} for stage in STAGES}  # 0.0125 = 0.05 / 4
    assert all(says in sentence for sentence in trends_in_words(trend))


@pytest.mark.parametrize(("p", "says"), [(0.012, " differs "), (0.013, "is not shown to differ")])
def test_a_difference_between_groups_is_claimed_only_if_it_survives_the_number_of_stages_tested(p, says):
    found = {stage: {"h": 9.0, "p": p, "n": 20, "groups": 3} for stage in STAGES}
    assert all(says in sentence for sentence in groups_in_words(found, "distortion", alone=0))


def test_a_constant_weight_has_no_relation_to_measure_and_no_number_is_made_up():
    found = trends(weighed(["a"] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    words = trends_in_words(found)
    assert "can be measured: one of them is constant" in words[0] and "nan" not in " ".join(words)
    assert found["stage 2"]["srcc"] == pytest.approx(1) and "rises" in words[2] and "falls" in words[3]


def test_levels_are_fifths_of_mos_and_fewer_images_than_levels_are_refused():
    images = pd.DataFrame({"image": [str(i) for i in range(20)], "mos": np.arange(20.0)})
    sampled = sample_by_level(images, samples=3, seed=0)
    assert sampled.groupby("level", observed=False).size().to_dict() == dict.fromkeys(LEVELS, 3)
    assert sampled.groupby("level", observed=False)["mos"].max().is_monotonic_increasing
    with pytest.raises(UserError, match="4 images are fewer than the 5 quality levels"):
        sample_by_level(images[:4], samples=3, seed=0)


def test_images_of_one_mos_are_in_one_level_and_a_level_without_images_stays_in_the_table():
    images = pd.DataFrame({"mos": np.repeat([20.0, 50.0, 80.0], [8, 4, 8])})
    sampled = sample_by_level(images, samples=20, seed=0)
    assert sampled["level"].tolist() == quality_levels(images["mos"])
    levels = by_level(sampled.assign(score=50.0))
    assert {name: row["n"] for name, row in levels.items()} == dict(zip(LEVELS, (0, 8, 4, 0, 8), strict=True))
    assert "| Very Low | 0 | - | - |" in weights_table(levels)


def test_a_column_to_group_by_is_named_if_it_is_nearly_right_and_refused_if_empty():
    images = pd.DataFrame({"image": ["a", "b"], "distortion": ["blur", ""], "generator": ["", ""]})
    assert with_groups(images, "distortion", "csv")["group"].tolist() == ["blur", "(none)"]
    with pytest.raises(UserError, match=r"did you mean distortion\? Known: image, distortion, generator"):
        with_groups(images, "distorsion", "csv")
    with pytest.raises(UserError, match="empty in csv"):
        with_groups(images, "generator", "csv")


# The command


def analyse(run: Path, output: Path, *more: object) -> int:
    arguments = ["--checkpoint", run, "--dataset", "csv", "--num_samples", 3, "--crops", 2, "--device", "cpu"]
    return command("analyze_attention", *arguments, "--output", output, *more)


def read(output: Path) -> dict:
    return json.loads((output / "attention_analysis.json").read_text())


@pytest.mark.long
@pytest.mark.usefixtures("unrendered")
def test_scale_weights_stand_beside_the_published_ones_and_groups_in_the_order_of_their_values(tmp_path, capsys):
    run, output = make_run(tmp_path, "scale", "nano"), tmp_path / "out"
    assert analyse(run, output, "--group_by", "step", "--panels", 1) == 0
    record, said = read(output), capsys.readouterr().out
    assert list(record["groups"]["groups"]) == ["0", "10", "20"] and record["groups"]["column"] == "step"
    assert record["published"]["levels"]["Mid"] == [0.0009, 0.0018, 0.9926, 0.0047]  # SPEC section 6
    assert "Published, not measured here" in said and "| 0.9926 |" in said
    assert (record["backbone"], record["timm_name"]) == ("nano", "swin_tiny_patch4_window7_224")
    named = "nano (timm: swin_tiny_patch4_window7_224), fusion scale, on csv"
    assert said.startswith(named) and f"measured here: {named}" in said
    for row in record["images"]:
        assert sum(row[stage] for stage in STAGES) == pytest.approx(1, abs=1e-5)
    mean = np.mean([[row[s] for s in STAGES] for row in record["images"] if row["group"] == "10"], axis=0)
    np.testing.assert_allclose(record["groups"]["groups"]["10"]["mean"], mean, rtol=1e-9)
    drawn = {row["panel"] for row in record["images"]} - {None}
    assert drawn == {f"panels/panel_{level.lower().replace(' ', '_')}_0.png" for level in LEVELS}
    assert {f"panels/{file.name}" for file in (output / "panels").iterdir()} == drawn
    assert all((output / f"attention_{name}.png").is_file() for name in ("by_level", "distribution"))


@pytest.mark.usefixtures("unrendered")
def test_other_weights_are_said_not_to_be_comparable_with_the_published_ones(tmp_path, capsys):
    output = tmp_path / "out"
    assert analyse(make_run(tmp_path, "channel"), output, "--panels", 0) == 0
    assert "published" not in read(output) and not list((output / "panels").iterdir())
    assert "those of channel are another quantity" in capsys.readouterr().out


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("fusion", ["single", long("vector")])
def test_a_fusion_without_stage_weights_gives_the_maps_and_says_so(tmp_path, capsys, fusion):
    output = tmp_path / "out"
    (output / "panels").mkdir(parents=True)
    earlier = [output / "attention_by_level.png", output / "panels" / "panel_mid_7.png"]
    for file in earlier:
        file.touch()
    assert analyse(make_run(tmp_path, fusion), output, "--panels", 1, "--group_by", "step") == 0
    record = read(output)
    assert not {"trends", "published"} & record.keys() and set(record["levels"]["Low"]) == {"n", "mos", "score"}
    assert set(record["groups"]["groups"]["0"]) == {"n", "mos", "score"} and "stage 0" not in record["images"][0]
    assert f"Fusion {fusion} has no stage weights: the maps" in capsys.readouterr().out
    assert len(list((output / "panels").iterdir())) == 5
    assert not any(file.exists() for file in earlier)  # of another run, and not drawn again


def test_without_weights_and_panels_no_maps_are_promised(tmp_path, capsys):
    assert analyse(make_run(tmp_path, "single"), tmp_path / "out", "--panels", 0) == 0
    assert "the maps in panels/ were not asked for (--panels 0)" in capsys.readouterr().out


def test_swin_has_a_rollout_and_a_cnn_grad_cam_alone(tmp_path):
    for backbone, has_rollout in (("nano", True), (TINY, False)):
        folder = tmp_path / backbone
        maps = image_maps(load_model(make_run(folder, "channel", backbone), "cpu"), str(folder / "data" / "0.png"))
        assert maps.image.shape == (36, 40, 3) and maps.grad_cam.shape == (36, 40)
        assert (maps.rollout is not None) == has_rollout
        drawn = draw_panel("0.png", maps.image, maps.grad_cam, maps.rollout, dict.fromkeys(STAGES, 0.25))
        titles = [axes.get_title() for axes in drawn.axes if axes.get_title()]
        assert titles == ["image", "stage weights", "Grad-CAM"] + ["attention rollout"] * has_rollout


@pytest.mark.long
def test_a_published_checkpoint_is_analysed_on_the_official_test_part(tmp_path, monkeypatch):
    file = tmp_path / "published.pth"
    torch.save({name: fill(name, shape) for name, shape in published_shapes("tiny", "scale").items()}, file)
    koniq(tmp_path / "koniq-10k", koniq_rows(30))
    arguments = ["--dataset", "koniq-10k", "--data_root", tmp_path, "--num_samples", 1, "--crops", 1, "--device", "cpu"]
    output = tmp_path / "out"
    assert command("analyze_attention", "--checkpoint", file, *arguments, "--panels", 0, "--output", output) == 0
    record = read(output)
    assert record["fusion"] == "scale" and record["backbone"] == "tiny"
    assert record["timm_name"] == "swin_tiny_patch4_window7_224"
    assert all(int(Path(row["image"]).stem) % 10 >= 8 for row in record["images"])  # koniq_rows: two of ten test


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys):
    run, few = make_run(tmp_path / "run", "scale"), make_run(tmp_path / "few", "scale", images=4)
    broken = make_run(tmp_path / "broken", "scale")
    (broken / "best.safetensors").unlink()
    cases = [
        (few, [], "4 images are fewer than the 5 quality levels"),
        (run, ["--group_by", "stepp"], "did you mean step?"),
        (run, ["--group_by", "distortion"], "the column is empty in csv"),
        (run, ["--num_samples", 0], "expected at least 1"),
        (run, ["--panels", -1], "at least 0"),
        (run, ["--dataset", "nonsense"], "nonsense"),
        (broken, [], "best.safetensors"),
        (tmp_path / "absent", [], "no run at"),
    ]
    for checkpoint, more, expected in cases:
        assert analyse(checkpoint, tmp_path / "none", *more) == 2, more
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: ") and expected in said
    assert not (tmp_path / "none").exists()
