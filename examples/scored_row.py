"""Make eleven copies of a photograph, distorted in different ways, as files to score.

    python examples/scored_row.py copies
    smart-iqa predict copies --sheet best_to_worst.png

The photograph is "coffee" of scikit-image (Rachel Michetti, public domain), 600 x 400 pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from iqa.distortions import distort

COPIES = (
    ("gaussian_blur", 2), ("gaussian_blur", 4), ("jpeg", 3), ("jpeg", 5), ("white_noise", 3), ("white_noise", 5),
    ("pixelation", 4), ("motion_blur", 4), ("contrast", 4), ("jpeg2000", 5), ("colour_shift", 5),
)  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """The command's one argument."""
    parser = argparse.ArgumentParser(description="Make distorted copies of a photograph, as files to score.")
    parser.add_argument("folder", help="where the files are written")
    return parser


def main() -> None:
    """Write the original and its copies to the folder that the command line names."""
    folder = Path(make_parser().parse_args().folder)
    folder.mkdir(parents=True, exist_ok=True)
    original = data.coffee()
    Image.fromarray(original).save(folder / "original.png")
    for number, (kind, level) in enumerate(COPIES):
        copy = distort(original, kind, level, np.random.default_rng(number))
        Image.fromarray(copy).save(folder / f"{kind}_{level}.png")


if __name__ == "__main__":
    main()
