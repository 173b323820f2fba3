"""Is one run better than another, and does a metric see what people see: tests on top of `iqa.metrics`.

Takes the predictions of one or two runs and returns plain dictionaries for `iqa.results` and the scripts. Two
runs on the same images are compared by the paired bootstrap over contents, which decides, and by the tests
of Williams and Steiger: `smart-iqa evaluate` does it for several checkpoints. Krasula's analyses ask of one run
whether it tells apart the pairs of images that people tell apart: `smart-iqa evaluate --ratings`. Arrays are (n,),
higher = better, as in `iqa.metrics`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from iqa.metrics.bootstrap import (
    TieGroups,
    percentile_interval,
    require_resamples,
    resample_counts,
    resampled_ranks,
    resampled_srcc,
    tie_groups,
)
from iqa.metrics.checks import content_index, finite_vector, json_number, require_length, undefined_reason
from iqa.metrics.correlation import srcc

FEWEST_FOR_A_TEST = 4  # all three tests divide by n - 3
FEWEST_TO_DECIDE = 6  # contents: with fewer, most extreme resamples are one or two contents drawn again and again
LEVEL = 0.95


def compare_dependent(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    mos: ArrayLike,
    contents: Iterable[Hashable] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict:
    """Compare the SRCC of two runs on the same images.

    The paired bootstrap decides: both runs are scored on the same resampled contents, and a run is better
    if the 95 % interval of the difference leaves out 0. The interval is the expanded percentile interval of
    Hesterberg (2015, "What teachers should know about the bootstrap", The American Statistician 69): quantiles
    Phi(-+sqrt(k / (k - 1)) t) of the resampled differences, t the 97.5 % point of Student's t with k - 1 degrees
    of freedom, k the number of contents. For many contents that is the percentile interval; for few, which
    makes resamples vary too little, it is wider (k = 10: quantiles 0.0085 and 0.9915). p is that of the same
    interval. With fewer than 6 contents nothing is decided. Williams' and Steiger's tests stand beside it because
    papers report them; they are derived for Pearson's correlation and independent images, so on ranks they are
    approximate, and where images share contents their p is too small.

    Args:
        scores_a: predictions of run a.
        scores_b: predictions of run b, same images, same order.
        mos: mean opinion scores.
        contents: content id of every image; None where every image is its own content.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        JSON-safe: `srcc_a`, `srcc_b`, `difference` (a - b), `williams` {t, p}, `steiger` {z, p}, `bootstrap`
        {difference_ci95 [low, high], p}, `better` ("a", "b" or "neither"), `notes` (the reason of every
        None). All p are two-sided.

    Raises:
        UserError: bad input rows, different lengths, or no resamples.
    """
    require_resamples(resamples)
    scores_a, scores_b, mos = _checked_runs(scores_a, scores_b, mos)
    clusters = content_index(contents, mos.size)
    count = len(np.unique(clusters))
    notes = _undefined_notes(scores_a, scores_b, mos)
    differences = np.empty(0)
    if count < FEWEST_TO_DECIDE:
        notes.append(f"{_contents(count)} too few to decide, at least {FEWEST_TO_DECIDE} are needed")
    if not notes:
        counts = resample_counts(clusters, resamples, seed)
        differences = _resampled_differences(scores_a, scores_b, mos, counts)
        notes += [] if differences.size else ["no resample has different scores and mos"]
    low, high = percentile_interval(differences, _expanded_level(LEVEL, count))
    interval = [json_number(low), json_number(high)]
    correlations, tests_note = _dependent_tests(scores_a, scores_b, mos)
    if tests_note and correlations["difference"] is not None:
        notes.append(tests_note)
    return {
        **correlations,
        "bootstrap": {"difference_ci95": interval, "p": json_number(_bootstrap_p(differences, count))},
        "better": "a" if low > 0 else "b" if high < 0 else "neither",
        "notes": notes,
    }


def compare_over_splits(
    splits: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike, Sequence[Hashable]]], resamples: int = 10_000, seed: int = 0
) -> dict:
    """Compare two models that were trained and tested on several splits of one database, by the mean of their SRCC.

    Splits share contents, so they are not independent. A resample draws from all contents of the database; each
    split takes from it what it tested. The interval is that of `compare_dependent`, for the contents in all; what
    the choice of splits and seeds adds is not in it.

    Args:
        splits: of each the scores of a, the scores of b, mos and contents, (n,) each.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        JSON-safe: `splits`, `contents`, `srcc_a` and `srcc_b` (means), `difference` (a - b), `ahead` (splits in
        which a has the higher SRCC), `bootstrap` {difference_ci95, p}, `better` ("a", "b" or "neither").

    Raises:
        UserError: bad input rows, different lengths, or no resamples.
    """
    require_resamples(resamples)
    runs = [_checked_runs(*split[:3]) for split in splits]
    sizes = np.cumsum([len(mos) for *_, mos in runs])[:-1]
    clusters = content_index([content for split in splits for content in split[3]], sum(len(run[2]) for run in runs))
    groups = [[tie_groups(values) for values in run] for run in runs]
    pairs = np.array([[srcc(scores, mos) for scores in both] for *both, mos in runs])
    totals = np.concatenate(
        [
            sum(_differences(run, part) for run, part in zip(groups, np.split(counts, sizes), strict=True))
            for counts in resample_counts(clusters, resamples, seed)
        ]
    )
    totals, count = totals[~np.isnan(totals)] / len(runs), len(np.unique(clusters))
    low, high = percentile_interval(totals, _expanded_level(LEVEL, count))
    better = "neither" if count < FEWEST_TO_DECIDE else "a" if low > 0 else "b" if high < 0 else "neither"
    return {
        "splits": len(runs),
        "contents": count,
        "srcc_a": json_number(pairs[:, 0].mean()),
        "srcc_b": json_number(pairs[:, 1].mean()),
        "difference": json_number((pairs[:, 0] - pairs[:, 1]).mean()),
        "ahead": int((pairs[:, 0] > pairs[:, 1]).sum()),
        "bootstrap": {
            "difference_ci95": [json_number(low), json_number(high)],
            "p": json_number(_bootstrap_p(totals, count)),
        },
        "better": better,
    }


def in_words(comparison: dict, name_a: str, name_b: str) -> str:
    """Say in a sentence who is better and whether that is significant.

    Args:
        comparison: from `compare_dependent`.
        name_a: of run a.
        name_b: of run b.
    """
    if comparison["difference"] is None:
        return f"{name_a} and {name_b} cannot be compared ({'; '.join(comparison['notes'])})"
    ahead, behind, sign = (name_a, name_b, 1) if comparison["difference"] >= 0 else (name_b, name_a, -1)
    srccs = (comparison["srcc_a"], comparison["srcc_b"])[::sign]
    numbers = f"SRCC {srccs[0]:.4f} against {srccs[1]:.4f}, difference {srccs[0] - srccs[1]:+.4f}"
    verdict = "is as good as" if comparison["difference"] == 0 else "is ahead of"
    if comparison["bootstrap"]["p"] is None:
        return f"{ahead} {verdict} {behind}: {numbers}, but {comparison['notes'][0]}"
    low, high = sorted(sign * end for end in comparison["bootstrap"]["difference_ci95"])
    numbers += (
        f", 95 % interval {low:+.4f}..{high:+.4f}, p {_p(comparison['bootstrap']['p'])} (paired bootstrap over "
        f"contents decides; Williams p {_p(comparison['williams']['p'])}, Steiger p {_p(comparison['steiger']['p'])})"
    )
    if comparison["better"] == "neither":
        return f"{ahead} {verdict} {behind}, no significant difference: {numbers}"
    return f"{ahead} is significantly better than {behind}: {numbers}"


def _p(value: float | None) -> str:
    return "undefined" if value is None else "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def _dependent_tests(scores_a: np.ndarray, scores_b: np.ndarray, mos: np.ndarray) -> tuple[dict, str | None]:
    """SRCC of both runs and the two tests between them; the note says why a test is None."""
    r_a, r_b, r_ab = srcc(scores_a, mos), srcc(scores_b, mos), srcc(scores_a, scores_b)
    t, p_williams = williams_test(r_a, r_b, r_ab, mos.size)
    z, p_steiger = steiger_test(r_a, r_b, r_ab, mos.size)
    note = None
    if np.isnan(t) or np.isnan(z):
        note = f"williams, steiger: need {FEWEST_FOR_A_TEST} images and no perfect rank correlation"
    return {
        "srcc_a": json_number(r_a),
        "srcc_b": json_number(r_b),
        "difference": json_number(r_a - r_b),
        "williams": {"t": json_number(t), "p": json_number(p_williams)},
        "steiger": {"z": json_number(z), "p": json_number(p_steiger)},
    }, note


def _checked_runs(
    scores_a: ArrayLike, scores_b: ArrayLike, mos: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores_a, scores_b = finite_vector(scores_a, "scores_a"), finite_vector(scores_b, "scores_b")
    mos = finite_vector(mos, "mos")
    for name, values in (("scores_b", scores_b), ("mos", mos)):
        require_length(values, name, scores_a.size, "scores_a")
    return scores_a, scores_b, mos


def _undefined_notes(scores_a: np.ndarray, scores_b: np.ndarray, mos: np.ndarray) -> list[str]:
    reasons = (("a", undefined_reason(scores_a, mos)), ("b", undefined_reason(scores_b, mos)))
    return [f"run {run}: {reason}" for run, reason in reasons if reason]


def _resampled_differences(
    scores_a: np.ndarray, scores_b: np.ndarray, mos: np.ndarray, chunks: Iterable[np.ndarray]
) -> np.ndarray:
    """SRCC of a minus SRCC of b in each resample that defines both."""
    groups = [tie_groups(values) for values in (scores_a, scores_b, mos)]
    differences = np.concatenate([_differences(groups, counts) for counts in chunks])
    return differences[~np.isnan(differences)]


def _differences(groups: Sequence[TieGroups], counts: np.ndarray) -> np.ndarray:
    """SRCC of a minus SRCC of b in resamples that hold the images `counts` (n, R) times; NaN where undefined."""
    ranks_a, ranks_b, mos_ranks = (resampled_ranks(group, counts) for group in groups)
    return resampled_srcc(ranks_a, mos_ranks, counts) - resampled_srcc(ranks_b, mos_ranks, counts)


def _contents(count: int) -> str:
    return f"{count} content is" if count == 1 else f"{count} contents are"


def _expanded_level(level: float, count: int) -> float:
    """Share of the resamples of `count` contents that makes an interval of this level; NaN for one content."""
    from scipy import stats

    if count < 2:
        return float("nan")
    t = stats.t.isf((1 - level) / 2, count - 1)
    return float(1 - 2 * stats.norm.sf(t * np.sqrt(count / (count - 1))))


def _bootstrap_p(differences: np.ndarray, count: int) -> float:
    """Two-sided p: 1 - level of the expanded interval that ends at 0.

    The data count as one more resample, so that p is never 0.
    """
    from scipy import stats

    if differences.size == 0:
        return float("nan")
    smaller_tail = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    z = stats.norm.isf(min(0.5, (smaller_tail + 1) / (differences.size + 1)))
    return float(2 * stats.t.sf(z * np.sqrt((count - 1) / count), count - 1))


def williams_test(r_a: float, r_b: float, r_ab: float, n: int) -> tuple[float, float]:
    """Test whether two correlations with one common variable differ (Williams 1959; Steiger 1980, eq. 7).

    Formula: t = (r_a - r_b) sqrt((n-1)(1 + r_ab) / (2 |R| (n-1)/(n-3) + r^2 (1 - r_ab)^3)), n - 3 degrees of
    freedom, with r the mean of r_a and r_b and |R| = 1 - r_a^2 - r_b^2 - r_ab^2 + 2 r_a r_b r_ab.

    Args:
        r_a: correlation of scores a with mos.
        r_b: correlation of scores b with mos.
        r_ab: correlation of scores a with scores b.
        n: number of images.

    Returns:
        (t, two-sided p); NaN for fewer than 4 images, a NaN correlation, |r_ab| = 1 or variance 0.

    >>> [round(value, 4) for value in williams_test(0.3, 0.4, 0.5, 100)]
    [-1.0767, 0.2843]
    """
    from scipy import stats

    if n < FEWEST_FOR_A_TEST or not abs(r_ab) < 1:
        return float("nan"), float("nan")
    # A determinant of correlations is never negative; rounding can make it so.
    determinant = max(0.0, 1 - r_a**2 - r_b**2 - r_ab**2 + 2 * r_a * r_b * r_ab)
    mean = (r_a + r_b) / 2
    variance = 2 * determinant * (n - 1) / (n - 3) + mean**2 * (1 - r_ab) ** 3
    if variance == 0:
        return float("nan"), float("nan")
    t = (r_a - r_b) * np.sqrt((n - 1) * (1 + r_ab) / variance)
    return float(t), float(2 * stats.t.sf(abs(t), n - 3))


def steiger_test(r_a: float, r_b: float, r_ab: float, n: int) -> tuple[float, float]:
    """Test whether two correlations with one common variable differ, on Fisher's z (Steiger 1980, eq. 14).

    Formula: z = (atanh r_a - atanh r_b) sqrt((n-3) / (2 - 2c)), c = psi / (1 - r^2)^2,
    psi = r_ab (1 - 2 r^2) - r^2 (1 - 2 r^2 - r_ab^2) / 2, r the mean of r_a and r_b.

    Args:
        r_a: correlation of scores a with mos.
        r_b: correlation of scores b with mos.
        r_ab: correlation of scores a with scores b.
        n: number of images.

    Returns:
        (z, two-sided p); NaN for fewer than 4 images, a NaN correlation, or any of the three at +-1.

    >>> [round(value, 4) for value in steiger_test(0.3, 0.4, 0.5, 100)]
    [-1.0718, 0.2838]
    """
    from scipy import stats

    if n < FEWEST_FOR_A_TEST or not max(abs(r_a), abs(r_b), abs(r_ab)) < 1:
        return float("nan"), float("nan")
    square = ((r_a + r_b) / 2) ** 2
    psi = r_ab * (1 - 2 * square) - square * (1 - 2 * square - r_ab**2) / 2
    z = (np.arctanh(r_a) - np.arctanh(r_b)) * np.sqrt((n - 3) / (2 - 2 * psi / (1 - square) ** 2))
    return float(z), float(2 * stats.norm.sf(abs(z)))
