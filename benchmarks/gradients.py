"""How much of what tells images apart reaches the score before anything is learned, and how the score's slope fades.

    python benchmarks/gradients.py --json benchmarks/results/gradients.json

Networks of each head with new weights behind ImageNet's lite0 read the same distorted scenes. For the input of every
layer of the TargetNet the JSON holds

- `reach`: by how much the score moves, in mos, when the input's values move by their own deviation over the images:
  the root of the sum of (slope * deviation)^2, median over images. It is both how far apart the scores of different
  images can lie at the start and how strongly a loss of the score pulls at that layer;
- `agreement`: the mean cosine between two images' slopes of the score by the content vector: whether what raises the
  score of one raises that of another, so that what is learned of one holds for both;
- `spread`: the deviation of the scores over the images.

All are medians over seeds. `hypernet` is the published form, four sigmoids between five generated layers; below it
stand changes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import require_writable, write_result
from iqa.demo import dead_leaves
from iqa.distortions import DISTORTIONS, distort
from iqa.errors import Parser, exit_on_user_error
from models_swin import HEADS, SmartIQA

BACKBONE, SIDE, SEEDS, IMAGES = "tf_efficientnet_lite0", 128, range(5), 30
NetworkChange = Callable[[SmartIQA], None]


def _activate(activation: Callable[[Tensor], Tensor], model: SmartIQA) -> None:
    model.target_net.activation = activation


def _normalise_generated(model: SmartIQA) -> None:
    """Bring every generated matrix to the size that an ordinary layer of its shape starts with."""

    def to_ordinary_size(_: nn.Module, __: tuple, target: tuple) -> tuple:
        weights, biases = target
        norms = (weight.square().mean(dim=(1, 2), keepdim=True).sqrt() for weight in weights)
        sized = [w / norm * (2 / w.shape[2]) ** 0.5 for w, norm in zip(weights, norms, strict=True)]
        return type(target)(sized, biases)

    model.hypernet.register_forward_hook(to_ordinary_size)


# Name -> head, fusion, content vector, and what is changed.
VARIANTS: dict[str, tuple[str, str, str, Sequence[NetworkChange]]] = {
    "hypernet, channel fusion": ("hypernet", "channel", "lda", ()),
    "hypernet, pooled stages": ("hypernet", "vector", "pooled", ()),
    "... GELU": ("hypernet", "vector", "pooled", (partial(_activate, F.gelu),)),
    "... generated weights normalised": ("hypernet", "vector", "pooled", (_normalise_generated,)),
    "... GELU and normalised": ("hypernet", "vector", "pooled", (partial(_activate, F.gelu), _normalise_generated)),
    "residual, pooled stages": ("residual", "vector", "pooled", ()),
}


def scenes(count: int) -> Tensor:
    """Images (count, 3, SIDE, SIDE) in 0..1: scenes of the demo, each distorted in some way and strength."""
    rng, kinds, found = np.random.default_rng(0), list(DISTORTIONS), []
    for number in range(count):
        scene = dead_leaves(SIDE, rng)
        found.append(distort(scene, kinds[number % len(kinds)], 1 + number % 5, rng))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def layer_inputs(model: SmartIQA, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Scores (B,), and the inputs (B, size) of every layer of the TargetNet, of which gradients can be asked."""
    inputs, activation = [], model.target_net.activation

    def keep(_: nn.Module, arguments: tuple) -> None:
        inputs.append(arguments[0])

    def activate(x: Tensor) -> Tensor:
        inputs.append(activation(x))
        return inputs[-1]

    model.target_net.activation = activate
    handle = model.target_net.register_forward_pre_hook(keep)
    scores = model(model.backbone.normalise(images))
    handle.remove()
    return scores, inputs


def reaches(model: SmartIQA, images: Tensor) -> dict:
    """What a network lets through at the start: see the module."""
    model.train().backbone.eval()
    scores, inputs = layer_inputs(model, images)
    slopes = torch.autograd.grad(scores.sum(), inputs)  # an image's score depends on its own inputs alone
    found = []
    for x, slope in zip(inputs, slopes, strict=True):
        x, slope = x.flatten(1), slope.flatten(1)
        found.append((slope * x.std(dim=0)).norm(dim=1).median().item())
    directions = F.normalize(slopes[0].flatten(1), dim=1)
    B = len(directions)
    cosines = directions @ directions.T
    agreement = (cosines.sum() - cosines.trace()) / (B * (B - 1))
    return {"reach": found, "agreement": agreement.item(), "spread": scores.std().item()}


def measure(seeds: Sequence[int] = SEEDS, images: int = IMAGES) -> dict[str, dict]:
    """Medians over the seeds, by variant."""
    batch, found = scenes(images), {}
    for name, (head, fusion, content, changes) in VARIANTS.items():
        of_seeds = []
        for seed in seeds:
            torch.manual_seed(seed)
            model = HEADS[head](BACKBONE, fusion, pretrained=True, dropout_rate=0.0, content_vector=content)
            for change in changes:
                change(model)
            of_seeds.append(reaches(model, batch))
        found[name] = {key: np.median([each[key] for each in of_seeds], axis=0).tolist() for key in of_seeds[0]}
    return found


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="What reaches the score through the TargetNet before anything is learned.")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    parser.add_argument("--quick", action="store_true", help="one seed, few images: shows that it runs, says nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    arguments = make_parser().parse_args(argv)
    require_writable(arguments.json)
    seeds, images = (SEEDS[:1], 4) if arguments.quick else (SEEDS, IMAGES)
    found = measure(seeds, images)
    for name, of in found.items():
        reach = ", ".join(f"{value:.3g}" for value in of["reach"])
        print(f"{name:<34} agreement {of['agreement']:.3f}  spread {of['spread']:.3g}  reach {reach}")
    result = {"kind": "gradients", "backbone": BACKBONE, "images": images, "seeds": len(seeds), "heads": found}
    write_result(arguments.json, {**result, "quick": arguments.quick})


if __name__ == "__main__":
    exit_on_user_error(main)
