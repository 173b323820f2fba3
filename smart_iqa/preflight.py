"""What a run needs to its end, looked for and listed before its first step.

Stands before training: labels are read and images are looked for, but none is opened, which takes seconds.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from data_loader import resized_size
from folders import DATABASES, Database, DatabaseNotFound, read_database, read_run_database
from iqa.config import Config, parse_resize
from iqa.data import cache_folder, check_image
from iqa.errors import UserError
from models_swin import SmartIQA

log = logging.getLogger(__name__)


def check_needs(config: Config, architecture: dict, resume: bool = False) -> list[str]:
    """List all that a run needs, and stop where something is absent, unless `skip_absent` is set.

    Args:
        config: the run's settings.
        architecture: arguments that rebuild its network.
        resume: the run goes on: its checkpoints have their room already.

    Returns:
        The databases to test on besides its own, those that are there.

    Raises:
        UserError: what is absent, all of it; a database to learn from that is not there, or labels that are bad.
    """
    learned = [read_run_database(config, check_images=False)]
    learned += [_read(name, config) for name in config.also_train_on]
    with torch.device("meta"):
        model = SmartIQA(**architecture)
    to_test, absent = _other_databases(config)
    absent = [*_official_split(config, learned[0]), *absent]
    absent += [] if resume else _room_for_checkpoints(config, model)
    for database in learned:
        log.info("needed: %s to learn from: %d images in %s", database.name, len(database.table), database.root)
    log.info("needed: %s", _caches(config, learned, model))
    for line in absent if config.skip_absent else []:
        log.warning("going on without: %s", line)
    if absent and not config.skip_absent:
        raise UserError(f"{'; '.join(absent)}; --skip_absent goes on without")
    return to_test


def _read(name: str, config: Config) -> Database:
    skip = config.skip_bad_images
    return read_database(name, data_root=config.data_places, skip_bad_images=skip, check_images=False)


def _other_databases(config: Config) -> tuple[list[str], list[str]]:
    """The databases to test on besides the run's own: those that are there, and a line for each other one.

    SPAQ, which nobody has asked for by name, is only mentioned where it is absent.
    """
    asked = ["spaq"] if config.spaq else []
    names = [n for n in dict.fromkeys([*asked, *config.cross_datasets]) if n not in _own(config)]
    there, absent = [], []
    for name in names:
        if name not in DATABASES:
            raise UserError(f"cross_datasets: unknown database {name!r}; known: {', '.join(DATABASES)}")
        try:
            database = _read(name, config)
        except DatabaseNotFound as error:
            if name in config.cross_datasets:
                absent.append(f"to test on {error}")
            else:
                log.info("not tested on %s", error)
            continue
        log.info("needed: %s to test on: %d images in %s", name, len(database.table), database.root)
        there.append(name)
    return there, absent


def _own(config: Config) -> Sequence[str]:
    return (config.dataset, *config.also_train_on)


def _official_split(config: Config, database: Database) -> list[str]:
    """A line if the official split would be used and is not there."""
    if config.split_file or config.folds or config.train_test_num > 1:
        return []
    return [note for note in database.notes if "official split" in note]


def _room_for_checkpoints(config: Config, model: SmartIQA) -> list[str]:
    """A line if the disk has no room for the checkpoints of a run: the best, the last, and one that is being written.

    The last one holds two numbers of the optimizer for each parameter, and the average of the weights.
    """
    weights = sum(4 * tensor.numel() for tensor in model.state_dict().values())
    last = (3 + (config.ema_decay is not None)) * weights
    needed = weights + 3 * last  # `previous`, `last`, and the temporary file of the next one
    free = shutil.disk_usage(_existing(config.run_dir)).free
    log.info("needed: %.2f GB for checkpoints in %s; %.2f GB are free", needed / 1e9, config.run_dir, free / 1e9)
    if needed <= free:
        return []
    return [
        f"the checkpoints of {config.run_dir} need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free: make room "
        "or give another --results_dir"
    ]


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _caches(config: Config, learned: Sequence[Database], model: SmartIQA) -> str:
    """How much room the caches take where they are not made yet; they reserve it before the first step."""
    if not config.cache:
        return "no caches"
    folder = cache_folder(config.cache_dir)
    images = sum(len(database.table) for database in learned)
    if config.freeze_backbone:
        size = sum(channels * side**2 for _, channels, side in model.feature_grids)
        needed = 2 * size * images * (2 * config.train_patch_num + config.test_crops)
    else:
        needed = sum(len(d.table) * _pixels(d, config) for d in learned)
    free = shutil.disk_usage(_existing(folder)).free
    return f"{needed / 1e9:.2f} GB for the caches in {folder}; {free / 1e9:.2f} GB are free"


def _pixels(database: Database, config: Config) -> int:
    """Bytes of a resized image, as large as the first one of a database that opens."""
    checked = (check_image(path) for path in database.table["path"])
    first = next((image for image in checked if not image.problem), None)
    if first is None:
        return 0
    return 3 * math.prod(resized_size(first.width, first.height, parse_resize(config.resize), config.patch_size))
