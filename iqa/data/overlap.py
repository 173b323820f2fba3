"""Does a test hold images of training? Two tables -> `Overlap`: the same bytes, and the same to the eye.

For tests on databases that a run was not trained on: databases share photographs and references. What is in two
parts of one database `iqa.data.splits` and `smart-iqa check-splits` find.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from iqa.data.near_duplicates import HASH_BITS, NEAR_BITS, close_pairs, count_unhashed, perceptual_hashes

MOST_TO_HASH = 20_000  # images without a perceptual hash, each of which is decoded once: minutes on two cores
EXAMPLES = 10


class Overlap(NamedTuple):
    """Images to test on that are among the images of training, each with one of those.

    Attributes:
        images: how many are tested.
        training_images: how many they were compared with.
        identical: names of images whose bytes are the same.
        near: names of others that look the same, see `NEAR_BITS`; None where that was not looked for.
        unhashed: images without a perceptual hash, too many where `near` is None.
    """

    images: int
    training_images: int
    identical: list[tuple[str, str]]
    near: list[tuple[str, str]] | None
    unhashed: int = 0

    def record(self) -> dict:
        """What a results file says of it; the number of near-identical images is null where not looked for."""
        return {
            "images": self.images,
            "training_images": self.training_images,
            "identical_images": len(self.identical),
            "near_identical_images": None if self.near is None else len(self.near),
            "examples": [list(pair) for pair in [*self.identical, *(self.near or [])][:EXAMPLES]],
        }

    def in_words(self) -> list[str]:
        """A line for each kind that was found, or that was not looked for."""
        near = f"(within {NEAR_BITS} of {HASH_BITS} bits of a perceptual hash)"
        lines = [
            f"{len(pairs)} of {self.images} images are {kind} to training images, for example {' and '.join(pairs[0])}"
            f"{measure}: their scores are not those of unseen images"
            for kind, measure, pairs in (
                ("byte-identical", "", self.identical),
                ("near-identical", f" {near}", self.near),
            )
            if pairs
        ]
        if self.near is None:
            lines.append(
                f"near-identical images were not looked for: {self.unhashed} images have no perceptual hash yet, more "
                f"than {MOST_TO_HASH}; `smart-iqa check-splits` of each database makes and keeps them"
            )
        return lines


def find_overlap(tested: pd.DataFrame, learned: pd.DataFrame, cache_dir: str | None = None) -> Overlap:
    """Compare images to test on with images of training.

    Near-identical ones are looked for where at most `MOST_TO_HASH` images have to be decoded for it.

    Args:
        tested: columns image, path, file_hash.
        learned: as tested.
        cache_dir: keeps perceptual hashes; None takes the user's cache folder.
    """
    tested, learned = (table.reset_index(drop=True) for table in (tested, learned))
    name_of = dict(zip(learned["file_hash"], learned["image"], strict=True))
    same = tested["file_hash"].isin(name_of.keys() - {""})
    identical = [
        (image, name_of[key]) for image, key in tested.loc[same, ["image", "file_hash"]].itertuples(index=False)
    ]
    others = tested[~same].reset_index(drop=True)
    unhashed = count_unhashed([*others["file_hash"], *learned["file_hash"]], cache_dir)
    near = _near(others, learned, cache_dir) if unhashed <= MOST_TO_HASH else None
    return Overlap(len(tested), len(learned), identical, near, unhashed)


def _near(tested: pd.DataFrame, learned: pd.DataFrame, cache_dir: str | None) -> list[tuple[str, str]]:
    """Each tested image that looks like one of training, with the one that it looks most like."""
    hashes = [perceptual_hashes(t["path"].tolist(), t["file_hash"].tolist(), cache_dir) for t in (tested, learned)]
    closest: dict[int, int] = {}
    pairs = close_pairs(*hashes)
    for row, other in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):  # closest first
        closest.setdefault(row, other)
    return [(tested["image"][row], learned["image"][other]) for row, other in closest.items()]
