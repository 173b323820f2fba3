"""The folder of a run: who may write to it, and with which settings a stopped run goes on.

Training and pretraining use it alike: flags -> `settings_of` -> `open_run_dir` -> ... -> a finished folder.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqa.config import Config, load_config
from iqa.errors import Stopped, UserError
from iqa.flags import add_config_flags, config_from_flags, given_settings
from iqa.system import StopSignals, lock_folder, write_atomically
from smart_iqa.shipped import checkpoint_file

if TYPE_CHECKING:
    from accelerate import Accelerator

# What may differ when a stopped run goes on: where and how it runs, not what it computes; see also `_may_change`.
CHANGEABLE = {"device", "num_workers", "data_root", "data_path", "results_dir", "name", "cache_dir", "compile"}
CHANGEABLE |= {"checkpoint_every", "tracker", "log_every", "cache_limit", "keep_last"}
CHANGEABLE |= {"data_paths", "grad_checkpointing", "skip_absent"}

# What a run that starts from another network takes of its architecture: all that its tensors' shapes follow from.
BACKBONE = ("backbone", "scales", "deviation")
STARTED_FROM = (*BACKBONE, "fusion", "content_vector", "head")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser a flag for every setting, `--resume` and `--print_config`."""
    add_config_flags(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue the stopped run of this name, or the run RUN",
    )
    parser.add_argument("--print_config", action="store_true", help="print the resolved settings and exit")


def _may_change(key: str, value: Any, stored: Config) -> bool:
    """Whether a run may go on with another value of a setting: one that leaves alone all that is computed before."""
    if key == "cache":  # a frozen backbone's features are rounded when they are kept
        return not stored.freeze_backbone
    if key == "epochs":  # more of them
        return stored.lr_scheduler != "cosine" and value >= stored.epochs
    return key in CHANGEABLE


def settings_of(flags: argparse.Namespace) -> Config:
    """The settings of parsed flags: of a new run, or of the one to resume.

    A run that starts from a network takes its architecture, where flags and file do not name another.

    Raises:
        UserError: a mistake in the settings, or no run to resume.
    """
    return _resumed_config(flags) if flags.resume is not None else _new_config(flags)


def _new_config(flags: argparse.Namespace) -> Config:
    config = config_from_flags(flags)
    if config.init_from is None:
        return config
    from iqa.checkpoint import read_checkpoint

    _, records = read_checkpoint(checkpoint_file(config.init_from))
    architecture = records["made"]["architecture"]
    taken = BACKBONE if config.init_part == "backbone" else STARTED_FROM
    return config_from_flags(flags, {key: architecture[key] for key in taken if key in architecture})


def _resumed_config(flags: argparse.Namespace) -> Config:
    """The settings of the run to continue; flags may only change what `_may_change` allows."""
    run_dir = Path(flags.resume) if flags.resume else _run_dir(flags)
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"nothing to resume at {run_dir}")
    stored = load_config(run_dir / "config.yaml")
    started = {key: getattr(stored, key) for key in STARTED_FROM} if stored.init_from else {}
    given = dataclasses.asdict(config_from_flags(flags, started))
    if flags.resume:
        given = {key: given[key] for key in given_settings(flags) if key in given}
    for key, value in given.items():
        if getattr(stored, key) != value and not _may_change(key, value, stored):
            raise UserError(
                f"--resume: {key} is {getattr(stored, key)!r} in {run_dir} and {value!r} here: they must agree"
            )
    changed = {k: value for k, value in given.items() if value not in (None, []) and _may_change(k, value, stored)}
    place = {"results_dir": str(run_dir.parent), "name": run_dir.name}
    return dataclasses.replace(stored, **(changed | place))


def _run_dir(flags: argparse.Namespace) -> Path:
    """The folder of the run that flags describe; the network that it started from may be gone if it has a name."""
    config = config_from_flags(flags)
    return config.run_dir if config.name else _new_config(flags).run_dir


@contextlib.contextmanager
def open_run_dir(config: Config, accelerator: Accelerator, resume: bool) -> Iterator[None]:
    """Keep the run's folder, with its `config.yaml`, from other runs; of several processes the first one does."""
    if not accelerator.is_main_process:
        yield
        return
    with lock_folder(config.run_dir):
        require_new(config.run_dir, resume)
        write_atomically(config.run_dir / "config.yaml", lambda file: file.write_text(config.to_yaml()))
        yield


def remove_what_only_continuing_needs(config: Config) -> None:
    """At the end of a run, whose results read `best.safetensors` alone; `keep_last` keeps what more epochs need."""
    (config.run_dir / "previous.safetensors").unlink(missing_ok=True)
    if not config.keep_last:
        (config.run_dir / "last.safetensors").unlink(missing_ok=True)


def require_new(run_dir: Path, resume: bool) -> None:
    """Refuse a folder that holds anything, unless it is resumed; a run killed at its very start leaves it empty."""
    if not resume and run_dir.exists() and any(not file.name.startswith(".") for file in run_dir.iterdir()):
        raise UserError(f"{run_dir} exists: continue it with --resume, or give a new --name")


@contextlib.contextmanager
def saying_how_to_go_on(config: Config, command: str) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end a run with the command that continues it, once there is something to continue."""
    try:
        with StopSignals() as stop, stop.at_once():  # training has its own, which save first
            yield
    except Stopped as stopped:
        there = (config.run_dir / "config.yaml").is_file()
        go_on = f"; go on with: {command} --resume {config.run_dir}" if there else ""
        raise Stopped(f"{stopped}{go_on}", stopped.signal) from None
