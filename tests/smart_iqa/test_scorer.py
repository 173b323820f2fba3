"""`Scorer`: every kind of input has the score of its file, and a batch has scores with gradients."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import command, long, make_run, refusal
from PIL import Image
from torch import Tensor

from iqa.demo.scenes import dead_leaves
from iqa.errors import UserError
from smart_iqa import Scorer, load_model
from smart_iqa.inputs import crops_of

SIZES = {
    "as_it_is": (320, 260),
    "larger": (700, 560),
    "smaller": (50, 90),
}  # than what the model's images are brought to


def scene(size: tuple[int, int], seed: int = 3) -> Image.Image:
    """A scene of dead leaves of some width and height, with noise."""
    return Image.fromarray(leaves(seed)).resize(size, Image.Resampling.BICUBIC)


@functools.cache
def leaves(seed: int) -> np.ndarray:
    pixels = dead_leaves(320, np.random.default_rng(seed)) + np.random.default_rng(seed).normal(0, 15, (320, 320, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def batch(*images: Image.Image) -> Tensor:
    """(B, 3, H, W) in 0..1."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])


@pytest.fixture(scope="module")
def model() -> Scorer:
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    for name, size in SIZES.items():
        scene(size).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in SIZES}


@pytest.mark.parametrize("name", ["as_it_is", "smaller", long("larger")])
def test_an_image_in_memory_has_the_score_of_its_file_without_loss(model, files, name):
    expected, image = model.score(files[name]), Image.open(files[name])
    pixels = np.array(image)
    assert type(expected) is float
    assert model.score(str(files[name])) == expected
    assert model.score(image) == expected
    assert model.score(pixels) == expected
    assert model.score(pixels.astype(np.float64) / 255) == expected
    assert model.score(batch(image)).tolist() == [expected]
    assert model.score(torch.from_numpy(pixels).permute(2, 0, 1)[None]).tolist() == [expected]
    assert model.score(batch(image).double()).tolist() == [expected]


@pytest.mark.parametrize("name", SIZES)
def test_a_batch_with_gradients_has_the_score_of_its_file_up_to_rounding(model, files, name):
    score = model(batch(Image.open(files[name])))
    assert score.shape == (1,) and score.dtype == torch.float32
    assert score.item() == pytest.approx(model.score(files[name]), abs=1e-3 if name == "as_it_is" else 0.05)


def test_a_list_of_all_kinds_has_the_scores_of_each_in_order(model, files):
    images = {name: Image.open(file) for name, file in files.items()}
    mixed = [files["larger"], batch(*[images["smaller"]] * 2), np.array(images["as_it_is"]), images["larger"]]
    one = {name: model.score(file) for name, file in files.items()}
    assert model.score(mixed).tolist() == pytest.approx(
        [one[name] for name in ("larger", "smaller", "smaller", "as_it_is", "larger")], abs=1e-4
    )
    assert model.score(str(file) for file in files.values()).shape == (3,)
    assert model.score([]).shape == (0,)


def test_an_image_of_another_mode_is_converted_as_its_file_is_and_left_alone(model, tmp_path):
    for mode in ("L", "RGBA", "P", "CMYK"):
        image = scene((100, 80)).convert(mode)
        image.save(tmp_path / f"a{'.tif' if mode == 'CMYK' else '.png'}")
        assert model.score(image) == model.score(tmp_path / f"a{'.tif' if mode == 'CMYK' else '.png'}")
        assert image.mode == mode


@pytest.mark.parametrize("mode, crops", [("center", 1), ("grid", 6), ("random", 5), ("full", 1)])
def test_crops_of_a_batch_are_those_of_its_files(mode, crops, tmp_path):
    run = load_model(make_run(tmp_path, "channel", test_mode=mode, test_patch_num=crops), "cpu")
    images = [scene((70, 50), seed) for seed in (1, 2)]
    assert crops_of(batch(*images), run.config).shape[1] == crops
    assert run(batch(*images)).tolist() == pytest.approx(run.score(batch(*images)).tolist(), abs=1e-3)
    if mode != "random":  # those lie by the file's name, which a batch does not have
        images[0].save(tmp_path / "a.png")
        assert run.score(images[0]) == run.score(tmp_path / "a.png")


def test_a_few_steps_along_the_gradient_make_images_better(model):
    images = batch(scene((96, 96)), scene((96, 96), 5)).requires_grad_()
    before = model(images)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(100 - model(images).mean(), images)
        assert gradient.shape == images.shape and (gradient.flatten(1).norm(dim=1) > 0).all()
        images = (images - 0.05 * gradient / gradient.abs().amax()).clamp(0, 1).detach().requires_grad_()
    assert (model(images) > before).all()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.model.parameters())


@pytest.mark.parametrize(
    ("name", "size"), [("swin", (45, 40)), ("default", (40, 30)), long("swin", (20, 16)), long("default", (600, 530))]
)
def test_gradients_pass_through_resizing_and_swin_after_scores_without_gradients(model, tmp_path, name, size):
    if name == "swin":
        model = load_model(make_run(tmp_path, "concat", "nano", test_mode="grid", test_patch_num=4), "cpu")
    images = batch(scene(size))
    model.score(images)
    model(images.requires_grad_()).sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("middle, end", [(150.0, 100.0), (-60.0, 0.0)])
def test_a_score_beyond_the_scale_is_set_to_its_end_and_keeps_its_gradient(tmp_path, middle, end):
    run = load_model(make_run(tmp_path, "channel"), "cpu")
    images = batch(scene((40, 40))).requires_grad_()
    (within,) = torch.autograd.grad(run(images).sum(), images)
    with torch.no_grad():
        run.model.hypernet.biases[-1].bias.add_(middle - run.model.hypernet.biases[-1].bias)
    assert run(images).tolist() == [end] == run.score(images).tolist()
    (beyond,) = torch.autograd.grad(run(images).sum(), images)
    torch.testing.assert_close(beyond, within)


@pytest.mark.parametrize("count", [8, long(24)])
def test_eight_threads_at_once_get_the_scores_of_one(model, files, count):
    images = [Image.open(file).convert("RGB") for file in files.values()]

    def both(number: int) -> tuple[float, float]:
        image = images[number % 3]
        return model.score(image), model(batch(image)).item()

    expected = [both(number) for number in range(3)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(both, range(count))) == [expected[number % 3] for number in range(count)]


def test_a_model_says_what_its_scores_are(model, tmp_path):
    assert (model.name, model.score_range, model.higher_is_better) == ("default", (0.0, 100.0), True)
    run = make_run(tmp_path, "channel")
    assert load_model(run, "cpu").name == load_model(run / "best.safetensors", "cpu").name == "run"


GREY, PIXELS = torch.full((1, 3, 40, 40), 0.5), np.zeros((40, 40, 3))
NOT_A_BATCH = [
    (GREY[0], r"\(3, 40, 40\).*images\[None\]"),
    (GREY[:, :1], r"\(B, 3, H, W\), got \(1, 1, 40, 40\)"),
    (GREY.permute(0, 2, 3, 1), r"\(B, 3, H, W\), got \(1, 40, 40, 3\)"),
    (GREY[:0], r"\(B, 3, H, W\), got \(0, 3, 40, 40\)"),
    (GREY * 255, r"0\.\.1, got 127\.5 to 127\.5: 8-bit pixels are divided by 255"),
    (GREY - 1, r"0\.\.1, got -0\.5 to -0\.5: images\.clamp\(0, 1\)"),
    (GREY / 0 * 0, r"0\.\.1, got nan"),
    ((GREY * 255).int(), r"float in 0\.\.1, got torch\.int32"),
]


@pytest.mark.parametrize("images, said", NOT_A_BATCH)
def test_a_batch_of_another_shape_or_range_is_one_line_that_says_what_is_expected(model, images, said):
    for call in (model, model.score, lambda images: model.score([images])):
        with pytest.raises(UserError, match=said):
            call(images)


@pytest.mark.parametrize(
    "image, said",
    [
        (PIXELS[..., 0], r"\(H, W, 3\), got \(40, 40\)"),
        (PIXELS[None], r"\(H, W, 3\), got \(1, 40, 40, 3\)"),
        (PIXELS[:0], r"\(H, W, 3\), got \(0, 40, 3\)"),
        (PIXELS + 255, r"0\.\.1, got 255 to 255"),
        (PIXELS.astype(np.uint16), r"uint8, or float in 0\.\.1; got uint16"),
        (Image.new("F", (40, 40)), r"F image of 40 x 40 pixels cannot be used: floating-point"),
        ("nowhere.png", r"nowhere\.png cannot be read"),
        (7, r"a path, a PIL image.*got int"),
        ([7], r"a path, a PIL image.*got int"),
    ],
)
def test_what_cannot_be_scored_is_one_line_that_says_what_is_expected(model, image, said):
    with pytest.raises(UserError, match=said):
        model.score(image)


def test_a_batch_of_8_bits_has_a_score_and_no_gradient(model):
    pixels = (GREY * 255).to(torch.uint8)
    assert model.score(pixels).shape == (1,)
    assert "8-bit pixels are divided by 255" in refusal(model, pixels)


def test_predict_and_python_give_one_score(model, files, tmp_path):
    out = tmp_path / "scores.csv"
    assert command("predict", files["as_it_is"], "--output", out, "--device", "cpu") == 0
    assert float(out.read_text().splitlines()[1].split(",")[1]) == pytest.approx(
        model.score(files["as_it_is"]), abs=1e-3
    )
