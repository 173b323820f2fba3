"""The models that come with the package, one file each: weights in half precision, settings, and what scores mean.

`smart-iqa pack` makes such a file of a run; `docs/models.md` is written from what the files carry.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from iqa.choices import QUALITY_LEVELS
from iqa.errors import UserError

FOLDER = Path(__file__).with_name("weights")
DEFAULT = "default"


class Meaning(NamedTuple):
    """How to read a model's scores.

    Attributes:
        half_width: of the interval around a score, in mos.
        coverage: share of images whose mos the interval holds (measured on the images it was set by).
        images: how many those were.
        level_ends: the four scores between the five quality levels: fifths of the human scores it learned from.
    """

    half_width: float
    coverage: float
    images: int
    level_ends: tuple[float, float, float, float]

    def level(self, score: float) -> str:
        """The quality level of a score, Very Low to Very High."""
        return QUALITY_LEVELS[sum(score >= end for end in self.level_ends)]

    def interval(self, score: float) -> tuple[float, float]:
        """Lowest and highest likely mos, within 0..100."""
        return max(0.0, score - self.half_width), min(100.0, score + self.half_width)


def shipped_names() -> list[str]:
    """The models that come with the package; backbones alone (`swin-*`) are no models."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors") if not file.stem.startswith("swin-"))


def shipped_file(name: str) -> Path | None:
    """The file of a model that comes with the package, or None."""
    return FOLDER / f"{name}.safetensors" if name in shipped_names() else None


def checkpoint_file(checkpoint: str | Path) -> Path:
    """The file of a run's best weights, of a model of the package, or the file itself.

    Raises:
        UserError: there is none.
    """
    path = Path(checkpoint)
    if path.exists():
        return path / "best.safetensors" if path.is_dir() else path
    if (file := shipped_file(str(checkpoint))) is not None:
        return file
    raise UserError(
        f"no run at {path}: expected the folder of a run, a .safetensors file, or a model of the package "
        f"({', '.join(shipped_names())})"
    )
