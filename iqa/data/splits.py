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
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pandas as pd

from iqa.data.database import Database
from iqa.data.label_files import SPLIT_NAMES
from iqa.errors import UserError
from iqa.metrics import plcc, srcc
from iqa.system import write_json

PARTS = ("train", "val", "test")
Part = TypeVar("Part", bound=Hashable)
_VAL_SHARE_OF_OFFICIAL_TRAIN = 1 / 8  # 70/10/20 has the same ratio of val to train and val together
_NAME_KEYS, _SCORE_KEYS = ("image", "img_path"), ("score", "mos", "gt_score")
_SAME_LABELS = 0.999  # correlation above which scores are the same labels; KonIQ's two kinds of MOS reach .992
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


def contents_in_two_parts(database: Database, split: pd.Series) -> dict[str, list[str]]:
    """The contents that are in more than one part, each with its parts; rows in no part ("") do not count."""
    used = database.table.assign(part=split)[lambda table: table.part != ""]
    parts_of = used.groupby("content").part.agg(lambda parts: [part for part in PARTS if part in set(parts)])
    return parts_of[parts_of.str.len() > 1].to_dict()


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
    notes = []
    leaking = contents_in_two_parts(database, split)
    if leaking:
        note = f"{database.name}: {len(leaking)} contents are in two parts, for example {next(iter(leaking))!r}"
        if not allow:
            raise UserError(f"{note}; split by content, or use it all the same with --allow_leakage")
        notes.append(note)
    part_of = dict(zip(database.table.image, split, strict=True))
    groups = [group for group in database.duplicates if len({part_of.get(image, "") for image in group} - {""}) > 1]
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


def read_split(path: str | Path, database: Database, *, seed: int = 0) -> pd.Series:
    """Read a split: a file with its parts, or a folder of lists as other papers ship them.

    A file is a JSON object with lists under train, val and test (or training, validation and testing). A folder
    holds one JSON list each in `*train*.json`, `*test*.json` and, if there is one, `*val*.json`. Entries are
    image names, or objects with an `image` (or `img_path`). A file that is one list names the test part only.

    A name may stand in another folder than the database's, or in other letter case, as long as its end names
    one image only: a split of `512x384/` serves for `1024x768/`. What a reader of results should know is logged,
    a line each: another fingerprint (other labels or pixels), listed scores (`score`, `mos` or `gt_score`) that
    are not a line through the database's mos, a val part that had to be made out of train (one eighth of its
    contents, as for official splits), and images that a folder's lists leave out. A file leaves images out,
    with value "", only where it says `"partial": true`, and has no val part only where it says `"val": []`.

    Args:
        path: the file or folder.
        database: the database it is for.
        seed: which training contents become val where there is no val list.

    Returns:
        a part for each row of `database.table`.

    Raises:
        UserError: no such file, not a split, made for another database, naming no train or no test images,
            images that are not there or one twice, or leaving images out without saying that it is partial.
    """
    path = Path(path)
    lists, head = _lists_of_folder(path) if path.is_dir() else _lists_of_file(path)
    if head.get("database", database.name) != database.name:
        raise UserError(f"{path}: this split is for {head['database']}, not for {database.name}")
    listed = _listed_images(path, lists, database.table.image)
    split = database.table.image.map({image: part for image, (part, _) in listed.items()}).fillna("")
    _say_what_is_left_out(path, database, split, head)
    if head.get("fingerprint", "") not in ("", database.fingerprint()):
        _log.warning("%s was written for other labels or other pixels of %s", path, database.name)
    _compare_scores(path, {image: score for image, (_, score) in listed.items()}, database)
    if "val" not in lists:
        split = _with_val_from_train(database, split, seed)
        _log.warning("%s has no val list: %d of its training images validate", path, (split == "val").sum())
    return split


def _official_split(database: Database, seed: int) -> pd.Series:
    table = database.table
    absent = [part for part in ("train", "test") if not (table.split == part).any()]
    if absent or (table.split == "").any():
        what = f"no {' and no '.join(absent)} images" if absent else "images in no part"
        raise UserError(
            f"{database.name}: its official split has {what}; complete the split column or split by content"
        )
    has_val = (table.split == "val").any()
    return table.split.copy() if has_val else _with_val_from_train(database, table.split, seed)


def _with_val_from_train(database: Database, split: pd.Series, seed: int) -> pd.Series:
    """The split with one eighth of its training contents moved to val."""
    split, table = split.copy(), database.table
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


def _lists_of_file(path: Path) -> tuple[dict[str, list], dict]:
    """The lists of a split file by part, and what else the file says."""
    content = _read_json(path)
    if isinstance(content, list) and content:
        return {"test": content, "val": []}, {"partial": True}
    lists = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        part = SPLIT_NAMES.get(key.lower(), "")
        if part and (part in lists or not isinstance(value, list)):
            raise UserError(f"{path}: expected one list of image names under {part}, got {key}")
        if part:
            lists[part] = value
    _require_train_and_test(path, lists)
    return lists, content


def _lists_of_folder(folder: Path) -> tuple[dict[str, list], dict]:
    files = {part: [f for f in sorted(folder.glob("*.json")) if part in f.name.lower()] for part in PARTS}
    for part, found in files.items():
        if len(found) > 1:
            names = ", ".join(file.name for file in found[:3])
            raise UserError(f"{folder}: {len(found)} files match *{part}*.json ({names}): keep one for each part")
    lists = {part: _read_json(found[0]) for part, found in files.items() if found}
    for part, value in lists.items():
        if not isinstance(value, list):
            raise UserError(f"{files[part][0]}: expected a JSON list of image names")
    if files["train"] and files["train"] == files["test"]:
        raise UserError(f"{files['train'][0]}: its name says train and test: name a file for each part")
    _require_train_and_test(folder, lists)
    return lists, {"partial": True}


def _require_train_and_test(path: Path, lists: Mapping[str, list]) -> None:
    absent = [part for part in ("train", "test") if not lists.get(part)]
    if absent:
        raise UserError(
            f"{path}: names no {' and no '.join(absent)} images: expected a JSON object with lists of image names "
            "under train, val and test, or a folder with *train*.json and *test*.json"
        )


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a split file ({error})") from error


def _listed_images(path: Path, lists: Mapping[str, list], images: pd.Series) -> dict[str, tuple[str, float | None]]:
    """Part and listed score of each image that a split names, under the database's own name for it."""
    candidates = _candidates(images)
    listed: dict[str, tuple[str, float | None]] = {}
    absent, unclear, repeated = [], [], []
    for part in PARTS:
        for entry in lists.get(part, []):
            name, score = _name_and_score(path, entry)
            found = candidates(name)
            if len(found) != 1:
                (unclear if found else absent).append(name)
            elif found[0] in listed:
                repeated.append(name)
            else:
                listed[found[0]] = (part, score)
    complaints = {"are not in the database": absent, "could be several": unclear, "are named twice": repeated}
    for complaint, names in complaints.items():
        if names:
            raise UserError(f"{path}: {len(names)} images {complaint}: {', '.join(names[:3])}")
    return listed


def _name_and_score(path: Path, entry: object) -> tuple[str, float | None]:
    record = entry if isinstance(entry, dict) else {"image": entry}
    name = next((record[key] for key in _NAME_KEYS if key in record), None)
    if not isinstance(name, str):
        raise UserError(f"{path}: expected image names, or objects with an `image`, got {str(entry)[:80]}")
    score = next((record[key] for key in _SCORE_KEYS if key in record), None)
    if score is None:
        return name, None
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{path}: the score of {name} is {score!r}, which is not a number")
    return name, number


def _candidates(images: Iterable[str]) -> Callable[[str], list[str]]:
    """A function from a listed name to the images that share its longest known end; itself where it is known."""
    known = set(images)
    images_of: dict[str, list[str]] = {}
    for image in known:
        for end in _ends(image):
            images_of.setdefault(end, []).append(image)

    def candidates(name: str) -> list[str]:
        return [name] if name in known else next((images_of[end] for end in _ends(name) if end in images_of), [])

    return candidates


def _ends(name: str) -> list[str]:
    """The ends of a path at folder borders, longest first, in lower case: a/b/c, b/c, c."""
    parts = PurePosixPath(name.replace("\\", "/").lower()).parts
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _say_what_is_left_out(path: Path, database: Database, split: pd.Series, head: Mapping) -> None:
    left_out = database.table.image[split == ""].tolist()
    if not left_out:
        return
    what = f"{path}: {len(left_out)} images of {database.name} are in no part, for example {left_out[0]}"
    if not head.get("partial", False):
        raise UserError(f'{what}; if that is meant, add "partial": true to the file')
    _log.warning(what)


def _compare_scores(path: Path, listed: Mapping[str, float | None], database: Database) -> None:
    """Warn where listed scores are not the database's mos on some scale."""
    scores = pd.Series({image: score for image, score in listed.items() if score is not None}, dtype=float)
    if len(scores) < 3:
        return
    mos = database.table.set_index("image").mos[scores.index]
    by_rank, linear = srcc(scores, mos), plcc(scores, mos)
    if min(by_rank, linear) >= _SAME_LABELS:
        return
    turned = max(by_rank, linear) <= -_SAME_LABELS
    _log.warning(
        "%s: its scores are %s (SRCC %.4f, PLCC %.4f, n = %d); the database's mos is used",
        path,
        f"the mos of {database.name} turned round" if turned else f"not the mos of {database.name} on another scale",
        by_rank,
        linear,
        len(scores),
    )
