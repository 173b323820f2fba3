"""What a model makes of photographs it has never seen: distorted in 15 ways at five levels, and in other sizes.

    python benchmarks/photographs.py --json samples.json
    python benchmarks/photographs.py --photos FOLDER --checkpoint default --json photographs.json

The photographs are those of a folder that every training leaves out (`iqa.photographs.held_out`), or else eight of 300
to 740 pixels that come with scikit-image and scikit-learn, five of them lossless. A *step* goes from the original to
level 1 or from a level to the next; the score should fall in each. *Below* is the share of distorted copies that score
below their original; copies that equal the original are not counted. Sizes are made by Lanczos filtering, the longer
side as named; a size that would enlarge a photograph is left out.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from benchmarks.common import require_writable, write_result
from iqa.distortions import DISTORTIONS, NUM_LEVELS, distort
from iqa.errors import Parser, exit_on_user_error
from iqa.photographs import held_out, list_photographs
from iqa.system import progress
from smart_iqa import Scorer, load_model

SIZES = (160, 192, 224, 256, 320)
SAMPLES = {
    "skimage.data": ("astronaut.png", "coffee.png", "chelsea.png", "ihc.png", "motorcycle_left.png", "rocket.jpg"),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}


def sample_files() -> list[Path]:
    """The photographs that come with other packages."""
    return [Path(str(resources.files(package) / name)) for package, names in SAMPLES.items() for name in names]


def distorted_scores(scorer: Scorer, photograph: Image.Image, folder: Path) -> np.ndarray:
    """Scores (kinds, 1 + levels) of a photograph and its distorted copies, the original first.

    NaN stands for copies that are the original: less saturation does nothing to a grey photograph.
    """
    pixels = np.asarray(photograph)
    photograph.save(folder / "original.png")
    paths, same = [folder / "original.png"], []
    for number, kind in enumerate(DISTORTIONS):
        for level in range(1, NUM_LEVELS + 1):
            paths.append(folder / f"{kind}_{level}.png")
            copy = distort(pixels, kind, level, np.random.default_rng([number, level]))
            same.append(np.array_equal(copy, pixels))
            Image.fromarray(copy).save(paths[-1])
    original, *others = scorer.score(paths)
    levels = np.where(same, np.nan, others).reshape(len(DISTORTIONS), NUM_LEVELS)
    return np.concatenate([np.full((len(DISTORTIONS), 1), original), levels], axis=1)


def size_scores(scorer: Scorer, photograph: Image.Image, folder: Path) -> dict[int, float]:
    """Score by the length of the longer side, its own included."""
    longer = max(photograph.size)
    paths = {}
    for side in (*(s for s in SIZES if s < longer), longer):
        scaled = photograph.copy()
        scaled.thumbnail((side, side), Image.Resampling.LANCZOS)
        paths[side] = folder / f"size_{side}.png"
        scaled.save(paths[side])
    return dict(zip(paths, map(float, scorer.score(list(paths.values()))), strict=True))


def summarise(scores: np.ndarray) -> dict:
    """Shares in percent of scores (photographs, kinds, 1 + levels), and the median rank correlation with the level."""
    steps, gaps = np.diff(scores, axis=2), scores[:, :, 1:] - scores[:, :, :1]
    whole = [levels for levels in scores[:, :, 1:].reshape(-1, NUM_LEVELS) if np.isfinite(levels).all()]
    ranks = [-spearmanr(range(NUM_LEVELS), levels).statistic for levels in whole]
    by_kind = {kind: _share_below_0(steps[:, number]) for number, kind in enumerate(DISTORTIONS)}
    return {
        "photographs": len(scores),
        "falling_steps": _share_below_0(steps),
        "falling_steps_by_kind": by_kind,
        "below_original": _share_below_0(gaps),
        "median_spearman_with_level": round(float(np.median(ranks)), 4),
    }


def _share_below_0(values: np.ndarray) -> float:
    """Percent, of those that are not NaN."""
    return round(100 * float((values < 0).sum() / np.isfinite(values).sum()), 2)


def summarise_sizes(scores: Sequence[dict[int, float]]) -> dict:
    """How far scores of made-smaller photographs lie from those of the photographs as they are, in mos."""
    moved = [abs(score - by_size[max(by_size)]) for by_size in scores for side, score in by_size.items()
             if side != max(by_size)]  # fmt: skip
    own = [by_size[max(by_size)] for by_size in scores]
    return {
        "median_change": round(statistics.median(moved), 2),
        "largest_change": round(max(moved), 2),
        "deviation_between_photographs": round(statistics.stdev(own), 2),
    }


def measure(scorer: Scorer, files: Sequence[Path]) -> dict:
    """Both measurements on some photographs."""
    distorted, sized = [], []
    for file in progress(files, "photographs"):
        photograph = Image.open(file).convert("RGB")
        with tempfile.TemporaryDirectory() as folder:
            distorted.append(distorted_scores(scorer, photograph, Path(folder)))
            sized.append(size_scores(scorer, photograph, Path(folder)))
    return summarise(np.stack(distorted)) | {"sizes": summarise_sizes(sized)}


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(description="Score photographs that no training has seen, distorted and in other sizes.")
    parser.add_argument("--photos", metavar="FOLDER", help="the folder that trainings learned from [eight samples]")
    parser.add_argument("--checkpoint", default="default", metavar="RUN", help="a model of the package or a run")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th of the photographs [1]")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="where the measurements go")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    arguments = make_parser().parse_args(argv)
    require_writable(arguments.json)
    files = held_out(list_photographs(arguments.photos))[1] if arguments.photos else sample_files()
    result = measure(load_model(arguments.checkpoint, num_workers=0), files[:: arguments.every])
    write_result(arguments.json, {"kind": "photographs", "checkpoint": arguments.checkpoint, **result})
    print(result)


if __name__ == "__main__":
    exit_on_user_error(main)
