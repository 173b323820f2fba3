"""What every statistic asks of its input, checked once at the border."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from iqa.errors import UserError

FEWEST_IMAGES = 3  # two points always lie on a line: their correlation says nothing
MOST_IMAGES_IN_PAIRS = 12_000  # 72 million pairs: where each is looked at, more would take minutes or gigabytes


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
