"""Exported files score as PyTorch does, for any number and size of images, and say what they are."""

from __future__ import annotations

import copy
import functools
import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from helpers import command, long, make_run, refusal
from PIL import Image

from benchmarks.exporting import agreement_images, untrained
from iqa.config import Config
from models_swin import FUSIONS, Backbone
from smart_iqa import Scorer, __version__, exporting, load_model, quantising
from smart_iqa.commands.export import export, model_name
from smart_iqa.exporting import METADATA, TOLERANCE, reader, to_onnx, torch_scores, trace, write_export
from smart_iqa.onnx_backend import OnnxBackend
from smart_iqa.quantising import calibration_images, quantise
from smart_iqa.traceable import ScoreImages

SMALLEST = "test_efficientnet.r160_in1k"  # of the kind of the package's model
SIZES = [(1, 32, 32), (2, 224, 224), (1, 97, 155), (3, 250, 131)]


class Exported(NamedTuple):
    checkpoint: str | Path
    scorer: Scorer
    file: Path


@pytest.fixture(scope="module", params=["small", long("default")])
def exported(request, once) -> Exported:
    """A small model, and that of the package, as .onnx."""

    def export_it(folder: Path) -> None:
        run = "default"
        if request.param == "small":  # on averages alone: to trace how stages are pooled to grids takes long
            run = make_run(folder, "vector", SMALLEST, test_mode="full", content_vector="pooled")
        assert command("export", "--checkpoint", run, "--output", folder / "model.onnx") == 0

    folder = once(f"exported_{request.param}", export_it)
    checkpoint = folder / "run" if request.param == "small" else "default"
    return Exported(checkpoint, load_model(checkpoint, "cpu"), folder / "model.onnx")


@functools.cache
def default():
    return load_model(device="cpu")


def noise(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).random((count, 3, height, width), dtype=np.float32)


@pytest.mark.parametrize(
    "backbone",
    [
        "nano", SMALLEST,
        long("tf_efficientnet_lite0"), long("swinv2_tiny_window8_256"), long("resnet50"),
    ],
)  # fmt: skip
def test_the_form_that_is_traced_gives_the_networks_scores_and_leaves_the_network_as_it_was(backbone):
    model = untrained(backbone).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced = ScoreImages(model)
    for size in SIZES:
        images = noise(*size)
        with torch.inference_mode():
            scores = traced(torch.from_numpy(images)).numpy()
        assert np.abs(scores - torch_scores(model, images)).max() < 1e-4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_file_scores_images_of_any_size_as_pytorch_does(exported):
    score = OnnxBackend(exported.file)
    for batch in [*agreement_images(10, 5), *(noise(*size) for size in SIZES)]:
        scores = score(batch)
        assert scores.shape == (len(batch),) and scores.dtype == np.float32
        assert np.abs(scores - torch_scores(exported.scorer.model, batch)).max() < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_hundred_images_of_twenty_sizes_score_as_in_pytorch(tmp_path, suffix):
    assert command("export", "--output", tmp_path / f"model{suffix}") == 0
    score, batches = reader(tmp_path / f"model{suffix}", suffix), agreement_images()
    assert (sum(map(len, batches)), len({batch.shape for batch in batches})) == (100, 20)
    assert max(np.abs(score(batch) - torch_scores(default().model, batch)).max() for batch in batches) < TOLERANCE


LITE0 = [("tf_efficientnet_lite0", fusion) for fusion in FUSIONS]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "fusion"), [*LITE0, ("nano", "channel"), ("nano", "spatial")])
def test_every_fusion_and_swin_are_exported(tmp_path, backbone, fusion):
    scorer = untrained(backbone, fusion)
    program = trace(scorer.model)
    for file in (tmp_path / "model.onnx", tmp_path / "model.pt2"):
        said = write_export(scorer, "untrained", file, program=program)
        assert said["difference"] < max(
            TOLERANCE, *(2 * rounding(scorer.model, images) for images in exporting._noise())
        )
        score = reader(file, file.suffix)
        for images in (noise(*size) for size in SIZES):
            allowed = max(TOLERANCE, 2 * rounding(scorer.model, images))
            assert np.abs(score(images) - torch_scores(scorer.model, images)).max() < allowed


def rounding(model, images: np.ndarray) -> float:
    """How far PyTorch's own scores are off those in double precision: random weights round more than trained ones."""
    exact = torch_scores(copy.deepcopy(model).double(), images.astype(np.float64))
    return float(np.abs(torch_scores(model, images) - exact).max())


def test_scores_stay_on_the_scale():
    model = untrained("tf_efficientnet_lite0").model
    torch.nn.init.constant_(model.hypernet.biases[-1].bias, 1000.0)
    images = torch.from_numpy(noise(1, 64, 64))
    assert ScoreImages(model)(images).item() == 100
    assert ScoreImages(model, limits=False)(images).item() > 900


def says_what_it_is(said: dict, scorer: Scorer) -> None:
    assert said["name"] == scorer.name and said["version"] == __version__ and said["precision"] == "float32"
    assert said["settings"]["backbone"] == scorer.model.backbone.timm_name
    assert said["settings"]["resize"] == scorer.config.resize
    assert said["score_range"] == [0, 100] and said["higher_is_better"] is True
    assert said["meaning"] == (scorer.meaning and json.loads(json.dumps(scorer.meaning._asdict())))


def test_a_file_says_its_name_settings_version_and_what_its_scores_mean(exported):
    says_what_it_is(OnnxBackend(exported.file).metadata, exported.scorer)


@pytest.mark.slow
def test_a_pt2_says_the_same(tmp_path):
    assert command("export", "--output", tmp_path / "model.pt2") == 0
    torch.export.load(tmp_path / "model.pt2", extra_files=(stored := {METADATA: ""}))
    says_what_it_is(json.loads(stored[METADATA]), default())


def test_an_onnx_file_has_one_input_and_one_output_of_dynamic_sizes(exported):
    graph = onnx.load(exported.file).graph
    (images,), (scores,) = graph.input, graph.output
    dimensions = images.type.tensor_type.shape.dim
    assert (images.name, scores.name) == ("images", "scores")
    assert dimensions[1].dim_value == 3
    assert all(dimensions[axis].dim_param for axis in (0, 2, 3))
    assert scores.type.tensor_type.shape.dim[0].dim_param == dimensions[0].dim_param


def test_the_backend_takes_bytes_as_it_takes_floats_and_refuses_the_rest(exported):
    score = OnnxBackend(exported.file, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50), dtype=np.uint8)
    assert np.array_equal(score(pixels), score(pixels.astype(np.float64) / 255))
    for wrong in (pixels[0], pixels[:, :1], pixels[..., :31], pixels.astype(np.int64)):
        assert "expected" in _error(score, wrong)
    (text := exported.file.with_name("text.onnx")).write_text("no model")
    assert "text.onnx cannot be read by ONNX Runtime" in refusal(OnnxBackend, text)
    crops = pixels[None].repeat(2, axis=0)  # (2, 2, 3, 40, 50)
    assert score.crop_scores(crops) == pytest.approx(np.full((2, 1), score(pixels).mean()), abs=1e-5)


def _error(call, *arguments) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its text is what is asserted)
        call(*arguments)
    return str(caught.value)


def test_int8_is_smaller_and_near(exported):
    images = [noise(1, 80, 90), noise(1, 64, 120)]
    content = quantise(exported.file.read_bytes(), images)
    if exported.checkpoint == "default":  # most of the small one is its head, which stays as it is
        assert len(content) < 0.75 * exported.file.stat().st_size
    score = OnnxBackend(content)
    assert score.metadata["name"] == exported.scorer.name
    assert all(np.abs(score(batch) - torch_scores(exported.scorer.model, batch)).max() < 8 for batch in images)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["default", "nano"])
def test_a_model_is_exported_in_int8_by_images_of_a_folder(tmp_path, checkpoint):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    run = make_run(tmp_path, "channel", "nano") if checkpoint == "nano" else checkpoint
    file = tmp_path / "int8.onnx"
    assert command("export", "--checkpoint", run, "--output", file, "--int8", "--calibration", tmp_path) == 0
    score = OnnxBackend(file)
    assert score.metadata["precision"] == "int8"
    images = noise(2, 80, 90)
    assert np.abs(score(images) - torch_scores(load_model(run, "cpu").model, images)).max() < 8


@pytest.mark.parametrize(("count", "side"), [(4, 48), long(24, 224)])
def test_made_up_images_calibrate_where_none_are_given(monkeypatch, count, side):
    if count < 24:
        monkeypatch.setattr(quantising, "MADE_UP", count)
        monkeypatch.setattr(quantising, "MADE_UP_SIDE", side)
    images = calibration_images(Config(), [])
    assert len(images) == count and all(image.shape == (1, 3, side, side) for image in images)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("--output model.txt", "--output model.txt: expected a file that ends with .onnx or .pt2"),
        ("--output nowhere/model.onnx", "--output nowhere/model.onnx: no folder nowhere"),
        ("--output there.onnx", "--output there.onnx: is there already; --overwrite replaces it"),
        ("--output folder.onnx --overwrite", "--output folder.onnx: is a folder"),
        ("--output model.onnx --checkpoint nothing", "no run at nothing"),
        ("--output model.pt2 --int8", "--int8 needs an .onnx file"),
        ("--output model.onnx --calibration .", "--calibration sets the ranges of --int8: give both"),
        ("--output model.onnx --int8 --calibration nowhere", "no file or folder at nowhere"),
        ("", "required: --output"),
    ],
)
def test_a_wrong_request_is_one_line_before_the_work(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_text("kept")
    (tmp_path / "folder.onnx").mkdir()
    assert command("export", *arguments.split()) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert (tmp_path / "there.onnx").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_missing_package_is_one_line_that_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = refusal(export, tmp_path / "model.onnx")
    assert said == "export to .onnx needs onnxscript, which is not installed: pip install 'smart-iqa[onnx]'"


def test_a_file_that_is_there_is_replaced_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("smart_iqa.exporting.write_export", lambda scorer, name, output, images: {"name": name})
    (tmp_path / "model.onnx").write_text("old")
    assert export(tmp_path / "model.onnx", overwrite=True) == {"name": "default"}


def test_a_model_is_named_after_its_folder_or_its_file(tmp_path, monkeypatch):
    (run := tmp_path / "run.1").mkdir()
    monkeypatch.chdir(run)
    files = (f"{run}/best.safetensors", "a/model.v2.safetensors")
    names = [model_name(name) for name in ("default", str(run), ".", *files)]
    assert names == ["default", "run.1", "run.1", "run.1", "model.v2"]


def test_a_network_that_cannot_be_traced_is_one_line_with_its_name(tmp_path, monkeypatch):
    scorer = untrained(SMALLEST)
    monkeypatch.setattr(Backbone, "forward", lambda _, images: [images[: int(images.sum())]])
    said = refusal(write_export, scorer, "a", tmp_path / "model.pt2")
    assert said.startswith(f"backbone {SMALLEST} cannot be exported for images of any size: ")
    assert refusal(to_onnx, None, {}).startswith("the network cannot be written as ONNX, export a .pt2: ")
    assert not list(tmp_path.iterdir())


def test_predict_by_onnxruntime_gives_torchs_scores_and_keeps_the_network(exported, tmp_path, monkeypatch, capsys):
    for number, size in enumerate([(80, 90), (80, 90), (200, 70)]):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []
    monkeypatch.setattr(exporting, "trace", lambda *_, **__: None)
    monkeypatch.setattr(exporting, "to_onnx", lambda *_: made.append(1) or exported.file.read_bytes())
    asked = [tmp_path, "--checkpoint", exported.checkpoint, "--format", "csv", "--device", "cpu", "--backend"]
    scores = {}
    for backend in ("torch", "onnxruntime", "onnxruntime"):
        assert command("predict", *asked, backend) == 0
        scores[backend] = pd.read_csv(io.StringIO(capsys.readouterr().out))["score"].to_numpy()
    assert len(made) == 1
    assert np.abs(scores["torch"] - scores["onnxruntime"]).max() < 2 * TOLERANCE  # both are rounded to it
    assert command("cache") == 0
    assert "network_" in capsys.readouterr().out


@pytest.mark.slow
def test_predict_exports_a_run_that_scores_crops(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path, "concat", "nano", test_mode="grid", test_patch_num=2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scores = {}
    for backend in ("torch", "onnxruntime"):
        arguments = ["--format", "csv", "--backend", backend, "--device", "cpu", "--checkpoint", run]
        assert command("predict", tmp_path / "data", *arguments) == 0
        scores[backend] = pd.read_csv(io.StringIO(capsys.readouterr().out))["score"].to_numpy()
    assert np.abs(scores["torch"] - scores["onnxruntime"]).max() < 2 * TOLERANCE


@pytest.mark.parametrize("arguments", ["--explain", "--device cuda"])
def test_onnxruntime_gives_scores_alone_and_says_so(tmp_path, capsys, arguments):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    assert command("predict", tmp_path / "a.png", "--backend", "onnxruntime", *arguments.split()) == 2
    assert "--backend onnxruntime gives scores alone" in capsys.readouterr().err
