"""Train, validate and test: a configuration -> `results/<name>/`.

    python train_swin.py --config configs/demo.yaml

Reads the database, splits it by content, trains with validation and early stopping, reads the test split
once, then tests on other databases that are there. `--print_config` shows the resolved settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from pathlib import Path

import pandas as pd
from accelerate import Accelerator

from data_loader import test_loader, train_loader, warn_of_small_images
from evaluate import metrics_table, read_databases, read_run_database, test_databases
from folders import DATABASES, Database
from HyperIQASolver_swin import HyperIQASolver
from iqa.config import Config, add_config_flags, config_from_flags, given_settings, load_config
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.files import write_json
from iqa.metrics import across_splits
from iqa.results import read_results
from iqa.runtime import make_accelerator, provenance, seed_everything, start_logging
from iqa.splits import check_leakage, split_database, write_split
from models_swin import SmartIQA
from predict import Scorer

log = logging.getLogger(__name__)

# What may differ when a stopped run goes on: where it runs, not what it computes.
CHANGEABLE = ("device", "num_workers", "data_root", "data_path", "results_dir", "name")


def architecture_of(config: Config) -> dict:
    """The arguments that rebuild a run's network without any weights."""
    keys = ("backbone", "fusion", "content_vector", "drop_path_rate", "dropout_rate")
    keys += ("freeze_backbone", "freeze_batch_norm")
    return {key: getattr(config, key) for key in keys}


def build_model(config: Config) -> SmartIQA:
    """The network of a run, seeded, with the pretrained weights that its settings ask for."""
    seed_everything(config.seed)
    pretrained = config.pretrained and config.backbone_weights is None
    return SmartIQA(**architecture_of(config), pretrained=pretrained, backbone_weights=config.backbone_weights)


def split_tables(database: Database, config: Config, official: bool) -> tuple[dict[str, pd.DataFrame], pd.Series, list]:
    """Tables of the parts train, val and test, the split itself, and notes on what identical images it holds."""
    split = split_database(database, seed=config.seed, official=official)
    notes = check_leakage(database, split)
    parts = {part: database.table[split.to_numpy() == part].reset_index(drop=True) for part in ("train", "val", "test")}
    for part, table in parts.items():
        if table.empty:
            raise UserError(
                f"{database.name}: the {part} part is empty: too few contents ({len(database.table)} images)"
            )
    return parts, split, notes


def train_and_test(
    config: Config,
    database: Database,
    others: list[Database],
    accelerator: Accelerator,
    official: bool,
    resume: bool,
) -> dict:
    """One round: train on the train part, choose on val, test once; write and return the results."""
    made = provenance()  # before training: the commit may move on meanwhile
    parts, split, notes = split_tables(database, config, official)
    model = build_model(config)
    _prepare_run_dir(config, database, split)
    solver = _make_solver(config, parts, model, accelerator)
    if resume and solver.last_path.is_file():
        solver.resume()
    log.info("%s", _headline(config, database, parts, model))
    started = time.perf_counter()
    progress = solver.fit()
    seconds = time.perf_counter() - started
    scorer = Scorer(solver.load_best(), config, accelerator)
    tested = test_databases(scorer, [database, *others], {database.name: parts["test"]})
    results = {
        "config": dataclasses.asdict(config),
        "provenance": {**made, "seed": config.seed, "backbone_weights": model.weights_source},
        "protocol": _protocol(config, parts, official, notes, tested["databases"][database.name]),
        "training": {
            **dataclasses.asdict(progress),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "databases": tested["databases"],
        "metrics": _named_test(tested["metrics"], database.name),
        "predictions": _named_test(tested["predictions"], database.name),
        "timings": {"training_seconds": round(seconds, 1), **_named_test(tested["timings"], database.name)},
    }
    if accelerator.is_main_process:
        write_json(config.run_dir / "results.json", results)
    return results


def _named_test(by_database: dict, trained_on: str) -> dict:
    """The training database's entry is called `test`, which it is a part of."""
    return {"test" if name == trained_on else name: value for name, value in by_database.items()}


def _make_solver(config: Config, parts: dict, model: SmartIQA, accelerator: Accelerator) -> HyperIQASolver:
    return HyperIQASolver(
        model=model,
        config=config,
        train_loader=train_loader(parts["train"], config),
        val_loader=test_loader(parts[config.select_on], config),
        to_images=Scorer(model, config, accelerator).to_images,
        run_dir=config.run_dir,
        accelerator=accelerator,
        architecture=architecture_of(config),
    )


def _prepare_run_dir(config: Config, database: Database, split: pd.Series) -> None:
    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / "config.yaml").write_text(config.to_yaml())
    write_split(config.run_dir / "split.json", database, split, config.seed)


def _headline(config: Config, database: Database, parts: dict[str, pd.DataFrame], model: SmartIQA) -> str:
    counts = ", ".join(f"{part} {len(t)} images of {t['content'].nunique()} contents" for part, t in parts.items())
    return (
        f"{config.run_dir}: {database.name} ({counts}); {config.backbone} with {config.fusion} fusion, "
        f"weights: {model.weights_source}"
    )


def _protocol(config: Config, parts: dict, official: bool, notes: list, database: dict) -> dict:
    return {
        "split": "official" if official and database["official_split"] else "by content, seeded",
        "selected_on": config.select_on,
        "test_crops": f"{config.test_mode}, {config.test_patch_num}",
        "n": {part: len(table) for part, table in parts.items()},
        "contents": {part: int(table["content"].nunique()) for part, table in parts.items()},
        "notes": notes,
    }


def run(config: Config, resume: bool = False) -> dict:
    """Train and test as a configuration says, over one split or several.

    Raises:
        UserError: bad input, or a run of this name that exists already.
    """
    if config.dataset not in DATABASES:
        raise UserError(f"dataset: unknown database {config.dataset!r}; known: {', '.join(DATABASES)}")
    if config.run_dir.exists() and not resume:
        raise UserError(f"{config.run_dir} exists: continue it with --resume, or give a new --name")
    if config.select_on == "test":
        log.warning(
            "the checkpoint is chosen on the test split: results are marked so and cannot be compared with others"
        )
    accelerator = make_accelerator(config.device, config.precision, config.accumulate)
    database = read_run_database(config)
    for note in database.notes:
        log.info("%s: %s", database.name, note)
    others = _other_databases(config)
    for each in (database, *others):
        warn_of_small_images(each.table, config, each.name)
    if config.train_test_num == 1:
        results = train_and_test(config, database, others, accelerator, official=True, resume=resume)
        print(metrics_table(results["metrics"]))
        return results
    return _run_splits(config, database, others, accelerator, resume)


def _other_databases(config: Config) -> list[Database]:
    names = [*(["spaq"] if config.spaq else []), *config.cross_datasets]
    names = [name for name in names if name != config.dataset]
    for name in names:
        if name not in DATABASES:
            raise UserError(f"cross_datasets: unknown database {name!r}; known: {', '.join(DATABASES)}")
    return read_databases(names, config.data_root, config.skip_bad_images, optional=names)


def _run_splits(
    config: Config, database: Database, others: list[Database], accelerator: Accelerator, resume: bool
) -> dict:
    """`train_test_num` rounds over splits of seed, seed + 1, ...; each has its own folder."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / "config.yaml").write_text(config.to_yaml())
    metrics = []
    for index in range(config.train_test_num):
        name = f"{config.run_name}/split_{index:02d}"
        one = dataclasses.replace(config, name=name, seed=config.seed + index, train_test_num=1)
        if (one.run_dir / "results.json").is_file():
            results = read_results(one.run_dir)
        else:
            results = train_and_test(one, database, others, accelerator, official=False, resume=resume)
        metrics.append(results["metrics"])
    summary = {part: across_splits([m[part] for m in metrics]) for part in metrics[0]}
    write_json(config.run_dir / "summary.json", {"config": dataclasses.asdict(config), "summary": summary})
    for part, statistics in summary.items():
        for key in ("srcc", "plcc"):
            print(f"{part} {key.upper()}: " + ", ".join(f"{k} {v:.4f}" for k, v in statistics[key].items()))
    return summary


def _parse_arguments() -> argparse.Namespace:
    parser = Parser(
        description="Train, validate and test a network for blind image quality assessment.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flags(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue the stopped run of this name, or the run RUN",
    )
    parser.add_argument("--print_config", action="store_true", help="print the resolved settings and exit")
    return parser.parse_args()


def _resumed_config(flags: argparse.Namespace) -> Config:
    """The settings of the run to continue; flags may only change where it runs."""
    config = config_from_flags(flags)
    run_dir = Path(flags.resume) if flags.resume else config.run_dir
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"nothing to resume at {run_dir}")
    if not flags.resume:
        stored, given = load_config(run_dir / "config.yaml"), dataclasses.asdict(config)
    else:
        stored = load_config(run_dir / "config.yaml")
        resolved = dataclasses.asdict(config)
        given = {key: resolved[key] for key in given_settings(flags) if key in resolved}
    for key, value in given.items():
        if key not in CHANGEABLE and getattr(stored, key) != value:
            raise UserError(
                f"--resume: {key} is {getattr(stored, key)!r} in {run_dir} and {value!r} here: they must agree"
            )
    changed = {key: value for key, value in given.items() if key in CHANGEABLE and value is not None}
    place = {"results_dir": str(run_dir.parent), "name": run_dir.name}
    return dataclasses.replace(stored, **(changed | place))


def main() -> None:
    """Train as the command line says."""
    flags = _parse_arguments()
    start_logging()
    config = config_from_flags(flags) if flags.resume is None else _resumed_config(flags)
    if flags.print_config:
        print(config.to_yaml(), end="")
        return
    finished = "results.json" if config.train_test_num == 1 else "summary.json"
    if flags.resume is not None and (config.run_dir / finished).is_file():
        log.info("%s is complete; nothing to resume", config.run_dir)
        return
    run(config, resume=flags.resume is not None)
    log.info("written to %s", config.run_dir)


if __name__ == "__main__":
    exit_on_user_error(main)
