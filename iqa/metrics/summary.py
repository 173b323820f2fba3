"""All statistics of one list of images, of its groups, and across splits: what a results file stores."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from iqa.choices import QUALITY_LEVELS
from iqa.errors import UserError
from iqa.metrics.bootstrap import FEWEST_CONTENTS, RESAMPLES, Resampling, require_resamples
from iqa.metrics.checks import (
    MOST_IMAGES_IN_PAIRS,
    checked_pair,
    content_index,
    finite_vector,
    json_number,
    undefined_reason,
)
from iqa.metrics.logistic import fit_logistic
from iqa.metrics.table import STATISTICS


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
        JSON-safe: `n`, `contents`; every statistic of `iqa.metrics.STATISTICS` by its key, those that need `mos_std`
        or `scale` only where it is given; the interval of each that has one, `srcc_ci95` .. as [low, high] (the
        fitted logistic is kept in all resamples); `notes`, the reasons of every None and of every doubt.

    Raises:
        UserError: bad input rows, or `scale` not positive.
    """
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise UserError(f"scale: expected a positive width / 100, got {scale}")
    require_resamples(resamples)
    scores, mos = checked_pair(scores, mos)
    clusters = content_index(contents, scores.size)
    mapped, notes = _mapped(scores, mos)
    known = {"mos_std": mos_std, "scale": scale}
    summary, intervals = _values(mapped, mos, known, Resampling(clusters, resamples, seed))
    if summary["srcc"] is not None and summary["srcc"] < 0:
        notes.append("srcc is negative: the PLCC after a logistic hides that the scores rank backwards")
    counts = {"n": scores.size, "contents": len(np.unique(clusters))}
    notes += [contents_note(counts["contents"]), _pairs_note(scores.size)]
    return counts | summary | intervals | {"notes": _distinct([undefined_reason(scores, mos), *notes])}


def _values(
    mapped: dict[int | None, np.ndarray], mos: np.ndarray, known: dict[str, Any], drawn: Resampling
) -> tuple[dict, dict]:
    """Every statistic whose needs are known, and the interval of each that has one."""
    values, intervals = {}, {}
    for row in sorted(STATISTICS.values(), key=lambda row: not row.plain):  # first those that groups have too
        if any(known[need] is None for need in row.needs):
            continue
        scores = mapped[row.logistic]
        values[row.key] = json_number(row.function(scores, mos, *(known[need] for need in row.needs)))
        if row.resampled:
            intervals[f"{row.key}_ci95"] = [json_number(end) for end in row.interval(scores, mos, drawn, level=0.95)]
    return values, intervals


def _mapped(scores: np.ndarray, mos: np.ndarray) -> tuple[dict[int | None, np.ndarray], list[str | None]]:
    """The scores as they are (None), and after each logistic by its parameters; why a logistic could not be fitted."""
    mapped: dict[int | None, np.ndarray] = {None: scores}
    notes = []
    for parameters in sorted({row.logistic for row in STATISTICS.values() if row.logistic}):
        fit = fit_logistic(scores, mos, parameters)
        mapped[parameters] = fit.predict(scores) if fit.reason is None else np.zeros_like(mos)  # constant: undefined
        notes.append(fit.reason)
    return mapped, notes


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
        JSON-safe: group name -> `n`, the plain statistics by their keys, and `notes`, in order of first
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
        pair = scores[rows], mos[rows]
        summary = {row.key: json_number(row.function(*pair)) for row in STATISTICS.values() if row.plain}
        table[group] = {"n": len(rows)} | summary | {"notes": _distinct([undefined_reason(*pair)])}
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
    from scipy import stats

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
    names = dict.fromkeys(name for summary in summaries for name in summary if name in STATISTICS)
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
