"""Test several runs on several databases: `evaluate` gives the content of one results file, and says who is better.

A database that a run was trained on is tested on its test part, any other one whole. Several checkpoints are tested
on the same images and compared with the first.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data_loader import warn_of_small_images
from folders import DATABASES, Database, read_run_database
from iqa.choices import describe_crops
from iqa.config import CONFIGS, Config, load_yaml, resolve
from iqa.data import file_hash, read_split
from iqa.errors import UserError
from iqa.metrics import MOST_IMAGES_IN_PAIRS, in_words
from iqa.results import (
    PROTOCOLS,
    SELECTED_ON_TEST,
    ScoredPart,
    build_results,
    compare_predictions,
    provenance,
    read_json,
)
from smart_iqa.scorer import is_published, load_model, load_run_config, run_folder
from smart_iqa.testing import (
    compare_with_training,
    read_databases,
    split_file,
    test_databases,
    trained_part,
    trained_test_table,
)

log = logging.getLogger(__name__)

PAPER = CONFIGS / "koniq_paper.yaml"
TEST_SETTINGS = ("resize", "patch_size", "test_mode", "test_patch_num")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as the command line names it.

    Attributes:
        name: what it is called in tables and results.
        path: as given.
        run: its folder.
        config: the run's settings; the defaults for a published file.
    """

    name: str
    path: str
    run: Path
    config: Config

    def trained_on(self) -> list[str]:
        """The databases that the run was trained on."""
        return [self.config.dataset, *self.config.also_train_on]

    def selected_on(self) -> str:
        """The part that chose the checkpoint; `test` marks its results."""
        return "unknown" if is_published(self.path) else self.config.select_on


def read_checkpoints(paths: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints of a command line, without their weights; each is named after its folder or file.

    Raises:
        UserError: no run there, one given twice, under whatever name, or a folder of several splits.
    """
    weights = [weights_file(path).resolve() for path in paths]
    for number, path in enumerate(paths):
        if weights[number] in weights[:number]:
            first_name = paths[weights.index(weights[number])]
            raise UserError(f"--checkpoint: {path} is given twice, first as {first_name}")
        if (Path(path) / "split_00").is_dir():
            raise UserError(f"{path} holds several splits: test one of them, for example {Path(path) / 'split_00'}")
    short_names = [short_name(path) for path in paths]
    names = paths if len(set(short_names)) < len(paths) else short_names
    configs = [Config() if is_published(path) else load_run_config(path) for path in paths]
    return [Checkpoint(n, p, run_folder(p), c) for n, p, c in zip(names, paths, configs, strict=True)]


def weights_file(path: str | Path) -> Path:
    """The file of weights that a checkpoint is: itself, or `best.safetensors` in the folder of a run."""
    return Path(path) / "best.safetensors" if Path(path).is_dir() else Path(path)


def short_name(path: str | Path) -> str:
    """What a checkpoint is called: its run's folder, or the file of published code."""
    resolved = Path(path).resolve()
    return resolved.parent.name if resolved.suffix == ".safetensors" else resolved.name


def table_to_test(
    database: Database, checkpoints: Sequence[Checkpoint], listed: pd.Series | None
) -> tuple[pd.DataFrame, dict]:
    """The images that all checkpoints are tested on, and what a results file says about that list.

    Args:
        database: read and checked.
        checkpoints: those trained on the database are tested only on images of their test part.
        listed: a split from elsewhere whose test part is taken instead; None takes the runs' own.

    Raises:
        UserError: no image is in all test parts, or a list holds contents that a run has seen in training.
    """
    trained = [c for c in checkpoints if database.name in c.trained_on()]
    if listed is not None:
        table = database.table[listed.to_numpy() == "test"].reset_index(drop=True)
        for checkpoint in trained:
            _require_unseen(checkpoint, database, table)
        return table, {"list": "playground", "notes": []}
    if not trained:
        return database.table, {"list": "whole database", "notes": []}
    tables = [trained_test_table(c.run, database) for c in trained]
    shared = set.intersection(*(set(t["image"]) for t in tables))
    if not shared:
        raise UserError(f"{database.name}: no image is in the test part of all of {', '.join(c.name for c in trained)}")
    table = tables[0][tables[0]["image"].isin(shared)].reset_index(drop=True)
    notes = [
        f"{c.name}: {len(t) - len(table)} of {len(t)} test images left out, another checkpoint may have seen them"
        for c, t in zip(trained, tables, strict=True)
        if len(t) > len(table)
    ]
    files = {c.name: split_file(c.run, database.name) for c in trained}
    return table, {
        "list": "test part",
        "official": set(database.table["image"][database.table["split"] == "test"]) == set(table["image"]),
        "split_files": {name: None if file is None else str(file) for name, file in files.items()},
        "split_seeds": {name: None if file is None else read_json(file).get("seed") for name, file in files.items()},
        "notes": notes,
    }


def _require_unseen(checkpoint: Checkpoint, database: Database, table: pd.DataFrame) -> None:
    """Stop if the images of a list share contents with the images that trained or chose the checkpoint."""
    file = split_file(checkpoint.run, database.name)
    if file is None:
        log.warning("%s: its training images are unknown: the list may hold some of them", checkpoint.name)
        return
    seen = set(database.table["content"][read_split(file, database).isin(["train", "val"]).to_numpy()])
    known = table["content"].isin(seen)
    if known.any():
        raise UserError(
            f"{checkpoint.name} has seen the contents of {known.sum()} of the {len(table)} listed test images of "
            f"{database.name} in training or validation, for example {table['image'][known].iloc[0]}: train it on the "
            "list's own training part"
        )


def evaluate(
    checkpoints: str | Path | Sequence[str | Path],
    datasets: str | Sequence[str],
    *,
    data_root: str | None = None,
    skip_bad_images: bool = False,
    protocol: str = "ours",
    split_file: str | None = None,
    test_mode: str | None = None,
    test_patch_num: int | None = None,
    ratings: int | None = None,
    device: str = "auto",
) -> dict:
    """Test every checkpoint on every database and compare each with the first: the content of a results file.

    Args:
        checkpoints: one or several folders of runs, checkpoint files, or files of published code.
        datasets: one or several names of databases; one that a run was trained on is tested on its test part.
        data_root: holds a folder per database; None takes $IQA_DATA_ROOT or ./datasets.
        skip_bad_images: leave bad rows out and record them.
        protocol: a key of `iqa.results.PROTOCOLS`.
        split_file: the test list of the protocol `playground`.
        test_mode: how images are cropped; None as each run.
        test_patch_num: crops per image; None as each run.
        ratings: how many ratings each mos averages: adds Krasula's analyses.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        UserError: a database, a checkpoint or an argument is bad, or they do not fit each other.
    """
    paths, names = _as_list(checkpoints), _as_list(datasets)
    asked = {"test_mode": test_mode, "test_patch_num": test_patch_num}
    _require_that_they_fit(paths, names, protocol, split_file, ratings, asked)
    origin, runs = provenance(), read_checkpoints(paths)
    databases = _databases_of(runs, names, data_root, skip_bad_images)
    lists = {d.name: table_to_test(d, runs, _listed(split_file, d)) for d in databases}
    tables = {name: table for name, (table, _) in lists.items()}
    if ratings is not None:
        _require_deviations(tables)
    changes = _changed_settings(runs, protocol, asked)
    tested: dict[str, ScoredPart] = {}
    described: dict[str, dict] = {"checkpoints": {}, "parts": {}}
    for checkpoint in runs:
        scorer = load_model(checkpoint.path, device, **changes)
        for database in databases:
            warn_of_small_images(tables[database.name], scorer.config, database.name)
        compared = _compare_with_training(checkpoint, databases, tables, data_root)
        described["checkpoints"][checkpoint.name] = _describe_checkpoint(checkpoint, scorer.config)
        for part in test_databases(scorer, databases, tables):
            name = part.database if len(runs) == 1 else f"{part.database}: {checkpoint.name}"
            tested[name] = part
            described["parts"][name] = _describe_part(
                part, checkpoint, lists[part.database][1], compared.get(part.database, {})
            )
    return build_results(
        dataclasses.asdict(scorer.config if len(runs) == 1 else runs[0].config),
        origin,
        _describe_protocol(protocol, split_file, described),
        tested,
        **described,
        comparisons=_comparisons(runs, databases, tested, ratings),
    )


def _as_list(one_or_several: str | Path | Sequence[str | Path]) -> list[str]:
    several = [one_or_several] if isinstance(one_or_several, str | Path) else one_or_several
    return list(map(str, several))


def _databases_of(
    checkpoints: Sequence[Checkpoint], datasets: Sequence[str], data_root: str | None, skip_bad_images: bool
) -> list[Database]:
    """The databases asked for; one that a run was trained on is read as that run read it."""
    databases = []
    for name in dict.fromkeys(datasets):
        configs = [c.config for c in checkpoints if c.config.dataset == name and not is_published(c.path)]
        places = {config.data_path and str(Path(config.data_path).resolve()) for config in configs}
        if len(places) > 1:
            raise UserError(
                f"{name}: the runs were trained on different ones, {' and '.join(sorted(map(str, places)))}"
            )
        if configs:
            config = configs[0]
            config = dataclasses.replace(config, skip_bad_images=config.skip_bad_images or skip_bad_images)
            databases.append(read_run_database(config, data_root))
        else:
            roots = [c.config.data_places for c in checkpoints if name in c.trained_on()]
            root = data_root or next(filter(None, roots), None)
            databases += read_databases([name], root, skip_bad_images)
    return databases


def _require_that_they_fit(
    checkpoints: Sequence[str],
    datasets: Sequence[str],
    protocol: str,
    split_file: str | None,
    ratings: int | None,
    asked: dict,
) -> None:
    if not checkpoints or not datasets:
        raise UserError("nothing to test: give at least one checkpoint and one database")
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol: unknown {protocol!r}; known: {', '.join(PROTOCOLS)}")
    if unknown := [name for name in datasets if name not in DATABASES]:
        raise UserError(f"--datasets: unknown database {unknown[0]!r}; known: {', '.join(DATABASES)}")
    if (protocol == "playground") != (split_file is not None):
        raise UserError("--protocol playground and --split_file go together: the list is what makes the protocol")
    if protocol == "paper" and any(value is not None for value in asked.values()):
        raise UserError(f"--protocol paper fixes the crops: give it without {' and '.join(asked)}")
    if split_file and len(datasets) > 1:
        raise UserError("--split_file is for one database: evaluate the others apart")
    if ratings is not None and (ratings < 1 or len(checkpoints) < 2):
        raise UserError("--ratings is for comparing checkpoints: give at least two, and at least 1 rating")


def _listed(file: str | None, database: Database) -> pd.Series | None:
    return None if file is None else read_split(file, database)


def _require_deviations(tables: dict[str, pd.DataFrame]) -> None:
    """Stop before anything is scored if Krasula's analyses are impossible."""
    for name, table in tables.items():
        if table["mos_std"].isna().any():
            raise UserError(f"--ratings: {name} does not say how far the ratings of every image deviate: leave it out")
        if len(table) > MOST_IMAGES_IN_PAIRS:
            raise UserError(f"--ratings looks at every pair: {name} has more than {MOST_IMAGES_IN_PAIRS} images")


def _changed_settings(checkpoints: Sequence[Checkpoint], protocol: str, asked: dict) -> dict:
    """The settings that replace the runs' own: those of the protocol, or those asked for."""
    if protocol == "paper":
        published = resolve(load_yaml(PAPER))
        changes = {key: getattr(published, key) for key in TEST_SETTINGS}
    else:
        changes = {key: value for key, value in asked.items() if value is not None}
    if len({c.config.precision for c in checkpoints}) > 1:
        log.info("the runs differ in precision: all are tested in fp32")
        changes["precision"] = "fp32"
    return changes


def _describe_checkpoint(checkpoint: Checkpoint, config: Config) -> dict:
    """Where a checkpoint is from, what chose it, and how it was tested."""
    file = Path(checkpoint.path)
    trained_file = checkpoint.run / "results.json"
    trained = read_json(trained_file) if trained_file.is_file() and not is_published(file) else {}
    origin = trained.get("provenance", {})
    return {
        "path": checkpoint.path,
        "file_hash": file_hash(weights_file(file)),
        "trained_on": None if is_published(file) else checkpoint.trained_on(),
        "selected_on": trained.get("protocol", {}).get("selected_on", checkpoint.selected_on()),
        "training_notes": trained.get("protocol", {}).get("notes", []),
        "seed": None if is_published(file) else checkpoint.config.seed,
        "provenance": {key: origin[key] for key in ("git_commit", "git_dirty", "versions") if key in origin},
        "tested_with": {key: getattr(config, key) for key in (*TEST_SETTINGS, "seed", "precision")},
    }


def _compare_with_training(
    checkpoint: Checkpoint, databases: Sequence[Database], tables: dict[str, pd.DataFrame], data_root: str | None
) -> dict[str, dict]:
    """By name of each database that a checkpoint was not trained on: which images are among those of training."""
    foreign = [d for d in databases if is_published(checkpoint.path) or d.name not in checkpoint.trained_on()]
    if not foreign:
        return {}
    try:
        learned = _training_images(checkpoint, data_root)
    except UserError as error:
        note = f"{checkpoint.name}: not compared with the images of training: {error}"
        return {database.name: {"notes": [note]} for database in foreign}
    tested = [dataclasses.replace(database, table=tables[database.name]) for database in foreign]
    return {
        name: {
            "images_in_training": overlap.record(),
            "notes": [f"{checkpoint.name}: {line}" for line in overlap.in_words()],
        }
        for name, overlap in compare_with_training(tested, learned, checkpoint.config.cache_dir).items()
    }


def _training_images(checkpoint: Checkpoint, data_root: str | None) -> pd.DataFrame:
    """The images that a checkpoint has learned from.

    Raises:
        UserError: they are unknown, or not here.
    """
    if is_published(checkpoint.path):
        raise UserError("a published file does not say which they are")
    skip = checkpoint.config.skip_bad_images
    databases = _databases_of([checkpoint], checkpoint.trained_on(), data_root, skip)
    return pd.concat([trained_part(checkpoint.run, d, "train") for d in databases], ignore_index=True)


def _describe_part(part: ScoredPart, checkpoint: Checkpoint, listed: dict, compared: dict) -> dict:
    """What a results file says of a part: whose scores it holds, of which images, and which of them were learned."""
    counts = {key: part.metrics[key] for key in ("n", "contents", "fingerprint")}
    notes = listed["notes"] + compared.get("notes", [])
    return {"database": part.database, "checkpoint": checkpoint.name, **counts, **listed, **compared, "notes": notes}


def _describe_protocol(protocol: str, split_file: str | None, described: dict[str, dict]) -> dict:
    """What a results file says of the test: protocol, crops, what chose the checkpoints, and notes for the reader."""
    checkpoints = described["checkpoints"]
    tested_with = [checkpoint["tested_with"] for checkpoint in checkpoints.values()]
    crops = {describe_crops(settings["test_mode"], settings["test_patch_num"]) for settings in tested_with}
    resizes = {settings["resize"] for settings in tested_with}
    selected_on = [checkpoint["selected_on"] for checkpoint in checkpoints.values()]
    notes = [
        f"{name} was chosen on the test part: its scores on {', '.join(checkpoint['trained_on'])} are optimistic "
        "and cannot be compared with others"
        for name, checkpoint in checkpoints.items()
        if checkpoint["selected_on"] == "test"
    ]
    notes += [f"{name}: {note}" for name, checkpoint in checkpoints.items() for note in checkpoint["training_notes"]]
    notes += [f"{part['database']}: {note}" for part in described["parts"].values() for note in part["notes"]]
    return {
        "name": protocol + (SELECTED_ON_TEST if "test" in selected_on else ""),
        "description": PROTOCOLS[protocol],
        "split_file": split_file,
        "selected_on": ", ".join(dict.fromkeys(selected_on)),
        "resize": resizes.pop() if len(resizes) == 1 else "as each run",
        "test_crops": crops.pop() if len(crops) == 1 else "as each run",
        "notes": list(dict.fromkeys(notes)),
    }


def _comparisons(
    checkpoints: Sequence[Checkpoint],
    databases: Sequence[Database],
    tested: dict[str, ScoredPart],
    ratings: int | None,
) -> list[dict]:
    """Every checkpoint after the first against it, on each database."""
    first, *others = checkpoints
    found = []
    for database in databases:
        for other in others:
            part_a, part_b = (f"{database.name}: {checkpoint.name}" for checkpoint in (first, other))
            rows_a, rows_b = tested[part_a].predictions, tested[part_b].predictions
            compared = compare_predictions(rows_a, rows_b, first.config.seed, ratings=ratings)
            named = {"database": database.name, "a": first.name, "b": other.name, "part_a": part_a, "part_b": part_b}
            found.append(named | compared | {"words": in_words(compared, first.name, other.name)})
    return found
