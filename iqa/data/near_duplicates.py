"""Images that look the same though their bytes differ: perceptual hashes and the pairs that are close.

For `smart-iqa check-splits`: image files -> one hash of 256 bits each -> pairs between two parts within a Hamming
distance. The hash is `imagehash.phash`: signs of the low frequencies of a small grey picture, which re-encoding,
scaling and brightness hardly change.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np

from iqa.data.images import ImageFileError, opened, pillow
from iqa.errors import UserError
from iqa.system import in_threads

HASH_SIDE = 16  # 16 x 16 frequencies: with 8 x 8, unrelated images come as close as re-encoded ones
HASH_BITS = HASH_SIDE**2
# Measured on AGIQA-3K (docs/protocols.md): all but 1 in 500 re-encoded copies stay within it, other images differ in
# 52 bits or more.
NEAR_BITS = 36
_DECODED_SIDE = 128  # pixels; twice the picture that phash transforms
_ROWS_AT_ONCE = 128  # with 10,000 columns: 41 MB of differences


class ClosePairs(NamedTuple):
    """Pairs within a distance, closest first: rows of the first and of the second array, and bits (all (P,))."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


def perceptual_hash(path: Path) -> np.ndarray:
    """The perceptual hash of an image file.

    Args:
        path: an image file.

    Returns:
        256 bits, packed into uint64 (4,).

    Raises:
        UserError: the file does not open as an image.
    """
    try:
        with opened(path) as image, pillow():
            image.draft("L", (_DECODED_SIDE, _DECODED_SIDE))  # JPEG only: decodes at reduced size
            grey = image.convert("L")
    except ImageFileError as error:
        raise UserError(f"{path}: does not open as an image; run folders.py on its database") from error
    return np.packbits(imagehash.phash(grey, hash_size=HASH_SIDE).hash).view(np.uint64)


def perceptual_hashes(paths: Sequence[Path]) -> np.ndarray:
    """Perceptual hashes of many files, with a few threads.

    Args:
        paths: image files.

    Returns:
        uint64 (N, 4), in the order of `paths`.

    Raises:
        UserError: a file does not open as an image.
    """
    found = np.zeros((len(paths), HASH_BITS // 64), dtype=np.uint64)
    for row, words in enumerate(in_threads(perceptual_hash, paths, "perceptual hashes")):
        found[row] = words
    return found


def close_pairs(first: np.ndarray, second: np.ndarray, threshold: int = NEAR_BITS) -> ClosePairs:
    """All pairs of hashes from two arrays whose Hamming distance is `threshold` or less.

    Args:
        first: hashes, uint64 (N, 4).
        second: hashes, uint64 (M, 4).
        threshold: the largest distance, in bits.

    Returns:
        the pairs, by distance and then by row.
    """
    rows, columns, distances = [], [], []
    for start in range(0, len(first), _ROWS_AT_ONCE):
        differing = first[start : start + _ROWS_AT_ONCE, None] ^ second[None]  # (rows, M, 4)
        distance = np.bitwise_count(differing).sum(axis=-1, dtype=np.uint16)  # (rows, M)
        row, column = np.nonzero(distance <= threshold)
        rows.append(row + start)
        columns.append(column)
        distances.append(distance[row, column])
    if not rows:
        return ClosePairs(*(np.array([], dtype=int) for _ in range(3)))
    row, column, distance = (np.concatenate(parts).astype(int) for parts in (rows, columns, distances))
    order = np.lexsort((column, row, distance))
    return ClosePairs(row[order], column[order], distance[order])
