"""Train, validate and test: a configuration -> `results/<name>/`.

    python train_swin.py --config configs/demo.yaml

Reads the database, splits it by content, trains with validation and early stopping, reads the test split once,
then tests on the other databases that the settings name. `--print_config` shows the resolved settings.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from iqa.config import Config, load_config
from iqa.data import cache_folder
from iqa.errors import Parser, UserError, exit_on_user_error
from iqa.metrics import Place, across_splits, shown_in
from iqa.system import is_first_process, lock_folder, start_logging, write_atomically, write_json
from smart_iqa.runs import (
    add_run_flags,
    open_run_dir,
    remove_what_only_continuing_needs,
    require_new,
    saying_how_to_go_on,
    settings_of,
)
from smart_iqa.shipped import checkpoint_file

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import Accelerator

    from data_loader import Preparation
    from folders import Database
    from HyperIQASolver_swin import HyperIQASolver, Progress
    from iqa.photographs import PhotographTerm
    from models_swin import Ensemble, SmartIQA
    from smart_iqa.frozen_features import FeatureNetwork, FrozenFeatures
    from smart_iqa.training_data import TrainingData

log = logging.getLogger(__name__)
NEXT_NETWORK = 1000  # from one network's seed to the next in an ensemble; seeds of splits are one apart


def architecture_of(config: Config) -> dict:
    """List the arguments that rebuild a run's network, without its weights."""
    keys = ("backbone", "fusion", "content_vector", "drop_path_rate", "dropout_rate")
    keys += ("freeze_backbone", "freeze_batch_norm", "scales", "deviation", "head")
    defaults = {"scales": [1.0], "deviation": False, "head": "hypernet"}  # left out, as in the oldest runs
    given = {key: getattr(config, key) for key in keys}
    return {key: value for key, value in given.items() if key not in defaults or value != defaults[key]}


def build_model(config: Config, run_dir: Path | None = None) -> SmartIQA:
    """Build the network of a run, seeded, with the weights that its settings ask for.

    Args:
        config: the run's settings.
        run_dir: holds the checkpoint that a stopped run goes on from, if it has one. All weights are in it, so the
            files that they came from may be gone.
    """
    from iqa.checkpoint import load_model_state
    from iqa.learning import limit_learning
    from iqa.runtime import seed_everything
    from models_swin import build_network

    seed_everything(config.seed)
    last = _last_checkpoint(run_dir) if run_dir is not None else None
    if last is not None:
        model = build_network(**architecture_of(config))
    elif config.init_from is not None:
        model = _warm_model(config)
    else:
        model = build_network(**architecture_of(config), **_weights(config))
    limit_learning(model.backbone, config.freeze_stages, config.lora_rank, config.grad_checkpointing)
    if last is not None:
        tensors, made = last
        load_model_state(model, tensors, "the last checkpoint")
        model.weights_source = made["weights"]
    return model


def _weights(config: Config) -> dict:
    """The arguments that say where a new network's backbone has its weights from."""
    pretrained = config.pretrained and config.backbone_weights is None
    return {"pretrained": pretrained, "backbone_weights": config.backbone_weights}


def _last_checkpoint(run_dir: Path) -> tuple[dict, dict] | None:
    """Read tensors and record of a stopped run's last whole checkpoint; the solver says which one is damaged."""
    from iqa.checkpoint import read_checkpoint

    for name in ("last", "previous"):
        with contextlib.suppress(UserError):
            tensors, records = read_checkpoint(run_dir / f"{name}.safetensors")
            return (tensors, records["made"]) if "weights" in records["made"] else None
    return None


def _warm_model(config: Config) -> SmartIQA:
    """The network with what `init_part` says of `init_from`, as far as it fits; the rest starts as without it."""
    from iqa.checkpoint import load_fitting_state, read_checkpoint
    from models_swin import build_network

    file = checkpoint_file(str(config.init_from))
    model = build_network(**architecture_of(config), **_weights(config) if config.init_part == "head" else {})
    taken = load_fitting_state(model, read_checkpoint(file)[0], file, config.init_part)
    backbone = [model.weights_source] if config.init_part == "head" else []
    model.weights_source = "; ".join([*backbone, f"{config.init_from} ({taken})"])
    return model


def train_and_test(
    config: Config,
    databases: list[Database],
    others: list[Database],
    accelerator: Accelerator,
    official: bool,
    resume: bool,
    fold: int | None = None,
) -> dict:
    """Train on the train part, choose on val, test once; write the results and return them.

    Args:
        config: the run's settings.
        databases: what is learned from; each one's test part is tested.
        others: databases that are tested whole.
        accelerator: devices and processes; only the first process writes.
        official: take official splits where there are any.
        resume: continue from the last checkpoint if there is one.
        fold: number of the fold that is tested, in cross-validation.
    """
    from iqa.results import build_results, part_name, provenance, write_results
    from iqa.runtime import deterministic_kernels, precision_of
    from smart_iqa.scorer import Scorer
    from smart_iqa.testing import compare_with_training, test_databases
    from smart_iqa.training_data import make_training_data

    origin = provenance()  # now: during training another commit may be checked out
    data = make_training_data(databases, config, official, fold, config.run_dir if resume else None)
    with accelerator.main_process_first():  # it hashes the images, the others find what it has kept
        compared = compare_with_training(others, data.parts["train"], config.cache_dir)
    networks = _networks(config)
    first = build_model(networks[0], networks[0].run_dir if resume else None)  # weights that are absent stop it here
    with deterministic_kernels(config.deterministic), open_run_dir(config, accelerator, resume):
        if accelerator.is_main_process:
            data.write_splits(config.run_dir, config.seed)
        accelerator.wait_for_everyone()
        log.info("%s: %s", config.run_dir, data.in_words())
        trained = [_train_network(networks[0], first, data, accelerator, resume)]
        for one in networks[1:]:
            model = build_model(one, one.run_dir if resume else None)
            if config.freeze_backbone:  # an ensemble shares one, also where it is random
                model.backbone.load_state_dict(first.backbone.state_dict())
            trained.append(_train_network(one, model, data, accelerator, resume))
        training = _training_record(trained, databases, data, accelerator)
        model, preparation = _average(config, trained, data, accelerator)
        scorer = Scorer(model, config, accelerator, preparation, data.scales)
        tested = test_databases(scorer, [*databases, *others], data.test_tables())
        results = build_results(
            dataclasses.asdict(config),
            origin | {"backbone_weights": model.weights_source},
            _protocol(config, data.record(compared), official and tested[0].described["official_split"]),
            {part_name(part.database, config.dataset): part for part in tested},
            {"training_seconds": round(sum(one.seconds for one in trained), 1)},
            training=training
            | {"parameters": sum(p.numel() for p in model.parameters()), "processes": accelerator.num_processes}
            | {"precision": precision_of(accelerator)},
        )
        if accelerator.is_main_process:
            write_results(config.run_dir / "results.json", results)
            for one in trained:
                remove_what_only_continuing_needs(one.config)
    accelerator.wait_for_everyone()  # until the results are on disk
    return results


class Trained(NamedTuple):
    """Holds a network at the epoch that validation chose, and how it was trained."""

    config: Config
    model: SmartIQA
    preparation: Preparation | FrozenFeatures
    progress: Progress
    seconds: float


def _networks(config: Config) -> list[Config]:
    """Give the settings of each network of a run; those of an ensemble differ in seed and folder."""
    if config.ensemble == 1:
        return [config]
    return [
        dataclasses.replace(
            config, name=f"{config.run_name}/network_{i:02d}", seed=config.seed + i * NEXT_NETWORK, ensemble=1
        )
        for i in range(config.ensemble)
    ]


def _train_network(
    config: Config, model: SmartIQA, data: TrainingData, accelerator: Accelerator, resume: bool
) -> Trained:
    """Train one network on the train part of a run's data, and choose on val."""
    from iqa.learning import merge_adapters_in_place
    from iqa.runtime import fuse_attention

    model.to(accelerator.device)
    fuse_attention(model, config.fused_attn, accelerator)
    log.info("%s with %s fusion, weights: %s", config.backbone, config.fusion, model.weights_source)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    preparation = _prepare(config, data, model, accelerator)
    made = {"architecture": architecture_of(config), "scales": data.scales, "weights": model.weights_source}
    solver = _make_solver(config, data.parts, preparation, accelerator, made)
    progress, seconds = _train(solver, {model, preparation.network}, resume)
    del solver
    accelerator.free_memory()  # also ends the loaders' workers, which would live to the end of the run
    merge_adapters_in_place(model.backbone)
    return Trained(config, model, preparation, progress, seconds)


def _prepare(
    config: Config, data: TrainingData, model: SmartIQA | Ensemble, accelerator: Accelerator
) -> Preparation | FrozenFeatures:
    from smart_iqa.frozen_features import prepare_images

    caches = cache_folder(config.cache_dir) / "+".join(data.scales)
    return prepare_images(config, caches, data.images(), model, accelerator)


def _average(
    config: Config, trained: list[Trained], data: TrainingData, accelerator: Accelerator
) -> tuple[SmartIQA | Ensemble, Preparation | FrozenFeatures]:
    """Give the run's network and what prepares its images; several are joined, and written as the run's best."""
    from iqa.checkpoint import save_checkpoint
    from models_swin import Ensemble

    if len(trained) == 1:
        return trained[0].model, trained[0].preparation
    model = Ensemble([one.model for one in trained])
    if accelerator.is_main_process:
        for one in trained:
            settings = one.config.to_yaml()  # makes its folder that of a run, which other commands take
            write_atomically(one.config.run_dir / "config.yaml", lambda file, text=settings: file.write_text(text))
        made = {"architecture": architecture_of(config) | {"members": len(trained)}, "scales": data.scales}
        save_checkpoint(config.run_dir / "best.safetensors", model, made)
    return model, _prepare(config, data, model, accelerator)


def _training_record(
    trained: list[Trained], databases: list[Database], data: TrainingData, accelerator: Accelerator
) -> dict:
    """Record how training went; of an ensemble also the scores of each network alone."""
    from smart_iqa.scorer import Scorer
    from smart_iqa.testing import test_part

    records = [dataclasses.asdict(one.progress) for one in trained]
    if len(trained) == 1:
        return records[0]
    networks = []
    for one, record in zip(trained, records, strict=True):
        scorer = Scorer(one.model, one.config, accelerator, one.preparation, data.scales)
        alone = test_part(scorer, databases[0], data.test_tables()[databases[0].name]).metrics
        networks.append({"seed": one.config.seed, **record, "test": {key: alone[key] for key in ("srcc", "plcc")}})
    return max(records, key=lambda record: record["best_srcc"]) | {"networks": networks}


def _train(solver: HyperIQASolver, networks: set[SmartIQA | FeatureNetwork], resume: bool) -> tuple[Progress, float]:
    """Train and load the best weights; return progress and seconds.

    Args:
        solver: ready to train.
        networks: what `compile` compiles: the network that is trained, and the one that scores.
        resume: go on from the last checkpoint, if there is one.
    """
    from iqa.runtime import compile_network

    if solver.config.compile:
        for network in networks:
            compile_network(network)
    if resume:
        solver.resume_if_begun()
    started = time.perf_counter()
    progress = solver.fit()
    seconds = time.perf_counter() - started
    solver.load_best()
    return progress, seconds


def _make_solver(
    config: Config,
    parts: dict[str, pd.DataFrame],
    preparation: Preparation | FrozenFeatures,
    accelerator: Accelerator,
    made: dict,
) -> HyperIQASolver:
    from data_loader import test_loader, train_loader
    from HyperIQASolver_swin import HyperIQASolver

    train = preparation.dataset(parts["train"], training=True)
    val = preparation.dataset(parts["val" if config.select_on == "last" else config.select_on])
    return HyperIQASolver(
        model=preparation.network,
        config=config,
        train_loader=train_loader(train, config, accelerator.process_index, accelerator.num_processes),
        val_loader=test_loader(val, config),
        to_images=preparation.to_images,
        run_dir=config.run_dir,
        accelerator=accelerator,
        made=made,
        photographs=_photograph_term(config, parts["train"], accelerator),
    )


def _photograph_term(config: Config, train: pd.DataFrame, accelerator: Accelerator) -> PhotographTerm | None:
    """Make the loss of distorted copies, if the settings name a folder of photographs.

    Copies of the training images are learned from too, of at most as many as there are photographs: the order of
    copies has to hold where the scores come from, and these images are often the larger and cleaner ones.
    """
    from iqa.photographs import Photographs, PhotographTerm, held_out, list_photographs

    if config.photos is None:
        return None
    files, _ = held_out(list_photographs(config.photos))
    files += [Path(path) for path in train["path"].iloc[:: -(-len(train) // len(files))]]
    return PhotographTerm(Photographs(files, accelerator.device), config.photo_batch, config.photo_sides, config.seed)


def _protocol(config: Config, record: dict, official: bool) -> dict:
    from iqa.results import SELECTED_ON_TEST

    split = "official" if official else "by content, seeded"
    if config.folds:
        split = f"{config.folds} folds by content"
    return {
        "name": "ours" + (SELECTED_ON_TEST if config.select_on == "test" else ""),
        "split": f"file {config.split_file}" if config.split_file else split,
        "selected_on": config.select_on,
        "test_crops": config.test_crops_in_words,
        **record,
        "allow_leakage": config.allow_leakage,
    }


def run(config: Config, resume: bool = False) -> dict:
    """Train and test as a configuration says, over one split or several.

    Raises:
        UserError: the input is bad, or a run of this name exists already.
    """
    from data_loader import warn_of_small_images
    from folders import DATABASES, read_run_database
    from iqa.results import metrics_table
    from iqa.runtime import make_accelerator, require_compiler
    from iqa.watching import require_tracker
    from smart_iqa.preflight import check_needs
    from smart_iqa.testing import read_databases

    for name in (config.dataset, *config.also_train_on):
        if name not in DATABASES:
            raise UserError(f"dataset: unknown database {name!r}; known: {', '.join(DATABASES)}")
    require_tracker(config.tracker)
    if config.compile:
        require_compiler()
    accelerator = make_accelerator(config.device, config.precision, config.accumulate)
    require_new(config.run_dir, resume)
    accelerator.wait_for_everyone()  # all look before the first process makes the folder
    if resume and accelerator.is_main_process:
        with lock_folder(config.run_dir):  # refuses a run that is still going, before images are checked
            pass
    _warn(config)
    with accelerator.main_process_first():  # the first checks the images, the others find what it found
        to_test = check_needs(config, architecture_of(config), resume)
        how = (config.data_places, config.skip_bad_images, config.cache_dir)
        databases = [read_run_database(config), *read_databases(config.also_train_on, *how)]
        others = read_databases(to_test, *how)
    for note in (f"{database.name}: {note}" for database in databases for note in database.notes):
        log.info("%s", note)
    for each in (*databases, *others):
        warn_of_small_images(each.table, config, each.name)
    if config.train_test_num > 1 or config.folds:
        return _run_splits(config, databases, others, accelerator, resume)
    results = train_and_test(config, databases, others, accelerator, official=True, resume=resume)
    if accelerator.is_main_process:
        print(metrics_table(results["metrics"]))
    return results


def _warn(config: Config) -> None:
    if config.select_on == "test":
        log.warning(
            "the checkpoint is chosen on the test split: results are marked so and cannot be compared with others"
        )
    if config.allow_leakage:
        log.warning("contents may be in two parts: results are marked so and are too good to be true")


def _run_splits(
    config: Config, databases: list[Database], others: list[Database], accelerator: Accelerator, resume: bool
) -> dict:
    """Train and test over splits of seed, seed + 1, ..., or over folds; each has its own folder."""
    from iqa.results import read_results
    from smart_iqa.training_data import make_training_data

    rounds = [_round(config, index) for index in range(config.folds or config.train_test_num)]
    for one, fold in rounds:  # data that cannot be split stop here, before anything is written
        make_training_data(databases, one, official=False, fold=fold, stopped=one.run_dir if resume else None)
    metrics = []
    with open_run_dir(config, accelerator, resume):
        for one, fold in rounds:
            if (one.run_dir / "results.json").is_file():
                results = read_results(one.run_dir)
            else:
                results = train_and_test(one, databases, others, accelerator, official=False, resume=resume, fold=fold)
            metrics.append(results["metrics"])
    summary = {part: across_splits([m[part] for m in metrics]) for part in metrics[0]}
    if accelerator.is_main_process:
        write_json(config.run_dir / "summary.json", {"config": dataclasses.asdict(config), "summary": summary})
        print(splits_table(summary))
    return summary


def _round(config: Config, index: int) -> tuple[Config, int | None]:
    """Give the settings of one of several splits, and its fold in cross-validation."""
    fold, seed = (index, config.seed) if config.folds else (None, config.seed + index)
    name = f"{config.run_name}/split_{index:02d}"
    return dataclasses.replace(config, name=name, seed=seed, train_test_num=1), fold


def splits_table(summary: dict) -> str:
    """Show median, mean and deviation over splits as a text table, with a row for each part and statistic."""
    import pandas as pd

    rows = [
        {"": part, "statistic": each.title, "splits": statistics[each.key]["n"]}
        | {name: each.text(statistics[each.key][name]) for name in ("median", "mean", "std")}
        for part, statistics in summary.items()
        for each in shown_in(Place.BRIEF)
        if each.key in statistics
    ]
    return pd.DataFrame(rows).to_string(index=False)


def make_parser() -> Parser:
    """Make the parser of the command's flags."""
    parser = Parser(
        usage="%(prog)s [--config FILE.yaml] [--SETTING VALUE ...] [--resume [RUN]] [--print_config]",
        description="Train, validate and test a network for blind image quality assessment.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_flags(parser)
    return parser


def _goes_on(config: Config) -> bool:
    """Say whether there is anything to resume.

    A complete run goes on where more epochs are asked for; the results that it had are renamed and kept.

    Raises:
        UserError: the run has not kept what more epochs need.
    """
    several = config.train_test_num > 1 or config.folds
    finished = config.run_dir / ("summary.json" if several else "results.json")
    before = load_config(config.run_dir / "config.yaml").epochs
    if not finished.is_file() or config.epochs <= before:
        return not finished.is_file()
    if several or not (config.run_dir / "last.safetensors").is_file():
        raise UserError(
            f"{config.run_dir} is complete, and going on to epoch {config.epochs} needs the last.safetensors that a "
            "run keeps with --keep_last alone: train anew under another --name"
        )
    if is_first_process():
        finished.rename(config.run_dir / f"results_of_{before}_epochs.json")
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    flags = make_parser().parse_args(argv)
    start_logging()
    config = settings_of(flags)
    if flags.print_config:
        print(config.to_yaml(), end="")
        return
    if flags.resume is not None and not _goes_on(config):
        log.info("%s is complete; nothing to resume", config.run_dir)
        return
    with saying_how_to_go_on(config, "python train_swin.py"):
        run(config, resume=flags.resume is not None)
    log.info("written to %s", config.run_dir)


if __name__ == "__main__":
    exit_on_user_error(main)
