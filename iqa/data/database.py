"""One database as the rest of the system sees it: made by `folders.py`, read by everything after it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from iqa.data.images import file_hash


@dataclass(frozen=True, eq=False)
class Database:
    """One database, read and checked.

    Attributes:
        name: as on the command line, for example `koniq-10k`.
        root: the folder that image names are relative to.
        table: one row an image, sorted by `image`: image (posix path relative to `root`), path (absolute),
            mos (0..100, higher is better), mos_std (same scale, NaN where unknown), content, distortion
            ("authentic" for photographs as taken, "" where unknown), split (train, val, test, or "" where
            there is no official one), file_hash ("" if images were not checked), image_width and image_height
            (upright pixels, 0 if not checked), and columns of its own such as generator, level or reference, as text.
        stored_range: lowest and highest score as the database stores it (published extremes).
        lower_is_better: whether it stores a DMOS, which the table's mos has turned round.
        left_out: image, row and reason of every label that `skip_bad_images` left out.
        duplicates: groups of names whose files are byte-identical.
        notes: one line each about what a reader of results should know.
    """

    name: str
    root: Path
    table: pd.DataFrame
    stored_range: tuple[float, float]
    lower_is_better: bool
    left_out: list[dict] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """SHA-256 over names, mos and bytes of all images; the same wherever the database lies."""
        digest = hashlib.sha256()
        for row in self.table.itertuples():
            hashed = row.file_hash or file_hash(Path(row.path))
            digest.update(f"{row.image}\t{row.mos:.6f}\t{hashed}\n".encode())
        return digest.hexdigest()
