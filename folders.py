"""Databases on disk -> tables: one reader for each official layout. The first arrow of the data flow.

    python folders.py koniq-10k --data_root ./datasets

checks a database and prints what it holds as JSON. `read_database` gives everything after it (splits, crops,
training, evaluation) one table whatever the layout: path, mos (0..100, higher is better), content, distortion
and the official split. A bad label or image stops the reading, or is recorded by name; none is skipped in
silence.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from iqa.config import NAMED_PLACE, Config
from iqa.data import (
    SPLIT_NAMES,
    Database,
    check_images as check_image_files,
    has_mat_variable,
    read_csv_rows,
    read_mat_names,
    read_mat_numbers,
    read_numbers,
    read_pairs,
    read_records,
    read_workbook,
)
from iqa.errors import Parser, UserError, exit_on_user_error

__all__ = ["DATABASES", "Database", "DatabaseNotFound", "add_database_arguments", "read_database", "summary"]

MISSING = "image is missing"
OUTSIDE = "lies outside the folder of the database"
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}
_SMALL_CORNER = 15  # of 0..100: scores that fill less of it are probably stored on another scale


class DatabaseNotFound(UserError):
    """Says that there is no folder or file where the database was looked for."""


@dataclass(frozen=True)
class _Source:
    """Holds where a reader reads: the root folder, for tables the file, and the columns asked for."""

    name: str
    root: Path
    file: Path | None = None
    image_column: str | None = None
    mos_column: str | None = None
    content_column: str | None = None

    def label_file(self, name: str) -> Path:
        """Find a label file in the root; letter case may differ from the official name.

        Raises:
            UserError: it is not there.
        """
        path = self.find(name)
        if path is None:
            raise UserError(f"{self.name}: no label file {name} in {self.root}; it comes with the database")
        return path

    def find_unpacked(self, name: str) -> Path | None:
        """Find a file of the database in the root, or in the folder that the file's own archive unpacks to."""
        return self.find(name) or self.find(f"{Path(name).stem}/{name}")

    def find(self, name: str) -> Path | None:
        """Find a file or folder of the database; None where it is not there.

        Raises:
            UserError: a link leads out of the root.
        """
        path = _find(self.root, name)
        if path is not None and not self._holds(path):
            raise UserError(f"{self.name}: {path} {OUTSIDE}; copy it there")
        return path

    def _holds(self, path: str | Path) -> bool:
        """Say whether a path, its links followed, is below the root; a table of the user may name any image."""
        return self.file is not None or Path(os.path.realpath(path)).is_relative_to(self.root)

    def images(self, folder: str) -> _Images:
        """List the files of a folder."""
        path = _find(self.root, folder) or self.root / folder
        try:
            with os.scandir(path) as entries:
                files = {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
        except (OSError, ValueError):
            files = {}
        inside = self._holds(path)
        outside = {name for name, link in files.items() if not inside or (link and not self._holds(path / name))}
        return _Images(str(path), {name.lower(): name for name in files}, frozenset(files), outside)

    def image_folder(self, *names: str) -> str:
        """Choose the first of the folders that is there; where none is, the first name."""
        return next((name for name in names if self.find(name) is not None), names[0])


class _Images(NamedTuple):
    """Holds a folder's files: names by their lower case, names as they are, and names of links that lead outside."""

    path: str
    by_lower: dict[str, str]
    names: frozenset[str]
    outside: set[str]

    def find(self, name: str) -> str | None:
        """Find a file's name on disk; its letter case may differ where the exact name is not there."""
        return name if name in self.names else self.by_lower.get(name.lower())


# --------------------------------------------------------------------------------------------------
# Readers: _Source -> label table with columns row (in the label file, or position in a .mat), image,
# stored (the score as stored), stored_std, content, distortion, split, and the database's own columns.


def _labels(row: Sequence[int], image: Sequence[str], stored: Sequence, **columns: object) -> pd.DataFrame:
    """Make a label table; columns that a reader does not give hold the value for unknown."""
    image = pd.Series(image, dtype=object)
    defaults = {"stored_std": np.nan, "content": image.to_numpy(), "distortion": "", "split": ""}
    table = {"row": np.asarray(row), "image": image.to_numpy(), "stored": np.asarray(stored, dtype=object)}
    return pd.DataFrame(table | defaults | columns)


_KONIQ_SPLIT = "koniq10k_distributions_sets.csv"
_KONIQ_SCORES = "koniq10k_scores_and_distributions.csv"


def _read_koniq(source: _Source) -> pd.DataFrame:
    """Read KonIQ-10k (Hosu et al. 2020). The label file with the split has MOS on 0..100, the other one 1..5."""
    with_split = source.find_unpacked(_KONIQ_SPLIT)
    file = with_split or source.find_unpacked(_KONIQ_SCORES) or source.label_file(_KONIQ_SCORES)
    score_column = "MOS" if with_split else "MOS_zscore"
    rows = read_csv_rows(file, ["image_name", score_column, "SD"] + (["set"] if with_split else []))
    sizes = ("1024x768", "512x384")
    folder = source.image_folder(*sizes, *(f"koniq10k_{s}/{s}" for s in sizes), *(f"koniq10k_{s}" for s in sizes))
    return _labels(
        rows.row,
        [f"{folder}/{name}" for name in rows.image_name],
        rows[score_column],
        stored_std=25 * _numbers(rows.SD),  # SD is on the five-point scale in both files
        content=rows.image_name,
        distortion="authentic",
        split=rows["set"] if with_split else "",
    )


def _read_spaq(source: _Source) -> pd.DataFrame:
    """Read SPAQ (Fang et al. 2020)."""
    file = source.label_file("Annotations/MOS and Image attribute scores.xlsx")
    rows = read_workbook(file, ["Image name", "MOS"])
    images = [f"TestImage/{name}" for name in rows["Image name"]]
    return _labels(rows.row, images, rows.MOS, content=rows["Image name"], distortion="authentic")


_KADID_DISTORTIONS = (
    "gaussian_blur lens_blur motion_blur colour_diffusion colour_shift colour_quantisation saturation_hsv "
    "saturation_lab jpeg2000 jpeg white_noise white_noise_ycbcr impulse_noise multiplicative_noise denoise "
    "brighten darken mean_shift jitter non_eccentricity_patch pixelate quantisation colour_block "
    "high_sharpen contrast"
).split()


def _read_kadid(source: _Source) -> pd.DataFrame:
    """Read KADID-10k (Lin et al. 2019). Its `dmos` is a degradation *category* rating: 5 is imperceptible."""
    rows = read_csv_rows(source.label_file("dmos.csv"), ["dist_img", "ref_img", "dmos", "var"])
    codes = _codes(rows.dist_img, r"I\d+_(\d+)_(\d+)\.\w+", _KADID_DISTORTIONS)
    return _labels(
        rows.row,
        [f"images/{name}" for name in rows.dist_img],
        rows.dmos,
        # `var` is a standard deviation: in the first row, 17 fives and 13 fours give the 4.57 and 0.496 that it has.
        stored_std=_numbers(rows["var"]),
        content=rows.ref_img,
        reference=rows.ref_img,
        **codes,
    )


def _read_agiqa(source: _Source) -> pd.DataFrame:
    """Read AGIQA-3K (Li et al. 2023). About ten images share a prompt, which is their content."""
    rows = read_csv_rows(source.label_file("data.csv"), ["name", "prompt", "mos_quality", "std_quality"])
    folder = "AGIQA-3K" if source.find("AGIQA-3K") else _only_image_folder(source)
    return _labels(
        rows.row,
        [f"{folder}/{name}" for name in rows.name],
        rows.mos_quality,
        stored_std=_numbers(rows.std_quality),
        content=rows.prompt,
        generator=rows.name.str.split("_").str[0],
    )


_LIVE_FOLDERS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}


def _read_live(source: _Source) -> pd.DataFrame:
    """Read LIVE release 2 (Sheikh et al. 2006) with realigned DMOS; of its 982 images the undistorted are left out."""
    count = sum(_LIVE_FOLDERS.values())
    scores_file, names_file = source.label_file("dmos_realigned.mat"), source.label_file("refnames_all.mat")
    dmos, is_original = (read_mat_numbers(scores_file, key, count) for key in ("dmos_new", "orgs"))
    known = has_mat_variable(scores_file, "dmos_std")
    deviations = read_mat_numbers(scores_file, "dmos_std", count) if known else np.nan
    references = read_mat_names(names_file, "refnames_all", count)
    if len(set(references)) < 2:  # all images would be one content, which no split can part
        raise UserError(
            f"{names_file}: expected the names of several references, got {references[0]!r} {count} times; "
            "is it the file of this database?"
        )
    folders = [folder for folder, size in _LIVE_FOLDERS.items() for _ in range(size)]
    numbers = [number for size in _LIVE_FOLDERS.values() for number in range(1, size + 1)]
    images = [f"{folder}/img{number}.bmp" for folder, number in zip(folders, numbers, strict=True)]
    table = _labels(range(1, count + 1), images, dmos, stored_std=deviations, content=references, distortion=folders)
    return table[is_original == 0]


def _read_csiq(source: _Source) -> pd.DataFrame:
    """Read CSIQ (Larson and Chandler 2010): lines `1600.AWGN.1.png 0.061989`."""
    rows = read_pairs(source.label_file("csiq_label.txt"), image_position=0)
    parts = rows.image.str.extract(r"^(?P<content>.+)\.(?P<kind>[^.]+)\.(?P<level>\d+)\.\w+$").fillna("")
    if source.find("dst_imgs_all"):
        images = [f"dst_imgs_all/{name}" for name in rows.image]
    else:
        images = [f"dst_imgs/{kind}/{name}" for kind, name in zip(parts.kind, rows.image, strict=True)]
    kinds = parts.kind.str.lower()
    return _labels(rows.row, images, rows.score, content=parts.content, distortion=kinds, level=parts.level)


_TID_DISTORTIONS = (
    "white_noise colour_noise correlated_noise masked_noise high_frequency_noise impulse_noise quantisation "
    "gaussian_blur denoise jpeg jpeg2000 jpeg_transmission jpeg2000_transmission non_eccentricity_patch "
    "colour_block mean_shift contrast saturation multiplicative_noise comfort_noise noisy_compression "
    "colour_quantisation chromatic_aberration sparse_sampling"
).split()


def _read_tid(source: _Source) -> pd.DataFrame:
    """Read TID2013 (Ponomarenko et al. 2015): lines `5.51429 I01_01_1.bmp`, with i and I, bmp and BMP mixed."""
    rows = read_pairs(source.label_file("mos_with_names.txt"), image_position=1)
    codes = _codes(rows.image, r"I\d+_(\d+)_(\d+)\.\w+", _TID_DISTORTIONS)
    contents = rows.image.str.split("_").str[0].str.upper()
    images = [f"distorted_images/{name}" for name in rows.image]
    deviations = source.find("mos_std.txt")  # in the order of the names
    codes["stored_std"] = read_numbers(deviations, len(rows)) if deviations else np.nan
    return _labels(rows.row, images, rows.score, content=contents, reference=contents, **codes)


def _read_livec(source: _Source) -> pd.DataFrame:
    """Read LIVE In the Wild Challenge (Ghadiyaram and Bovik 2016); the first 7 images trained the raters."""
    names = read_mat_names(source.label_file("Data/AllImages_release.mat"), "AllImages_release")
    count = len(names)
    mos = read_mat_numbers(source.label_file("Data/AllMOS_release.mat"), "AllMOS_release", count)
    images = [f"Images/{name}" for name in names]
    table = _labels(range(1, count + 1), images, mos, content=names, distortion="authentic")
    deviations = source.find("Data/AllStdDev_release.mat")
    if deviations:
        table["stored_std"] = read_mat_numbers(deviations, "AllStdDev_release", count)
    return table[7:]


def _read_bid(source: _Source) -> pd.DataFrame:
    """Read BID (Ciancio et al. 2011): `Image Number`, `Average Subjective Grade`, `std`.

    The first two columns may have any name. The archive has the photographs beside the workbook; some copies have
    them in `ImageDatabase/`.
    """
    file = source.label_file("DatabaseGrades.xlsx")
    rows = read_workbook(file)
    columns = [name for name in rows if name != "row"]
    if len(columns) < 2:
        raise UserError(f"{file}: expected image numbers and grades in its first two columns")
    number = "Image Number" if "Image Number" in rows else columns[0]
    grade = "Average Subjective Grade" if "Average Subjective Grade" in rows else columns[1]
    rows = rows[rows[number].notna() | rows[grade].notna()].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"{file}: expected image numbers and grades in its first two columns")
    numbers = _numbers(rows[number])
    bad = ~(numbers.between(1, 9999) & (numbers % 1 == 0))
    if bad.any():
        i = bad.idxmax()
        raise UserError(
            f"{file} row {rows.row[i]}: expected image numbers and grades in its first two columns, "
            f"got '{rows[number][i]}' for a whole number from 1 to 9999"
        )
    names = [f"DatabaseImage{int(value):04d}.JPG" for value in numbers]
    folder = "ImageDatabase/" if source.find("ImageDatabase") else ""
    deviations = _numbers(rows["std"]) if "std" in rows else np.nan
    return _labels(
        rows.row,
        [folder + name for name in names],
        rows[grade],
        stored_std=deviations,
        content=names,
        distortion="authentic",
    )


def _read_demo(source: _Source) -> pd.DataFrame:
    """Read the demo database, whose labels are a table like any other."""
    file = source.find("labels.csv")
    if file is None:
        raise DatabaseNotFound(f"demo: no labels.csv in {source.root}; run `smart-iqa make-demo-database`")
    return _from_records(read_csv_rows(file, ["image", "mos", "content", "split"]), file, source)


def _read_csv(source: _Source) -> pd.DataFrame:
    return _from_records(read_csv_rows(source.file), source.file, source)


def _read_json(source: _Source) -> pd.DataFrame:
    """Read a list of records, an object of such lists by part, or a folder with train.json and test.json."""
    if source.file.is_file():
        return _from_records(read_records(source.file), source.file, source)
    parts = [source.label_file(f"{part}.json") for part in ("train", "test")]
    records = [read_records(file).assign(split=file.stem.lower()) for file in parts]
    return _from_records(pd.concat(records, ignore_index=True).fillna(""), source.file, source)


def _from_records(rows: pd.DataFrame, file: Path, source: _Source) -> pd.DataFrame:
    """Make a label table of any table with image and score columns; columns of unknown meaning are kept."""
    image = _column(rows, file, source.image_column, "--image_column", ("image",))
    score = _column(rows, file, source.mos_column, "--mos_column", ("mos", "score"))
    columns = {"content": source.content_column or "content", "distortion": "distortion", "split": "split"}
    if source.content_column:
        _column(rows, file, source.content_column, "--content_column", ())
    known = {column: rows[name] for column, name in columns.items() if name in rows}
    if "mos_std" in rows:
        known["stored_std"] = _numbers(rows.mos_std)
    used = {"row", image, score, "mos_std", *columns.values()}
    reserved = {*"stored image path mos file_hash stored_std exists outside image_width image_height".split()}
    extras = {name: rows[name] for name in rows if name not in used | reserved}
    return _labels(rows.row, rows[image], rows[score], **extras | known)


def _column(rows: pd.DataFrame, file: Path, asked: str | None, flag: str, usual: Sequence[str]) -> str:
    wanted = [asked] if asked else list(usual)
    for name in wanted:
        if name in rows:
            return name
    has = ", ".join(name for name in rows if name != "row")
    raise UserError(f"{file}: no column {' or '.join(wanted)}; it has {has}; name it with {flag}")


def _codes(names: pd.Series, pattern: str, kinds: Sequence[str]) -> dict[str, pd.Series]:
    """Tell distortion and level by the two numbers in a name; "" where the name does not follow the pattern."""
    numbers = names.str.extract(f"(?i)^{pattern}$")
    kind_of = {str(number): kind for number, kind in enumerate(kinds, 1)}
    return {
        "distortion": numbers[0].str.lstrip("0").map(kind_of).fillna(""),
        "level": numbers[1].str.lstrip("0").fillna(""),
    }


def _only_image_folder(source: _Source) -> str:
    folders = [
        folder.name
        for folder in sorted(source.root.iterdir())
        if folder.is_dir() and any(file.suffix.lower() in _IMAGE_SUFFIXES for file in folder.iterdir())
    ]
    if len(folders) == 1:
        return folders[0]
    found = ", ".join(folders) or "none"
    raise UserError(f"{source.name}: expected AGIQA-3K/ or one other folder of images in {source.root}, found {found}")


# --------------------------------------------------------------------------------------------------
# The databases


@dataclass(frozen=True)
class _Layout:
    """Holds what is published about a database, and the reader of its layout."""

    count: int | None
    stored_range: tuple[float, float]
    read: Callable[[_Source], pd.DataFrame]
    lower_is_better: bool = False
    any_table: bool = False
    split_file: str | None = None  # has the official split; the database can be read without it
    labels: tuple[str, ...] = ()  # label files, by which the database's folder is known
    unpacked: tuple[str, ...] = ()  # other names of its folder, in archives and copies
    page: str = ""  # where its authors offer it


_LAYOUTS = {
    "koniq-10k": _Layout(
        10073,
        (0, 100),
        _read_koniq,
        split_file=_KONIQ_SPLIT,
        labels=(_KONIQ_SPLIT, _KONIQ_SCORES),
        unpacked=("koniq10k_1024x768", "koniq10k_512x384", "koniq"),
        page="https://database.mmsp-kn.de/koniq-10k-database.html",
    ),
    "spaq": _Layout(
        11125,
        (0, 100),
        _read_spaq,
        labels=("Annotations",),
        unpacked=("SPAQ_fixed",),  # the archive, repaired as its authors advise
        page="https://github.com/h4nwei/SPAQ",
    ),
    "kadid-10k": _Layout(
        10125,
        (1, 5),
        _read_kadid,
        labels=("dmos.csv",),
        unpacked=("kadid",),
        page="https://database.mmsp-kn.de/kadid-10k-database.html",
    ),
    "agiqa-3k": _Layout(
        2982,
        (0, 5),
        _read_agiqa,
        labels=("data.csv",),
        unpacked=("agiqa",),
        page="https://github.com/lcysyzxdxc/AGIQA-3k-Database",
    ),
    # Published as -2.64..111.77; the lowest and highest score have more digits.
    "live": _Layout(
        779,
        (-2.6401, 111.7747),
        _read_live,
        lower_is_better=True,
        labels=("dmos_realigned.mat",),
        unpacked=("databaserelease2",),
        page="https://live.ece.utexas.edu/research/quality/subjective.htm",
    ),
    "csiq": _Layout(
        866,
        (0, 1),
        _read_csiq,
        lower_is_better=True,
        labels=("csiq_label.txt",),
        page="https://s2.smu.edu/~eclarson/csiq.html",
    ),
    "tid2013": _Layout(
        3000, (0, 9), _read_tid, labels=("mos_with_names.txt",), page="https://www.ponomarenko.info/tid2013.htm"
    ),
    "livec": _Layout(
        1162,
        (0, 100),
        _read_livec,
        labels=("Data",),
        unpacked=("ChallengeDB_release", "live_challenge", "clive"),
        page="https://live.ece.utexas.edu/research/ChallengeDB/index.html",
    ),
    "bid": _Layout(
        586,
        (0, 5),
        _read_bid,
        labels=("DatabaseGrades.xlsx",),
        unpacked=("ImageDatabase",),
        page="https://www.lps.ufrj.br/profs/eduardo/ImageDatabase.htm",
    ),
    "demo": _Layout(None, (0, 100), _read_demo, labels=("labels.csv",)),
    "csv": _Layout(None, (0, 100), _read_csv, any_table=True),
    "json": _Layout(None, (0, 100), _read_json, any_table=True),
}
DATABASES = tuple(_LAYOUTS)


def read_database(
    name: str,
    *,
    data_root: str | Path | Sequence[str | Path] | None = None,
    data_path: str | Path | None = None,
    skip_bad_images: bool = False,
    image_column: str | None = None,
    mos_column: str | None = None,
    mos_range: tuple[float, float] | None = None,
    lower_is_better: bool = False,
    content_column: str | None = None,
    check_images: bool = True,
    cache_dir: str | None = None,
) -> Database:
    """Read a database in its official layout, check it, and put its scores on 0..100, higher is better.

    Args:
        name: one of `DATABASES`.
        data_root: where databases lie, each in a folder of its own or its archive's name; NAME=FOLDER says it of a
            single one. One, a list, or a text with the path separator between; default $IQA_DATA_ROOT or ./datasets.
        data_path: the database's own folder, or for csv and json the file (json: also a folder with
            train.json and test.json).
        skip_bad_images: leave bad labels and images out and record them in `left_out`, instead of stopping.
        image_column: csv and json: column of the image paths, relative to the file; default image.
        mos_column: csv and json: column of the scores; default mos or score.
        mos_range: csv and json: lowest and highest possible score as stored; default (0, 100).
        lower_is_better: csv and json: the scores are a DMOS.
        content_column: csv and json: column of the content; default content, else every image is its own.
        check_images: decode every image to the end and find byte-identical ones.
        cache_dir: keeps what the check found; None takes the user's cache folder.

    Returns:
        The database; see `Database`.

    Raises:
        DatabaseNotFound: nothing is where it was looked for.
        UserError: labels or images are bad; the message counts them and names the first three.
    """
    columns = {"image_column": image_column, "mos_column": mos_column, "content_column": content_column}
    layout = _layout(name, for_tables_only=[*columns.values(), mos_range, lower_is_better])
    source = _Source(name, *_locate(name, layout, data_root, data_path), **columns)
    low, high = map(float, mos_range or layout.stored_range)
    if not low < high:
        raise UserError(f"--mos_range {low:g} {high:g}: the first must be the lower one")
    labels = _locate_images(layout.read(source).reset_index(drop=True), source)
    reasons = _label_problems(labels, low, high, layout.any_table)
    if check_images:
        _check_files(labels, reasons, source.root, cache_dir)
    left_out = _stop_or_record(labels, reasons, source, skip_bad_images)
    lower = layout.lower_is_better or lower_is_better
    table = _scaled(labels[reasons == ""], low, high, lower)
    notes = _notes(name, layout, table, range_is_assumed=layout.any_table and mos_range is None)
    return Database(name, source.root, table, (low, high), lower, left_out, _byte_identical(table), notes)


def read_run_database(config: Config, data_root: str | None = None, check_images: bool = True) -> Database:
    """Read the database that a run is trained on, as its settings say.

    Args:
        config: of the run.
        data_root: where to look instead of where the run looked. NAME=FOLDER alone is looked at first, then the
            run's places.
        check_images: see `read_database`.
    """
    given = [data_root] if data_root else []
    if all(NAMED_PLACE.fullmatch(entry) for place in given for entry in _entries(place)):
        given += config.data_places
    return read_database(
        config.dataset,
        data_root=given,
        data_path=config.data_path,
        skip_bad_images=config.skip_bad_images,
        check_images=check_images,
        cache_dir=config.cache_dir,
        image_column=config.image_column,
        mos_column=config.mos_column,
        mos_range=tuple(config.mos_range) if config.mos_range else None,
        lower_is_better=config.lower_is_better,
        content_column=config.content_column,
    )


def _layout(name: str, for_tables_only: Sequence[object]) -> _Layout:
    if name not in _LAYOUTS:
        raise UserError(f"unknown database {name!r}; known are {', '.join(DATABASES)}")
    if any(for_tables_only) and not _LAYOUTS[name].any_table:
        raise UserError(f"{name}: columns, range and direction of scores can be given for csv and json only")
    return _LAYOUTS[name]


def _locate(
    name: str,
    layout: _Layout,
    data_root: str | Path | Sequence[str | Path] | None,
    data_path: str | Path | None,
) -> tuple[Path, Path | None]:
    """Find the root that image names are relative to, and of a user's table the file."""
    roots, named = _places(data_root)
    data_path = named.get(name) or data_path
    if layout.any_table:
        if data_path is None:
            raise UserError(
                f"{name}: no file named: give --data_path to train_swin.py (it is the first --dataset's), folders.py "
                "or `smart-iqa check-splits`; other commands read csv and json only for a run that was trained on them"
            )
        file = Path(data_path).resolve()
        if not file.exists():
            raise DatabaseNotFound(f"{name}: no file {file}")
        if name == "csv" and file.is_dir():
            raise UserError(f"csv: {file} is a folder; --data_path must name the CSV file in it")
        return (file if file.is_dir() else file.parent), file
    folders = [Path(data_path)] if data_path else [folder for root in roots for folder in _called(root, name, layout)]
    unpacked = (inner for folder in folders for inner in [folder, *_called(folder, name, layout)])
    complete = (folder for folder in unpacked if any(_find(folder, label) is not None for label in layout.labels))
    root = next(complete, next(iter(folders), None))
    if root is None or not root.is_dir():
        looked = [str(Path(data_path))] if data_path else [str(root / name) for root in roots]
        where = " or ".join(str(Path(place).resolve()) for place in looked)
        had = f"get it from {layout.page} and " if layout.page else ""
        advice = "run `smart-iqa make-demo-database`" if name == "demo" else f"{had}give --data_root or --data_path"
        raise DatabaseNotFound(f"{name}: no database at {where}; {advice}")
    return root.resolve(), None


def _places(data_root: str | Path | Sequence[str | Path] | None) -> tuple[list[Path], dict[str, Path]]:
    """Tell the folders that hold databases from those of single databases, which are given by name."""
    several = [data_root] if isinstance(data_root, str | Path) else list(data_root or [])
    entries = [entry for text in several for entry in _entries(text)]
    # Of several with one name the first counts.
    named = {match[1]: Path(match[2]) for match in map(NAMED_PLACE.fullmatch, reversed(entries)) if match}
    if unknown := next((name for name in named if name not in _LAYOUTS), None):
        raise UserError(f"--data_path {unknown}=...: unknown database {unknown!r}; known: {', '.join(DATABASES)}")
    roots = [entry for entry in entries if not NAMED_PLACE.fullmatch(entry)]
    return [Path(root) for root in roots or _entries(os.environ.get("IQA_DATA_ROOT") or "datasets")], named


def _entries(text: str | Path) -> list[str]:
    """Split a text at the path separators; a folder whose name has one in it stays whole."""
    return [str(text)] if Path(text).exists() else [part for part in str(text).split(os.pathsep) if part]


def _called(root: Path, name: str, layout: _Layout) -> list[Path]:
    """List the folders in `root` that are called as a database or its archives; its own name comes first."""
    wanted = [_plain_name(each) for each in (name, *layout.unpacked)]
    try:
        found = [path for path in sorted(root.iterdir()) if _plain_name(path.name) in wanted and path.is_dir()]
    except OSError:  # the folder is not there, or cannot be listed
        return []
    return sorted(found, key=lambda path: (path.name != name, wanted.index(_plain_name(path.name))))


def _plain_name(name: str) -> str:
    """Strip a folder's name of case, separators, and what unpacking and copying append.

    >>> [_plain_name(name) for name in ("KonIQ-10k", "SPAQ zip", "AGIQA-3k-Database-main")]
    ['koniq10k', 'spaq', 'agiqa3k']
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    while len(words) > 1 and words[-1] in ("zip", "rar", "database", "dataset", "main", "master"):
        words.pop()
    return "".join(words)


def _find(root: Path, name: str) -> Path | None:
    """Find what is called `name` under `root`; its letter case may differ where the exact name is not there."""
    try:
        if (root / name).exists():
            return root / name
        path = root
        for part in PurePosixPath(name).parts:
            actual = {p.name.lower(): p.name for p in path.iterdir()}.get(part.lower()) if path.is_dir() else None
            if actual is None:
                return None
            path = path / actual
        return path
    except (OSError, ValueError):  # no file can have such a name, or the folder cannot be listed
        return None


def _locate_images(labels: pd.DataFrame, source: _Source) -> pd.DataFrame:
    """Add the columns path, exists and outside; each folder is listed once, and no file is opened."""
    labels["image"] = [str(name).strip().replace("\\", "/") for name in labels.image]
    folders: dict[str, _Images] = {}
    paths, exists, outside = [], [], []
    for image in labels.image:
        folder, name = posixpath.split(image)
        if folder not in folders:
            folders[folder] = source.images(folder)
        found = folders[folder].find(name)
        paths.append(f"{folders[folder].path}/{found or name}")
        exists.append(found is not None)
        outside.append(found in folders[folder].outside)
    nothing = {"file_hash": "", "image_width": 0, "image_height": 0}
    return labels.assign(path=paths, exists=exists, outside=outside, **nothing)


# --------------------------------------------------------------------------------------------------
# Checks


def _label_problems(labels: pd.DataFrame, low: float, high: float, any_table: bool) -> pd.Series:
    """Give the first reason to leave out each label, "" where there is none."""
    score = _numbers(labels.stored)
    deviation = labels.stored_std.astype(float)
    split = labels.split.astype(str).str.strip().str.lower()
    first_row = labels.groupby("path").row.transform("first")
    outside = f"is outside {low:g}..{high:g}{', see --mos_range' if any_table else ''}"
    checks = [
        (~np.isfinite(score), lambda i: f"score '{labels.stored[i]}' is not a number"),
        ((score < low) | (score > high), lambda i: f"score {score[i]:g} {outside}"),
        ((deviation < 0) | np.isinf(deviation), lambda i: "rating deviation is negative or infinite"),
        (~split.isin(SPLIT_NAMES), lambda i: f"split '{labels.split[i]}' is not train, val or test"),
        (labels.content == "", lambda i: "content is empty"),
        (labels.path.duplicated(), lambda i: f"name is there already in row {first_row[i]}"),
        (labels.outside, lambda i: f"image {OUTSIDE}"),
        (~labels.exists, lambda i: MISSING),
    ]
    reasons = pd.Series("", index=labels.index, dtype=object)
    for bad, reason in checks:
        for i in labels.index[bad & (reasons == "")]:
            reasons[i] = reason(i)
    return reasons


def _check_files(labels: pd.DataFrame, reasons: pd.Series, root: Path, cache_dir: str | None) -> None:
    """Decode the images of good labels; hashes and sizes go into `labels`, problems into `reasons`."""
    good = labels.index[reasons == ""]
    files = check_image_files(labels.path[good].tolist(), str(root), cache_dir)
    labels.loc[good, "file_hash"] = files.file_hash.astype(str)
    labels.loc[good, ["image_width", "image_height"]] = files.size
    for row, problem in files.problems.items():
        reasons[good[row]] = problem


def _stop_or_record(labels: pd.DataFrame, reasons: pd.Series, source: _Source, skip: bool) -> list[dict]:
    bad = reasons != ""
    left_out = [
        {"image": image, "row": int(row), "reason": reason}
        for image, row, reason in zip(labels.image[bad], labels.row[bad], reasons[bad], strict=True)
    ]
    if left_out and not skip:
        named = ", ".join(f"{entry['image']} (row {entry['row']}: {entry['reason']})" for entry in left_out[:3])
        raise UserError(
            f"{source.name} at {source.file or source.root}: {len(left_out)} of {len(labels)} labels cannot "
            f"be used: {named}{', ...' if len(left_out) > 3 else ''}; --skip_bad_images leaves them out"
        )
    if len(left_out) == len(labels):
        raise UserError(f"{source.name} at {source.file or source.root}: no usable image")
    return left_out


def _scaled(labels: pd.DataFrame, low: float, high: float, lower_is_better: bool) -> pd.DataFrame:
    """Make the final table: mos and its deviation on 0..100, higher is better, sorted by name."""
    score = _numbers(labels.stored)
    distance = high - score if lower_is_better else score - low
    table = labels.assign(
        mos=100 * distance / (high - low),
        mos_std=100 * labels.stored_std.astype(float) / (high - low),
        content=labels.content.astype(str),
        split=labels.split.astype(str).str.strip().str.lower().map(SPLIT_NAMES),
    )
    first = "image path mos mos_std content distortion split file_hash image_width image_height".split()
    internal = ["row", "stored", "stored_std", "exists", "outside"]
    columns = first + [name for name in table if name not in first + internal]
    return table[columns].sort_values("image").reset_index(drop=True)


def _notes(name: str, layout: _Layout, table: pd.DataFrame, range_is_assumed: bool) -> list[str]:
    notes = []
    if layout.count and len(table) != layout.count:
        notes.append(f"{name} has {len(table)} images here, {layout.count} are published")
    if layout.split_file and (table.split == "").all():
        notes.append(f"{name}: {layout.split_file} is not there: its official split is unknown and not used")
    span = table.mos.max() - table.mos.min()
    if range_is_assumed and len(table) > 1 and span < _SMALL_CORNER:
        notes.append(
            f"all scores lie in {span:.2g} % of the range 0..100 assumed for {name}: "
            "give --mos_range LOW HIGH if they are stored on another scale"
        )
    if (table.file_hash == "").any():
        notes.append("images were not checked: truncated and byte-identical files are unknown")
    return notes


def _byte_identical(table: pd.DataFrame) -> list[list[str]]:
    repeated = table[(table.file_hash != "") & table.file_hash.duplicated(keep=False)]  # few of a million
    return sorted(images.tolist() for _, images in repeated.groupby("file_hash").image)


def _numbers(values: pd.Series | Sequence) -> pd.Series:
    return pd.to_numeric(pd.Series(values), errors="coerce").astype(float)


# --------------------------------------------------------------------------------------------------
# Command


def summary(database: Database) -> dict:
    """Sum a database up, as `python folders.py NAME` prints it: counts, range of mos, splits, bad images."""
    table = database.table
    return {
        "name": database.name,
        "n": len(table),
        "contents": int(table.content.nunique()),
        "mos_min": float(table.mos.min()),
        "mos_mean": float(table.mos.mean()),
        "mos_max": float(table.mos.max()),
        "stored_range": list(database.stored_range),
        "lower_is_better": database.lower_is_better,
        "splits": {part: int(n) for part, n in table.split.value_counts().items() if part},
        "missing": sum(entry["reason"] == MISSING for entry in database.left_out),
        "duplicates": database.duplicates,
        "left_out": database.left_out,
        "notes": database.notes,
    }


def add_database_arguments(parser: Parser) -> None:
    """Give a parser the arguments of `read_database`, under the same names."""
    parser.add_argument("name", metavar="NAME", help=", ".join(DATABASES))
    parser.add_argument("--data_root", help="folders of databases, `:` between; default $IQA_DATA_ROOT or ./datasets")
    parser.add_argument("--data_path", help="this database's own folder; for csv and json the file")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave bad images out and list them")
    parser.add_argument("--image_column", help="csv, json: column of the image paths")
    parser.add_argument("--mos_column", help="csv, json: column of the scores")
    parser.add_argument("--mos_range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="csv, json")
    parser.add_argument("--lower_is_better", action="store_true", help="csv, json: the scores are a DMOS")
    parser.add_argument("--content_column", help="csv, json: column of the content")


def make_parser() -> Parser:
    """Make the parser of the command's flags."""
    parser = Parser(description="Check a database and print what it holds as JSON.")
    add_database_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check one database and print its summary as JSON."""
    arguments = vars(make_parser().parse_args(argv))
    print(json.dumps(summary(read_database(**arguments)), indent=2))


if __name__ == "__main__":
    exit_on_user_error(main)
