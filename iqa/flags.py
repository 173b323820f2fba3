"""The command line of a run: a flag for every setting, in the groups of `--help`, and what was given as a Config."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Any

from iqa.choices import MODEL_SIZES
from iqa.config import (
    ALIASES,
    ATTENTION,
    FIELDS,
    GROUPS,
    Config,
    load_yaml,
    plain_type,
    resolve,
    resolve_paths,
    shipped_config,
)
from iqa.errors import UserError


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser `--config` and, in their groups, a flag for every setting, absent unless given."""
    help = "settings that differ from the defaults: a file, or the name of one in configs/"
    parser.add_argument("--config", metavar="FILE.yaml", help=help)
    groups = {title: parser.add_argument_group(title) for title in GROUPS.values()}
    title = ""
    for name in FIELDS:
        title = GROUPS.get(name, title)
        _add_flag(groups[title], name)
    _add_alias_flags(groups["network"])
    groups["data"].add_argument(
        "--test_random_crop", action="store_true", default=argparse.SUPPRESS, help="short for --test_mode random"
    )


def _add_flag(group: argparse._ArgumentGroup, name: str) -> None:
    setting, (kind, _) = FIELDS[name], plain_type(name)
    default = "" if setting.default in (None, dataclasses.MISSING) else f" [{setting.default}]"
    options: dict[str, Any] = {
        "default": argparse.SUPPRESS,
        "help": (setting.metadata["help"] + default).replace("%", "%%"),
    }
    if kind is bool:
        either = group.add_mutually_exclusive_group()
        either.add_argument(f"--{name}", action="store_true", **options)
        either.add_argument(f"--no_{name}", dest=name, action="store_false", default=argparse.SUPPRESS)
        return
    if typing.get_origin(kind) is list:
        options |= {"nargs": "*", "type": typing.get_args(kind)[0]}
    else:
        options |= {"type": kind} | ({"choices": setting.metadata["choices"]} if setting.metadata["choices"] else {})
        options |= {"nargs": "+"} if name in ("dataset", "data_root") else {}
        options |= {"action": "append"} if name == "data_path" else {}
    group.add_argument(f"--{name}", metavar=None if options.get("choices") else name.upper(), **options)


def _add_alias_flags(group: argparse._ArgumentGroup) -> None:
    absent = {"default": argparse.SUPPRESS}
    group.add_argument("--model_size", choices=MODEL_SIZES, help="short for --backbone (Swin)", **absent)
    group.add_argument(
        "--attention_fusion",
        nargs="?",
        const="channel",
        choices=ATTENTION,
        help="short for --fusion",
        **absent,
    )
    stages = group.add_mutually_exclusive_group()
    stages.add_argument("--use_multiscale", action="store_true", help="join all four stages", **absent)
    stages.add_argument("--no_multiscale", dest="use_multiscale", action="store_false", help="stage 3 only", **absent)


def config_from_flags(flags: argparse.Namespace) -> Config:
    """The Config of parsed flags and of the `--config` file they name."""
    given = given_settings(flags)
    if flags.config is None:
        return resolve(given)
    file = shipped_config(flags.config)
    from_file = load_yaml(file)
    try:
        resolve(from_file)
    except UserError as error:
        raise UserError(f"config file {file}: {error}") from error
    return resolve(from_file, given)


def given_settings(flags: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags."""
    return resolve_paths({key: value for key, value in vars(flags).items() if key in FIELDS or key in ALIASES})
