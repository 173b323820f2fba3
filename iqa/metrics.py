"""How well scores agree with people: correlations, errors, logistic mappings, intervals, summaries.

Stands between `iqa.evaluation`, which makes the scores, and `iqa.results`, which stores the numbers. Whether
one run is better than another is the question of `iqa.significance`. Everywhere `scores` and `mos` are (n,)
arrays in the same image order, higher = better, mos on 0..100 unless said otherwise; NumPy and SciPy only.

A statistic that the data cannot define (fewer than 3 images, constant scores) is NaN from the plain
functions; `summarize` and `group_summaries`, made for JSON, say None and give the reason in `notes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from iqa.errors import UserError

FEWEST_IMAGES = 3  # two points always lie on a line: their correlation says nothing
# Below this a percentile interval covers clearly less than it claims. `iqa.significance` widens its own for the number
# of contents and so decides from fewer on.
FEWEST_CONTENTS = 10
MOST_IMAGES_IN_PAIRS = 12_000  # 72 million pairs: where each is looked at, more would take minutes or gigabytes
QUALITY_LEVELS = ("Very Low", "Low", "Mid", "High", "Very High")  # fifths of the mos distribution
RESAMPLES = 2000  # of the intervals in a results file
PAIR_CELLS = 2**19  # pairs of images held at once: 4 MiB of float64
RESAMPLE_CELLS = 2**17  # images x resamples held at once: 1 MiB of float64 stays in the processor's cache


# ---------------------------------------------------------------------------------------------------------
# Input, checked once at the border
# ---------------------------------------------------------------------------------------------------------


def finite_vector(values: ArrayLike, name: str) -> np.ndarray:
    """Return `values` as an (n,) float64 array, every entry finite.

    Args:
        values: numbers in one dimension.
        name: what they are called in an error.

    Raises:
        UserError: not numbers, not one-dimensional, or NaN or infinite somewhere (names the first index).
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name}: expected numbers, got something else ({error})") from error
    if vector.ndim != 1:
        raise UserError(f"{name}: expected one dimension (n,), got shape {vector.shape}")
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        raise UserError(
            f"{name}[{bad[0]}] is {vector[bad[0]]} (bad rows: {bad.size} of {vector.size}); "
            "remove these images or find out where the value comes from"
        )
    return vector


def checked_pair(scores: ArrayLike, mos: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and mos as (n,) float64 arrays of one length.

    Raises:
        UserError: as `finite_vector`, or the lengths differ.
    """
    scores, mos = finite_vector(scores, "scores"), finite_vector(mos, "mos")
    require_length(mos, "mos", scores.size)
    return scores, mos


def require_length(values: Sequence | np.ndarray, name: str, n: int, reference: str = "scores") -> None:
    """Raise UserError unless `values` has one entry for each of the `n` images of `reference`."""
    if len(values) != n:
        raise UserError(f"{name} has {len(values)} rows, {reference} has {n}: both need one row per image")


def deviations_vector(mos_std: ArrayLike, n: int) -> np.ndarray:
    """Return the rating deviations as an (n,) float64 array.

    Raises:
        UserError: as `finite_vector`, another length than `n`, or a negative deviation.
    """
    mos_std = finite_vector(mos_std, "mos_std")
    require_length(mos_std, "mos_std", n)
    if (mos_std < 0).any():
        row = int(np.argmax(mos_std < 0))
        raise UserError(f"mos_std[{row}] is {mos_std[row]}: a standard deviation cannot be negative")
    return mos_std


def content_index(contents: Iterable[Hashable] | None, n: int, name: str = "contents") -> np.ndarray:
    """Number the contents 0..k-1 in order of first appearance.

    Args:
        contents: content id of every image, or None where every image is its own content.
        n: number of images.
        name: what the ids are called in an error.

    Returns:
        (n,) integers.

    Raises:
        UserError: another length than `n`, or a missing content id (None or NaN).
    """
    if contents is None:
        return np.arange(n)
    contents = list(contents)
    require_length(contents, name, n)
    numbers: dict[Hashable, int] = {}
    for row, content in enumerate(contents):
        if content is None or content != content:  # NaN, pandas' missing value, differs from itself
            raise UserError(f"{name}[{row}] is missing: expected a name or number for every image")
        numbers.setdefault(content, len(numbers))
    return np.array([numbers[content] for content in contents], dtype=np.intp)


def undefined_reason(scores: np.ndarray, mos: np.ndarray) -> str | None:
    """Say why no correlation can be computed from two checked arrays, or None if one can."""
    if scores.size < FEWEST_IMAGES:
        return f"n = {scores.size}: a correlation needs at least {FEWEST_IMAGES} images"
    for name, values in (("scores", scores), ("mos", mos)):
        if np.ptp(values) == 0:
            return f"{name} are all {values[0]:g}: no correlation with a constant"
    return None


def json_number(value: float) -> float | None:
    """Return a plain float, or None for NaN, which JSON does not know."""
    return None if np.isnan(value) else float(value)


# ---------------------------------------------------------------------------------------------------------
# Agreement of order and of value
# ---------------------------------------------------------------------------------------------------------


def srcc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Spearman's rank correlation: the Pearson correlation of the mid-ranks (Spearman 1904).

    Returns:
        A value in [-1, 1], higher is better; NaN if undefined.

    Raises:
        UserError: NaN or infinity in the input, or different lengths.

    >>> srcc([1.0, 2.0, 30.0], [10, 20, 30])
    1.0
    """
    scores, mos = checked_pair(scores, mos)
    return plcc(stats.rankdata(scores), stats.rankdata(mos))


def plcc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Pearson's linear correlation, without any mapping (Pearson 1895).

    Formula: sum (s - mean s)(m - mean m) / sqrt(sum (s - mean s)^2 sum (m - mean m)^2).

    Returns:
        A value in [-1, 1], higher is better; NaN if undefined.

    Raises:
        UserError: NaN or infinity in the input, or different lengths.

    >>> round(plcc([1, 2, 4], [1, 2, 3]), 4)
    0.982
    """
    scores, mos = checked_pair(scores, mos)
    if undefined_reason(scores, mos):
        return float("nan")
    scores, mos = _centred(scores), _centred(mos)
    return float(np.clip(scores @ mos / np.sqrt((scores @ scores) * (mos @ mos)), -1, 1))


def _centred(values: np.ndarray) -> np.ndarray:
    # The largest deviation becomes 1, so that squares neither overflow nor vanish whatever the unit.
    centred = values - values.mean()
    return centred / np.abs(centred).max()


def krcc(scores: ArrayLike, mos: ArrayLike) -> float:
    """Kendall's rank correlation tau-b, which corrects for ties (Kendall 1945).

    Formula: (concordant - discordant) / sqrt((pairs - pairs tied in scores)(pairs - pairs tied in mos)).

    Returns:
        A value in [-1, 1], higher is better; NaN if undefined.

    Raises:
        UserError: NaN or infinity in the input, or different lengths.

    >>> round(krcc([1, 3, 2], [1, 2, 3]), 4)
    0.3333
    """
    scores, mos = checked_pair(scores, mos)
    if undefined_reason(scores, mos):
        return float("nan")
    return float(stats.kendalltau(scores, mos, method="asymptotic").statistic)


def rmse(scores: ArrayLike, mos: ArrayLike) -> float:
    """Root mean squared error, sqrt(mean (s - m)^2), in units of mos, without any mapping.

    Returns:
        A value of at least 0, lower is better; NaN for no images.

    Raises:
        UserError: NaN or infinity in the input, or different lengths.

    >>> rmse([1, 2], [4, 6]) == 12.5**0.5
    True
    """
    scores, mos = checked_pair(scores, mos)
    return float(np.sqrt(np.mean((scores - mos) ** 2))) if scores.size else float("nan")


def mae(scores: ArrayLike, mos: ArrayLike) -> float:
    """Mean absolute error, mean |s - m|, in units of mos, without any mapping.

    Returns:
        A value of at least 0, lower is better; NaN for no images.

    Raises:
        UserError: NaN or infinity in the input, or different lengths.

    >>> mae([1, 2], [4, 6])
    3.5
    """
    scores, mos = checked_pair(scores, mos)
    return float(np.mean(np.abs(scores - mos))) if scores.size else float("nan")


def outlier_ratio(scores: ArrayLike, mos: ArrayLike, mos_std: ArrayLike) -> float:
    """Share of images whose error exceeds twice the deviation of their ratings.

    Formula: mean [|s - m| > 2 std]. With `mos_std` the deviation among raters, the share outside the range of
    people's own disagreement. VQEG's final reports (2000, 2003) take the standard error of mos instead: pass
    `mos_std / sqrt(ratings)` for theirs, which is many times stricter.

    Args:
        scores: predictions in units of mos.
        mos: mean opinion scores.
        mos_std: standard deviation of each image's ratings, in units of mos.

    Returns:
        A value in [0, 1], lower is better; NaN for no images.

    Raises:
        UserError: NaN or infinity in the input, different lengths, or a negative deviation.

    >>> outlier_ratio([50, 60, 90], [50, 50, 50], [10, 10, 10])
    0.3333333333333333
    """
    scores, mos = checked_pair(scores, mos)
    mos_std = deviations_vector(mos_std, scores.size)
    return float(np.mean(np.abs(scores - mos) > 2 * mos_std)) if scores.size else float("nan")


# ---------------------------------------------------------------------------------------------------------
# Logistic mapping of scores to mos
# ---------------------------------------------------------------------------------------------------------

# In units of the scores' deviation. At 0.01 the curve is a step, at 30 a straight line to 3 decimals; beyond
# either the sum of squares is flat and a fit would wander.
NARROWEST, WIDEST = 0.01, 30.0
OUTSIDE = 3.0  # how far the middle of the curve may lie beyond the scores, same unit
START_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
START_WIDTHS = (0.1, 0.3, 1.0, 3.0)
FAR_OFF = 0.1  # most scores spread by less than this: some others lie far off and have made the deviation
REFINED_STARTS = 3


@dataclass(frozen=True)
class LogisticFit:
    """A logistic curve from scores to mos.

    Attributes:
        parameters: 4 or 5, the form of the curve; see `fit_logistic`.
        coefficients: beta_1 .. beta_4 or beta_5 in the units of the scores and mos fitted; NaN if none.
        reason: why there is no fit, or None.
    """

    parameters: int
    coefficients: tuple[float, ...]
    reason: str | None = None

    def predict(self, scores: ArrayLike) -> np.ndarray:
        """Map scores of any shape to mos; NaN everywhere if there is no fit."""
        scores = np.asarray(scores, dtype=np.float64)
        if self.parameters == 4:
            top, bottom, middle, width = self.coefficients
            return bottom + (top - bottom) * special.expit((scores - middle) / abs(width))
        height, steepness, middle, slope, offset = self.coefficients
        return height * (special.expit(steepness * (scores - middle)) - 0.5) + slope * scores + offset


def fit_logistic(scores: ArrayLike, mos: ArrayLike, parameters: int = 4) -> LogisticFit:
    """Fit the logistic through which scores are customarily compared with mos, by least squares.

    4 parameters (VQEG 2000): b2 + (b1 - b2) / (1 + exp(-(s - b3) / |b4|)).
    5 parameters (Sheikh et al. 2006): b1 (1/2 - 1 / (1 + exp(b2 (s - b3)))) + b4 s + b5.

    Given the curve's middle b3 and width |b4| or 1/b2, the rest is a linear problem with one solution; so the
    search is over those two alone (variable projection, Golub and Pereyra 1973), refined from the best of 20
    starts, or of more where some scores lie far off. Nothing forces the curve to rise: scores that rank
    backwards get a falling one, whose PLCC is positive.

    Returns:
        The best fit; where none exists, NaN coefficients and the `reason`.

    Raises:
        UserError: `parameters` neither 4 nor 5, NaN or infinity in the input, or different lengths.

    >>> fit = fit_logistic([1, 2, 3, 4, 5, 6], [10, 12, 40, 60, 88, 90])
    >>> bool(abs(fit.predict(3.5) - 50) < 1)
    True
    """
    if parameters not in (4, 5):
        raise UserError(f"parameters: expected 4 or 5, got {parameters}")
    scores, mos = checked_pair(scores, mos)
    reason = undefined_reason(scores, mos) or _too_few_scores(scores, parameters)
    if reason is None:
        best = _search(_standardised(scores), _standardised(mos), parameters)
        if best is not None:
            return LogisticFit(parameters, _coefficients(scores, mos, parameters, *best))
        reason = f"the {parameters}-parameter logistic converged from none of {REFINED_STARTS} starts"
    return LogisticFit(parameters, (float("nan"),) * parameters, reason)


def _too_few_scores(scores: np.ndarray, parameters: int) -> str | None:
    distinct = np.unique(scores).size
    if distinct > parameters:
        return None
    return f"only {distinct} different scores: a {parameters}-parameter logistic needs more than {parameters}"


def _standardised(values: np.ndarray) -> np.ndarray:
    centred = _centred(values)
    return centred / centred.std()


def _spread_of_most(scores: np.ndarray) -> float:
    """Spread of most of the standardised scores where others lie far off, else 1, their deviation.

    It is the interquartile range, in units of what a normal distribution's is in deviations.
    """
    low, high = np.quantile(scores, [0.25, 0.75])
    spread = float(high - low) / 1.349
    return spread if 0 < spread < FAR_OFF else 1.0


def _start_widths(spread: float) -> np.ndarray:
    """Logarithms of the widths to start from, two decades at a time down to the spread of most scores."""
    decades = 2 * np.arange(round(-np.log10(spread) / 2) + 1)
    return np.log(np.outer(10.0**-decades, START_WIDTHS).ravel())


def _design(scores: np.ndarray, parameters: int, middle: float, width: float) -> np.ndarray:
    """Columns whose weighted sum is the curve: (n, 2) for 4 parameters, (n, 3) for 5."""
    curve = special.expit((scores - middle) / width)
    columns = (curve, np.ones_like(scores))
    if parameters == 5:
        columns = (curve - 0.5, scores, np.ones_like(scores))
    return np.stack(columns, axis=1)


def _search(scores: np.ndarray, mos: np.ndarray, parameters: int) -> tuple[float, float] | None:
    """Best (middle, width) for standardised scores and mos, or None if no start converged."""
    columns = [np.ones_like(scores)] if parameters == 4 else [np.ones_like(scores), scores]
    linear = np.stack(columns) / np.sqrt(scores.size)  # orthonormal, the scores being standardised
    mos_rest = mos - (linear @ mos) @ linear

    def cost(point: Sequence[float]) -> float:
        return -_explained(scores, mos_rest, linear, point[0], np.exp(point[1])) / scores.size

    spread = _spread_of_most(scores)
    starts = itertools.product(np.quantile(scores, START_QUANTILES), _start_widths(spread))
    starts = sorted(starts, key=cost)[:REFINED_STARTS]
    bounds = [
        (scores.min() - OUTSIDE, scores.max() + OUTSIDE),
        (np.log(NARROWEST * spread), np.log(WIDEST)),
    ]
    # A simplex needs no slope, which a curve steeper than the gaps between scores does not have.
    search = {
        "method": "Nelder-Mead",
        "bounds": bounds,
        "options": {"xatol": 1e-2, "fatol": 1e-12, "maxfev": 2000},
    }
    fits = [optimize.minimize(cost, start, **search) for start in starts]
    converged = [fit for fit in fits if fit.success]
    if not converged:
        return None
    middle, log_width = min(converged, key=lambda fit: fit.fun).x
    return float(middle), float(np.exp(log_width))


def _explained(scores: np.ndarray, mos_rest: np.ndarray, linear: np.ndarray, middle: float, width: float) -> float:
    """Sum of squares of mos that the curve explains beyond the `linear` rows (Frisch and Waugh 1933).

    `linear` is taken out of the curve as it was out of `mos_rest`; what is left is one regressor.
    """
    curve = special.expit((scores - middle) / width)
    curve_rest = curve - (linear @ curve) @ linear
    square = curve_rest @ curve_rest
    # A curve far outside the scores is constant: what is left of it is rounding and explains nothing.
    return float((curve_rest @ mos_rest) ** 2 / square) if square > 1e-20 else 0.0


def _coefficients(
    scores: np.ndarray, mos: np.ndarray, parameters: int, middle: float, width: float
) -> tuple[float, ...]:
    """Published coefficients in the data's own units from the standardised middle and width."""
    # The linear part is solved standardised too: scores far from 0 look like a constant to the solver.
    design = _design(_standardised(scores), parameters, middle, width)
    weights = np.linalg.lstsq(design, _standardised(mos), rcond=None)[0] * mos.std()
    middle, width = scores.mean() + scores.std() * middle, scores.std() * width
    if parameters == 4:
        rise, bottom = weights
        bottom += mos.mean()
        return float(bottom + rise), float(bottom), float(middle), float(width)
    height, slope, offset = weights
    slope /= scores.std()
    offset += mos.mean() - slope * scores.mean()
    return float(height), float(1 / width), float(middle), float(slope), float(offset)


# ---------------------------------------------------------------------------------------------------------
# Bootstrap over contents
# ---------------------------------------------------------------------------------------------------------


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


def _bootstrap_srcc(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
    scores_groups, mos_groups = tie_groups(scores), tie_groups(mos)
    return np.concatenate(
        [
            resampled_srcc(resampled_ranks(scores_groups, counts), resampled_ranks(mos_groups, counts), counts)
            for counts in drawn.counts()
        ]
    )


def _bootstrap_plcc(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
    scores, mos = _standardised(scores), _standardised(mos)
    powers = np.stack([np.ones_like(scores), scores, mos, scores**2, mos**2, scores * mos])  # (6, n)
    sums = np.concatenate([powers @ counts for counts in drawn.counts()], axis=1)  # (6, resamples)
    scores_mean, mos_mean, scores_square, mos_square, product = sums[1:] / sums[0]
    variances = np.stack([scores_square - scores_mean**2, mos_square - mos_mean**2])
    variances[variances < 1e-12] = 0  # rounding alone keeps a constant resample from exactly 0
    return _ratio(product - scores_mean * mos_mean, variances[0] * variances[1])


def _bootstrap_krcc(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
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
    exact = np.float32 if 2 * scores.size * np.diff(start).max() < 2**24 else np.float64
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


def _bootstrap_rmse(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
    return np.sqrt(_resampled_mean((scores - mos) ** 2, drawn))


def _bootstrap_mae(scores: np.ndarray, mos: np.ndarray, drawn: Resampling) -> np.ndarray:
    return _resampled_mean(np.abs(scores - mos), drawn)


def _resampled_mean(values: np.ndarray, drawn: Resampling) -> np.ndarray:
    return np.concatenate([values @ counts / counts.sum(axis=0) for counts in drawn.counts()])


BOOTSTRAPS = {
    "srcc": _bootstrap_srcc,
    "plcc": _bootstrap_plcc,
    "krcc": _bootstrap_krcc,
    "rmse": _bootstrap_rmse,
    "mae": _bootstrap_mae,
}
_ERRORS = ("rmse", "mae")  # defined for constants too


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
    if statistic not in BOOTSTRAPS:
        raise UserError(f"statistic: expected one of {', '.join(BOOTSTRAPS)}, got {statistic!r}")
    require_resamples(resamples)
    if not 0 < level < 1:
        raise UserError(f"level: expected a share between 0 and 1, got {level}")
    scores, mos = checked_pair(scores, mos)
    clusters = content_index(contents, scores.size)
    undefined = scores.size == 0 if statistic in _ERRORS else undefined_reason(scores, mos)
    if undefined or clusters.max() == 0:
        return float("nan"), float("nan")
    return percentile_interval(BOOTSTRAPS[statistic](scores, mos, Resampling(clusters, resamples, seed)), level)


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


# ---------------------------------------------------------------------------------------------------------
# Summaries for results.json and tables
# ---------------------------------------------------------------------------------------------------------

STATISTICS = {"srcc": srcc, "plcc": plcc, "krcc": krcc, "rmse": rmse, "mae": mae}
_CONDENSED = (*STATISTICS, "plcc_logistic4", "plcc_logistic5", "outlier_ratio", "rmse_own_scale", "mae_own_scale")


def summarize(
    scores: ArrayLike,
    mos: ArrayLike,
    *,
    contents: Iterable[Hashable] | None = None,
    mos_std: ArrayLike | None = None,
    scale: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """Compute everything a results file says about one set of predictions.

    Args:
        scores: predictions on the 0..100 scale.
        mos: mean opinion scores on the 0..100 scale.
        contents: content id of every image; None where every image is its own content.
        mos_std: standard deviation of each image's ratings on the 0..100 scale, where known.
        scale: width of the database's own scale / 100 (0.04 for 1..5), to give errors in its units too.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        JSON-safe: `n`, `contents`, `srcc`, `plcc`, `krcc`, `rmse`, `mae`, `plcc_logistic4`, `plcc_logistic5`, and
        of each its interval `srcc_ci95` .. as [low, high] (the fitted logistic is kept in all resamples);
        `outlier_ratio` given `mos_std`; `rmse_own_scale` and `mae_own_scale` given `scale`; `notes`, the reasons
        of every None and of every doubt.

    Raises:
        UserError: bad input rows, or `scale` not positive.
    """
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise UserError(f"scale: expected a positive width / 100, got {scale}")
    scores, mos = checked_pair(scores, mos)
    clusters = content_index(contents, scores.size)
    summary, notes = _statistics(scores, mos)
    intervals = {name: bootstrap_interval(scores, mos, name, clusters, resamples, seed) for name in BOOTSTRAPS}
    for parameters in (4, 5):
        name = f"plcc_logistic{parameters}"
        fit = fit_logistic(scores, mos, parameters)
        mapped = fit.predict(scores) if fit.reason is None else np.zeros_like(mos)  # constant: undefined, as it is
        summary[name] = json_number(plcc(mapped, mos))
        intervals[name] = bootstrap_interval(mapped, mos, "plcc", clusters, resamples, seed)
        notes.append(fit.reason)
    if summary["srcc"] is not None and summary["srcc"] < 0:
        notes.append("srcc is negative: the PLCC after a logistic hides that the scores rank backwards")
    if mos_std is not None:
        summary["outlier_ratio"] = json_number(outlier_ratio(scores, mos, mos_std))
    if scale is not None:
        for name, error in (("rmse", rmse), ("mae", mae)):
            summary[f"{name}_own_scale"] = json_number(error(scores, mos) * scale)
    summary |= {f"{name}_ci95": [json_number(end) for end in ends] for name, ends in intervals.items()}
    counts = {"n": scores.size, "contents": len(np.unique(clusters))}
    notes += [contents_note(counts["contents"]), _pairs_note(scores.size)]
    return counts | summary | {"notes": _distinct(notes)}


def _statistics(scores: np.ndarray, mos: np.ndarray) -> tuple[dict, list[str | None]]:
    """All plain statistics of checked arrays, None where undefined, and the reason."""
    values = {name: json_number(statistic(scores, mos)) for name, statistic in STATISTICS.items()}
    return values, [undefined_reason(scores, mos)]


def contents_note(contents: int) -> str | None:
    """Say what so few contents mean for a bootstrap interval, or None if there are enough."""
    if contents < 2:
        return f"no interval: {contents} content, and resampling needs at least 2"
    if contents < FEWEST_CONTENTS:
        return f"interval unreliable: only {contents} contents"
    return None


def _pairs_note(n: int) -> str | None:
    if n > MOST_IMAGES_IN_PAIRS:
        return f"no interval of krcc: it looks at every pair, and {n} images are more than {MOST_IMAGES_IN_PAIRS}"
    return None


def _distinct(notes: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(note for note in notes if note))


def group_summaries(scores: ArrayLike, mos: ArrayLike, groups: Iterable[Hashable]) -> dict[str, dict]:
    """Compute the plain statistics within each group: a generator, a distortion, a quality level.

    Args:
        scores: predictions.
        mos: mean opinion scores.
        groups: name of every image's group.

    Returns:
        JSON-safe: group name -> `n`, `srcc`, `plcc`, `krcc`, `rmse`, `mae`, `notes`, in order of first
        appearance. A correlation the group cannot define is None, its reason in `notes`.

    Raises:
        UserError: bad input rows, or a missing group name.

    >>> group_summaries([1, 2, 3, 5], [1, 2, 3, 4], ["jpeg", "jpeg", "jpeg", "blur"])["blur"]["notes"]
    ['n = 1: a correlation needs at least 3 images']
    """
    scores, mos = checked_pair(scores, mos)
    groups = list(groups)
    members: dict[str, list[int]] = {}
    content_index(groups, scores.size, "groups")  # for its errors: another length, a missing name
    for row, group in enumerate(groups):
        members.setdefault(str(group), []).append(row)
    table = {}
    for group, rows in members.items():
        summary, notes = _statistics(scores[rows], mos[rows])
        table[group] = {"n": len(rows)} | summary | {"notes": _distinct(notes)}
    return table


def quality_levels(mos: ArrayLike) -> list[str]:
    """Name the fifth of the mos distribution that each image lies in; equal mos are in one fifth.

    Args:
        mos: mean opinion scores (n,).

    Returns:
        n of `QUALITY_LEVELS`; a level can stay empty where many mos are equal.

    Raises:
        UserError: NaN or infinity in the input.

    >>> quality_levels([10, 90, 30, 50, 70])
    ['Very Low', 'Very High', 'Low', 'Mid', 'High']
    """
    mos = finite_vector(mos, "mos")
    shares = (stats.rankdata(mos) - 0.5) / max(1, mos.size)  # in (0, 1)
    return [QUALITY_LEVELS[int(share * len(QUALITY_LEVELS))] for share in shares]


def across_splits(summaries: Sequence[dict]) -> dict[str, dict]:
    """Condense the summaries of N splits: mean, median and sample deviation of every statistic.

    Args:
        summaries: from `summarize`, one per split, with or without `groups` (kind of group -> group name ->
            summary). Only statistics are condensed: no counts, intervals, notes, or what a summary else holds.

    Returns:
        JSON-safe: statistic -> `mean`, `median`, `std` (divisor n - 1), and `n`, the splits where the
        statistic is defined. None where too few splits define it. `groups`, if any summary has them, holds the
        same for each group.

    Raises:
        UserError: no summaries.

    >>> across_splits([{"srcc": 0.5}, {"srcc": 0.75}, {"srcc": None}])["srcc"]["mean"]
    0.625
    """
    if not summaries:
        raise UserError("no summaries: nothing to condense across splits")
    names = dict.fromkeys(name for summary in summaries for name in summary if name in _CONDENSED)
    table: dict[str, dict] = {name: _spread([summary.get(name) for summary in summaries]) for name in names}
    groups = _groups_of_splits(summaries)
    return table | ({"groups": groups} if groups else {})


def _groups_of_splits(summaries: Sequence[dict]) -> dict[str, dict]:
    """Kind of group -> group name -> its statistics across the splits that have it."""
    members: dict[str, dict[str, list[dict]]] = {}
    for summary in summaries:
        for kind, groups in summary.get("groups", {}).items():
            for name, group in groups.items():
                members.setdefault(kind, {}).setdefault(name, []).append(group)
    return {kind: {name: across_splits(of) for name, of in groups.items()} for kind, groups in members.items()}


def _spread(values: Iterable[float | None]) -> dict:
    defined = np.array([value for value in values if value is not None])
    return {
        "mean": float(defined.mean()) if defined.size else None,
        "median": float(np.median(defined)) if defined.size else None,
        "std": float(defined.std(ddof=1)) if defined.size > 1 else None,
        "n": defined.size,
    }
