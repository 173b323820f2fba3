"""Stage weights as bars: what is measured, what is published, and what is not known."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import to_hex

from iqa.figures import draw_stage_weights
from iqa.metrics import QUALITY_LEVELS
from iqa.results import read_published


def levels(**changes: dict) -> dict[str, dict]:
    known = {"mean": [0.1, 0.2, 0.3, 0.4], "std": [0.01] * 4}
    return {level: known | changes.get(level, {}) for level in QUALITY_LEVELS}


def whiskers(axes) -> int:
    """How many whiskers are drawn."""
    return sum(
        len(segment) > 1 and bool(np.isfinite(segment).all())
        for lines in axes.collections
        for segment in lines.get_segments()
    )


def test_every_stage_has_its_bar_and_whisker_in_every_level():
    (axes,) = draw_stage_weights({"a run": levels()}).axes
    assert [round(bar.get_height(), 3) for bar in axes.patches] == [0.1] * 5 + [0.2] * 5 + [0.3] * 5 + [0.4] * 5
    assert whiskers(axes) == 20 and axes.get_title(loc="left") == "a run"
    assert len({to_hex(bar.get_facecolor()) for bar in axes.patches}) == 4


def test_a_level_without_images_has_no_bar_and_one_image_no_whisker():
    nothing, alone = {"mean": [math.nan] * 4, "std": [math.nan] * 4}, {"std": [math.nan] * 4}
    (axes,) = draw_stage_weights({"a run": levels(Mid=nothing, High=alone)}).axes
    assert sum(math.isfinite(bar.get_height()) for bar in axes.patches) == 16
    assert whiskers(axes) == 12
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(QUALITY_LEVELS)


def test_published_weights_are_hatched_below_and_say_what_they_call_the_stages():
    ours, theirs = draw_stage_weights({"a run": levels()}, read_published().get("attention_by_level")).axes
    assert all(bar.get_hatch() for bar in theirs.patches) and not any(bar.get_hatch() for bar in ours.patches)
    assert "stage 1, stage 2, stage 3, stage 4" in theirs.get_title(loc="left") and whiskers(theirs) == 0
    assert ours.get_ylim() == theirs.get_ylim()
