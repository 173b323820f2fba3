"""Test finished runs on databases: one results file, one table, and which run is better.

    python evaluate.py --checkpoint results/demo --datasets demo
    python evaluate.py --verify results/demo/results.json

A database that a run was trained on is tested on its test split, any other one whole. Several checkpoints are tested
on the same images and compared with the first. `--verify` needs no images: it computes every number again from the
predictions in the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data_loader import warn_of_small_images
from folders import DATABASES, Database, DatabaseNotFound, read_database, read_run_database
from iqa.config import Config, load_yaml, resolve
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.image_check import file_hash
from iqa.metrics import MOST_IMAGES_IN_PAIRS
from iqa.results import compare_predictions, part_metrics, prediction_rows, read_json, write_results
from iqa.runtime import is_first_process, provenance, start_logging
from iqa.significance import in_words, krasula_in_words
from iqa.splits import read_split
from iqa.verification import verify
from predict import Scorer, is_published, load_model, load_run_config, run_folder

log = logging.getLogger(__name__)

COLUMNS = (
    ("srcc", "SRCC"),
    ("plcc", "PLCC"),
    ("plcc_logistic4", "PLCC log4"),
    ("krcc", "KRCC"),
    ("rmse", "RMSE"),
)
PROTOCOLS = {
    "ours": "databases trained on by their test part, others whole",
    "paper": "as the published numbers were tested: crops and resizing of configs/koniq_paper.yaml",
    "playground": "the test images of a list made elsewhere",
}
PAPER = Path(__file__).resolve().parent / "configs" / "koniq_paper.yaml"
TEST_SETTINGS = ("resize", "patch_size", "test_mode", "test_patch_num")


# ---------------------------------------------------------------------------------------------------------
# One model on some databases: also what a training run does when it has finished
# ---------------------------------------------------------------------------------------------------------


def test_part(scorer: Scorer, database: Database, table: pd.DataFrame) -> tuple[dict, list[dict], dict]:
    """Score one table of a database.

    Args:
        scorer: the model.
        database: gives the scale of the scores and its fingerprint.
        table: the rows to test on.

    Returns:
        Metrics with n and intervals, the predictions, and timings.
    """
    started = time.perf_counter()
    scores = scorer.score_table(table, description=f"test {database.name}", database=database.name)
    seconds = time.perf_counter() - started
    metrics = summarize_part(database, table, scores, scorer.config.seed)
    timings = {"seconds": round(seconds, 2), "images_per_s": round(len(table) / seconds, 2)}
    return metrics, prediction_rows(table, scores), timings


def summarize_part(database: Database, table: pd.DataFrame, scores: np.ndarray, seed: int) -> dict:
    """All statistics of scores (n,) on rows of a database's table, groups and fingerprint included.

    They are those of the scores as `prediction_rows` stores them; see `iqa.results.part_metrics`.

    Raises:
        UserError: a score is not finite.
    """
    return part_metrics(prediction_rows(table, scores), database.stored_range, seed)


def describe(database: Database) -> dict:
    """What a results file records about a database."""
    return {
        "n": len(database.table),
        "official_split": bool((database.table["split"] != "").any()),
        "fingerprint": database.fingerprint(),
        "stored_range": list(database.stored_range),
        "lower_is_better": database.lower_is_better,
        "left_out": database.left_out,
        "duplicates": len(database.duplicates),
        "notes": database.notes,
    }


def test_databases(scorer: Scorer, databases: Sequence[Database], trained_on: dict[str, pd.DataFrame]) -> dict:
    """Test on several databases.

    Args:
        scorer: the model.
        databases: read and checked.
        trained_on: test tables of the databases that training has seen, by name.

    Returns:
        `metrics`, `predictions`, `timings` and `databases`, each by database name.
    """
    tested: dict[str, dict] = {"metrics": {}, "predictions": {}, "timings": {}, "databases": {}}
    for database in databases:
        table = trained_on.get(database.name, database.table)
        metrics, rows, timings = test_part(scorer, database, table)
        tested["metrics"][database.name], tested["predictions"][database.name] = metrics, rows
        tested["timings"][database.name] = timings
        tested["databases"][database.name] = describe(database)
    return tested


def read_databases(
    names: Sequence[str], data_root: str | None, skip_bad_images: bool, optional: Sequence[str] = ()
) -> list[Database]:
    """Read several databases; one of `optional` that is absent is said in a line and left out.

    Raises:
        UserError: unknown name, bad labels or images, or a database that is absent and not optional.
    """
    databases = []
    for name in dict.fromkeys(names):
        try:
            databases.append(read_database(name, data_root=data_root, skip_bad_images=skip_bad_images))
        except DatabaseNotFound as error:
            if name not in optional:
                raise
            log.info("not tested on %s: %s", name, error)
    return databases


def metrics_table(metrics: dict[str, dict]) -> str:
    """Metrics by part as an aligned text table: a row a part, n, contents and intervals included."""
    rows = []
    for part, values in metrics.items():
        cells = {"": part, "n": values["n"], "contents": values.get("contents", "")}
        for key, title in COLUMNS:
            cells[title] = _cell(values.get(key))
        low, high = values["srcc_ci95"] or (None, None)
        cells["SRCC 95 % interval"] = "-" if low is None else f"{low:.3f}..{high:.3f}"
        rows.append(cells)
    lines = [pd.DataFrame(rows).to_string(index=False)]
    for part, values in metrics.items():
        lines += [f"{part}: {note}" for note in values.get("notes", [])]
    return "\n".join(lines)


def groups_table(metrics: dict[str, dict]) -> str:
    """The statistics of every group (generator, distortion, quality level) as an aligned text table."""
    rows = []
    for part, values in metrics.items():
        for kind, groups in values["groups"].items():
            for group, of_group in groups.items():
                cells = {"": part, "by": kind.replace("_", " "), "group": group, "n": of_group["n"]}
                rows.append(cells | {title: _cell(of_group[key]) for key, title in COLUMNS if key in of_group})
    return pd.DataFrame(rows).to_string(index=False)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


# ---------------------------------------------------------------------------------------------------------
# Which images of a database may test a run
# ---------------------------------------------------------------------------------------------------------


def trained_test_table(run: Path, database: Database) -> pd.DataFrame:
    """The test split of a database that a run was trained on: as it wrote it down, or for published files official.

    Raises:
        UserError: the split file does not fit the database, or there is neither a file nor an official split.
    """
    file = split_file(run, database.name)
    if file is None and not (database.table["split"] == "test").any():
        raise UserError(f"{run} has no split.json, and {database.name} no official split: the test part is unknown")
    split = read_split(file, database) if file else database.table["split"]
    return database.table[split.to_numpy() == "test"].reset_index(drop=True)


def unseen_images(scorer: Scorer, run: Path, dataset: str, data_root: str | None) -> tuple[Database, pd.DataFrame]:
    """A database and its rows that a run has not learned from: the test part of its own, any other whole.

    Raises:
        UserError: the database cannot be read, or the run's test part is unknown.
    """
    if dataset == scorer.config.dataset:
        database = read_run_database(scorer.config, data_root)
        return database, trained_test_table(run, database)
    (database,) = read_databases([dataset], data_root, skip_bad_images=False)
    seen = dataset in scorer.config.also_train_on
    return database, trained_test_table(run, database) if seen else database.table


def split_file(run: Path, database: str) -> Path | None:
    """The file in a run's folder that says how this database was split: `split_<name>.json`, or `split.json`."""
    own, first = run / f"split_{database}.json", run / "split.json"
    if own.is_file():
        return own
    content = read_json(first) if first.is_file() else None
    return first if isinstance(content, dict) and content.get("database") == database else None


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
    names = [_short_name(path) for path in paths]
    names = paths if len(set(names)) < len(names) else names
    configs = [Config() if is_published(path) else load_run_config(path) for path in paths]
    return [Checkpoint(n, p, run_folder(p), c) for n, p, c in zip(names, paths, configs, strict=True)]


def weights_file(path: str | Path) -> Path:
    """The file of weights that a checkpoint is: itself, or `best.safetensors` in the folder of a run."""
    return Path(path) / "best.safetensors" if Path(path).is_dir() else Path(path)


def _short_name(path: str) -> str:
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
    """Stop where the images of a list share contents with what trained or chose the checkpoint."""
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


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


def _parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Test finished runs on databases, or verify the numbers of results files.")
    parser.add_argument(
        "--checkpoint", nargs="+", metavar="RUN", help="folders of runs, or published files (.pth, .pkl)"
    )
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help=", ".join(DATABASES))
    parser.add_argument("--data_root", help="holds a folder per database (default: $IQA_DATA_ROOT, ./datasets)")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave bad rows out and record them")
    says = "; ".join(f"{name}: {text}" for name, text in PROTOCOLS.items())
    parser.add_argument("--protocol", choices=PROTOCOLS, default="ours", help=f"labels the results [ours]; {says}")
    parser.add_argument("--split_file", metavar="FILE", help="playground: file or folder with train and test lists")
    parser.add_argument("--test_mode", choices=("random", "center", "grid", "full"), help="default: as the run")
    parser.add_argument("--test_patch_num", type=int, help="crops per image (default: as the run)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument(
        "--ratings",
        type=int,
        metavar="N",
        help="how many ratings each mos averages: compares checkpoints by the pairs people tell apart (Krasula) too",
    )
    parser.add_argument("--groups", action="store_true", help="print generators, distortions, quality levels too")
    parser.add_argument("--output", metavar="FILE.json", help="default: RUN/evaluation_<names>.json")
    parser.add_argument("--verify", nargs="+", metavar="FILE", help="recompute results.json or summary.json, and stop")
    arguments = parser.parse_args()
    _check_arguments(parser, arguments)
    return arguments


def _check_arguments(parser: Parser, arguments: argparse.Namespace) -> None:
    if arguments.verify:
        if arguments.checkpoint or arguments.datasets:
            parser.error("--verify reads results files: give it without --checkpoint and --datasets")
        return
    missing = [f"--{name}" for name in ("checkpoint", "datasets") if not getattr(arguments, name)]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    if unknown := [name for name in arguments.datasets if name not in DATABASES]:
        parser.error(f"--datasets: unknown database {unknown[0]!r}; known: {', '.join(DATABASES)}")
    if (arguments.protocol == "playground") != (arguments.split_file is not None):
        parser.error("--protocol playground and --split_file go together: the list is what makes the protocol")
    if arguments.split_file and len(arguments.datasets) > 1:
        parser.error("--split_file is for one database: evaluate the others apart")
    if arguments.ratings is not None and (arguments.ratings < 1 or len(arguments.checkpoint) < 2):
        parser.error("--ratings is for comparing checkpoints: give at least two, and at least 1 rating")
    if arguments.protocol == "paper" and (arguments.test_mode or arguments.test_patch_num):
        parser.error("--protocol paper fixes the crops: give it without --test_mode and --test_patch_num")


def main() -> None:
    """Evaluate or verify as the command line says."""
    arguments = _parse_arguments()
    start_logging()
    if arguments.verify:
        sys.exit(_verify_files(arguments.verify))
    checkpoints = read_checkpoints(arguments.checkpoint)
    output = _output_file(arguments, checkpoints)
    results = evaluate(arguments, checkpoints)
    if not is_first_process():
        return
    write_results(output, results)
    _print_results(results, groups=arguments.groups)
    print(f"written to {output}")


def _output_file(arguments: argparse.Namespace, checkpoints: Sequence[Checkpoint]) -> Path:
    names = ["evaluation", *([arguments.protocol] if arguments.protocol != "ours" else []), *arguments.datasets]
    names += [f"vs_{_short_name(c.path)}" for c in checkpoints[1:]]
    output = Path(arguments.output or checkpoints[0].run / f"{'_'.join(names)}.json")
    if output.exists():
        raise UserError(f"{output} exists: name another file with --output")
    if not output.parent.is_dir():
        raise UserError(f"--output: no folder {output.parent}")
    return output


def evaluate(arguments: argparse.Namespace, checkpoints: Sequence[Checkpoint]) -> dict:
    """Test every checkpoint on every database and compare: the content of a results file.

    Raises:
        UserError: a database or checkpoint is bad, or the two do not fit each other.
    """
    made = provenance()
    databases = _databases_of(checkpoints, arguments)
    lists = {d.name: table_to_test(d, checkpoints, _listed(arguments.split_file, d)) for d in databases}
    tables = {name: table for name, (table, _) in lists.items()}
    if arguments.ratings is not None:
        _require_deviations(tables)
    changes = _changed_settings(arguments, checkpoints)
    results: dict = {"checkpoints": {}, "parts": {}, "metrics": {}, "predictions": {}, "timings": {}}
    for checkpoint in checkpoints:
        scorer = load_model(checkpoint.path, arguments.device, **changes)
        for database in databases:
            warn_of_small_images(tables[database.name], scorer.config, database.name)
        tested = test_databases(scorer, databases, tables)
        results["checkpoints"][checkpoint.name] = _describe_checkpoint(checkpoint, scorer.config)
        for database in databases:
            part = database.name if len(checkpoints) == 1 else f"{database.name}: {checkpoint.name}"
            for key in ("metrics", "predictions", "timings"):
                results[key][part] = tested[key][database.name]
            results["parts"][part] = _describe_part(
                database, checkpoint, lists[database.name][1], results["metrics"][part]
            )
    results["comparisons"] = _comparisons(checkpoints, databases, results["predictions"], arguments.ratings)
    return {
        "config": vars(scorer.config) if len(checkpoints) == 1 else vars(checkpoints[0].config),
        "provenance": {**made, "seed": checkpoints[0].config.seed},
        "protocol": _describe_protocol(arguments, results),
        "databases": {d.name: describe(d) for d in databases},
        **results,
    }


def _databases_of(checkpoints: Sequence[Checkpoint], arguments: argparse.Namespace) -> list[Database]:
    """The databases asked for; one that a run was trained on is read as that run read it."""
    databases = []
    for name in dict.fromkeys(arguments.datasets):
        configs = [c.config for c in checkpoints if c.config.dataset == name and not is_published(c.path)]
        places = {config.data_path and str(Path(config.data_path).resolve()) for config in configs}
        if len(places) > 1:
            raise UserError(
                f"{name}: the runs were trained on different ones, {' and '.join(sorted(map(str, places)))}"
            )
        if configs:
            config = configs[0]
            config = dataclasses.replace(config, skip_bad_images=config.skip_bad_images or arguments.skip_bad_images)
            databases.append(read_run_database(config, arguments.data_root))
        else:
            roots = [c.config.data_root for c in checkpoints if name in c.trained_on()]
            data_root = arguments.data_root or next(filter(None, roots), None)
            databases += read_databases([name], data_root, arguments.skip_bad_images)
    return databases


def _listed(file: str | None, database: Database) -> pd.Series | None:
    return None if file is None else read_split(file, database)


def _require_deviations(tables: dict[str, pd.DataFrame]) -> None:
    """Stop where Krasula's analyses cannot be made, before anything is scored."""
    for name, table in tables.items():
        if table["mos_std"].isna().any():
            raise UserError(f"--ratings: {name} does not say how far the ratings of every image deviate: leave it out")
        if len(table) > MOST_IMAGES_IN_PAIRS:
            raise UserError(f"--ratings looks at every pair: {name} has more than {MOST_IMAGES_IN_PAIRS} images")


def _changed_settings(arguments: argparse.Namespace, checkpoints: Sequence[Checkpoint]) -> dict:
    """Settings of the runs that the command line or the protocol replaces."""
    if arguments.protocol == "paper":
        published = resolve(load_yaml(PAPER))
        changes = {key: getattr(published, key) for key in TEST_SETTINGS}
    else:
        asked = {key: getattr(arguments, key) for key in ("test_mode", "test_patch_num")}
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
    made = trained.get("provenance", {})
    return {
        "path": checkpoint.path,
        "file_hash": file_hash(weights_file(file)),
        "trained_on": None if is_published(file) else checkpoint.trained_on(),
        "selected_on": trained.get("protocol", {}).get("selected_on", checkpoint.selected_on()),
        "training_notes": trained.get("protocol", {}).get("notes", []),
        "seed": None if is_published(file) else checkpoint.config.seed,
        "provenance": {key: made[key] for key in ("git_commit", "git_dirty", "versions") if key in made},
        "tested_with": {key: getattr(config, key) for key in (*TEST_SETTINGS, "seed", "precision")},
    }


def _describe_part(database: Database, checkpoint: Checkpoint, listed: dict, metrics: dict) -> dict:
    """Whose scores a part holds, of which images."""
    counts = {key: metrics[key] for key in ("n", "contents", "fingerprint")}
    return {"database": database.name, "checkpoint": checkpoint.name, **counts, **listed}


def _describe_protocol(arguments: argparse.Namespace, results: dict) -> dict:
    """The label of the results: protocol, crops, what chose the checkpoints, and what a reader has to know."""
    checkpoints = results["checkpoints"]
    crops = {f"{c['tested_with']['test_mode']}, {c['tested_with']['test_patch_num']}" for c in checkpoints.values()}
    resizes = {c["tested_with"]["resize"] for c in checkpoints.values()}
    notes = [
        f"{name} was chosen on the test part: its scores on {', '.join(checkpoint['trained_on'])} are optimistic "
        "and cannot be compared with others"
        for name, checkpoint in checkpoints.items()
        if checkpoint["selected_on"] == "test"
    ]
    notes += [f"{name}: {note}" for name, checkpoint in checkpoints.items() for note in checkpoint["training_notes"]]
    notes += [f"{part['database']}: {note}" for part in results["parts"].values() for note in part["notes"]]
    return {
        "name": arguments.protocol,
        "description": PROTOCOLS[arguments.protocol],
        "split_file": arguments.split_file,
        "selected_on": ", ".join(dict.fromkeys(c["selected_on"] for c in checkpoints.values())),
        "resize": resizes.pop() if len(resizes) == 1 else "as each run",
        "test_crops": crops.pop() if len(crops) == 1 else "as each run",
        "notes": list(dict.fromkeys(notes)),
    }


def _comparisons(
    checkpoints: Sequence[Checkpoint],
    databases: Sequence[Database],
    predictions: dict[str, list],
    ratings: int | None,
) -> list[dict]:
    """Every checkpoint after the first against it, on each database."""
    first, *others = checkpoints
    found = []
    for database in databases:
        for other in others:
            part_a, part_b = (f"{database.name}: {checkpoint.name}" for checkpoint in (first, other))
            rows_a, rows_b = predictions[part_a], predictions[part_b]
            compared = compare_predictions(rows_a, rows_b, first.config.seed, ratings=ratings)
            named = {"database": database.name, "a": first.name, "b": other.name, "part_a": part_a, "part_b": part_b}
            found.append(named | compared | {"words": in_words(compared, first.name, other.name)})
    return found


def _print_results(results: dict, groups: bool) -> None:
    protocol, parts = results["protocol"], results["parts"]
    by_database = [part for name in results["databases"] for part in parts if parts[part]["database"] == name]
    metrics = {part: results["metrics"][part] for part in by_database}
    tested = f"crops: {protocol['test_crops']}; resize: {protocol['resize']}"
    print(f"protocol {protocol['name']}: {protocol['description']} ({tested})")
    print(metrics_table(metrics))
    if groups:
        print(groups_table(metrics))
    for compared in results["comparisons"]:
        for sentence in [compared["words"], *compared["notes"]]:
            print(f"{compared['database']}: {sentence}")
        if "krasula" in compared:
            found = compared["krasula"]
            print(f"{compared['database']}: {krasula_in_words(found['a'], found['b'], compared['a'], compared['b'])}")
    if len(results["checkpoints"]) > 2:
        print(f"{len(results['comparisons'])} comparisons: p is of each alone, not corrected for their number")
    for note in protocol["notes"]:
        print(f"note: {note}")


def _verify_files(files: Sequence[str]) -> int:
    """Verify each file and print what came out; 0 if all agree, 1 if a value differs, 2 if a file cannot be read."""
    code = 0
    for file in files:
        try:
            found = verify(file)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        for name, stored, recomputed in found.differences:
            print(f"{file}: {name}: stored {stored}, recomputed {recomputed}")
        for name in found.unchecked:
            print(f"{file}: {name}: cannot be recomputed from this file, not checked")
        for note in found.notes:
            print(f"{file}: {note}")
        verdict = f"{len(found.differences)} differ" if found.differences else "all agree"
        print(f"{file}: {found.checked} numbers checked, {verdict}")
        code = max(code, 1 if found.differences else 0)
    return code


if __name__ == "__main__":
    exit_on_user_error(main)
