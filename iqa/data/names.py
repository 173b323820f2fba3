"""Names of many images in two arrays: a million of them are not a million objects.

A worker process shares its parent's memory until one of the two writes to it. Python counts references in each
object, so that reading a list of names copies it into every worker; arrays stay shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


class Names(Sequence[str]):
    """Texts (n,) by number, and numbers by text.

    >>> names = Names(["a.png", "b.png", "c.png"])
    >>> names[1], names.row("c.png"), names.find(["b.png", "no.png"]).tolist()
    ('b.png', 2, [1, -1])
    """

    def __init__(self, texts: Iterable[str]):
        encoded = [_bytes(text) for text in texts]
        self._text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        hashes = _hashes(encoded)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, row: int) -> str:
        """The text of a row."""
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return self._bytes_of(row % len(self)).decode(errors="surrogatepass")

    def row(self, text: str) -> int:
        """The last row with this text.

        Raises:
            KeyError: there is none.
        """
        (row,) = self.find([text]).tolist()
        if row < 0:
            raise KeyError(text)
        return row

    def find(self, texts: Iterable[str]) -> np.ndarray:
        """The last row of each text (m,); -1 for those that are not here."""
        asked = [_bytes(text) for text in texts]
        places = np.searchsorted(self._sorted, _hashes(asked), side="right") - 1
        rows = self._order[places] if len(self) else places
        same = [
            place >= 0 and self._bytes_of(row) == text for place, row, text in zip(places, rows, asked, strict=True)
        ]
        return np.where(np.array(same, dtype=bool), rows, -1)

    def _bytes_of(self, row: int) -> bytes:
        return self._text[self._ends[row] : self._ends[row + 1]].tobytes()


def _bytes(text: object) -> bytes:
    return str(text).encode(errors="surrogatepass")  # a path too; names of files need not be UTF-8


def _hashes(texts: Sequence[bytes]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")
