"""Does a split leak? Contents, byte-identical and near-identical images that are in two parts of it.

    smart-iqa check-splits agiqa-3k --data_root ./datasets --seed 0

checks the split that `train_swin.py` with the same database and seed would use (the official one, else one made
by content), or the one that `--split_file` names, without training anything. Prints the report as JSON, and a
summary in words on stderr. Ends with code 1 where a content is in two parts, which would stop a run, else with
0: identical and near-identical images are reported, since an official split is used as published.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from folders import add_database_arguments, read_database
from iqa.data import (
    HASH_BITS,
    HASH_SIDE,
    NEAR_BITS,
    PARTS,
    Database,
    close_pairs,
    contents_in_two_parts,
    perceptual_hashes,
    read_split,
    split_database,
)
from iqa.errors import Parser, UserError

EXAMPLES = 10


def leakage_report(database: Database, split: pd.Series, threshold: int = NEAR_BITS) -> dict:
    """What is in two parts of a split.

    Args:
        database: a database as read, with its images checked.
        split: a part for each row of `database.table`; rows in no part ("") are counted only.
        threshold: Hamming distance of two perceptual hashes, in bits, up to which images are near-identical.

    Returns:
        `parts` (images and contents of each), `contents_in_two_parts`, `identical_images` (byte-identical) and
        `near_identical_images` (others within the threshold), each with counts and at most ten examples.
    """
    table = database.table.assign(part=split.to_numpy())
    leaking = contents_in_two_parts(database, split)
    in_parts = {part: table[table.part == part] for part in PARTS}
    return {
        "parts": {
            part: {"images": len(rows), "contents": int(rows.content.nunique())} for part, rows in in_parts.items()
        },
        "images_in_no_part": int((table.part == "").sum()),
        "contents_in_two_parts": {
            "count": len(leaking),
            "examples": [{"content": name, "parts": parts} for name, parts in list(leaking.items())[:EXAMPLES]],
        },
        "identical_images": _identical(table, database.duplicates),
        "near_identical_images": _near_identical(table, threshold),
    }


def _identical(table: pd.DataFrame, groups: list[list[str]]) -> dict:
    """Groups of byte-identical images: all of them, across contents, and across parts; those come first."""
    rows = table.set_index("image")
    described = [{name: {"content": rows.content[name], "part": rows.part[name]} for name in group} for group in groups]
    several = {
        key: [len({image[key] for image in g.values()} - {""}) > 1 for g in described] for key in ("content", "part")
    }
    first = sorted(range(len(described)), key=lambda i: not several["part"][i])
    return {
        "groups": len(groups),
        "groups_across_contents": sum(several["content"]),
        "groups_in_two_parts": sum(several["part"]),
        "examples": [described[i] for i in first[:EXAMPLES]],
    }


def _near_identical(table: pd.DataFrame, threshold: int) -> dict:
    """Pairs of different files in two parts whose hashes are close; counted by pair of parts."""
    used = table[table.part != ""].reset_index(drop=True)
    hashes = perceptual_hashes(used.path.tolist(), used.file_hash.tolist())
    pairs = pd.concat(list(_pairs_between_parts(used, hashes, threshold)), ignore_index=True)
    examples = pairs.sort_values("distance", kind="stable").head(EXAMPLES)
    return {
        "hash": f"phash, {HASH_SIDE} x {HASH_SIDE} = {HASH_BITS} bits",
        "threshold": threshold,
        "pairs_in_two_parts": len(pairs),
        "by_parts": {parts: int(n) for parts, n in pairs.parts.value_counts(sort=False).items()},
        "examples": examples.to_dict("records"),
    }


def _pairs_between_parts(used: pd.DataFrame, hashes: np.ndarray, threshold: int) -> Iterator[pd.DataFrame]:
    for one, other in combinations(PARTS, 2):
        rows, columns = np.flatnonzero(used.part == one), np.flatnonzero(used.part == other)
        close = close_pairs(hashes[rows], hashes[columns], threshold)
        first, second = used.loc[rows[close.first]], used.loc[columns[close.second]]
        differ = first.file_hash.to_numpy() != second.file_hash.to_numpy()
        yield pd.DataFrame(
            {
                "parts": f"{one}-{other}",
                "images": [list(names) for names in zip(first.image, second.image, strict=True)],
                "same_content": first.content.to_numpy() == second.content.to_numpy(),
                "distance": close.distance,
            }
        )[differ]


def in_words(report: dict) -> str:
    """The summary of a report, a line for each kind of finding."""
    contents, identical, near = (
        report[key] for key in ("contents_in_two_parts", "identical_images", "near_identical_images")
    )
    parts = ", ".join(f"{part} {n['images']} images of {n['contents']} contents" for part, n in report["parts"].items())
    return "\n".join(
        [
            f"{report['database']}, {report['split']}: {parts}, {report['images_in_no_part']} images in no part",
            f"contents in two parts: {contents['count']}",
            f"groups of byte-identical images in two parts: {identical['groups_in_two_parts']} "
            f"of {identical['groups']} ({identical['groups_across_contents']} are across contents)",
            f"near-identical pairs in two parts (within {near['threshold']} of {HASH_BITS} bits): "
            f"{near['pairs_in_two_parts']}",
        ]
    )


def make_parser() -> Parser:
    """The command's flags."""
    parser = Parser(description="Report contents and images that are in two parts of a split, as JSON.")
    add_database_arguments(parser)
    parser.add_argument("--split_file", help="a split file, or a folder of lists; see docs/protocols.md")
    parser.add_argument("--seed", type=int, default=0, help="of a split that is made; default 0")
    parser.add_argument(
        "--threshold", type=int, default=NEAR_BITS, metavar="BITS", help=f"of {HASH_BITS}; default {NEAR_BITS}"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check one split, print its report, and end with 1 where it would stop a run."""
    arguments = vars(make_parser().parse_args(argv))
    split_file, seed, threshold = (arguments.pop(key) for key in ("split_file", "seed", "threshold"))
    if not 0 <= threshold <= HASH_BITS:
        raise UserError(f"--threshold {threshold}: expected bits, 0 to {HASH_BITS}")
    database = read_database(**arguments)
    if split_file:
        split, source = read_split(split_file, database, seed=seed), split_file
    else:
        split = split_database(database, seed=seed)
        official = (database.table.split != "").any()
        source = "official split" if official else f"split by content with seed {seed}"
    report = {"database": database.name, "split": source} | leakage_report(database, split, threshold)
    print(json.dumps(report, indent=2))
    print(in_words(report), file=sys.stderr)
    sys.exit(1 if report["contents_in_two_parts"]["count"] else 0)
