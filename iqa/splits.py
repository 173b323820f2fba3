"""Which images train, which choose the checkpoint, which are tested: between `folders` and `data_loader`.

A split is a pandas Series of "train", "val" and "test", aligned with the rows of a database's table. The
official split is taken where there is one. Any other is made by content, so that no scene or prompt is in two
parts, and contents that share a byte-identical image stay together. A made split depends on the seed and the
names of the contents only: not on row order, and not on the version of a random generator.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pandas as pd

from iqa.database import Database
from iqa.errors import UserError
from iqa.files import write_json

PARTS = ("train", "val", "test")
Part = TypeVar("Part", bound=Hashable)
_VAL_SHARE_OF_OFFICIAL_TRAIN = 1 / 8  # 70/10/20 has the same ratio of val to train and val together
_log = logging.getLogger(__name__)


def split_database(
    database: Database,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    official: bool = True,
) -> pd.Series:
    """The official split of a database, or one made by content.

    An official split without a validation part gives up one eighth of its training contents for it.

    Args:
        database: a database as read.
        seed: decides a made split; an official one with three parts does not depend on it.
        fractions: shares of the contents for train, val and test; they add up to 1.
        official: take the official split where there is one.

    Returns:
        "train", "val" or "test" for each row of `database.table`.

    Raises:
        UserError: an official split that names no train or no test images or leaves images out, or too few
            contents for the parts asked for.
    """
    if official and (database.table.split != "").any():
        return _official_split(database, seed)
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise UserError(f"fractions of train, val and test must be shares that add up to 1, got {fractions}")
    groups = _ordered_groups(_joined_contents(database, database.table.index), seed)
    shares = dict(zip(PARTS, fractions, strict=True))
    return _by_content(database.table, _deal(groups, shares, database.name))


def splits_many(
    database: Database,
    rounds: int,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
) -> list[pd.Series]:
    """Several made splits, with seeds `seed`, `seed + 1`, ...; never the official one, which is only one."""
    return [split_database(database, seed=seed + i, fractions=fractions, official=False) for i in range(rounds)]


def kfold(database: Database, folds: int, seed: int = 0) -> list[pd.Series]:
    """Cross-validation by content: in split i, fold i is test, fold i + 1 val, the rest train.

    Args:
        database: a database as read.
        folds: 3 or more; every image is in the test part of exactly one split.
        seed: decides which contents share a fold.

    Returns:
        `folds` splits.

    Raises:
        UserError: fewer than 3 folds, or fewer contents than folds.
    """
    if folds < 3:
        raise UserError(f"cross-validation needs at least 3 folds (train, val, test), got {folds}")
    groups = _ordered_groups(_joined_contents(database, database.table.index), seed)
    fold_of = _deal(groups, dict.fromkeys(range(folds), 1 / folds), database.name)
    fold = _by_content(database.table, fold_of)
    return [((fold - i) % folds).map({0: "test", 1: "val"}).fillna("train") for i in range(folds)]


def check_leakage(database: Database, split: pd.Series, *, allow: bool = False) -> list[str]:
    """Look for contents and for byte-identical images that are in two parts of a split.

    Args:
        database: a database as read.
        split: a part for each row of `database.table`; rows in no part ("") are ignored.
        allow: note contents in two parts instead of stopping.

    Returns:
        one line for each kind of leak. Identical images across parts never stop: made splits have none, and
        an official split is used as published.

    Raises:
        UserError: a content is in two parts and `allow` is false.
    """
    used = database.table.assign(part=split)[lambda table: table.part != ""]
    notes = []
    parts_of = used.groupby("content").part.nunique()
    leaking = sorted(parts_of.index[parts_of > 1])
    if leaking:
        note = f"{database.name}: {len(leaking)} contents are in two parts, for example {leaking[0]!r}"
        if not allow:
            raise UserError(f"{note}; split by content")
        notes.append(note)
    part_of = dict(zip(used.image, used.part, strict=True))
    groups = [group for group in database.duplicates if len({part_of[i] for i in group if i in part_of}) > 1]
    if groups:
        example = " and ".join(groups[0][:2])
        notes.append(f"{database.name}: {len(groups)} groups of identical images are in two parts: {example}")
    return notes


def write_split(path: str | Path, database: Database, split: pd.Series, seed: int | None) -> None:
    """Write a split as JSON: image names by part, with the database's name and fingerprint and the seed.

    Images in no part are allowed, and the file then says `"partial": true`.
    """
    names = {part: database.table.image[split == part].tolist() for part in PARTS}
    head = {"database": database.name, "fingerprint": database.fingerprint(), "seed": seed}
    head["partial"] = bool((split == "").any())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, head | names)


def read_split(path: str | Path, database: Database) -> pd.Series:
    """Read a split file.

    The file is JSON with lists under train, val and test (val may be missing), of image names or of objects
    with an `image`. A name may leave its folder out where only one image has that name, so that a split of
    `512x384/` serves for `1024x768/`. With `"partial": true` images may be in no part: their value is "".
    A fingerprint that differs (other labels or pixels) is logged as a warning, since the names still hold.

    Args:
        path: the file.
        database: the database it is for.

    Returns:
        a part for each row of `database.table`.

    Raises:
        UserError: no such file, not a split, made for another database, naming images that are not there or
            an image twice, or leaving images out without saying that it is partial.
    """
    content = _read_json_object(Path(path))
    if content.get("database", database.name) != database.name:
        raise UserError(f"{path}: this split is for {content['database']}, not for {database.name}")
    part_of = _parts_by_image(Path(path), content, database.table.image)
    split = database.table.image.map(part_of).fillna("")
    left_out = database.table.image[split == ""].tolist()
    if left_out and not content.get("partial", False):
        raise UserError(
            f"{path}: {len(left_out)} images of {database.name} are in no part, for example {left_out[0]}; "
            'if that is meant, add "partial": true to the file'
        )
    if content.get("fingerprint", "") not in ("", database.fingerprint()):
        _log.warning("%s was written for other labels or other pixels of %s", path, database.name)
    return split


def _official_split(database: Database, seed: int) -> pd.Series:
    table = database.table
    absent = [part for part in ("train", "test") if not (table.split == part).any()]
    if absent or (table.split == "").any():
        what = f"no {' and no '.join(absent)} images" if absent else "images in no part"
        raise UserError(
            f"{database.name}: its official split has {what}; complete the split column or split by content"
        )
    split = table.split.copy()
    if (split == "val").any():
        return split
    train_rows = table.index[split == "train"]
    groups = _ordered_groups(_joined_contents(database, train_rows), seed)
    shares = {"train": 1 - _VAL_SHARE_OF_OFFICIAL_TRAIN, "val": _VAL_SHARE_OF_OFFICIAL_TRAIN}
    split[train_rows] = _by_content(table.loc[train_rows], _deal(groups, shares, database.name))
    return split


def _joined_contents(database: Database, rows: pd.Index) -> list[list[str]]:
    """Groups of contents that share a byte-identical image (union-find); most contents are alone."""
    content_of = dict(zip(database.table.image[rows], database.table.content[rows], strict=True))
    parent = {content: content for content in content_of.values()}

    def root(content: str) -> str:
        while parent[content] != content:
            content = parent[content]
        return content

    for group in database.duplicates:
        first, *others = [content_of[image] for image in group if image in content_of] or [None]
        for other in others:
            parent[root(other)] = root(first)
    groups: dict[str, list[str]] = {}
    for content in sorted(parent):
        groups.setdefault(root(content), []).append(content)
    return list(groups.values())


def _ordered_groups(groups: Iterable[list[str]], seed: int) -> list[list[str]]:
    """The groups in an order that looks random but is fixed by the seed and the contents' names."""
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed} {group[0]}".encode()).digest())


def _deal(groups: Sequence[list[str]], shares: Mapping[Part, float], name: str) -> dict[str, Part]:
    """Give the groups, in order, to the first part that has room for them; parts are counted in contents."""
    count = sum(map(len, groups))
    wanted = [part for part, share in shares.items() if share > 0]
    if len(groups) < len(wanted):
        raise UserError(f"{name}: {len(groups)} separate contents cannot be split into {len(wanted)} parts")
    room = _sizes(count, [shares[part] for part in wanted])
    dealt: list[list[list[str]]] = [[] for _ in wanted]
    for group in groups:
        fitting = [i for i, free in enumerate(room) if free >= len(group)]
        chosen = fitting[0] if fitting else max(range(len(room)), key=room.__getitem__)
        room[chosen] -= len(group)
        dealt[chosen].append(group)
    for empty in [groups_of for groups_of in dealt if not groups_of]:  # a large joined group took its room
        empty.append(max(dealt, key=len).pop())
    return {
        content: part for part, groups_of in zip(wanted, dealt, strict=True) for group in groups_of for content in group
    }


def _sizes(count: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `count`, nearest to the shares, none of them 0."""
    sizes = [max(1, math.floor(count * share)) for share in shares]
    while sum(sizes) != count:
        errors = [count * share - size for share, size in zip(shares, sizes, strict=True)]
        if sum(sizes) < count:
            sizes[errors.index(max(errors))] += 1
        else:
            sizes[sizes.index(max(sizes))] -= 1
    return sizes


def _by_content(table: pd.DataFrame, part_of: Mapping[str, Hashable]) -> pd.Series:
    return table.content.map(part_of)


def _read_json_object(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a split file ({error})") from error
    if not isinstance(content, dict) or not any(isinstance(content.get(part), list) for part in PARTS):
        raise UserError(f"{path}: expected a JSON object with lists of image names under train, val and test")
    return content


def _parts_by_image(path: Path, content: dict, images: pd.Series) -> dict[str, str]:
    """The part of each image that a split file names, under the database's own name for it."""
    known = _names_without_folder(images) | {image: image for image in images}
    part_of: dict[str, str] = {}
    absent, repeated = [], []
    for part in PARTS:
        for entry in content.get(part, []):
            name = str(entry.get("image") if isinstance(entry, dict) else entry)
            image = known.get(name)
            if image is None:
                absent.append(name)
            elif image in part_of:
                repeated.append(name)
            else:
                part_of[image] = part
    for names, complaint in ((absent, "are not in the database"), (repeated, "are named twice")):
        if names:
            raise UserError(f"{path}: {len(names)} images {complaint}: {', '.join(names[:3])}")
    return part_of


def _names_without_folder(images: Iterable[str]) -> dict[str, str]:
    """File name -> image, for file names that only one image has."""
    images = list(images)
    names = [PurePosixPath(image).name for image in images]
    count = Counter(names)
    return {name: image for name, image in zip(names, images, strict=True) if count[name] == 1}
