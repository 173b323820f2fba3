"""Images that look the same though their bytes differ: perceptual hashes and the pairs that are close.

For `smart-iqa check-splits` and `iqa.data.overlap`: image files -> one hash of 256 bits each -> pairs within a
Hamming distance. The hash is `imagehash.phash`: signs of the low frequencies of a small grey image, which
re-encoding, scaling and brightness hardly change. Hashes are kept in the user's cache folder, by the bytes of the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np

from iqa.data.cache import cache_folder, read_records, take_known, write_records
from iqa.data.images import ImageFileError, opened, pillow
from iqa.errors import UserError
from iqa.system import in_threads

HASH_SIDE = 16  # 16 x 16 frequencies: with 8 x 8, unrelated images come as close as re-encoded ones
HASH_BITS = HASH_SIDE**2
# Measured on AGIQA-3K (docs/protocols.md): all but 1 in 500 re-encoded copies stay within it, other images differ in
# 52 bits or more.
NEAR_BITS = 36
_DECODED_SIDE = 128  # pixels; twice the image that phash transforms
_KEPT = "perceptual_hashes.npy"
_RECORD = np.dtype([("key", "S32"), ("hash", "<u8", (HASH_BITS // 64,))])  # the key is the hash of a file's bytes
_PAIRS_AT_ONCE = 1 << 20  # 32 MB of differences
_LONGEST_PART = 22  # bits; an index has a number for each value


class ClosePairs(NamedTuple):
    """Pairs within a distance, closest first: rows of the first and of the second array, and bits (all (P,))."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


def perceptual_hash(path: str | Path) -> np.ndarray:
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


def perceptual_hashes(
    paths: Sequence[str | Path], file_hashes: Sequence[str] | None = None, cache_dir: str | None = None
) -> np.ndarray:
    """Perceptual hashes of many files, with a few threads.

    Args:
        paths: image files.
        file_hashes: of their bytes, by which what is found is kept and found again; None keeps nothing.
        cache_dir: where it is kept; None takes the user's cache folder.

    Returns:
        uint64 (N, 4), in the order of `paths`.

    Raises:
        UserError: a file does not open as an image.
    """
    records, kept, unknown = _known(["" for _ in paths] if file_hashes is None else file_hashes, cache_dir)
    hashes = in_threads(perceptual_hash, [paths[row] for row in unknown], "perceptual hashes")
    for row, words in zip(unknown.tolist(), hashes, strict=True):
        records["hash"][row] = words
    new = np.unique(records[unknown][records["key"][unknown] != b""])
    if len(new):
        write_records(cache_folder(cache_dir) / _KEPT, np.concatenate([kept, new]))
    return records["hash"]


def count_unhashed(file_hashes: Sequence[str], cache_dir: str | None = None) -> int:
    """How many of these files `perceptual_hashes` would have to decode."""
    return len(_known(file_hashes, cache_dir)[2])


def _known(file_hashes: Sequence[str], cache_dir: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A record for each file, all that is kept, and the rows of the records that are not known."""
    kept = read_records(cache_folder(cache_dir) / _KEPT, _RECORD)
    records = np.zeros(len(file_hashes), _RECORD)
    records["key"] = [file_hash.encode() for file_hash in file_hashes]
    return records, kept, take_known(records, kept)


def close_pairs(first: np.ndarray, second: np.ndarray, threshold: int = NEAR_BITS) -> ClosePairs:
    """All pairs of hashes from two arrays whose Hamming distance is `threshold` or less.

    Many hashes are cut into parts: two within r bits agree in one of m parts up to r // m bits, so that only those
    which share such a part are compared (Norouzi, Punjani and Fleet, CVPR 2012). No pair is missed.

    Args:
        first: hashes, uint64 (N, 4).
        second: hashes, uint64 (M, 4).
        threshold: the largest distance, in bits.

    Returns:
        the pairs, by distance and then by row.
    """
    plan = _plan(len(first), len(second), threshold)
    candidates = _sharing_a_part(first, second, plan) if plan else _all_pairs(len(first), len(second))
    found = [np.zeros((3, 0), dtype=np.int64)]
    for row, column in candidates:
        distance = np.bitwise_count(first[row] ^ second[column]).sum(axis=-1, dtype=np.int64)
        close = distance <= threshold
        found.append(np.stack([distance[close], row[close], column[close]]))
    distance, row, column = np.unique(np.concatenate(found, axis=1), axis=1)  # sorted; several parts may agree
    return ClosePairs(row, column, distance)


class _Part(NamedTuple):
    """Bits `start` to `end` of the hashes, in which two may differ by `radius`."""

    start: int
    end: int
    radius: int


def _plan(rows: int, columns: int, threshold: int) -> list[_Part]:
    """The parts that make the least work; none where comparing all pairs is less."""
    plans = {}
    for count in range(HASH_BITS // _LONGEST_PART + 1, HASH_BITS // 2):
        radius, rest = divmod(threshold, count)
        edges = [HASH_BITS * i // count for i in range(count + 1)]
        # The first rest + 1 parts agree within `radius`, or one of the others within one bit less.
        parts = [_Part(*edges[i : i + 2], radius - (i > rest)) for i in range(count) if radius >= (i > rest)]
        looked_up = [sum(math.comb(p.end - p.start, n) for n in range(p.radius + 1)) for p in parts]
        met = sum(n * columns / 2 ** (p.end - p.start) for n, p in zip(looked_up, parts, strict=True))
        plans[rows * (sum(looked_up) + 3 * met)] = parts  # comparing costs about three times looking up
    least = min(plans)
    return plans[least] if least < rows * columns else []


def _all_pairs(rows: int, columns: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of all pairs, some at a time."""
    some = max(1, _PAIRS_AT_ONCE // max(1, columns))
    for start in range(0, rows, some):
        row, column = np.indices((min(some, rows - start), columns)).reshape(2, -1)
        yield row + start, column


def _sharing_a_part(
    first: np.ndarray, second: np.ndarray, plan: list[_Part]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of the pairs that agree in a part up to its radius, some at a time."""
    for part in plan:
        keys, values = _keys(first, part), _keys(second, part)
        order = np.argsort(values, kind="stable")
        starts = np.searchsorted(values[order], np.arange((1 << (part.end - part.start)) + 1))
        for flips in _flips(part):
            asked = keys ^ flips
            begin = starts[asked]
            count = starts[asked + 1] - begin
            # Slices of rows with about as many pairs each.
            cuts = np.searchsorted(np.cumsum(count), np.arange(_PAIRS_AT_ONCE, count.sum(), _PAIRS_AT_ONCE))
            for rows in np.split(np.arange(len(keys)), cuts):
                of_each = count[rows]
                row = np.repeat(rows, of_each)
                place = np.arange(len(row)) - np.repeat(np.cumsum(of_each) - of_each, of_each)
                yield row, order[begin[row] + place]


def _keys(hashes: np.ndarray, part: _Part) -> np.ndarray:
    """The bits of a part as numbers (N,)."""
    octets = hashes.view(np.uint8)[:, part.start // 8 : -(-part.end // 8)]
    bits = np.unpackbits(octets, axis=1)[:, part.start % 8 :][:, : part.end - part.start]
    return bits @ (1 << np.arange(bits.shape[1])[::-1])


def _flips(part: _Part) -> Iterator[int]:
    """Every change of at most `radius` bits."""
    for changed in range(part.radius + 1):
        for places in combinations(range(part.end - part.start), changed):
            yield sum(1 << place for place in places)
