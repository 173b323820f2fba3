"""Krasula's analyses: does a score tell different images from similar ones, and the better from the worse?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from iqa.errors import UserError
from iqa.metrics.checks import (
    MOST_IMAGES_IN_PAIRS,
    checked_pair,
    deviations_vector,
    finite_vector,
    json_number,
    require_length,
)


def krasula(
    scores: ArrayLike,
    mos: ArrayLike,
    mos_std: ArrayLike,
    ratings_per_image: ArrayLike | None = None,
) -> dict:
    """Ask whether score differences separate the pairs of images that people separate.

    From Krasula et al. (2016, QoMEX), "On the accuracy of objective image and video quality models". A pair
    is *different* if |m_i - m_j| > 1.96 sqrt(std_i^2 / k_i + std_j^2 / k_j), the two-sided 5 % z test of two
    means of k_i and k_j ratings, else *similar*.
    Different / similar: the area under the ROC of |s_i - s_j| telling different pairs from similar ones.
    Better / worse: over different pairs in both orders, the area under the ROC of s_i - s_j telling
    m_i > m_j from m_i < m_j. Correct classification: the share of different pairs whose scores order them as
    mos does; equal scores do not. None of the three depends on the unit of the scores.

    All n (n - 1) / 2 pairs are used, nothing is sampled, at about 40 bytes a pair.

    Args:
        scores: predictions.
        mos: mean opinion scores.
        mos_std: standard deviation of each image's ratings, in units of mos.
        ratings_per_image: how many ratings each mos averages, one number or (n,). None takes `mos_std` for
            the standard error of mos already, and says so in `notes`: with a deviation among raters, far too
            few pairs would then count as different.

    Returns:
        JSON-safe: `auc_different_similar`, `auc_better_worse`, `correct_classification` (each in [0, 1],
        higher is better), `n_pairs`, `n_different`, `n_similar`, `notes` (the reason of every None).

    Raises:
        UserError: bad input rows, fewer than one rating, or more than 12,000 images.
    """
    scores, mos = checked_pair(scores, mos)
    if scores.size > MOST_IMAGES_IN_PAIRS:
        raise UserError(
            f"krasula compares every pair of images: expected at most {MOST_IMAGES_IN_PAIRS}, "
            f"got {scores.size}; pass a subset"
        )
    error, notes = deviations_vector(mos_std, scores.size), []
    if ratings_per_image is None:
        notes.append("ratings_per_image unknown: mos_std taken for the standard error of mos")
    else:
        error = error / np.sqrt(_ratings(ratings_per_image, scores.size))
    gaps, similar = _split_pairs(scores, mos, error)
    notes += [f"no {kind} pairs" for kind, pairs in (("different", gaps), ("similar", similar)) if not pairs.size]
    return {
        "auc_different_similar": json_number(area_under_roc(np.abs(gaps), similar)),
        "auc_better_worse": json_number(area_under_roc(gaps, -gaps)),
        "correct_classification": float(np.mean(gaps > 0)) if gaps.size else None,
        "n_pairs": gaps.size + similar.size,
        "n_different": gaps.size,
        "n_similar": similar.size,
        "notes": notes,
    }


def krasula_in_words(of_a: dict, of_b: dict, name_a: str, name_b: str) -> str:
    """Krasula's two areas of two runs beside each other, in a sentence.

    Args:
        of_a: of one run, from `krasula`.
        of_b: of the other.
        name_a: of the one.
        name_b: of the other.
    """
    areas = {"different from similar pairs": "auc_different_similar", "better from worse": "auc_better_worse"}
    told = [f"{says} {name_a} {_area(of_a[key])}, {name_b} {_area(of_b[key])}" for says, key in areas.items()]
    return f"area under the ROC (Krasula et al. 2016), telling {'; '.join(told)}; pairs different to people: " + (
        f"{of_a['n_different']} of {of_a['n_pairs']}"
    )


def _area(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _ratings(ratings_per_image: ArrayLike, n: int) -> np.ndarray:
    """Number of ratings of every image, (n,), from one number or n of them."""
    if np.ndim(ratings_per_image) == 0:
        ratings_per_image = np.full(n, ratings_per_image)
    ratings = finite_vector(ratings_per_image, "ratings_per_image")
    require_length(ratings, "ratings_per_image", n)
    if (ratings < 1).any():
        row = int(np.argmax(ratings < 1))
        raise UserError(f"ratings_per_image[{row}] is {ratings[row]}: a mos averages at least one rating")
    return ratings


def _split_pairs(scores: np.ndarray, mos: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score gaps of the pairs: better minus worse for the different, absolute for the similar."""
    from scipy import stats

    critical = stats.norm.ppf(0.975)
    gaps, similar = [np.empty(0)], [np.empty(0)]
    for i in range(scores.size - 1):  # one row of the pair matrix at a time keeps the peak at the two results
        mos_gap, score_gap = mos[i] - mos[i + 1 :], scores[i] - scores[i + 1 :]
        different = np.abs(mos_gap) > critical * np.hypot(error[i], error[i + 1 :])
        gaps.append((score_gap * np.sign(mos_gap))[different])
        similar.append(np.abs(score_gap[~different]))
    return np.concatenate(gaps), np.concatenate(similar)


def area_under_roc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive value exceeds a negative one, ties half (Hanley and McNeil 1982).

    Returns:
        A value in [0, 1]; NaN if either is empty.

    >>> area_under_roc(np.array([3.0, 1.0]), np.array([1.0, 0.0]))
    0.875
    """
    if not (positive.size and negative.size):
        return float("nan")
    positive, negative = np.sort(positive), np.sort(negative)
    below = np.searchsorted(negative, positive, "left").sum()
    not_above = np.searchsorted(negative, positive, "right").sum()
    return float((below + not_above) / (2 * positive.size * negative.size))
