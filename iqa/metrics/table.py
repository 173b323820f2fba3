"""The table of statistics: all that is known of each stands in its row, and a new statistic is a new row.

`iqa.metrics.summary` computes the rows, `iqa.results` stores and prints them, the page and the figures show them: each
reads this table and names no statistic that it does not single out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike

from iqa.errors import UserError
from iqa.metrics.bootstrap import (
    RESAMPLES,
    Resampling,
    bootstrap_krcc,
    bootstrap_mae,
    bootstrap_plcc,
    bootstrap_rmse,
    bootstrap_srcc,
    percentile_interval,
    require_resamples,
)
from iqa.metrics.checks import checked_pair, content_index
from iqa.metrics.correlation import krcc, mae, outlier_ratio, plcc, rmse, srcc


class Place(IntEnum):
    """Where a statistic is shown; each place also shows the statistics of the places before it."""

    BRIEF = 0  # tables over databases, ablations and splits; titles of plots; the head of the page
    PAPER = 1  # the paper's table of one database
    SCREEN = 2  # printed tables
    PAGE = 3  # the page of a run
    FILE = 4  # `results.json` alone


@dataclass(frozen=True)
class Statistic:
    """One row.

    Attributes:
        key: field of `results.json`; the interval is stored as `<key>_ci95`.
        title: heading of its column.
        decimals: shown of a value; an interval shows one fewer.
        higher_is_better: the direction.
        meaning: what the page says about it.
        function: scores (n,), mos (n,) and what `needs` names -> a float, NaN where it is undefined.
        resampled: scores (n,), mos (n,), resamples to draw -> its value in each; None: it has no interval.
        place: the first place that shows it.
        logistic: takes the scores after the logistic with this many parameters; None takes them as they are.
        needs: what else has to be known: `mos_std` (n,), or `scale`, the width of the database's own scale / 100.
    """

    key: str
    title: str
    decimals: int
    higher_is_better: bool
    meaning: str
    function: Callable[..., float]
    resampled: Callable[[np.ndarray, np.ndarray, Resampling], np.ndarray] | None = None
    place: Place = Place.BRIEF
    logistic: int | None = None
    needs: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether scores and mos as they are suffice, so that small groups of images have it too."""
        return self.logistic is None and not self.needs

    def text(self, value: float | None, fewer: int = 0) -> str:
        """A value with its decimals, or with some fewer; a dash where it is undefined."""
        return "-" if value is None or math.isnan(value) else f"{value:.{self.decimals - fewer}f}"

    def interval(self, scores: np.ndarray, mos: np.ndarray, drawn: Resampling, level: float) -> tuple[float, float]:
        """The bootstrap interval of checked arrays (n,); (NaN, NaN) without a value or with a single content."""
        assert self.resampled is not None
        if math.isnan(self.function(scores, mos)) or drawn.clusters.max() == 0:
            return math.nan, math.nan
        return percentile_interval(self.resampled(scores, mos, drawn), level)


def _rows(*rows: Statistic) -> dict[str, Statistic]:
    return {row.key: row for row in rows}


STATISTICS = _rows(
    Statistic("srcc", "SRCC", 4, True, "Spearman's rank correlation", srcc, bootstrap_srcc),
    Statistic("plcc", "PLCC", 4, True, "Pearson's linear correlation", plcc, bootstrap_plcc),
    Statistic(
        "plcc_logistic4", "PLCC log4", 4, True, "PLCC after the logistic with 4 parameters", plcc, bootstrap_plcc,
        Place.SCREEN, logistic=4,
    ),
    Statistic(
        "plcc_logistic5", "PLCC log5", 4, True, "PLCC after the logistic with 5 parameters", plcc, bootstrap_plcc,
        Place.PAGE, logistic=5,
    ),
    Statistic("krcc", "KRCC", 4, True, "Kendall's rank correlation", krcc, bootstrap_krcc, Place.PAPER),
    Statistic("rmse", "RMSE", 2, False, "root mean squared error on 0..100", rmse, bootstrap_rmse, Place.PAPER),
    Statistic("mae", "MAE", 2, False, "mean absolute error on 0..100", mae, bootstrap_mae, Place.PAGE),
    Statistic(
        "outlier_ratio", "outliers", 3, False,
        "share of images whose error is more than two deviations of their ratings", outlier_ratio,
        place=Place.PAGE, needs=("mos_std",),
    ),
    Statistic(
        "rmse_own_scale", "RMSE own scale", 4, False, "RMSE on the database's own scale",
        lambda scores, mos, scale: rmse(scores, mos) * scale, place=Place.FILE, needs=("scale",),
    ),
    Statistic(
        "mae_own_scale", "MAE own scale", 4, False, "MAE on the database's own scale",
        lambda scores, mos, scale: mae(scores, mos) * scale, place=Place.FILE, needs=("scale",),
    ),
)  # fmt: skip


def shown_in(place: Place) -> list[Statistic]:
    """The statistics that a place shows, in order.

    >>> [statistic.title for statistic in shown_in(Place.PAPER)]
    ['SRCC', 'PLCC', 'KRCC', 'RMSE']
    """
    return [statistic for statistic in STATISTICS.values() if statistic.place <= place]


def bootstrap_interval(
    scores: ArrayLike,
    mos: ArrayLike,
    statistic: str = "srcc",
    contents: Iterable[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic (Efron 1979), resampling contents.

    Images of one content are not independent: whole contents are drawn (the cluster bootstrap, Davison and
    Hinkley 1997), or the interval would be too narrow. Resamples in which the statistic is undefined, such
    as one image drawn n times, are left out of the percentiles.

    Args:
        scores: predictions.
        mos: mean opinion scores.
        statistic: "srcc", "plcc", "krcc", "rmse" or "mae".
        contents: content id of every image; None where every image is its own content.
        resamples: number of resamples.
        seed: same seed, same interval.
        level: share of resamples inside.

    Returns:
        (low, high); (NaN, NaN) if the statistic is undefined, there is only one content, or KRCC is asked for
        more than 12,000 images.

    Raises:
        UserError: unknown statistic, no resamples, level outside (0, 1), or bad input rows.

    >>> low, high = bootstrap_interval([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5])
    >>> low < srcc([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5]) < high
    True
    """
    known = {key: row for key, row in STATISTICS.items() if row.plain and row.resampled}
    if statistic not in known:
        raise UserError(f"statistic: expected one of {', '.join(known)}, got {statistic!r}")
    require_resamples(resamples)
    if not 0 < level < 1:
        raise UserError(f"level: expected a share between 0 and 1, got {level}")
    scores, mos = checked_pair(scores, mos)
    drawn = Resampling(content_index(contents, scores.size), resamples, seed)
    return known[statistic].interval(scores, mos, drawn, level)
