"""The bootstrap: which resamples are drawn, and the value of each statistic in all of them at once.

`bootstrap_<key>` belongs to the statistic of that key in `iqa.metrics.table`: checked scores (n,), mos (n,) and the
resamples to draw -> values (resamples,), NaN where a resample leaves the statistic undefined. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from iqa.errors import UserError
from iqa.metrics.checks import MOST_IMAGES_IN_PAIRS
from iqa.metrics.logistic import _standardised

# Below this a percentile interval covers clearly less than it claims. `iqa.metrics.significance` widens its own for
# the number of contents and so decides from fewer on.
FEWEST_CONTENTS = 10
RESAMPLES = 2000  # of the intervals in a results file
PAIR_CELLS = 2**19  # pairs of images held at once: 4 MiB of float64
RESAMPLE_CELLS = 2**17  # images x resamples held at once: 1 MiB of float64 stays in the processor's cache


class TieGroups(NamedTuple):
    """One sorting of n values, enough to rank every resample of them without sorting again.

    Attributes:
        order: (n,) image indices by rising value.
        last: (groups,) position in `order` of each group of equal values' last member.
        group: (n,) the group of every image.
    """

    order: np.ndarray
    last: np.ndarray
    group: np.ndarray


def tie_groups(values: np.ndarray) -> TieGroups:
    """Sort (n,) values and find the groups of equal ones."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return TieGroups(np.argsort(values, kind="stable"), np.cumsum(sizes) - 1, group)


def resampled_ranks(groups: TieGroups, counts: np.ndarray) -> np.ndarray:
    """Mid-ranks of the n values in R resamples that hold them `counts` times, centred and doubled.

    A value's mid-rank is (drawn below + drawn up to and with it + 1) / 2, both read off one cumulative sum.
    Doubling, and centring at (N + 1) / 2 for N drawn, gives whole numbers and the same correlations.

    Args:
        groups: of the n values.
        counts: (n, R) how often each image was drawn.

    Returns:
        (n, R) exact ranks, their mean weighted by `counts` zero; meaningless where the count is 0.
    """
    up_to = np.cumsum(counts[groups.order], axis=0)[groups.last]  # (groups, R)
    ranks = up_to - up_to[-1]
    ranks[1:] += up_to[:-1]
    return ranks[groups.group]  # (n, R)


def resampled_srcc(scores_ranks: np.ndarray, mos_ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """SRCC in each of R resamples, all arguments (n, R); NaN where a resample is constant."""
    weighted = counts * scores_ranks
    covariance = np.einsum("nr,nr->r", weighted, mos_ranks)
    scores_variance = np.einsum("nr,nr->r", weighted, scores_ranks)
    mos_variance = np.einsum("nr,nr->r", counts * mos_ranks, mos_ranks)
    return _ratio(covariance, scores_variance * mos_variance)


def _ratio(covariance: np.ndarray, product_of_variances: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.clip(covariance / np.sqrt(product_of_variances), -1, 1)
    return np.where(product_of_variances > 0, correlation, np.nan)


def resample_counts(clusters: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw contents with replacement and count how often each image came along.

    Args:
        clusters: (n,) content number 0..k-1 of every image; k contents are drawn for each resample.
        resamples: how many resamples in all.
        seed: of the generator; the r-th resample depends on it, on k and on r alone.

    Yields:
        (n, R) float64 counts, R resamples at a time, so that memory stays small.
    """
    contents = int(clusters.max()) + 1
    chunk = max(1, RESAMPLE_CELLS // clusters.size)
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        width = min(chunk, resamples - start)
        drawn = generator.integers(contents, size=(width, contents))
        cells = (drawn * width + np.arange(width)[:, None]).ravel()
        counts = np.bincount(cells, minlength=contents * width).reshape(contents, width)
        yield counts.astype(np.float64)[clusters]


class Resampling(NamedTuple):
    """Which resamples to draw: the same arguments give the same ones to every statistic.

    Attributes:
        clusters: (n,) content number 0..k-1 of every image.
        resamples: how many.
        seed: of the generator.
    """

    clusters: np.ndarray
    resamples: int
    seed: int

    def counts(self) -> Iterator[np.ndarray]:
        """How often each image was drawn: (n, R) float64, R resamples at a time."""
        return resample_counts(self.clusters, self.resamples, self.seed)


def bootstrap_srcc(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
    """SRCC of every resample."""
    scores_groups, mos_groups = tie_groups(scores), tie_groups(mos)
    return np.concatenate(
        [
            resampled_srcc(resampled_ranks(scores_groups, counts), resampled_ranks(mos_groups, counts), counts)
            for counts in drawn.counts()
        ]
    )


def bootstrap_plcc(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
    """PLCC of every resample."""
    scores, mos = _standardised(scores), _standardised(mos)
    powers = np.stack([np.ones_like(scores), scores, mos, scores**2, mos**2, scores * mos])  # (6, n)
    sums = np.concatenate([powers @ counts for counts in drawn.counts()], axis=1)  # (6, resamples)
    scores_mean, mos_mean, scores_square, mos_square, product = sums[1:] / sums[0]
    variances = np.stack([scores_square - scores_mean**2, mos_square - mos_mean**2])
    variances[variances < 1e-12] = 0  # rounding alone keeps a constant resample from exactly 0
    return _ratio(product - scores_mean * mos_mean, variances[0] * variances[1])


def bootstrap_krcc(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
    """Tau-b of every resample; NaN for more than 12,000 images, whose pairs are too many."""
    if scores.size > MOST_IMAGES_IN_PAIRS:
        return np.full(drawn.resamples, np.nan)
    groups = tie_groups(scores), tie_groups(mos)
    untied = [[_untied_pairs(group, counts) for group in groups] for counts in drawn.counts()]  # chunks of 2 x (R,)
    scores_pairs, mos_pairs = np.concatenate(untied, axis=1)
    return _ratio(_resampled_concordance(scores, mos, drawn), scores_pairs * mos_pairs)


def _untied_pairs(groups: TieGroups, counts: np.ndarray) -> np.ndarray:
    """How many pairs of drawn images differ in value, in each of R resamples: (R,)."""
    first = np.append(0, groups.last[:-1] + 1)
    sizes = np.add.reduceat(counts[groups.order], first, axis=0)  # (groups, R)
    return (sizes.sum(axis=0) ** 2 - np.einsum("gr,gr->r", sizes, sizes)) / 2


def _resampled_concordance(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
    """Concordant minus discordant pairs in each resample, (resamples,): the quadratic form w' S w / 2.

    S_ij sums the signs of the pairs between contents i and j, w_j is how often content j was drawn. A few rows
    of S at a time are made and used, from the diagonal on: S is symmetric, so what lies right of it counts twice.
    """
    order = np.argsort(drawn.clusters, kind="stable")
    scores, mos, clusters = scores[order], mos[order], drawn.clusters[order]
    start = np.searchsorted(clusters, np.arange(clusters[-1] + 2))  # content j is rows start[j] .. start[j + 1]
    # No such sum exceeds 2 x images x largest content, so that single precision, twice as fast, is often exact.
    exact: type[np.floating] = np.float32 if 2 * scores.size * np.diff(start).max() < 2**24 else np.float64
    drawn_of = np.concatenate(list(resample_counts(np.arange(len(start) - 1), *drawn[1:])), axis=1).astype(exact)
    total = np.zeros(drawn.resamples)
    width = max(1, PAIR_CELLS // (scores.size * int(np.diff(start).max())))
    for low in range(0, len(start) - 1, width):
        high = min(low + width, len(start) - 1)
        rows, columns = slice(start[low], start[high]), slice(start[low], None)
        signs = np.sign(scores[rows, None] - scores[columns]) * np.sign(mos[rows, None] - mos[columns])
        by_content = np.add.reduceat(signs, start[low:-1] - start[low], axis=1)  # (rows, contents from low on)
        by_content = np.add.reduceat(by_content, start[low:high] - start[low], axis=0).astype(exact)
        by_content[:, high - low :] *= 2
        total += np.einsum("cr,cr->r", drawn_of[low:high], by_content @ drawn_of[low:], dtype=np.float64)
    return total / 2


def bootstrap_rmse(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
    """RMSE of every resample."""
    return np.sqrt(_resampled_mean((scores - mos) ** 2, drawn))


def bootstrap_mae(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
    """MAE of every resample."""
    return _resampled_mean(np.abs(scores - mos), drawn)


def _resampled_mean(values: np.ndarray, drawn: Resampling) -> np.ndarray:
    return np.concatenate([values @ counts / counts.sum(axis=0) for counts in drawn.counts()])


def require_resamples(resamples: int) -> None:
    """Raise UserError unless there is at least one resample."""
    if resamples < 1:
        raise UserError(f"resamples: expected at least 1, got {resamples}")


def percentile_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Return the (low, high) quantiles that hold `level` of the defined values; NaN if there are none."""
    defined = values[~np.isnan(values)]
    if defined.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
