"""Components of the generated weights: what is in a vector, known geometry, and what the command writes."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TINY, command, make_run

from iqa.errors import UserError
from iqa.figures import draw_components
from models_swin import TARGET_SIZES, SmartIQA, TargetWeights
from smart_iqa.commands.analyze_weights import (
    analyze_vectors,
    analyze_weights,
    components_table,
    generate,
    sample_images,
    silhouettes,
)
from smart_iqa.probes import GeneratedWeights
from smart_iqa.scorer import load_model

DIMENSIONS = sum(a * b + b for a, b in zip(TARGET_SIZES[:-1], TARGET_SIZES[1:], strict=True))  # 33,545


def images(n: int, contents: int = 2, distortion: str = "") -> pd.DataFrame:
    labels = [f"c{i % contents}" for i in range(n)]
    names = [f"{i:03d}.png" for i in range(n)]
    return pd.DataFrame({"image": names, "content": labels, "distortion": distortion, "mos": np.linspace(0, 100, n)})


@pytest.mark.parametrize("fusion", ["scale", "vector"])
def test_a_vector_is_the_whole_generated_network(fusion):
    model = SmartIQA("nano", fusion).eval()
    batch = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        values, seen = GeneratedWeights(model)(batch), model.inspect(batch)
    assert values.shape == (2, 1 + DIMENSIONS)
    sizes = [w[0].numel() for w in seen.target_weights.weights] + [b[0].numel() for b in seen.target_weights.biases]
    parts = values[:, 1:].split(sizes, dim=1)
    rebuilt = TargetWeights(
        [part.view_as(w) for part, w in zip(parts[:5], seen.target_weights.weights, strict=True)], list(parts[5:])
    )
    assert torch.equal(model.target_net(seen.content_vector, rebuilt), values[:, 0])


def test_vectors_on_a_plane_are_explained_by_two_components_whose_distances_are_theirs():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * (3, 1)
    basis = np.linalg.qr(rng.normal(size=(500, 2)))[0]
    found = analyze_vectors(np.zeros(40), (plane @ basis.T + 7).astype(np.float32), images(40))
    assert found["dimensions"] == 500 and len(found["explained_variance"]) == 10
    assert sum(found["explained_variance"][:2]) == pytest.approx(1, abs=1e-5)
    variances = np.linalg.eigvalsh(np.cov(plane.T))[::-1]
    np.testing.assert_allclose(found["explained_variance"][:2], variances / variances.sum(), rtol=1e-4)
    points = np.array([[row["pc1"], row["pc2"]] for row in found["images"]])
    np.testing.assert_allclose(
        np.linalg.norm(points[0] - points[1:], axis=1), np.linalg.norm(plane[0] - plane[1:], axis=1), rtol=1e-4
    )


def test_the_same_vectors_give_the_same_components():
    vectors = np.random.default_rng(1).normal(size=(30, 300)).astype(np.float32)
    first, again = (analyze_vectors(np.zeros(30), vectors, images(30)) for _ in range(2))
    assert first == again


def test_a_component_that_is_mos_correlates_with_it_perfectly_up_to_its_sign():
    table = images(20)
    vectors = np.outer(table["mos"], np.ones(50)).astype(np.float32)
    vectors += np.random.default_rng(0).normal(scale=1e-3, size=vectors.shape).astype(np.float32)
    found = analyze_vectors(np.zeros(20), vectors, table)
    assert abs(found["mos"]["pc1"]["srcc"]) == pytest.approx(1) and found["mos"]["pc1"]["n"] == 20
    assert math.isnan(analyze_vectors(np.zeros(20), vectors, table.assign(mos=50.0))["mos"]["pc1"]["srcc"])


def test_the_silhouette_is_that_of_two_pairs_on_a_line():
    # Rousseeuw 1987: s = (b - a) / max(a, b). At 0, 1 | 10, 11 outer points have a = 1, b = 10.5, inner ones b = 9.5.
    line = np.array([[0.0], [1], [10], [11]])
    plane = np.zeros((4, 2))
    plane[:, 0] = (0, 10, 1, 11)  # the same labels, interleaved: a = 10, b = 6 outside, 5 inside
    found = silhouettes(line, plane, pd.Series(["x", "x", "y", "y"]))
    assert found["full"] == pytest.approx((9.5 / 10.5 + 8.5 / 9.5) / 2)
    assert found["plane"] == pytest.approx((-4 / 10 - 5 / 10) / 2)
    assert found["n"] == 4 and found["labels"] == 2


@pytest.mark.parametrize("labels", [["x"] * 4, ["a", "b", "c", "d"], ["x", "x", "y", "z"], ["", "", "x", "x"]])
def test_labels_that_form_no_two_groups_have_no_silhouette(labels):
    assert silhouettes(np.random.default_rng(0).random((4, 3)), np.zeros((4, 2)), pd.Series(labels)) is None


def test_images_without_a_label_are_in_no_silhouette():
    vectors = np.array([[0.0], [1], [10], [11], [500]])
    found = silhouettes(vectors, np.zeros((5, 2)) + vectors, pd.Series(["x", "x", "y", "y", ""]))
    assert found["n"] == 4 and found["full"] > 0.8


def test_equal_networks_for_every_image_are_refused():
    with pytest.raises(UserError, match="same for every image"):
        analyze_vectors(np.zeros(6), np.ones((6, 40), dtype=np.float32), images(6))


def test_two_models_see_images_that_neither_has_learned_from():
    ours, theirs = images(30), images(40).iloc[10:]
    sampled = sample_images([ours, theirs], samples=8, seed=0)
    assert len(sampled) == 8 and set(sampled["image"]) <= {f"{i:03d}.png" for i in range(10, 30)}
    assert sampled["image"].tolist() == sample_images([ours, theirs], 8, seed=0)["image"].tolist()
    assert sampled["image"].tolist() != sample_images([ours, theirs], 8, seed=1)["image"].tolist()
    with pytest.raises(UserError, match="test parts of both runs share 2 images, 5 are needed"):
        sample_images([ours, theirs.iloc[18:]], 8, seed=0)


def test_colours_are_shown_for_labels_that_several_images_share_only():
    vectors = np.random.default_rng(0).normal(size=(12, 60)).astype(np.float32)
    drawn = {}
    for contents, distortion in ((3, ""), (12, ""), (3, "authentic")):
        found = analyze_vectors(np.zeros(12), vectors, images(12, contents, distortion))
        titles = [axes.get_title(loc="left") for axes in draw_components({"run": found}).axes]
        drawn[contents, distortion] = [title for title in titles if title]
    both = ["run: by content", "by mos"]
    assert drawn == {(3, ""): both, (12, ""): ["run: by mos"], (3, "authentic"): both}
    two = draw_components({"a": found, "b": found})
    assert [axes.get_title(loc="left") for axes in two.axes[:4]] == [
        "a: by content", "by mos", "b: by content", "by mos"
    ]  # fmt: skip


def test_chunks_change_no_vector(tmp_path, monkeypatch):
    scorer = load_model(make_run(tmp_path, "scale"), "cpu", test_mode="random", test_patch_num=2)
    rows = [{"image": f"{i}.png", "path": str(tmp_path / "data" / f"{i}.png")} for i in range(5)]
    table = pd.DataFrame(rows).assign(mos=50.0, mos_std=np.nan)
    scores, vectors = generate(scorer, table)
    monkeypatch.setattr("smart_iqa.commands.analyze_weights.CHUNK", 2)
    again = generate(scorer, table)
    np.testing.assert_allclose(again[0], scores, rtol=1e-5)
    np.testing.assert_allclose(again[1], vectors, atol=1e-4)
    assert vectors.dtype == np.float32 and vectors.shape == (5, DIMENSIONS)


# The command


@pytest.mark.usefixtures("unrendered")
def test_one_run_has_its_fields_at_the_top_and_two_stand_side_by_side(tmp_path, capsys):
    first, second = make_run(tmp_path / "first", "scale"), make_run(tmp_path / "second", "concat")
    arguments = ["--dataset", "csv", "--num_samples", 9, "--crops", 1, "--device", "cpu", "--output", tmp_path / "out"]
    assert command("analyze-weights", "--checkpoint", first, *arguments) == 0
    record = json.loads((tmp_path / "out" / "target_weights.json").read_text())
    assert len(record["images"]) == 9 and record["dimensions"] == DIMENSIONS and record["fusion"] == "scale"
    assert {"image", "content", "distortion", "mos", "score", "pc1", "pc2"} == record["images"][0].keys()
    assert record["silhouette"]["content"]["labels"] >= 2 and record["silhouette"]["distortion"] is None
    assert "No silhouette by distortion" in capsys.readouterr().out
    second = second.rename(second.with_name("other"))
    (second / "config.yaml").write_text((first / "config.yaml").read_text().replace("fusion: scale", "fusion: concat"))
    assert command("analyze-weights", "--checkpoint", first, second, *arguments) == 0
    both = json.loads((tmp_path / "out" / "target_weights.json").read_text())["models"]
    assert list(both) == ["run", "other"] and [model["fusion"] for model in both.values()] == ["scale", "concat"]
    assert [row["image"] for row in both["run"]["images"]] == [row["image"] for row in both["other"]["images"]]
    assert both["run"]["images"] == record["images"]
    assert both["other"]["explained_variance"] != record["explained_variance"]
    assert both["other"]["backbone"] == both["other"]["timm_name"] == TINY
    assert f"| other | {TINY}, fusion concat | 9 |" in components_table(both)
    assert all((tmp_path / "out" / f"target_weights.{ending}").is_file() for ending in ("png", "pdf", "md"))
    record = analyze_weights([first], "csv", num_samples=9, crops=1, device="cpu", output=tmp_path / "python")
    assert record["images"] == both["run"]["images"]


def test_bad_input_is_one_line(tmp_path, capsys):
    run, few = make_run(tmp_path / "run", "scale"), make_run(tmp_path / "few", "scale", images=4)
    cases = [
        ([run, run], [], "two different ones"),
        ([run, few, tmp_path], [], "one run, or two"),
        ([run], ["--num_samples", 4], "expected 5..2000"),
        ([run], ["--num_samples", 2001], "expected 5..2000"),
        ([run], ["--crops", 0], "at least 1"),
        ([few], [], "table has 4 images, 5 are needed"),
        ([tmp_path / "absent"], [], "no run at"),
    ]
    for checkpoints, more, expected in cases:
        arguments = ["--dataset", "csv", "--device", "cpu", "--output", tmp_path / "none", *more]
        assert command("analyze-weights", "--checkpoint", *checkpoints, *arguments) == 2, expected
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: ") and expected in said
    assert not (tmp_path / "none").exists()
