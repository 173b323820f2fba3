"""What the JSON API answers: the names, types and meaning of its fields."""

from __future__ import annotations

from pydantic import BaseModel, Field

from smart_iqa import __version__
from smart_iqa.scorer import Scorer
from smart_iqa.serving.limits import Limits


class Scored(BaseModel):
    """An image and what the model says of it."""

    name: str = Field(description="of the file, as it was sent")
    width: int = Field(description="pixels, upright")
    height: int
    score: float = Field(description="0..100, higher is better; what `smart-iqa predict` says", ge=0, le=100)
    low: float | None = Field(None, description="lower end of the interval around the score")
    high: float | None = Field(None, description="upper end of the interval around the score")
    level: str | None = Field(None, description="Very Low, Low, Mid, High or Very High")
    stage_weights: list[float] | None = Field(
        None, description="of the backbone's stages 0 (fine) to 3 (coarse), sum 1; null where the fusion has none"
    )
    map: list[list[float]] | None = Field(
        None, description="rows over the whole image, top to bottom: Grad-CAM in points, positive raises the score"
    )


class NotScored(BaseModel):
    """An image that was not scored, and why."""

    name: str
    status: int = Field(description="HTTP status that it would have alone: 413, 415, 422, 503")
    error: str


class Answer(BaseModel):
    """A row for each file, in the order sent; where none was scored, `error` and the status are the first one's."""

    results: list[Scored | NotScored]
    error: str | None = None


class Problem(BaseModel):
    """Why a request as a whole is not answered."""

    error: str


class Model(BaseModel):
    """The model, how to read its scores, and what the server takes."""

    version: str
    checkpoint: str
    backbone: str
    score_range: list[float] = [0, 100]
    higher_is_better: bool = True
    has_stage_weights: bool
    half_width: float | None = Field(None, description="half of the interval around a score")
    coverage: float | None = Field(None, description="share of images whose human score the interval holds")
    level_ends: list[float] | None = Field(None, description="scores between the five levels")
    limits: dict[str, float]


def describe_model(scorer: Scorer, checkpoint: str, limits: Limits) -> Model:
    """What `/api/model` answers."""
    meaning = scorer.meaning
    known = {} if meaning is None else {key: getattr(meaning, key) for key in ("half_width", "coverage", "level_ends")}
    return Model(
        version=__version__,
        checkpoint=checkpoint,
        backbone=scorer.model.backbone.timm_name,
        has_stage_weights=scorer.model.fusion.weighs_stages,
        limits=vars(limits),
        **known,
    )
