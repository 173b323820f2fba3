"""The data a run learns from: databases -> tables of the parts train, val and test, on one scale.

Between `folders` and `data_loader`. Scores of several databases are not comparable: each database's mos is mapped
to the first one's scale, so that the training parts have one mean and deviation, and the losses that compare pairs
take both images from one database (see `iqa.losses`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from folders import Database
from iqa.config import Config
from iqa.data import PARTS, Overlap, check_leakage, kfold, read_split, split_database, write_split
from iqa.errors import UserError
from iqa.results import read_json


class Scale(NamedTuple):
    """How a database's mos becomes the scale that the network learns: slope * mos + offset."""

    slope: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class TrainingData:
    """Databases to learn from, split.

    Attributes:
        databases: the first one's scale is the network's.
        splits: a part for each row of each database's table.
        parts: train, val and test: tables of all databases, with mos and mos_std on the common scale and a column
            `database` with the number of its database.
        scales: of each database.
        notes: what leaks between parts, a line each.
    """

    databases: list[Database]
    splits: list[pd.Series]
    parts: dict[str, pd.DataFrame]
    scales: dict[str, Scale]
    notes: list[str]

    def test_tables(self) -> dict[str, pd.DataFrame]:
        """The test part of each database, with its own mos."""
        pairs = zip(self.databases, self.splits, strict=True)
        return {database.name: part_table(database, split, "test") for database, split in pairs}

    def write_splits(self, folder: Path, seed: int) -> None:
        """Write the split of every database to a run's folder, where it is not there: see `split_path`."""
        for number, (database, split) in enumerate(zip(self.databases, self.splits, strict=True)):
            path = split_path(folder, number, database.name)
            if not path.is_file():
                write_split(path, database, split, seed)

    def record(self, others: dict[str, Overlap]) -> dict:
        """What a results file says of it: images and contents of each part, scale of each database, notes.

        Args:
            others: images of training in other databases, by name.
        """
        found = {"images_in_training": {name: overlap.record() for name, overlap in others.items()}} if others else {}
        return {
            "n": {part: len(table) for part, table in self.parts.items()},
            "contents": {part: _contents(table) for part, table in self.parts.items()},
            "trained_on": {name: scale._asdict() for name, scale in self.scales.items()},
            **found,
            "notes": self.notes + [f"{name}: {line}" for name, each in others.items() for line in each.in_words()],
        }

    def in_words(self) -> str:
        """The databases, and how many images of how many contents each part holds."""
        counts = (f"{part} {len(t)} images of {_contents(t)} contents" for part, t in self.parts.items())
        return f"{' and '.join(self.scales)} ({', '.join(counts)})"

    def images(self) -> pd.DataFrame:
        """All images of all databases, of whatever part."""
        return pd.concat([database.table for database in self.databases], ignore_index=True)


def split_path(folder: Path, number: int, database: str) -> Path:
    """Where a run keeps a database's split: `split.json` for the first one, `split_<name>.json` for the others."""
    return folder / (f"split_{database}.json" if number else "split.json")


def _contents(table: pd.DataFrame) -> int:
    return int(table.groupby("database")["content"].nunique().sum())


def part_table(database: Database, split: pd.Series, part: str) -> pd.DataFrame:
    """The rows of one part.

    Raises:
        UserError: there are none.
    """
    table = database.table[split.to_numpy() == part].reset_index(drop=True)
    if table.empty:
        raise UserError(
            f"{database.name}: the {part} part is empty: too few contents, or the split file names none "
            f"({len(database.table)} images)"
        )
    return table


def make_training_data(
    databases: Sequence[Database],
    config: Config,
    official: bool,
    fold: int | None = None,
    stopped: Path | None = None,
) -> TrainingData:
    """Split every database and put them together.

    Args:
        databases: read and checked.
        config: gives seed, split_file (of the first database) and allow_leakage.
        official: take official splits where there are any.
        fold: take this one of `config.folds` instead.
        stopped: the folder of a run that goes on; its splits are kept.

    Raises:
        UserError: a content in two parts, an empty part, a split file that does not fit, a database whose training
            part has one mos only beside others, or one that is not what the stopped run has learned from.
    """
    kept = [_kept_split(stopped, number, database) for number, database in enumerate(databases)]
    splits = [
        _split(database, config, official, fold) if split is None else split
        for database, split in zip(databases, kept, strict=True)
    ]
    notes = [
        note
        for database, split in zip(databases, splits, strict=True)
        for note in check_leakage(database, split, allow=config.allow_leakage)
    ]
    tables = {
        part: [part_table(database, split, part) for database, split in zip(databases, splits, strict=True)]
        for part in PARTS
    }
    scales = {d.name: _scale(d, table, tables["train"][0]) for d, table in zip(databases, tables["train"], strict=True)}
    parts = {part: _join(tables[part], list(scales.values())) for part in PARTS}
    if config.select_on == "last":  # nothing is left to choose, so that val may be learned from
        parts["train"] = pd.concat([parts["train"], parts["val"]], ignore_index=True)
    notes += _identical_across(parts)
    return TrainingData(list(databases), splits, parts, scales, notes)


def _kept_split(stopped: Path | None, number: int, database: Database) -> pd.Series | None:
    """The split that a stopped run has written down; None where it had not come so far."""
    if stopped is None:
        return None
    path = split_path(stopped, number, database.name)
    if path.is_file():
        written = read_json(path)
        if not isinstance(written, dict) or written.get("fingerprint") != database.fingerprint():
            raise UserError(
                f"{database.name}: its labels or images are not those that {stopped} has learned from ({path.name}): "
                "put them back, or start a new run with another --name"
            )
        return read_split(path, database)
    if any(stopped.glob("*.safetensors")):
        raise UserError(f"{path} is gone: which images {stopped} has learned from is unknown; start a new run")
    return None


def _split(database: Database, config: Config, official: bool, fold: int | None) -> pd.Series:
    if fold is not None:
        return kfold(database, config.folds, config.seed)[fold]
    if config.split_file and database.name == config.dataset:
        return read_split(config.split_file, database, seed=config.seed)
    return split_database(database, seed=config.seed, official=official)


def _scale(database: Database, train: pd.DataFrame, reference: pd.DataFrame) -> Scale:
    """The map that gives a training part the mean and deviation of the reference's."""
    if train is reference:
        return Scale()
    if not train["mos"].std() > 0:
        raise UserError(f"{database.name}: all training images have one mos: no scale to map to the first database's")
    slope = reference["mos"].std() / train["mos"].std()
    return Scale(slope, reference["mos"].mean() - slope * train["mos"].mean())


def _join(tables: Sequence[pd.DataFrame], scales: Sequence[Scale]) -> pd.DataFrame:
    mapped = [
        table.assign(mos=slope * table["mos"] + offset, mos_std=slope * table["mos_std"], database=number)
        for number, (table, (slope, offset)) in enumerate(zip(tables, scales, strict=True))
    ]
    return pd.concat(mapped, ignore_index=True)


def _identical_across(parts: dict[str, pd.DataFrame]) -> list[str]:
    """Write a line if test images of one database are byte-identical to training images of another."""
    hashed = {part: table[table["file_hash"] != ""] for part, table in parts.items()}
    pairs = hashed["test"].merge(hashed["train"], on="file_hash", suffixes=("", "_train"))
    pairs = pairs[pairs["database"] != pairs["database_train"]]
    if pairs.empty:
        return []
    example = f"{pairs['image'].iloc[0]} and {pairs['image_train'].iloc[0]}"
    return [f"{len(pairs)} test images are byte-identical to another database's training images: {example}"]
