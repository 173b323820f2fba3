"""Build the `demo` database without a network connection.

    smart-iqa make-demo-database --output datasets/demo

Photographs inside the scikit-image and scikit-learn wheels -[cut]-> tiles -[iqa.distortions]-> images with
labels, which `folders.py` then reads like any other database. The label is a **pseudo-mos**: 100 x HaarPSI^3
(Reisenhofer, Bosse, Kutyniok and Wiegand, 2018) of the distorted tile against the undistorted one. No person
rated anything. Measure, distortions and test part were fixed before any training; the power, which changes no rank,
and the made-up training scenes were chosen later, with trained networks in view.

Two steps: `plan` decides every image, `render` makes the images of one tile. Every image has a generator
seeded by its own name, so neither order nor number of workers changes a byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from iqa.demo import dead_leaves, two_tone
from iqa.distortions import DISTORTIONS, NUM_LEVELS, distort
from iqa.errors import Parser, UserError
from iqa.system import declare_missing_operators, progress, usable_cpus

TILE_SIDE = 288  # room for a random 224-pixel crop
MAX_OVERLAP = 80  # pixels that neighbouring tiles of a photograph may share
SPREAD = 3  # power of HaarPSI; the median of the labels comes near 50
UNDISTORTED = ("undistorted", 0)
ALL_CELLS = tuple((kind, level) for kind in DISTORTIONS for level in range(1, NUM_LEVELS + 1))
SETTINGS_FILE = "made_by_make_demo_database.json"  # a name no other folder has: --force replaces by it
COLUMNS = ("image", "mos", "content", "distortion", "level", "split", "source")
MEASURED_WITH = ("numpy", "scipy", "pillow", "torch", "piq", "scikit-image", "scikit-learn")


@dataclass(frozen=True)
class Content:
    """One scene: every image made from it goes to the same part.

    Attributes:
        name: what the labels call it.
        split: train, val or test.
        files: "package/file" of each photograph of the scene; empty for a procedural content.
        scales: sizes at which the photographs are cut, as fractions of the original.
        images: distorted images from each file; each pair of kind and level occurs at most once on a tile.
    """

    name: str
    split: str
    files: tuple[str, ...]
    scales: tuple[float, ...]
    images: int


_SKIMAGE, _SKLEARN = "skimage.data", "sklearn.datasets.images"
_STEREO_PAIR = (f"{_SKIMAGE}/motorcycle_left.png", f"{_SKIMAGE}/motorcycle_right.png")

# The test part has natural colour photographs only, since that is what people score. Textures and scientific
# pictures teach the distortions on other statistics and stay in the train part. Scales below 1 show more of
# the scene and sharpen soft originals (moon, retina, the deep field). Left out: clock_motion (blurred on
# purpose), cell (noisy and soft), page and text (lower than a tile), color, horse, logo, phantom and the
# chessboards (no photographs).
PHOTOGRAPHS: tuple[Content, ...] = (
    Content("astronaut", "test", (f"{_SKIMAGE}/astronaut.png",), (1.0, 0.6), images=75),
    Content("coffee", "test", (f"{_SKIMAGE}/coffee.png",), (1.0, 0.75), images=75),
    Content("rocket", "test", (f"{_SKIMAGE}/rocket.jpg",), (1.0, 0.7), images=75),
    Content("flower", "test", (f"{_SKLEARN}/flower.jpg",), (1.0, 0.7), images=75),
    Content("chelsea", "val", (f"{_SKIMAGE}/chelsea.png",), (1.0,), images=75),
    Content("camera", "val", (f"{_SKIMAGE}/camera.png",), (1.0, 0.6), images=75),
    Content("motorcycle", "train", _STEREO_PAIR, (1.0, 0.6), images=200),
    Content("china", "train", (f"{_SKLEARN}/china.jpg",), (1.0, 0.85, 0.7), images=225),
    Content("ihc", "train", (f"{_SKIMAGE}/ihc.png",), (1.0, 0.6), images=120),
    Content("retina", "train", (f"{_SKIMAGE}/retina.jpg",), (0.42, 0.3), images=120),
    Content("hubble_deep_field", "train", (f"{_SKIMAGE}/hubble_deep_field.jpg",), (0.5,), images=90),
    Content("brick", "train", (f"{_SKIMAGE}/brick.png",), (1.0, 0.6), images=60),
    Content("grass", "train", (f"{_SKIMAGE}/grass.png",), (1.0, 0.6), images=60),
    Content("gravel", "train", (f"{_SKIMAGE}/gravel.png",), (1.0, 0.6), images=60),
    Content("coins", "train", (f"{_SKIMAGE}/coins.png",), (1.0,), images=45),
    Content("moon", "train", (f"{_SKIMAGE}/moon.png",), (0.6,), images=45),
)
# One tile each: many palettes and arrangements are worth more to training than many views of few.
PROCEDURAL: tuple[Content, ...] = tuple(
    Content(f"dead_leaves_{number:03d}", "train", (), (), images=12) for number in range(80)
)
CONTENTS = PHOTOGRAPHS + PROCEDURAL


@dataclass(frozen=True)
class Tile:
    """One undistorted square of `TILE_SIDE` pixels and the images to be made from it.

    Attributes:
        content: the scene it shows.
        number: counts the tiles of the content.
        file: "package/file" of the photograph; empty for a dead leaves tile.
        scale: size of the photograph when cut, as a fraction of the original.
        left: column of the tile's first pixel at that scale.
        top: row of the tile's first pixel at that scale.
        cells: (distortion, level) of every image, the undistorted one first.
    """

    content: Content
    number: int
    file: str
    scale: float
    left: int
    top: int
    cells: tuple[tuple[str, int], ...]

    def image(self, kind: str, level: int) -> str:
        """Path of an image relative to the database's folder."""
        return f"images/{self.content.name}_{self.number:02d}_{kind}_{level}.png"


def plan(seed: int, contents: Sequence[Content] = CONTENTS) -> list[Tile]:
    """Decide every image of the database; opens the photographs for their size only.

    Args:
        seed: chooses which distortions fall on which tile.
        contents: the scenes to use.

    Returns:
        The tiles in the order of the labels.

    Raises:
        UserError: a photograph is missing from the installed wheels.
    """
    return [tile for content in contents for tile in _plan_content(content, seed)]


def _plan_content(content: Content, seed: int) -> list[Tile]:
    places_by_file = [[(file, *place) for place in _places(file, content.scales)] for file in content.files]
    if not content.files:
        places_by_file = [[("", 1.0, 0, 0)]]
    rng = _generator(seed, content.name)
    tiles: list[Tile] = []
    for places in places_by_file:
        order = [ALL_CELLS[index] for index in rng.permutation(len(ALL_CELLS))]
        by_place: list[list[tuple[str, int]]] = [[] for _ in places]
        for image in range(min(content.images, len(order) * len(places))):
            turn, position = divmod(image, len(order))
            # Each turn moves on by one tile, so a pair comes back on another tile.
            by_place[(position + turn) % len(places)].append(order[position])
        for (file, scale, left, top), cells in zip(places, by_place, strict=True):
            tiles.append(Tile(content, len(tiles), file, scale, left, top, (UNDISTORTED, *sorted(cells))))
    return tiles


def _places(file: str, scales: Sequence[float]) -> list[tuple[float, int, int]]:
    """(scale, left, top) of each tile that a photograph gives."""
    with Image.open(_locate(file)) as photograph:
        width, height = photograph.size
    return [
        (scale, left, top)
        for scale in scales
        for top in _offsets(round(height * scale))
        for left in _offsets(round(width * scale))
    ]


def _offsets(length: int) -> list[int]:
    """Evenly spaced starts of as many tiles as fit with an overlap of at most `MAX_OVERLAP`."""
    spare = length - TILE_SIDE
    assert spare >= 0, f"a side of {length} pixels is shorter than a tile"
    gaps = spare // (TILE_SIDE - MAX_OVERLAP)
    return [round(spare * index / gaps) for index in range(gaps + 1)] if gaps else [spare // 2]


def _locate(file: str) -> Path:
    package, name = file.split("/")
    try:
        path = Path(str(resources.files(package))) / name
    except ModuleNotFoundError as error:
        raise UserError(f"package {error.name} is not installed: pip install -r requirements.txt") from error
    if not path.is_file():
        raise UserError(f"the installed {package} lacks {name}: pip install -r requirements.txt")
    return path


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def undistorted(tile: Tile, seed: int) -> np.ndarray:
    """Pixels of a tile, (TILE_SIDE, TILE_SIDE, 3) uint8."""
    if not tile.file:
        return dead_leaves(TILE_SIDE, _generator(seed, f"{tile.content.name}/{tile.number}"), _textures())
    return _photograph(tile.file, tile.scale)[tile.top : tile.top + TILE_SIDE, tile.left : tile.left + TILE_SIDE]


@lru_cache(maxsize=32)
def _photograph(file: str, scale: float) -> np.ndarray:
    """A photograph (H, W, 3) uint8 at a fraction of its size; a greyscale one is coloured.

    Grey is what the strongest loss of saturation leaves: undistorted grey photographs would contradict its labels.
    """
    with Image.open(_locate(file)) as opened:
        photograph = opened.convert("L" if opened.mode in ("L", "LA") else "RGB")
    if photograph.mode == "L":
        photograph = Image.fromarray(two_tone(np.asarray(photograph), _generator(0, file)))
    if scale != 1:
        size = (round(photograph.width * scale), round(photograph.height * scale))
        photograph = photograph.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(photograph)


def _textures() -> list[np.ndarray]:
    """The photographs of the train part, whose pieces the dead leaves show."""
    used = [content for content in PHOTOGRAPHS if content.split == "train"]
    return [_photograph(file, content.scales[0]) for content in used for file in content.files]


def pseudo_mos(reference: np.ndarray, images: Sequence[np.ndarray]) -> list[float]:
    """100 x HaarPSI^3 of each image against the reference, rounded to two decimals.

    HaarPSI crowds mild distortions near 1; the power spreads them over the scale and keeps their order.

    Args:
        reference: (H, W, 3) uint8.
        images: (H, W, 3) uint8 each.

    Returns:
        One value in 0..100 for each image; 100 is equal to the reference.
    """
    import torch

    declare_missing_operators()
    import piq  # after the declaration, since it imports torchvision

    distorted = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255  # (N, 3, H, W)
    original = torch.from_numpy(reference.copy()).permute(2, 0, 1).expand_as(distorted) / 255  # (N, 3, H, W)
    values = 100 * piq.haarpsi(distorted, original, reduction="none").clamp(0, 1) ** SPREAD  # (N,)
    return [round(value, 2) for value in values.double().tolist()]


def render(tile: Tile, seed: int, folder: Path) -> list[tuple]:
    """Make the images of one tile.

    Args:
        tile: what to make.
        seed: the database's seed.
        folder: the database's folder; its `images` must exist.

    Returns:
        One row of labels, in the order of `COLUMNS`, for each image.
    """
    reference = undistorted(tile, seed)
    images = [
        reference if cell == UNDISTORTED else distort(reference, *cell, _generator(seed, tile.image(*cell)))
        for cell in tile.cells
    ]
    for cell, image in zip(tile.cells, images, strict=True):
        Image.fromarray(image).save(folder / tile.image(*cell), compress_level=3)
    source = "photograph" if tile.file else "procedural"
    return [
        (tile.image(*cell), mos, tile.content.name, *cell, tile.content.split, source)
        for cell, mos in zip(tile.cells, pseudo_mos(reference, images), strict=True)
    ]


def settings(seed: int, contents: Sequence[Content] = CONTENTS) -> dict[str, Any]:
    """All that decides the bytes of the database: measure, seed, recipe, versions of the packages used."""
    levels = [(row.name, row.levels) for row in DISTORTIONS.values()]
    recipe = repr((TILE_SIDE, MAX_OVERLAP, levels, tuple(contents)))
    return {
        "label": "pseudo-mos = 100 x HaarPSI^3 (piq.haarpsi, RGB, default parameters); not human opinion",
        "seed": seed,
        "recipe": hashlib.sha256(recipe.encode()).hexdigest()[:16],
        "machine": platform.machine(),
        "versions": {package: metadata.version(package) for package in MEASURED_WITH},
    }


def build(folder: Path, seed: int, workers: int, contents: Sequence[Content] = CONTENTS) -> pd.DataFrame:
    """Write images, labels.csv, README.txt and the settings into a new folder.

    Args:
        folder: must not exist; its parent must.
        seed: decides the bytes, together with `settings`.
        workers: threads; without influence on the result.
        contents: the scenes to use.

    Returns:
        The labels, with `COLUMNS`.
    """
    import torch

    tiles = plan(seed, contents)
    declare_missing_operators()  # before the workers start: two of them at once would declare them twice
    (folder / "images").mkdir(parents=True)
    # One thread of torch in each worker: sums in another order could move a label's last digit.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rendered = pool.map(lambda tile: render(tile, seed, folder), tiles)
        rows = [row for rows in progress(rendered, "render tiles", total=len(tiles)) for row in rows]
    labels = pd.DataFrame(rows, columns=list(COLUMNS))
    labels.to_csv(folder / "labels.csv", index=False, float_format="%.2f", lineterminator="\n")
    made_with = settings(seed, contents)
    (folder / SETTINGS_FILE).write_text(json.dumps(made_with, indent=2) + "\n")
    (folder / "README.txt").write_text(_readme(labels, made_with))
    return labels


def _readme(labels: pd.DataFrame, made_with: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in made_with["versions"].items())
    return f"""demo: an image quality database for trying out the code, made by `smart-iqa make-demo-database`

{summary(labels)}
Label (column mos): {made_with["label"]}.
100 means equal to the undistorted tile. The measure was fixed before any training. A model that agrees with
these labels imitates that measure; nothing follows from it about the opinion of people.
Columns: {", ".join(COLUMNS)}. Level 0 is the undistorted tile; levels 1 to 5 grow stronger.
A content is in one part only; the two views of the stereo pair "motorcycle" are one content.
Seed {made_with["seed"]}, recipe {made_with["recipe"]}; {versions}.
The photographs come from the wheels of scikit-image and scikit-learn and keep the licences stated there
(skimage/data, sklearn/datasets/images/README.txt). Contents dead_leaves_* are generated.
"""


def summary(labels: pd.DataFrame) -> str:
    """One line: images, and contents in each part."""
    parts = labels.groupby("split")["content"].agg(["size", "nunique"])
    described = [f"{name} {row['size']} of {row['nunique']} contents" for name, row in parts.iterrows()]
    return f"{len(labels)} images: {', '.join(described)}."


def make_database(output: Path, seed: int, workers: int, force: bool, contents: Sequence[Content] = CONTENTS) -> str:
    """Build the database at `output`, or find it there; nothing half-written is left behind.

    Args:
        output: the database's folder.
        seed: 0 or more.
        workers: threads, 1 or more.
        force: replace a database of other settings. A folder this script did not make is never replaced.
        contents: the scenes to use.

    Returns:
        One line for the user.

    Raises:
        UserError: bad number, folder in the way, or a parent that cannot be written.
    """
    if seed < 0 or workers < 1:
        raise UserError(f"--seed must be 0 or more and --workers 1 or more, got {seed} and {workers}")
    if output.exists() and not force and _same_settings(output, settings(seed, contents)):
        return f"{output} is there already, made with the same settings"
    if output.exists() and not (output / SETTINGS_FILE).is_file():
        raise UserError(f"{output} was not made by this script: choose another --output or remove it")
    if output.exists() and not force:
        raise UserError(f"{output} was made with other settings: add --force to replace it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent)
    except OSError as error:
        raise UserError(f"cannot write into {output.parent}: {error.strerror}; choose another --output") from error
    with scratch as folder:
        labels = build(Path(folder) / "new", seed, workers, contents)
        if output.exists():
            shutil.move(output, Path(folder) / "old")
        (Path(folder) / "new").replace(output)
    return f"{output}: {summary(labels)}"


def _same_settings(output: Path, wanted: dict[str, Any]) -> bool:
    path = output / SETTINGS_FILE
    return path.is_file() and path.read_text() == json.dumps(wanted, indent=2) + "\n"


def default_output() -> Path:
    """`demo` under $IQA_DATA_ROOT, or under ./datasets where that is not set."""
    return Path(os.environ.get("IQA_DATA_ROOT", "datasets")) / "demo"


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="Build the demo database from photographs in installed wheels.")
    parser.add_argument("--output", type=Path, default=default_output(), help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides every byte (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="threads (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a demo database of other settings")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags and build."""
    flags = make_parser().parse_args(argv)
    print(make_database(flags.output, flags.seed, flags.workers, flags.force))
